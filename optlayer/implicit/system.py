# SPDX-License-Identifier: Apache-2.0
"""The derivative of a linear solve, for every method, matrix or product, and order.

A regular system A w = b varies as A dw = db - dA w: a cotangent g of w leaves

    A'u = g,      b_bar = u,      A_bar = -u w'

and u is the solution of the transposed system: the rule calls itself, and all orders follow.  This is the rule of
optlayer.derivative for its K, with any A in the place of that symmetric matrix.

The least squares solution of least norm, w = A^+ b, varies by two terms more (Golub and Pereyra 1973),

    dw = A^+ (db - dA w) + A^+ (A^+)' dA' r + (I - A^+ A) dA' y,      r = b - A w,   y = (A^+)' w

    u = (A^+)' g,      A_bar = -u w' + r (A^+ u)' + y (g - A'u)'

as long as the rank of A is locally constant.  r vanishes where A has full row rank, g - A'u where it has full column
rank.  A may be a tensor or a function of tensors, A_bar stands for what it pulls back to them.

An element that cannot be solved gives w = 0 where b = 0 exactly, and NaN else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..derivative.tracing import alive, apply, batched, forward_mode, full_precision, primals, save, unbatch
from ..derivative.variation import add, matvec, summed
from ..status import Status
from .factor import CORES, solve
from .jacobian import pull, push, transpose
from .krylov import bicgstab, cg, divide, gmres, norm
from .least_squares import lsmr, normal_cg
from .solution import ITERATIVE, PSEUDO, LinearSettings, Report, announce

Product = Callable[..., Tensor]
SQUARE = {"cg": cg, "gmres": gmres, "bicgstab": bicgstab}
LEAST_SQUARES = {"normal_cg": normal_cg, "lsmr": lsmr}
SLACK = 10  # between what an iterative solver believes of itself and what is measured


@dataclass(frozen=True)
class Dense:
    """A matrix with its factor.  The tensors of the system are (A, *factor), A (*batch, m, n)."""

    settings: LinearSettings
    report: Report
    what: str
    transposed: bool = False

    def product(self, v: Tensor, A: Tensor, *factor: Tensor) -> Tensor:
        """A v."""
        return matvec(A.mT if self.transposed else A, v)

    def solve(self, b: Tensor, A: Tensor, *factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, the iterations, and where x can be trusted."""
        x = solve(factor, b, self.settings.method, self.transposed)
        ok = factor[-1].expand(x.shape[:-1])
        return x, torch.zeros_like(ok, dtype=torch.int64), ok

    def adjoint(self) -> Dense:
        """The system of A'."""
        return replace(self, transposed=not self.transposed)

    def mapped(self, size: int, in_dims: Sequence[int | None], b: Tensor, tensors: Sequence[Tensor]) -> Any:
        """The vmap rule of `linear`: what is not mapped is shared, and its factor serves all right-hand sides."""
        cores = (1, 2, *CORES[self.settings.method])
        return ops.map_batch(lambda *args: linear(self, *args), cores, in_dims, (b, *tensors))


@dataclass(frozen=True)
class MatrixFree:
    """A matrix known by its products.  map(v, *tensors) is A v, or A'v if `transposed`, and n the size of v.

    `prepare(*tensors)` gives v -> map(v, *tensors) where that saves work for many products with the same tensors.
    """

    map: Product
    n: int
    settings: LinearSettings
    report: Report
    what: str
    transposed: bool = False
    prepare: Callable[..., Callable[[Tensor], Tensor]] | None = None

    def product(self, v: Tensor, *tensors: Tensor) -> Tensor:
        """A v."""
        if not self.transposed:
            return self.map(v, *tensors)
        return transpose(lambda x: self.map(x, *tensors), v.new_zeros(*v.shape[:-1], self.n))(v)

    def solve(self, b: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, the iterations, and where the true residual is as small as asked for."""
        method, eps = self.settings.method, self.settings.accuracy(b.dtype)
        limit = self.settings.limit(max(self.n, b.shape[-1]))
        product = self.prepare(*tensors) if self.prepare else lambda v: self.map(v, *tensors)
        both = self.transposed or method in PSEUDO
        adjoint = transpose(product, b.new_zeros(*b.shape[:-1], self.n)) if both else product
        A, At = (adjoint, product) if self.transposed else (product, adjoint)
        size = norm(b)
        unit = divide(b, size)
        if method in PSEUDO:
            x, iterations = LEAST_SQUARES[method](A, At, unit, eps, limit)
        else:
            x, iterations = SQUARE[method](A, unit, eps, limit)
        r = unit - A(x)
        ok = norm(r) <= SLACK * eps
        if method in PSEUDO:
            scale = torch.maximum(norm(At(unit)), divide(norm(unit - r), norm(x)))  # a lower bound of |A|
            ok = ok | (norm(At(r)) <= SLACK * eps * scale * norm(r))
        return x * size, iterations, ok.squeeze(-1)

    def adjoint(self) -> MatrixFree:
        """The system of A'."""
        return replace(self, transposed=not self.transposed)

    def mapped(self, size: int, in_dims: Sequence[int | None], b: Tensor, tensors: Sequence[Tensor]) -> Any:
        """The vmap rule of `linear`: the mapped dimension becomes the first of the batch."""
        b = b.expand(size, *b.shape) if in_dims[0] is None else b.movedim(in_dims[0], 0)
        moved = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims[1:], strict=True)]
        dims = (0, *(None if d is None else 0 for d in in_dims[1:]))
        return linear(replace(self, map=torch.func.vmap(self.map, dims), prepare=None), b, *moved), (0, 0, 0, 0)


System = Dense | MatrixFree


class Linear(Function):
    """x = A^-1 b or A^+ b with its derivative; arguments (system, b, *tensors of the system).

    Returns x, status, iterations and the residual |b - Ax| / |b|, of which x alone is differentiable.
    """

    @staticmethod
    def forward(system: System, b: Tensor, *tensors: Tensor) -> Any:
        with full_precision(b.device.type):
            return _forward(system, b, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        system, b, *tensors = inputs
        x, status, *rest = output
        ctx.mark_non_differentiable(status, *rest)
        ctx.system, ctx.shape = system, b.shape
        save(ctx, [True] * (3 + len(tensors)), b, x, status, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        g, b, x, status, *tensors = alive((cotangents[0], *ctx.saved_tensors))
        system, wants = ctx.system, ctx.needs_input_grad
        if g is None:
            return (None,) * len(wants)
        with full_precision(b.device.type):
            u = linear(system.adjoint(), g, *tensors)[0]
            # A failed element takes no part where its cotangent is zero, whatever it holds.
            x = torch.where((status != Status.SOLVED).unsqueeze(-1) & (u == 0).all(-1, keepdim=True), 0, x)
            terms = [(x, -u)]
            if system.settings.method in PSEUDO:
                r, p = b - system.product(x, *tensors), g - system.adjoint().product(u, *tensors)
                y, q = linear(system.adjoint(), x, *tensors)[0], linear(system, u, *tensors)[0]
                terms += [(q, r), (p, y)]
            gradients: list[Tensor | None] = [None] * len(tensors)
            for v, a in terms:
                found = pull(system.product, v, tensors, wants[2:], a)
                gradients = [add(total, new) for total, new in zip(gradients, found, strict=True)]
            return None, summed(u, ctx.shape, wants[1]), *gradients

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        b, x, status, *tensors = alive(primals(ctx))
        system, (db, *changes) = ctx.system, alive(tangents[1:])
        varies = any(dt is not None for dt in changes)
        with full_precision(b.device.type), forward_mode():
            r = torch.zeros_like(b) if db is None else db
            x = torch.where((status != Status.SOLVED).unsqueeze(-1) & (r == 0).all(-1, keepdim=True), 0, x)
            if varies:
                r = r - push(system.product, x, tensors, changes)
            dx = linear(system, r, *tensors)[0]
            if varies and system.settings.method in PSEUDO:
                adjoint = system.adjoint()
                left = b - system.product(x, *tensors)
                y = linear(adjoint, x, *tensors)[0]
                bend, swing = (push(adjoint.product, v, tensors, changes) for v in (left, y))
                dx = dx + linear(system, linear(adjoint, bend, *tensors)[0], *tensors)[0]
                dx = dx + swing - linear(system, system.product(swing, *tensors), *tensors)[0]
            return dx, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, system: System, b: Tensor, *tensors: Tensor) -> Any:
        return system.mapped(info.batch_size, in_dims[1:], b, tensors)


def linear(system: System, b: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve A x = b, differentiable in b and in the tensors that A is made of.

    Args: b (*batch, m), whose dimensions to the left of the batch of A are further right-hand sides.
    Returns: x (*batch, n); status (*batch), :class:`optlayer.Status`; iterations; |b - Ax| / |b|.
    """
    if not any(map(batched, (b, *tensors))):
        out: tuple[Tensor, Tensor, Tensor, Tensor] = apply(Linear, system, b, *tensors)
        return out
    (b, *plain), dims, again = unbatch((b, *tensors))
    size = next(t.shape[0] for t, dim in zip((b, *plain), dims, strict=True) if dim == 0)
    x, status, iterations, residual = system.mapped(size, dims, b, plain)[0]
    return again(x), again(status), again(iterations), again(residual)


def _forward(system: System, b: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    settings = system.settings
    x, iterations, ok = system.solve(b, *tensors)
    residual = divide(norm(b - system.product(x, *tensors)), norm(b)).squeeze(-1)
    ok = ok & residual.isfinite() & x.isfinite().all(-1)
    failure = torch.full_like(iterations, Status.NUMERICAL_ERROR)
    if settings.method in ITERATIVE:
        spent = iterations >= settings.limit(max(b.shape[-1], x.shape[-1]))
        failure = torch.where(spent, int(Status.MAX_ITERATIONS), int(Status.INSUFFICIENT_PROGRESS))
    failure = torch.where(b.isfinite().all(-1), failure, int(Status.INVALID_DATA))
    status = torch.where(ok, int(Status.SOLVED), failure)
    report = system.report
    report.method, report.status, report.iterations, report.residual = settings.method, status, iterations, residual
    announce(status, settings.on_failure, system.what)
    nothing = (b == 0).all(-1, keepdim=True)
    spoilt = (status != Status.SOLVED).unsqueeze(-1) if settings.on_failure != "ignore" else ~x.isfinite()
    x = torch.where(nothing, 0, torch.where(spoilt, torch.nan, x))
    return x, status, iterations, residual
