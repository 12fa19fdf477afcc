# SPDX-License-Identifier: Apache-2.0
"""The solution of a batch of quadratic programs: a record that can judge and differentiate itself."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import ProblemError
from .problem import CORES, Problem, broadcast, kind
from .residuals import Residuals, residuals
from .settings import Settings
from .status import Status, count, names

OUTPUTS = ("x", "y", "z", "z_box", "s")


class Point(NamedTuple):
    """A vector of the KKT system: one part per block of unknowns.

    Attributes:
        x: (*batch, n), with the variables.
        y: (*batch, p), with the rows of A.
        z: (*batch, m), with the rows of G.
        z_box: (*batch, n), with the bounds.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    z_box: Tensor


class Factorisation(NamedTuple):
    """The KKT system at the solution as the engine keeps it, (*batch, ...) each; only the engine reads it."""

    lower_share: Tensor
    state: Tensor
    factor: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's method otherwise


class Rule(NamedTuple):
    """The derivative rule, handed over by the room that knows it.

    Attributes:
        linear: (solution, r) -> u with K u = r.
        adjoint: (solution, output, cotangent, parameter) -> the cotangent of one tensor of the problem for that of one
            output, element by element of the batch; further leading dimensions are further cotangents.
    """

    linear: Callable[["Solution", Point], Point]
    adjoint: Callable[["Solution", str, Tensor, str], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """The solution of a batch of quadratic programs, :func:`optlayer.solve_qp`.

        minimise  1/2 x'Px + q'x    subject to   Gx <= h,   Ax = b,   lb <= x <= ub

    The first five attributes are differentiable with respect to every tensor of the problem.  Elements that failed hold
    NaN there unless ``on_failure="ignore"``.  The record is immutable, a pytree, and may be made inside
    ``torch.compile`` and ``torch.func.vmap``.  ``solution[i]``, ``solution[:10]`` and ``solution[mask]`` are solutions
    too, those of some elements of the batch.

    Attributes:
        x: (*batch, n), the minimiser.
        y: (*batch, p), multipliers of Ax = b, of either sign.
        z: (*batch, m), multipliers of Gx <= h, >= 0.
        z_box: (*batch, n), multipliers of the bounds: < 0 at an active lower bound, > 0 at an active upper one, and 0
            where there is none.  Stationarity is Px + q + A'y + G'z + z_box = 0.
        s: (*batch, m), the slack h - Gx, >= 0 to the accuracy asked for; +inf where h is.
        status: (*batch) int64, a :class:`optlayer.Status` each.
        iterations: (*batch) int64, interior point iterations.
        weakly_active: (*batch) int64, how many rows and bounds are active with a multiplier of zero.  Where there are
            any, the solution has one-sided derivatives only; the ones returned lie between these.
        ray: (*batch, n + p + m + n), the four parts of :attr:`certificate` in a row.
        problem: the problem that was solved.
        settings: the settings that it was solved with.
        factorisation: the KKT system as the engine keeps it, for :attr:`kkt`.
        rule: the derivative rule, for :attr:`kkt` and :meth:`jacobian`.
        log_x: (*batch, n), differentiable: with an entropy, the logarithm of x, finite where x underflows; else
            ``None``.

    With an entropy tau the objective has sum_i tau_i x_i log x_i besides, and stationarity reads
    Px + q + tau (log x + 1) + A'y + G'z + z_box = 0.  As x >= 0 is implied, lower bounds below zero count as zero, in
    the certificates too.  A cap of zero has z_box = +inf and log x = -inf.  A row that forces variables to zero, as
    sum x <= 0 does, makes them such: they have no gradient, and the row has the multiplier zero.

    Example:
        >>> import torch
        >>> from optlayer import solve_qp
        >>> q = torch.tensor([-1.0, -3.0], dtype=torch.float64)
        >>> solution = solve_qp(torch.eye(2, dtype=torch.float64), q, lb=0, ub=2)
        >>> solution
        Solution(1 of 1 solved, batch=(), n=2, m=0, p=0, dtype=torch.float64, device=cpu)
        >>> solution.x.round(decimals=6).tolist(), solution.z_box.round(decimals=6).tolist()
        ([1.0, 2.0], [0.0, 1.0])
        >>> bool(solution.solved), bool(solution.is_optimal(1e-9, 0.0))
        (True, True)
        >>> solution.jacobian("x", "ub").round(decimals=6).tolist()
        [[0.0, 0.0], [0.0, 1.0]]
    """

    x: Tensor
    y: Tensor
    z: Tensor
    z_box: Tensor
    s: Tensor
    status: Tensor
    iterations: Tensor
    weakly_active: Tensor
    ray: Tensor
    problem: Problem
    settings: Settings
    factorisation: Factorisation
    rule: Rule
    log_x: Tensor | None = None

    @property
    def certificate(self) -> Point:
        """Proof for the elements that are infeasible, 0 elsewhere.

        PRIMAL_INFEASIBLE: z >= 0 and A'y + G'z + z_box = 0 with b'y + h'z + lb'z_box^- + ub'z_box^+ = -1; 0 where
        lb > ub, which is proof enough.  DUAL_INFEASIBLE: a direction x with Px = 0, Ax = 0, Gx <= 0 and q'x = -1 along
        which no bound is met.
        """
        sizes = [t.shape[-1] for t in (self.x, self.y, self.z, self.z_box)]
        return Point(*self.ray.split(sizes, -1))

    @property
    def solved(self) -> Tensor:
        """(*batch) bool: whether each element is solved to the accuracy that was asked for."""
        return self.status == Status.SOLVED

    def status_names(self) -> Any:
        """The names of ``status``, such as "SOLVED", in lists nested as the batch is; waits for the device.

        Example:
            >>> import torch
            >>> from optlayer import solve_qp
            >>> bounds = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
            >>> solve_qp(None, torch.ones(2, 1, dtype=torch.float64), lb=bounds, ub=1.0).status_names()
            ['SOLVED', 'PRIMAL_INFEASIBLE']
        """
        return names(self.status)

    @property
    def objective(self) -> Tensor:
        """(*batch): 1/2 x'Px + q'x, and tau'(x log x) with an entropy tau."""
        return self.residuals().objective.to(self.x.dtype)

    def residuals(self) -> Residuals:
        """All residuals, their scales and both objectives, recomputed from the problem as given; (*batch) each.

        The arithmetic is float64 whatever the dtype of the solution and whether autocast is on or not, so that the
        numbers tell of the solution and not of their own rounding.  See :func:`optlayer.residuals.residuals`.
        """
        point = (self.x.double(), self.y.double(), self.z.double(), self.z_box.double())
        problem = self.problem.to(torch.float64)
        return residuals(*problem.tensors, *point, problem.entropy, torch.finfo(self.x.dtype).tiny)

    def primal_residual(self) -> Tensor:
        """(*batch) float64: max(|Ax - b|, (Gx - h)+, (lb - x)+, (x - ub)+), in the infinity norm."""
        return self.residuals().primal

    def dual_residual(self) -> Tensor:
        """(*batch) float64: |Px + q + A'y + G'z + z_box|, or a multiplier's wrong sign where that is larger."""
        return self.residuals().dual

    def duality_gap(self) -> Tensor:
        """(*batch) float64: |x'Px + q'x + b'y + h'z + lb'z_box^- + ub'z_box^+|."""
        return self.residuals().gap

    def is_optimal(self, eps_abs: float | None = None, eps_rel: float | None = None) -> Tensor:
        """(*batch) bool: whether the three residuals are at most eps_abs + eps_rel * scale; by default the settings'.

        This is recomputed from the problem and independent of ``status``.
        """
        return self.residuals().within(*self.tolerances(eps_abs, eps_rel))

    def tolerances(self, eps_abs: float | None = None, eps_rel: float | None = None) -> tuple[float, float]:
        """(eps_abs, eps_rel), those of the settings in place of ``None``."""
        settings = self.settings.resolve(self.x.dtype)
        eps_abs = settings.eps_abs if eps_abs is None else eps_abs
        eps_rel = settings.eps_rel if eps_rel is None else eps_rel
        return eps_abs, eps_rel  # type: ignore[return-value]  # resolved: not None

    @property
    def kkt(self) -> "KKT":
        """The KKT matrix at the solution, factorised."""
        return KKT(self)

    def jacobian(self, output: str, parameter: str) -> Tensor:
        """The Jacobian of one output with respect to one tensor of the problem, element by element of the batch.

        Args:
            output: "x", "y", "z", "z_box" or "s".
            parameter: "P", "q", "G", "h", "A", "b", "lb", "ub" or "entropy", one that was given.

        Returns:
            (*batch, size of the output, *shape of the parameter without its batch): entry (i, j) is the derivative of
            output i with respect to parameter entry j; for P that of its symmetric part.  A parameter that the batch
            shares has a Jacobian per element; its gradient is their sum.  NaN for failed elements.

        Raises:
            ValueError: no output or no given tensor of that name.
        """
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}, expected one of {', '.join(OUTPUTS)}")
        given = [name for name in CORES if getattr(self.problem, name) is not None]
        if parameter not in given:
            raise ValueError(f"parameter is {parameter!r}, expected one of those given: {', '.join(given)}")
        value: Tensor = getattr(self, output)
        tensor: Tensor = getattr(self.problem, parameter)
        size, rank = value.shape[-1], value.ndim - 1
        if size == 0:
            return value.new_zeros(*value.shape, *tensor.shape[tensor.ndim - CORES[parameter] :])
        unit = torch.eye(size, dtype=value.dtype, device=value.device)
        unit = unit.reshape(size, *(1,) * rank, size).expand(size, *value.shape)
        return self.rule.adjoint(self, output, unit, parameter).movedim(0, rank)

    def __getitem__(self, index: Any) -> "Solution":
        """The solutions of some elements, all that belongs to them with it: their data, certificates, factors.

        Args:
            index: what a tensor of shape (*batch) may be indexed with: a number, a slice, a mask, a list or tensor of
                numbers, ``None`` or ``...``, or a tuple of these for several dimensions.

        Returns:
            A :class:`Solution`, as differentiable as this one.  Numbers and slices copy nothing; data that the batch
            shares without a batch dimension are not copied at all.

        Raises:
            ProblemError: there are no batch dimensions.
            IndexError: a number out of range, more indices than batch dimensions, or nothing that a tensor takes.

        Example:
            >>> import torch
            >>> from optlayer import solve_qp
            >>> ub = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
            >>> solution = solve_qp(None, -torch.ones(1, dtype=torch.float64), lb=0.0, ub=ub)
            >>> solution[1].x.tolist(), solution[1].jacobian("x", "ub").tolist()
            ([2.0], [[1.0]])
            >>> solution[solution.solved]
            Solution(2 of 2 solved, batch=(2,), n=1, m=0, p=0, dtype=torch.float64, device=cpu)
        """
        batch = self.status.shape
        if not batch:
            raise ProblemError("the solution has no batch dimensions, expected at least one to index")
        index = index if isinstance(index, tuple) else (index,)
        try:
            self.status[index]  # an error where the index would reach beyond the batch dimensions
        except (IndexError, TypeError, ValueError) as error:
            raise IndexError(f"no such elements of the batch {tuple(batch)}: {error}") from None
        spread = any(i is Ellipsis for i in index)

        def taken(t: Tensor, core: int) -> Tensor:
            return t[(*index, *(slice(None),) * core)] if spread else t[index]

        def part(value: Any) -> Any:
            return taken(value, value.ndim - len(batch))

        def given(name: str, core: int) -> Any:
            t = getattr(self.problem, name)
            if t is None or t.ndim == core:
                return t
            return taken(t.expand(*batch, *t.shape[t.ndim - core :]), core)

        parts = {name: part(getattr(self, name)) for name in PARTS if name not in ("problem", "factorisation")}
        return replace(
            self,
            **parts,
            problem=Problem(**{name: given(name, core) for name, core in CORES.items()}),
            factorisation=Factorisation(*map(part, self.factorisation)),
            log_x=None if self.log_x is None else part(self.log_x),
        )

    def __repr__(self) -> str:
        sizes = f"batch={tuple(self.status.shape)}, n={self.problem.n}, m={self.problem.m}, p={self.problem.p}"
        return f"Solution({count(self.status)}{sizes}, dtype={self.x.dtype}, device={self.x.device})"


@dataclass(frozen=True, eq=False, repr=False)
class KKT:
    """The symmetric matrix of every linear solve at a solution, factorised:

        K = [ P  A'  G'   I     ;
              A  0   0    0     ;
              G  0  -D    0     ;
              I  0   0   -D_box ]

    over the active rows and bounds, with D = 0, or D = s/z > 0 where a row is weakly active.  With an entropy tau it
    holds P + diag(tau / x) in place of P.  It is the derivative of the optimality conditions, so K^-1 gives every
    tangent and cotangent of the solution.
    """

    solution: Solution

    def solve(
        self,
        r_x: Tensor | None = None,
        r_y: Tensor | None = None,
        r_z: Tensor | None = None,
        r_box: Tensor | None = None,
    ) -> Point:
        """u = K^-1 r, for the price of two triangular solves; a part of r that is ``None`` is zero.

        Args:
            r_x, r_y, r_z, r_box: (*batch, n), (*batch, p), (*batch, m), (*batch, n), of the dtype and on the device of
                x.  Batch dimensions broadcast; further leading dimensions are further right-hand sides.

        Returns:
            A :class:`Point`; 0 on inactive rows and bounds, whatever r is there; NaN for failed elements unless r is
            zero.

        Raises:
            ProblemError: a wrong type, dtype, device or shape.
        """
        solution = self.solution
        _check_right_hand_sides({"r_x": r_x, "r_y": r_y, "r_z": r_z, "r_box": r_box}, solution)
        parts = zip((r_x, r_y, r_z, r_box), (solution.x, solution.y, solution.z, solution.z_box), strict=True)
        return solution.rule.linear(solution, Point(*(torch.zeros_like(w) if r is None else r for r, w in parts)))

    def __repr__(self) -> str:
        problem = self.solution.problem
        return f"KKT(batch={tuple(self.solution.status.shape)}, n={problem.n}, m={problem.m}, p={problem.p})"


def _check_right_hand_sides(named: dict[str, Any], solution: Solution) -> None:
    dtype, device, batch = solution.x.dtype, solution.x.device, solution.x.shape[:-1]
    leads = {}
    for (name, r), w in zip(named.items(), (solution.x, solution.y, solution.z, solution.z_box), strict=True):
        if r is None:
            continue
        if not isinstance(r, Tensor):
            raise ProblemError(f"{name} is {kind(r)}, expected a torch.Tensor or None")
        if r.dtype is not dtype or r.device != device:
            raise ProblemError(f"{name} is {r.dtype} on {r.device}, expected {dtype} on {device} as x")
        if r.ndim == 0 or r.shape[-1] != w.shape[-1]:
            raise ProblemError(f"{name} has shape {tuple(r.shape)}, expected (*batch, {w.shape[-1]})")
        leads[name] = r.shape[:-1]
    try:
        broadcast(batch, *leads.values())
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(lead)}" for name, lead in leads.items())
        raise ProblemError(
            f"leading dimensions are {found}, expected such as broadcast with each other and the batch {tuple(batch)}"
        ) from None


def _flatten(solution: Solution) -> tuple[list[Any], tuple[Settings, Rule]]:
    parts = [getattr(solution, name) for name in PARTS]
    return parts if solution.log_x is None else [*parts, solution.log_x], (solution.settings, solution.rule)


def _unflatten(parts: Iterable[Any], fixed: tuple[Settings, Rule]) -> Solution:
    named = dict(zip((*PARTS, "log_x"), parts, strict=False))  # the last is there with an entropy only
    return Solution(**named, settings=fixed[0], rule=fixed[1])


PARTS = (
    "x",
    "y",
    "z",
    "z_box",
    "s",
    "status",
    "iterations",
    "weakly_active",
    "ray",
    "problem",
    "factorisation",
)
pytree.register_pytree_node(Solution, _flatten, _unflatten, serialized_type_name="optlayer.Solution")
