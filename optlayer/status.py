# SPDX-License-Identifier: Apache-2.0
"""How the solve of one batch element ended."""

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .errors import ProblemError


class Status(IntEnum):
    """How the solve of one batch element ended; the names are Clarabel's where Clarabel has one.

    ``Solution.status`` holds one of these integers per batch element.  Each member says what happened (``diagnosis``)
    and what may help (``advice``).  Every member but ``SOLVED`` counts as failed.

    Example:
        >>> from optlayer import Status
        >>> Status(5).name
        'MAX_ITERATIONS'
        >>> print(Status.MAX_ITERATIONS.advice)
        Raise max_iter, or ask for less accuracy with eps_abs and eps_rel.
    """

    diagnosis: str
    advice: str

    def __new__(cls, value: int, diagnosis: str = "", advice: str = "") -> "Status":
        member = int.__new__(cls, value)
        member._value_ = value
        member.diagnosis = diagnosis
        member.advice = advice
        return member

    # Compared as the integer it is.  IntEnum inherits the same, but Dynamo (torch 2.13) takes `tensor == Status.SOLVED`
    # for False at once unless the comparison is spelt out in Python.
    def __eq__(self, other: object) -> bool:
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        return int(self) != other

    def __hash__(self) -> int:
        return hash(int(self))

    UNSOLVED = (
        0,
        "The solve has not finished.",
        "No finished solve returns this status; please report how you met it.",
    )
    SOLVED = (
        1,
        "The optimality conditions hold to the accuracy that was asked for.",
        "Nothing needs to be done.",
    )
    PRIMAL_INFEASIBLE = (
        2,
        "No point satisfies the constraints; the certificate (y, z, z_box) proves it, or lb > ub.",
        "Relax the constraints with the largest multipliers in the certificate, or soften them with slack variables.",
    )
    DUAL_INFEASIBLE = (
        3,
        "The objective falls without limit along the certificate x, a direction that every constraint permits.",
        "Bound the variables that are large in the certificate, or add curvature to P along it.",
    )
    ALMOST_SOLVED = (
        4,
        "The best iterate comes close to the accuracy that was asked for, but does not reach it.",
        'Take it with on_failure="ignore" if its residuals suffice, or ask for less accuracy with eps_abs and eps_rel.',
    )
    MAX_ITERATIONS = (
        5,
        "The iteration limit was reached.",
        "Raise max_iter, or ask for less accuracy with eps_abs and eps_rel.",
    )
    NUMERICAL_ERROR = (
        6,
        "Rounding errors spoiled the KKT system and no factorisation could be trusted.",
        "Solve in float64, bring the data to comparable magnitudes, or remove nearly dependent constraints.",
    )
    INSUFFICIENT_PROGRESS = (
        7,
        "The iterates stopped improving before the accuracy that was asked for was reached.",
        "Ask for less accuracy, solve in float64, or check whether the problem is barely feasible or badly scaled.",
    )
    NON_CONVEX = (
        8,
        "The symmetric part of P has a negative eigenvalue, so the problem is not convex.",
        "Parametrise P as L L' + eps I, or add a multiple of the identity to it.",
    )
    INVALID_DATA = (
        9,
        "The data hold a NaN, an infinity or another value that is not allowed where it stands.",
        "Check the inputs for NaN; of infinities only h = +inf, lb = -inf and ub = +inf are allowed; an entropy or a "
        "temperature, where there is one, must be positive and finite.",
    )


ITERATES = (
    Status.SOLVED,
    Status.ALMOST_SOLVED,
    Status.MAX_ITERATIONS,
    Status.INSUFFICIENT_PROGRESS,
    Status.NUMERICAL_ERROR,
)
"""Whose iterate approaches a solution, so that its residuals say how closely."""


def count(status: Tensor, what: str = "solved") -> str:
    """How many elements are solved, where that can be told at once."""
    if not readable(status):
        return ""
    return f"{int((status == Status.SOLVED).sum())} of {status.numel()} {what}, "


def readable(t: Tensor) -> bool:
    """Whether values can be told at once: of plain tensors on the CPU, outside of tracing."""
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return type(t) is Tensor and t.device.type == "cpu" and not traced


def names(status: Tensor) -> Any:
    """The names of the statuses, in lists nested as the tensor is."""
    if status.device.type == "meta":
        raise ProblemError(
            "the problem is on the device meta, where tensors hold no values: expected one that was solved"
        )
    return _names(status.tolist())


def _names(status: Any) -> Any:
    return [_names(s) for s in status] if isinstance(status, list) else Status(status).name
