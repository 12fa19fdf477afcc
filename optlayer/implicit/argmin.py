# SPDX-License-Identifier: Apache-2.0
"""Minimisers as a differentiable layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..derivative.tracing import bare, eager
from .derivative import Equation, attach
from .descent import lbfgs, newton
from .jacobian import gradient
from .mapping import Mapping, check_point
from .solution import ImplicitSolution, LinearSettings, Report, choose, linear_settings, stopping

METHODS = {"newton": newton, "lbfgs": lbfgs}


@eager
def argmin(
    f: Any,
    z0: Tensor,
    *theta: Any,
    batch_dims: int = 0,
    method: str = "newton",
    eps_abs: float | None = None,
    eps_rel: float | None = None,
    max_iter: int = 200,
    on_failure: str = "nan",
    linsolve: str | LinearSettings = "auto",
) -> ImplicitSolution:
    """A minimiser z of f(z, *theta), differentiable in theta at every order.

        dz = -(d2f/dz2)^-1 (d2f/dz dtheta) dtheta

    which asks for a regular Hessian at z.  The minimiser is a local one; the start gets no gradient, for the reason
    given at :func:`root`.  The value f(z, *theta) at the minimiser needs no such derivative: its gradient in theta is
    that of f with z held fixed (the envelope theorem).

    Args:
        f: a function or module called as ``f(z, *theta)`` that returns one value for each element of the batch,
            (*batch), the elements independent of each other; twice continuously differentiable.
        z0: (*batch, ...), float64 or float32, where to start.
        theta, batch_dims: as in :func:`implicit`.
        method: ``"newton"`` (the Hessian at every iterate, beyond 256 unknowns an element by its products) or
            ``"lbfgs"`` (values and gradients only).
        eps_abs, eps_rel: solved means max|g| <= eps_abs + eps_rel s for the gradient g.  For Newton
            s = max_i sum_j |H_ij| |z_j|, for L-BFGS s = |dg| |z| / |dz| of the last step.  ``None``: 1e-9 for
            float64, 1e-5 for float32.
        max_iter, on_failure, linsolve: as in :func:`root`.

    Returns:
        An :class:`ImplicitSolution`: value (*batch, ...), converged, status, iterations, residual max|g|.  Newton
        reports a stationary point that is no minimiser as NON_CONVEX (up to 256 unknowns an element).

    Raises:
        ProblemError, SettingsError: as :func:`implicit`.
        SolverError: an element failed and ``on_failure="raise"``.

    Example:
        Ridge regression w = argmin |Xw - y|^2 / 2 + lam |w|^2 / 2, and how it moves with lam.

        >>> import torch
        >>> from optlayer.implicit import argmin
        >>> X = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> y, lam = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
        >>> ridge = lambda w, lam: ((X @ w - y).square().sum() + lam * w.square().sum()) / 2
        >>> solution = argmin(ridge, torch.zeros(2, dtype=torch.float64), lam.requires_grad_())
        >>> solution.value.detach().round(decimals=4).tolist()
        [0.8, 1.2667]
        >>> solution.value.sum().backward()
        >>> round(lam.grad.item(), 4)
        -0.2444
    """
    check_point("z0", z0, batch_dims)
    mapping = Mapping(f, theta, "f")
    mapping.check(z0, bare(z0).shape[:batch_dims])
    settings, stop = linear_settings(linsolve), stopping(z0.dtype, eps_abs, eps_rel, max_iter, on_failure)
    solver = partial(choose(method, METHODS), stop, settings)

    def stationarity(z: Tensor, *tensors: Tensor) -> Tensor:
        return gradient(lambda q: mapping(q, *tensors), z)

    equation = Equation(stationarity, mapping, solver, settings, Report(), on_failure, "argmin")
    return attach(equation, z0, batch_dims, mapping.tensors)
