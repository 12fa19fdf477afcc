# SPDX-License-Identifier: Apache-2.0
"""Newton's method and L-BFGS for the minimiser of a function, with a line search on its values.

    newton  step = -H^-1 g by Cholesky's factor; where H is not positive definite -|H|^-1 g, where |H| is the Hessian
            with its negative eigenvalues turned positive: downhill from anywhere.  Beyond `LARGEST` unknowns conjugate
            gradients on H, cut off at negative curvature
    lbfgs   step = -B g with the inverse B of the Hessian as the last differences of z and g tell it (Nocedal 1980)

The residual is |g| in the infinity norm, small enough below eps_abs + eps_rel s.  For Newton s is the size of the terms
of g, max_i sum_j |H_ij| |z_j|, as in newton.py; for L-BFGS what the last step tells of it, |dg| |z| / |dz|.

A step is taken when the value falls by a part of what the slope promises.  Near the minimiser rounding hides that fall;
there a step is taken that makes the gradient smaller while the value stays the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..status import Status
from .derivative import LARGEST, Equation
from .iteration import SUFFICIENT, Run, State, backtrack, size, sound
from .jacobian import adjoint_product, jacobian, value_and_gradient
from .krylov import cg, divide, dot, norm
from .newton import Result, secant_scale
from .solution import LinearSettings, Stop

Pair = tuple[Tensor, Tensor, Tensor]  # s = dz, y = dg, and rho = 1 / s'y, or 0

MEMORY = 10  # differences that L-BFGS keeps
CURVED = 1e-8  # of the largest eigenvalue, or of its diagonal entry: a lesser eigenvalue or pivot counts as zero
FORCING = 1e-4
ROUNDING = 100  # times eps: what rounding may do to a value


def newton(stop: Stop, linsolve: LinearSettings, equation: Equation, z: Tensor, tensors: Sequence[Tensor]) -> Result:
    """Newton's method; a stationary point with negative curvature is no minimiser, NON_CONVEX."""
    evaluate = _values(equation, tensors)
    start, z = z, sound(z)
    f, g = evaluate(z)
    run = Run(start, f, g)
    for k in range(stop.max_iter + 1):
        if not run.active.any():
            break
        step, scale, saddle = _newton_step(equation, z, tensors, g, run.active)
        met = run.active & (size(g) <= stop.tolerance(scale))
        run.end(met & saddle, Status.NON_CONVEX)
        going = run.active & ~met & (k < stop.max_iter)
        better = _better(f, g, step, met)
        z, (f, g), stuck = backtrack(evaluate, better, z, (f, g), step, going, once=met & ~saddle)
        run.end(met, Status.SOLVED)
        if not going.any():
            break
        run.step(going & ~stuck)
        run.end(stuck, Status.INSUFFICIENT_PROGRESS)
    return run.result(z, size(g))


def _newton_step(
    equation: Equation, z: Tensor, tensors: Sequence[Tensor], g: Tensor, active: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A step downhill for active elements, the size of the terms of g, and where H has a negative eigenvalue."""
    if z.shape[-1] > LARGEST:
        product = adjoint_product(equation.F, z, tensors)
        length = norm(g)
        step = -length * cg(product, divide(g, length), FORCING, 10 * z.shape[-1])[0]
        steepest = (dot(step, g) >= 0) | ~step.isfinite().all(-1, keepdim=True)
        return torch.where(steepest, -g, step), size(product(z)), torch.zeros_like(steepest)
    H = jacobian(equation.F, z, tensors)
    H = torch.where(H.isfinite().all(-1, keepdim=True).all(-2, keepdim=True), (H + H.mT) / 2, 0)
    L, info = torch.linalg.cholesky_ex(H)
    pivots, diagonal = L.diagonal(dim1=-2, dim2=-1).square(), H.diagonal(dim1=-2, dim2=-1)
    convex = (info == 0) & (pivots > CURVED * diagonal).all(-1)  # whatever the units of z
    step, saddle = -torch.cholesky_solve(g.unsqueeze(-1), L).squeeze(-1), torch.zeros_like(active)
    rest = active.squeeze(-1) & ~convex
    if rest.any():
        step[rest], saddle[rest] = _modified(H[rest], g[rest])
    return step, size((H.abs() @ z.abs().unsqueeze(-1)).squeeze(-1)), saddle


def _modified(H: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """-|H|^-1 g, eigenvalues near zero lifted, and whether H has a negative one."""
    values, V = torch.linalg.eigh(H)
    largest = size(values)
    floor = torch.where(largest > 0, CURVED * largest, 1)
    step = -(V @ ((V.mT @ g.unsqueeze(-1)) / torch.maximum(values.abs(), floor).unsqueeze(-1))).squeeze(-1)
    return step, (values < -CURVED * largest).any(-1, keepdim=True)


def lbfgs(stop: Stop, linsolve: LinearSettings, equation: Equation, z: Tensor, tensors: Sequence[Tensor]) -> Result:
    """L-BFGS; an element whose line search fails forgets and goes downhill, once."""
    evaluate = _values(equation, tensors)
    start, z = z, sound(z)
    f, g = evaluate(z)
    run, scale = Run(start, f, g), torch.zeros_like(size(g))
    pairs: list[Pair] = []
    gamma = torch.ones_like(scale)
    fresh = torch.ones_like(run.active)
    for _ in range(stop.max_iter):
        run.end(size(g) <= stop.tolerance(scale), Status.SOLVED)
        going = run.active
        if not going.any():
            break
        step = -_two_loops(pairs, gamma, g)
        step = torch.where(fresh, step / norm(g).clamp(min=1), step)
        z_new, (f, g_new), stuck = backtrack(evaluate, _acceptable(f, g, step), z, (f, g), step, going)
        run.end(stuck & fresh, Status.INSUFFICIENT_PROGRESS)
        run.step(going & ~stuck)
        s, y = z_new - z, g_new - g
        scale = secant_scale(z_new, s, y, scale)
        sy = dot(s, y)
        curved = sy > CURVED * norm(s) * norm(y)  # else the pair would spoil what is known
        pairs = [*pairs[1 - MEMORY :], (s, y, torch.where(curved, 1 / sy, 0))]
        gamma = torch.where(curved, sy / dot(y, y), gamma)
        if stuck.any():
            pairs = [(s, y, rho.masked_fill(stuck, 0)) for s, y, rho in pairs]
            gamma = gamma.masked_fill(stuck, 1)
        z, g, fresh = z_new, g_new, stuck
    run.end(size(g) <= stop.tolerance(scale), Status.SOLVED)
    return run.result(z, size(g))


def _two_loops(pairs: Sequence[Pair], gamma: Tensor, g: Tensor) -> Tensor:
    """B g, from B = gamma I and the pairs; those with rho = 0 take no part."""
    shares = []
    for s, y, rho in reversed(pairs):
        shares.append(rho * dot(s, g))
        g = g - shares[-1] * y
    d = gamma * g
    for (s, y, rho), share in zip(pairs, reversed(shares), strict=True):
        d = d + s * (share - rho * dot(y, d))
    return d


def _values(equation: Equation, tensors: Sequence[Tensor]) -> Callable[[Tensor], State]:
    """z -> value (*batch, 1) and gradient."""

    def evaluate(z: Tensor) -> State:
        assert equation.potential is not None
        f, g = value_and_gradient(lambda q: equation.potential(q, *tensors), z)  # type: ignore[misc]
        return f.unsqueeze(-1), g

    return evaluate


def _better(f: Tensor, g: Tensor, step: Tensor, met: Tensor) -> Callable[[Tensor, State], Tensor]:
    """Whether a point is acceptable; for those who have met the tolerance, whether its gradient is smaller."""
    acceptable, largest = _acceptable(f, g, step), size(g)
    return lambda t, new: torch.where(met, size(new[1]) < largest, acceptable(t, new))


def _acceptable(f: Tensor, g: Tensor, step: Tensor) -> Callable[[Tensor, State], Tensor]:
    slope, length, rounding = dot(g, step), norm(g), ROUNDING * torch.finfo(f.dtype).eps * (1 + f.abs())

    def acceptable(t: Tensor, new: State) -> Tensor:
        value, gradient = new
        level = (value <= f + rounding) & (norm(gradient) < length)
        return (((value <= f + SUFFICIENT * t * slope) & (value < f)) | level) & gradient.isfinite().all(
            -1, keepdim=True
        )

    return acceptable
