# SPDX-License-Identifier: Apache-2.0
"""Linear systems as a differentiable layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..derivative.tracing import eager
from ..errors import ProblemError
from ..problem import broadcast
from .factor import factorise
from .jacobian import rows
from .mapping import DTYPES, Mapping, check_values
from .solution import DIRECT, PSEUDO, ImplicitSolution, LinearSettings, Report, concrete
from .system import Dense, MatrixFree, System, linear


@eager
def linear_solve(
    A: Any,
    b: Tensor,
    *theta: Any,
    method: str = "auto",
    n: int | None = None,
    eps_rel: float | None = None,
    max_iter: int | None = None,
    on_failure: str = "nan",
) -> ImplicitSolution:
    """Solve A x = b, differentiable in A and b at every order.

    A regular system has the derivative  dx = A^-1 (db - dA x); cotangents cost one solve with A' (for a matrix: with
    the factor that is at hand).  The methods ``"svd"``, ``"lsmr"`` and ``"normal_cg"`` return the least squares
    solution of least norm, x = A^+ b, for a matrix of any shape and rank, and the derivative of that as long as the
    rank does not change.

    Args:
        A: (*batch, m, n), or a linear function v -> A v of (*batch, n), a function or module called as
            ``A(v, *theta)``.  What it closes over is constant: a closure over a tensor that requires grad is refused.
        b: (*batch, m), float64 or float32; batch dimensions broadcast against those of a matrix.
        *theta: further arguments of a function A; tensors among them, and the parameters of a module, receive
            gradients.
        method: how, see :class:`LinearSettings`.  ``"auto"`` is ``"lu"`` for square and ``"svd"`` for other matrices;
            ``"gmres"`` for a function if m = n, else ``"lsmr"``.  ``"cholesky"`` and ``"cg"`` take A for symmetric.
        n: the number of columns, where A is a function and they are not m.
        eps_rel, max_iter, on_failure: see :class:`LinearSettings`.

    Returns:
        An :class:`ImplicitSolution`: value (*batch, n), status, iterations, residual |b - Ax| / |b|, and the report of
        the solves of its derivative.  A singular matrix is NUMERICAL_ERROR under ``"lu"`` and ``"cholesky"``; an
        iterative solve that stagnates is INSUFFICIENT_PROGRESS or MAX_ITERATIONS, and NaN.

    Raises:
        ProblemError: a wrong type, dtype, device or shape; a square method for a matrix that is not; a function that
            is not zero at zero.
        SettingsError: an unknown method, or a value out of its range.
        SolverError: an element failed and ``on_failure="raise"``.

    Example:
        >>> import torch
        >>> from optlayer.implicit import linear_solve
        >>> A = torch.tensor([[2.0, 0.0], [1.0, 4.0]], dtype=torch.float64, requires_grad=True)
        >>> solution = linear_solve(A, torch.tensor([2.0, 9.0], dtype=torch.float64))
        >>> solution.value.tolist(), bool(solution.converged)
        ([1.0, 2.0], True)
        >>> solution.value.sum().backward()
        >>> A.grad.tolist()
        [[-0.375, -0.75], [-0.25, -0.5]]
    """
    settings = LinearSettings(method, eps_rel, max_iter, on_failure)
    if not isinstance(b, Tensor) or b.dtype not in DTYPES or b.dim() == 0:
        found = f"{b.dtype} of shape {tuple(b.shape)}" if isinstance(b, Tensor) else type(b).__qualname__
        raise ProblemError(f"b is {found}, expected a tensor (*batch, m) of torch.float64 or torch.float32")
    check_values("b", b)
    if isinstance(A, Tensor):
        if theta:
            raise ProblemError(f"A is a matrix, yet {len(theta)} further arguments are given; expected none")
        return _matrix(A, b, settings)
    n = b.shape[-1] if n is None else n
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise ProblemError(f"n is {n!r}, expected a count")
    return _function(Mapping(A, theta, "A"), b, n, settings)


def _matrix(A: Tensor, b: Tensor, settings: LinearSettings) -> ImplicitSolution:
    if A.dim() < 2 or A.shape[-2] != b.shape[-1]:
        raise ProblemError(
            f"A has shape {tuple(A.shape)}, expected (*batch, {b.shape[-1]}, n) as b has {tuple(b.shape)}"
        )
    if A.dtype is not b.dtype or A.device != b.device:
        raise ProblemError(f"A is {A.dtype} on {A.device}, expected {b.dtype} on {b.device} as b")
    m, n = A.shape[-2:]
    settings = _concrete(settings, "lu" if m == n else "svd", m, n)
    try:
        batch = broadcast(A.shape[:-2], b.shape[:-1])
    except RuntimeError:
        raise ProblemError(
            f"the batch dimensions of A {tuple(A.shape)} and b {tuple(b.shape)} do not broadcast"
        ) from None
    b, report = b.expand(*batch, m), Report()
    if settings.method in ("cholesky", "cg"):
        A = (A + A.mT) / 2
    if settings.method in DIRECT:
        system: System = Dense(settings, report, "linear_solve")
        out = linear(system, b, A, *factorise(A.detach(), settings.method))
    else:
        out = linear(MatrixFree(_product, n, settings, report, "linear_solve"), b, A)
    return ImplicitSolution(*out, report)


def _product(v: Tensor, A: Tensor) -> Tensor:
    return (A @ v.unsqueeze(-1)).squeeze(-1)


def _function(A: Mapping, b: Tensor, n: int, settings: LinearSettings) -> ImplicitSolution:
    m, report = b.shape[-1], Report()
    settings = _concrete(settings, "gmres" if m == n else "lsmr", m, n)
    constant = A.check(b.new_zeros(*b.shape[:-1], n), b.shape).abs().nan_to_num(0.0)
    if (constant > 0).any():
        raise ProblemError(
            f"A(0) has entries up to {float(constant.max()):.4g}, expected a linear function, which is zero there; of "
            "A(v) = Mv + c, subtract c from both sides"
        )
    if settings.method in DIRECT:
        M = rows(lambda v: A(v, *A.tensors), b.new_zeros(*b.shape[:-1], n)).mT
        out = linear(Dense(settings, report, "linear_solve"), b, M, *factorise(M.detach(), settings.method))
    else:
        out = linear(MatrixFree(A, n, settings, report, "linear_solve"), b, *A.tensors)
    return ImplicitSolution(*out, report)


def _concrete(settings: LinearSettings, auto: str, m: int, n: int) -> LinearSettings:
    """The settings with a method in place of "auto", one that such a matrix has."""
    settings = concrete(settings, auto)
    if m != n and settings.method not in PSEUDO:
        raise ProblemError(
            f"A is {m} x {n} and method {settings.method!r} is for square ones, expected one of {', '.join(PSEUDO)}"
        )
    return settings
