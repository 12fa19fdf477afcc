# SPDX-License-Identifier: Apache-2.0
"""What a solve returns, what a derivative reports, and how either is asked to work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import SettingsError, SolverError, warn
from ..settings import DEFAULT_EPS, ON_FAILURE, Settings
from ..status import Status, count, names
from .diagnosis import words

Choice = TypeVar("Choice")

DIRECT = ("lu", "cholesky", "svd")
ITERATIVE = ("cg", "normal_cg", "gmres", "bicgstab", "lsmr")
METHODS = ("auto", *DIRECT, *ITERATIVE)
PSEUDO = ("svd", "normal_cg", "lsmr")  # these give the least squares solution of least norm


@dataclass(frozen=True)
class LinearSettings:
    """How to solve linear systems: those of :func:`linear_solve`, and those behind every derivative.

    Attributes:
        method: ``"auto"`` or one of

            - ``"lu"``, ``"cholesky"`` (symmetric positive definite), ``"svd"`` (least squares of least norm, any
              rank): the matrix is formed and factorised;
            - ``"gmres"``, ``"bicgstab"``, ``"cg"`` (symmetric positive definite): products with the matrix alone;
            - ``"lsmr"``, ``"normal_cg"``: products with it and its transpose, least squares of least norm.
        eps_rel: an iterative solve stops when |b - Ax| <= eps_rel |b| (``"lsmr"`` and ``"normal_cg"``: also when
            |A'(b - Ax)| <= eps_rel |A| |b - Ax|), and has converged if the residual, computed anew from the result, is
            at most ten times that; ``None``: 1e-9 for float64, 1e-5 for float32.
        max_iter: limit on the iterations of an iterative solve; ``None``: 10 n, at least 100.
        on_failure: what to do about elements that are not solved: ``"nan"`` (fill them with NaN), ``"raise"``,
            ``"warn"`` (NaN, and a warning) or ``"ignore"`` (return the best iterate).

    Raises:
        SettingsError: a value is out of its range.

    Example:
        >>> from optlayer.implicit import LinearSettings
        >>> LinearSettings(method="gmres", eps_rel=1e-12).max_iter is None
        True
    """

    method: str = "auto"
    eps_rel: float | None = None
    max_iter: int | None = None
    on_failure: str = "nan"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SettingsError(f"method is {self.method!r}, expected one of {', '.join(map(repr, METHODS))}")
        if self.eps_rel is not None:
            check_eps("eps_rel", self.eps_rel)
        if self.max_iter is not None:
            check_max_iter(self.max_iter)
        check_on_failure(self.on_failure)

    def accuracy(self, dtype: torch.dtype) -> float:
        """eps_rel, or what ``None`` stands for."""
        return DEFAULT_EPS[dtype] if self.eps_rel is None else self.eps_rel

    def limit(self, n: int) -> int:
        """max_iter, or what ``None`` stands for with n unknowns."""
        return max(100, 10 * n) if self.max_iter is None else self.max_iter


@dataclass(eq=False, repr=False)
class Report:
    """How the last linear solve behind a derivative went; it fills when a derivative is taken.

    Attributes:
        method: the method that was used; ``None`` before the first derivative.
        status: (*batch) int64, an :class:`optlayer.Status` for each system; further leading dimensions are further
            right-hand sides.
        iterations: (*batch) int64, 0 for factorisations.
        residual: (*batch), |b - Ax| / |b|.
    """

    method: str | None = None
    status: Tensor | None = None
    iterations: Tensor | None = None
    residual: Tensor | None = None

    @property
    def converged(self) -> Tensor | None:
        """(*batch) bool: whether each system was solved."""
        return None if self.status is None else self.status == Status.SOLVED

    def __repr__(self) -> str:
        converged = "" if self.status is None else count(self.status, "converged")
        return f"Report({converged}method={self.method!r})"


@dataclass(frozen=True, eq=False, repr=False)
class ImplicitSolution:
    """A point that solves a batch of equations, differentiable in their parameters.

    The record is immutable and a pytree, and may be made inside ``torch.func.vmap``.

    Attributes:
        value: (*batch, ...), the solution; NaN where it was not found, unless ``on_failure="ignore"``.  The derivative
            of an element that was not found is NaN in any case, for a point that solves nothing has none.
        status: (*batch) int64, an :class:`optlayer.Status` each; ``on_failure="warn"`` or ``"raise"`` puts the first
            failed one in words.
        iterations: (*batch) int64.
        residual: (*batch), what is left of the equations, in the measure of the solver that was called.
        report: how the linear solves of its derivatives went.
    """

    value: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
    report: Report

    @property
    def converged(self) -> Tensor:
        """(*batch) bool: whether each element is solved to the accuracy that was asked for."""
        return self.status == Status.SOLVED

    def status_names(self) -> Any:
        """The names of ``status``, such as "SOLVED", in lists nested as the batch is; waits for the device.

        Example:
            >>> import torch
            >>> from optlayer.implicit import root
            >>> theta = torch.tensor([4.0, -1.0], dtype=torch.float64)
            >>> solution = root(lambda z, theta: z.square() - theta, torch.ones_like(theta), theta, batch_dims=1)
            >>> solution
            ImplicitSolution(1 of 2 converged, value=(2,), batch=(2,), dtype=torch.float64, device=cpu)
            >>> solution.status_names()
            ['SOLVED', 'INSUFFICIENT_PROGRESS']
        """
        return names(self.status)

    def __repr__(self) -> str:
        return (
            f"ImplicitSolution({count(self.status, 'converged')}value={tuple(self.value.shape)}, "
            f"batch={tuple(self.status.shape)}, dtype={self.value.dtype}, device={self.value.device})"
        )


FIELDS = ("value", "status", "iterations", "residual")


def _flatten(solution: ImplicitSolution) -> tuple[list[Any], Report]:
    return [getattr(solution, name) for name in FIELDS], solution.report


def _unflatten(parts: Iterable[Any], report: Report) -> ImplicitSolution:
    value, status, iterations, residual = parts
    return ImplicitSolution(value, status, iterations, residual, report)


pytree.register_pytree_node(
    ImplicitSolution, _flatten, _unflatten, serialized_type_name="optlayer.implicit.ImplicitSolution"
)


def linear_settings(linsolve: Any) -> LinearSettings:
    """The settings that a `linsolve` argument stands for, a method's name or the settings themselves."""
    if isinstance(linsolve, LinearSettings):
        return linsolve
    if isinstance(linsolve, str):
        return LinearSettings(linsolve)
    raise SettingsError(f"linsolve is {linsolve!r}, expected a method's name or optlayer.implicit.LinearSettings")


@dataclass(frozen=True)
class Stop:
    """When an iteration ends."""

    eps_abs: float
    eps_rel: float
    max_iter: int

    def tolerance(self, scale: Tensor) -> Tensor:
        """What a residual of terms of this size may be."""
        return self.eps_abs + self.eps_rel * scale


def stopping(dtype: torch.dtype, eps_abs: Any, eps_rel: Any, max_iter: Any, on_failure: Any) -> Stop:
    """When to stop, checked and with all defaults in place."""
    settings = Settings(eps_abs=eps_abs, eps_rel=eps_rel, max_iter=max_iter, on_failure=on_failure).resolve(dtype)
    return Stop(settings.eps_abs, settings.eps_rel, settings.max_iter)  # type: ignore[arg-type]  # resolved: not None


def choose(method: str, methods: Mapping[str, Choice]) -> Choice:
    """The method of that name."""
    if method not in methods:
        raise SettingsError(f"method is {method!r}, expected one of {', '.join(map(repr, methods))}")
    return methods[method]


def concrete(settings: LinearSettings, auto: str) -> LinearSettings:
    """The settings with a method in place of "auto"."""
    return replace(settings, method=auto) if settings.method == "auto" else settings


def announce(status: Tensor, on_failure: str, what: str) -> None:
    """Raise or warn if an element is not solved, when that was asked for."""
    if on_failure not in ("raise", "warn"):
        return
    failed = (status != Status.SOLVED).reshape(-1).nonzero().squeeze(-1)
    if failed.numel() == 0:
        return
    first = int(failed[0])
    verdict = Status(int(status.reshape(-1)[first]))
    diagnosis, advice = words(what, verdict)
    message = (
        f"{what} failed for {failed.numel()} of {status.numel()} elements; the first is element {first}: "
        f"{verdict.name}. {diagnosis} {advice}"
    )
    if on_failure == "raise":
        raise SolverError(message)
    warn(message)


def check_eps(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise SettingsError(f"{name} is {value!r}, expected None or a finite number >= 0")


def check_max_iter(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"max_iter is {value!r}, expected an integer >= 1")


def check_on_failure(value: Any) -> None:
    if value not in ON_FAILURE:
        raise SettingsError(f"on_failure is {value!r}, expected one of {', '.join(map(repr, ON_FAILURE))}")
