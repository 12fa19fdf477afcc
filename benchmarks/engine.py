# SPDX-License-Identifier: Apache-2.0
"""The library as the referee meets it: problems in numpy in, answers in numpy out, every claim verified."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import optlayer
from benchmarks.referee import Array, Problem, Verdict, farkas, judge, ray
from optlayer import Status

CERTIFICATE = 1e-8
"""A certificate counts when it is exact to this, in the units of the problem, normalised to a value of -1."""


@dataclass(frozen=True)
class Answer:
    """What the library says of one problem."""

    status: Status
    iterations: int
    x: Array
    y: Array
    z: Array
    z_box: Array
    certificate: tuple[Array, Array, Array, Array]
    seconds: float = float("nan")

    def verdict(self, problem: Problem) -> Verdict:
        """The referee's residuals of the point and its multipliers."""
        return judge(problem, self.x, self.y, self.z, self.z_box)

    def proof(self, problem: Problem) -> float:
        """How exact the certificate is by the referee; inf where the status claims none."""
        x, y, z, z_box = self.certificate
        if self.status == Status.PRIMAL_INFEASIBLE:
            return farkas(problem, y, z, z_box)
        return ray(problem, x) if self.status == Status.DUAL_INFEASIBLE else float("inf")

    def wrong(self, problem: Problem, absolute: float = 1e-9, relative: float = 1e-9) -> str:
        """Why what the status claims is untrue, or "" where it is true or claims nothing.

        The recomputed residuals may pass the tolerance by a thousandth: they sum the same terms in another order.
        """
        if self.status == Status.SOLVED:
            verdict = self.verdict(problem)
            return "" if verdict.meets(1.001 * absolute, 1.001 * relative) else f"called solved, but {verdict}"
        if self.status in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE) and self.proof(problem) > CERTIFICATE:
            return f"{self.status.name}, but its certificate is exact to {self.proof(problem):.1e} only"
        return "called unsolved" if self.status == Status.UNSOLVED else ""


def arguments(problems: Sequence[Problem], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor | None]:
    """The arguments of solve_qp for problems of one shape, stacked; for a single problem no batch dimension.

    A block that some of them lack (a P, bounds) is zero or infinite for these.
    """
    blocks = [p.blocks for p in problems]
    stacked: dict[str, torch.Tensor | None] = {}
    for name in blocks[0]:
        if all(b[name] is None for b in blocks):
            stacked[name] = None
        else:
            values = np.stack([getattr(p, name) for p in problems])
            stacked[name] = torch.tensor(values if len(problems) > 1 else values[0], dtype=dtype)
    return stacked


def solve_all(problems: Sequence[Problem], dtype: torch.dtype = torch.float64, **settings: Any) -> list[Answer]:
    """The answers to problems of one shape, solved in one call. Failed elements keep their best iterate."""
    tensors = arguments(problems, dtype)
    P, q = tensors.pop("P"), tensors.pop("q")
    start = time.perf_counter()
    found = optlayer.solve_qp(P, q, **tensors, **{"on_failure": "ignore", **settings})
    seconds = time.perf_counter() - start
    points = [found.x, found.y, found.z, found.z_box]
    proofs = [found.certificate.x, found.certificate.y, found.certificate.z, found.certificate.z_box]
    batch = len(problems)
    arrays = [v.detach().double().reshape(batch, v.shape[-1]).numpy() for v in points + proofs]
    status, iterations = found.status.reshape(batch).tolist(), found.iterations.reshape(batch).tolist()
    return [
        Answer(Status(status[i]), iterations[i], *(v[i] for v in arrays[:4]), tuple(v[i] for v in arrays[4:]), seconds)  # type: ignore[arg-type]
        for i in range(batch)
    ]


def solve(problem: Problem, dtype: torch.dtype = torch.float64, **settings: Any) -> Answer:
    """The answer to one problem."""
    return solve_all([problem], dtype, **settings)[0]
