# SPDX-License-Identifier: Apache-2.0
"""Fixed points as a differentiable layer.

    picard    z <- f(z)
    anderson  z <- the combination of the last iterates whose residuals f(z) - z cancel best, plus that residual
              (Anderson 1965; Walker and Ni 2011)
    newton    newton.py on F(z) = z - f(z)

The derivative is that of the root of F = z - f, whose Jacobian is I - df/dz.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..derivative.tracing import bare, eager
from ..status import Status
from .derivative import Equation, attach
from .iteration import Run, size, sound
from .krylov import divide, norm
from .mapping import Mapping, check_point
from .newton import Result, newton
from .solution import ImplicitSolution, LinearSettings, Report, Stop, choose, linear_settings, stopping

MEMORY = 6  # iterates that Anderson's method combines
# Of the squared residual differences, brought to unit length: well above their rounding, else more differences than
# unknowns would make a singular matrix.
RIDGE = {torch.float64: 1e-10, torch.float32: 2e-6}
WORSE = 10.0  # a residual so many times the least one so far makes Anderson's method forget
DIVERGED = 1e8  # so many times, and the iteration has diverged


@eager
def fixed_point(
    f: Any,
    z0: Tensor,
    *theta: Any,
    batch_dims: int = 0,
    method: str = "anderson",
    eps_abs: float | None = None,
    eps_rel: float | None = None,
    max_iter: int = 1000,
    on_failure: str = "nan",
    linsolve: str | LinearSettings = "auto",
) -> ImplicitSolution:
    """Solve z = f(z, *theta) for z, differentiable in theta at every order.

        dz = (I - df/dz)^-1 (df/dtheta) dtheta

    The derivative is that of the fixed point, not of the iterations; its memory does not grow with them, and it exists
    also where the iteration z <- f(z) diverges and another method finds the point.  The start gets no gradient, for
    the reason given at :func:`root`.

    Args:
        f, theta, batch_dims: as F in :func:`implicit`; f returns the shape of z.
        z0: (*batch, ...), float64 or float32, where to start.
        method: ``"anderson"`` (mixes the last iterates), ``"picard"`` (z <- f(z), converges if f contracts) or
            ``"newton"``.
        eps_abs, eps_rel: solved means max|f(z) - z| <= eps_abs + eps_rel max|z|; for Newton see :func:`root`.
            ``None``: 1e-9 for float64, 1e-5 for float32.
        max_iter, on_failure, linsolve: as in :func:`root`.  Under ``"ignore"`` an element that was cut off holds its
            best iterate, and its derivative is NaN.  Who cuts off on purpose attaches one to the iterate by
            ``implicit(lambda z, *theta: z - f(z, *theta), value, *theta)``, as far from that of the fixed point as the
            iterate is.

    Returns:
        An :class:`ImplicitSolution`: value (*batch, ...), converged, status, iterations, residual max|f(z) - z|.  An
        iteration that diverges is INSUFFICIENT_PROGRESS.

    Raises:
        ProblemError, SettingsError: as :func:`implicit`.
        SolverError: an element failed and ``on_failure="raise"``.

    Example:
        >>> import torch
        >>> from optlayer.implicit import fixed_point
        >>> theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        >>> solution = fixed_point(lambda z, theta: torch.cos(theta * z), torch.tensor(1.0, dtype=torch.float64), theta)
        >>> round(solution.value.item(), 6), bool(solution.converged)
        (0.739085, True)
        >>> solution.value.backward()
        >>> round(theta.grad.item(), 6)
        -0.297474
    """
    check_point("z0", z0, batch_dims)
    mapping = Mapping(f, theta, "f")
    mapping.check(z0, bare(z0).shape)
    settings, stop = linear_settings(linsolve), stopping(z0.dtype, eps_abs, eps_rel, max_iter, on_failure)
    solver = partial(choose(method, METHODS), stop, settings)
    equation = Equation(
        lambda z, *tensors: z - mapping(z, *tensors), None, solver, settings, Report(), on_failure, "fixed_point"
    )
    return attach(equation, z0, batch_dims, mapping.tensors)


def picard(stop: Stop, _: LinearSettings, equation: Equation, z: Tensor, tensors: Sequence[Tensor]) -> Result:
    """z <- z - F(z) = f(z)."""
    return _iterate(stop, equation, z, tensors, 0)


def anderson(stop: Stop, _: LinearSettings, equation: Equation, z: Tensor, tensors: Sequence[Tensor]) -> Result:
    """z <- z - F - (dZ - dF) c, where c makes |F - dF c| least over the last differences dZ and dF."""
    return _iterate(stop, equation, z, tensors, MEMORY)


def _iterate(stop: Stop, equation: Equation, z: Tensor, tensors: Sequence[Tensor], memory: int) -> Result:
    """The iteration with some memory, each element with its own; the best iterate is what is returned."""
    start, z = z, sound(z)
    r = equation.F(z, *tensors)
    run, best, least = Run(start, r), z, size(r)
    dZ: list[Tensor] = []
    dF: list[Tensor] = []
    for _ in range(stop.max_iter):
        run.end(size(r) <= stop.tolerance(size(z)), Status.SOLVED)
        going = run.active
        if not going.any():
            break
        z_new = torch.where(going, z - r - _mixture(dZ, dF, r), z)
        r_new = torch.where(going, equation.F(z_new, *tensors), r)
        run.step(going)
        left = size(r_new)
        run.end(~(left <= DIVERGED * least.clamp(min=1)), Status.INSUFFICIENT_PROGRESS)  # NaN too
        if memory:
            dZ, dF = [*dZ[1 - memory :], z_new - z], [*dF[1 - memory :], r_new - r]
            lost = ~(left <= WORSE * least)
            if lost.any():
                dZ, dF = ([d.masked_fill(lost, 0) for d in ds] for ds in (dZ, dF))
        z, r = torch.where(run.active, z_new, z), torch.where(run.active, r_new, r)
        better = run.active & (left < least)
        best, least = torch.where(better, z, best), torch.where(better, left, least)
    run.end(size(r) <= stop.tolerance(size(z)), Status.SOLVED)
    solved = run.status == Status.SOLVED
    return run.result(torch.where(solved, z, best), torch.where(solved, size(r), least))


def _mixture(dZ: list[Tensor], dF: list[Tensor], r: Tensor) -> Tensor:
    """(dZ - dF) c with the least squares c; differences of zero take no part."""
    if not dZ:
        return torch.zeros_like(r)
    F = torch.stack(dF, -1)
    length = norm(F.mT).mT
    unit = divide(F, length)
    k = unit.shape[-1]
    M = unit.mT @ unit + RIDGE[r.dtype] * torch.eye(k, dtype=r.dtype, device=r.device)
    c = torch.linalg.solve_ex(M, unit.mT @ r.unsqueeze(-1))[0]
    return ((torch.stack(dZ, -1) - F) @ divide(c, length.mT)).squeeze(-1)


METHODS = {"anderson": anderson, "picard": picard, "newton": newton}
