# SPDX-License-Identifier: Apache-2.0
"""Roots of equations as a differentiable layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..derivative.tracing import bare, eager
from .derivative import Equation, attach
from .mapping import Mapping, check_point
from .newton import broyden, newton
from .solution import ImplicitSolution, LinearSettings, Report, choose, linear_settings, stopping

METHODS = {"newton": newton, "broyden": broyden}


@eager
def root(
    F: Any,
    z0: Tensor,
    *theta: Any,
    batch_dims: int = 0,
    method: str = "newton",
    eps_abs: float | None = None,
    eps_rel: float | None = None,
    max_iter: int = 100,
    on_failure: str = "nan",
    linsolve: str | LinearSettings = "auto",
) -> ImplicitSolution:
    """Solve F(z, *theta) = 0 for z, differentiable in theta at every order.

        dz = -(dF/dz)^-1 (dF/dtheta) dtheta

    The derivative is that of the root, whatever method found it and in however many iterations: its memory does not
    grow with them.  Of several roots it is that of the one found.

    The start gets no gradient.  Near a root with a regular Jacobian every start leads to the same root, so that the
    derivative with respect to the start is zero, not by convention but in truth; a start whose change leads to another
    root makes z jump, and there is no derivative at all.  Who wants to train the start differentiates a fixed number
    of iterations, or the root of a problem that holds the start as a parameter.

    Args:
        F, theta, batch_dims: as in :func:`implicit`.
        z0: (*batch, ...), float64 or float32, where to start.
        method: ``"newton"`` (the Jacobian at every iterate, beyond 256 unknowns an element by its products, and a line
            search on |F|) or ``"broyden"`` (the Jacobian at the start, updated from the values of F alone).
        eps_abs, eps_rel: solved means max|F(z)| <= eps_abs + eps_rel s.  For Newton s = max_i sum_j |J_ij| |z_j|, the
            size of the terms of F, so that scaling F changes nothing; for Broyden s = |dF| |z| / |dz| of the last step.
            ``None``: 1e-9 for float64, 1e-5 for float32.
        max_iter: limit on the iterations.
        on_failure: what to do about elements that are not solved: ``"nan"`` (fill them with NaN), ``"raise"``,
            ``"warn"`` or ``"ignore"`` (return the best iterate, NaN for INVALID_DATA; its derivative is NaN, for
            it solves nothing).
        linsolve: as in :func:`implicit`; Newton's steps are solved with it too.

    Returns:
        An :class:`ImplicitSolution`: value (*batch, ...), converged, status, iterations, residual max|F|.  An element
        that fails is MAX_ITERATIONS, INSUFFICIENT_PROGRESS (no step along the direction makes |F| smaller) or
        INVALID_DATA (z0 or F(z0) is not finite).

    Raises:
        ProblemError, SettingsError: as :func:`implicit`.
        SolverError: an element failed and ``on_failure="raise"``.

    Example:
        Kepler's equation for three anomalies at once, and how the solutions move with the eccentricity.

        >>> import torch
        >>> from optlayer.implicit import root
        >>> e = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> M = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
        >>> solution = root(lambda E, e, M: E - e * E.sin() - M, M, e, M, batch_dims=1)
        >>> solution.converged.tolist(), solution.value.detach().round(decimals=4).tolist()
        ([True, True, True], [0.1987, 1.4987, 3.0472])
        >>> solution.value.sum().backward()
        >>> round(e.grad.item(), 4)
        1.4848
    """
    check_point("z0", z0, batch_dims)
    mapping = Mapping(F, theta)
    mapping.check(z0, bare(z0).shape)
    settings, stop = linear_settings(linsolve), stopping(z0.dtype, eps_abs, eps_rel, max_iter, on_failure)
    solver = partial(choose(method, METHODS), stop, settings)
    equation = Equation(mapping, None, solver, settings, Report(), on_failure, "root")
    return attach(equation, z0, batch_dims, mapping.tensors)
