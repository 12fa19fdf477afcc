# SPDX-License-Identifier: Apache-2.0
"""Newton's and Broyden's method for F(z) = 0, with a line search on |F|.

    newton    step = -J^-1 F, with J = dF/dz at every iterate
    broyden   step = -H F,  H = J^-1 at the start, then the least change that maps dF to dz:
              H + (dz - H dF) dz'H / (dz'H dF)

The residual is |F| in the infinity norm.  It is small enough when it is below eps_abs + eps_rel s, where s is the size
of the terms that F is made of.  Newton knows it, s = max_i sum_j |J_ij| |z_j| (|J z| where J is known by its products
only): below eps_rel s the residual is that of a z with all entries off by eps_rel.  Broyden learns s from its
last step, |dF| |z| / |dz|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..status import Status
from .derivative import LARGEST, Equation
from .factor import Factor, factorise, solve
from .iteration import SUFFICIENT, Run, State, backtrack, size, sound
from .jacobian import adjoint_product, jacobian, transpose
from .krylov import divide, dot, norm
from .solution import DIRECT, LinearSettings, Report, Stop, concrete
from .system import MatrixFree

FORCING = 1e-4  # residual of the linear systems of a step that are solved iteratively
DAMPING = 1e-10  # where J is singular, of |J|^2
SHORTEST = 8  # halvings of a step; |F| has a local minimum, not a root, where even these do not help
LEAPS = 30  # times that an element may leave such a minimum by a whole step
MEMORY = 50  # updates that Broyden's method keeps

Result = tuple[Tensor, Tensor, Tensor, Tensor]


def newton(stop: Stop, linsolve: LinearSettings, equation: Equation, z: Tensor, tensors: Sequence[Tensor]) -> Result:
    """Newton's method; an element that has converged takes one step more if that helps, for it is at hand.

    Where no part of a step makes |F| smaller the whole step is taken: a root may lie beyond.
    """

    def evaluate(q: Tensor) -> State:
        return (equation.F(q, *tensors),)

    settings = concrete(linsolve, "lu" if z.shape[-1] <= LARGEST else "gmres")
    start, z = z, sound(z)
    (r,) = evaluate(z)
    run, leaps = Run(start, r), torch.zeros_like(r[..., :1])
    left = size(r)
    best, least = z, left
    for k in range(stop.max_iter + 1):
        if not run.active.any():
            break
        step, scale = _step(settings, equation, z, tensors, r)
        met = run.active & (left <= stop.tolerance(scale))
        going = run.active & ~met & (k < stop.max_iter)
        z, (r,), stuck = backtrack(evaluate, _better(r, left, met), z, (r,), step, going, SHORTEST, met)
        run.end(met, Status.SOLVED)
        if not going.any():
            break
        if stuck.any():
            z, (r,), lost = backtrack(evaluate, _finite, z, (r,), step, stuck & (leaps < LEAPS))
            leaps, stuck = leaps + stuck, stuck & (lost | (leaps >= LEAPS))
        run.step(going & ~stuck)
        run.end(stuck, Status.INSUFFICIENT_PROGRESS)
        left = size(r)
        best, least = torch.where(left < least, z, best), torch.where(left < least, left, least)
    solved = run.status == Status.SOLVED
    return run.result(torch.where(solved, z, best), torch.where(solved, size(r), least))


def _better(r: Tensor, largest: Tensor, met: Tensor) -> Callable[[Tensor, State], Tensor]:
    """Whether |F| falls by a part of what the slope promises; for those who have met the tolerance, at all."""
    sufficient = _sufficient(r)
    return lambda t, new: torch.where(met, size(new[0]) < largest, sufficient(t, new))


def _sufficient(r: Tensor) -> Callable[[Tensor, State], Tensor]:
    length = norm(r)
    return lambda t, new: norm(new[0]) <= (1 - SUFFICIENT * t) * length


def _finite(t: Tensor, new: State) -> Tensor:
    return new[0].isfinite().all(-1, keepdim=True)


def _step(
    settings: LinearSettings, equation: Equation, z: Tensor, tensors: Sequence[Tensor], r: Tensor
) -> tuple[Tensor, Tensor]:
    """-J^-1 r, and the size of the terms of F."""
    if settings.method in DIRECT:
        J = jacobian(equation.F, z, tensors)
        factor = factorise(J, settings.method)
        step = solve(factor, -r, settings.method, False)
        ok = factor[-1].unsqueeze(-1)
        if not ok.all():
            step = torch.where(ok, step, _damped(J, r))
        return step, size((J.abs() @ z.abs().unsqueeze(-1)).squeeze(-1))
    product = adjoint_product(equation.F, z, tensors)
    inexact = replace(settings, eps_rel=FORCING)
    system = MatrixFree(product, z.shape[-1], inexact, Report(), "a Newton step", True)
    return system.solve(-r)[0], size(transpose(product, z)(z))


def _damped(J: Tensor, r: Tensor) -> Tensor:
    """-(J'J + delta I)^-1 J'r, a direction along which |F| falls where J is singular."""
    J = torch.where(J.isfinite(), J, 0)
    M = J.mT @ J
    diagonal = M.diagonal(dim1=-2, dim2=-1)
    largest = size(diagonal)
    delta = DAMPING * torch.where(largest > 0, largest, 1)
    M = M + torch.diag_embed(delta.expand_as(diagonal))
    step: Tensor = -torch.linalg.solve_ex(M, J.mT @ r.unsqueeze(-1))[0].squeeze(-1)
    return step


def broyden(stop: Stop, linsolve: LinearSettings, equation: Equation, z: Tensor, tensors: Sequence[Tensor]) -> Result:
    """Broyden's good method; an element whose line search fails starts again from a fresh inverse, once."""

    def evaluate(q: Tensor) -> State:
        return (equation.F(q, *tensors),)

    start, z = z, sound(z)
    (r,) = evaluate(z)
    run, scale = Run(start, r), torch.zeros_like(size(r))
    H = _Inverse(equation, z, tensors, r)
    fresh = torch.ones_like(run.active)
    for _ in range(stop.max_iter):
        run.end(size(r) <= stop.tolerance(scale), Status.SOLVED)
        going = run.active
        if not going.any():
            break
        step = -H.times(r)
        z_new, (r_new,), stuck = backtrack(evaluate, _sufficient(r), z, (r,), step, going)
        run.end(stuck & fresh, Status.INSUFFICIENT_PROGRESS)
        scale = secant_scale(z_new, z_new - z, r_new - r, scale)
        H.update(z_new - z, r_new - r)
        z, r = z_new, r_new
        run.step(going & ~stuck)
        fresh = stuck & run.active
        if fresh.any():
            H.renew(fresh, equation, z, tensors, r)
    run.end(size(r) <= stop.tolerance(scale), Status.SOLVED)
    return run.result(z, size(r))


def secant_scale(z: Tensor, dz: Tensor, dF: Tensor, otherwise: Tensor) -> Tensor:
    """The size of the terms of F, as far as a step tells: |dF| |z| / |dz|."""
    return torch.where(size(dz) > 0, divide(size(dF), size(dz)) * size(z), otherwise)


class _Inverse:
    """H = H0 + sum_k u_k v_k', where H0 is J^-1, or the multiple of I nearest to it where J would be large."""

    def __init__(self, equation: Equation, z: Tensor, tensors: Sequence[Tensor], r: Tensor) -> None:
        self.first = self._first(equation, z, tensors, r)
        self.U: list[Tensor] = []
        self.V: list[Tensor] = []

    @staticmethod
    def _first(equation: Equation, z: Tensor, tensors: Sequence[Tensor], r: Tensor) -> Factor:
        if z.shape[-1] <= LARGEST:
            return factorise(jacobian(equation.F, z, tensors), "svd")
        Jr = transpose(adjoint_product(equation.F, z, tensors), z)(r)
        return (divide(dot(Jr, r), dot(Jr, Jr)),)

    def _times_first(self, v: Tensor, transposed: bool) -> Tensor:
        return self.first[0] * v if len(self.first) == 1 else solve(self.first, v, "svd", transposed)

    def times(self, v: Tensor) -> Tensor:
        """H v."""
        out = self._times_first(v, False)
        for u, w in zip(self.U, self.V, strict=True):
            out = out + u * dot(w, v)
        return out

    def transposed_times(self, v: Tensor) -> Tensor:
        """H'v."""
        out = self._times_first(v, True)
        for u, w in zip(self.U, self.V, strict=True):
            out = out + w * dot(u, v)
        return out

    def update(self, dz: Tensor, dF: Tensor) -> None:
        """The least change of H that maps dF to dz; none where dz = 0."""
        Hy, v = self.times(dF), self.transposed_times(dz)
        self.U.append(divide(dz - Hy, dot(dz, Hy)))
        self.V.append(v)
        del self.U[:-MEMORY], self.V[:-MEMORY]

    def renew(self, where: Tensor, equation: Equation, z: Tensor, tensors: Sequence[Tensor], r: Tensor) -> None:
        """Begin again at z for some elements."""
        new = self._first(equation, z, tensors, r)
        self.first = tuple(
            torch.where(where.reshape(where.shape[:-1] + (1,) * (a.dim() - where.dim() + 1)), a, b)
            for a, b in zip(new, self.first, strict=True)
        )
        self.U = [torch.where(where, 0, u) for u in self.U]
        self.V = [torch.where(where, 0, v) for v in self.V]
