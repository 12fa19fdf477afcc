# SPDX-License-Identifier: Apache-2.0
"""Products with the Jacobians of a function F(z, *tensors), and the Jacobian in z itself.

    pull   (dF/dt)' u   for chosen tensors t           push   sum over t of (dF/dt) dt           jacobian   dF/dz

All three are made of reverse mode alone: push is the transpose of pull, which is linear.  Forward mode would be cheaper
by a constant, but torch refuses to nest it in a user's own, and not every operator has it.  With z (*batch, n) the
elements of the batch are independent, so that one product with e_i in every element gives row i of every block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..derivative.tracing import batching, transformed

Function = Callable[..., Tensor]
CHUNK = 1 << 20  # entries of what products with several e_i at once may hold
FEW = 8  # fewer products at once gain nothing
LARGE = 1 << 14  # entries of a Jacobian for which it pays to look at one product first


def vjp(function: Callable[..., Any], *primals: Tensor) -> tuple[Any, Callable[[Any], tuple[Tensor, ...]]]:
    """The value of a function, a tensor or a tuple of them, and the map from its cotangents to those of its arguments.

    Where nothing outside can follow the call, one graph does what torch.func takes several layers for.  But that graph
    keeps no tensor made in inference mode, which the function may have from elsewhere; torch.func's does.
    """
    if torch.is_grad_enabled() or transformed() or batching() or torch.is_inference_mode_enabled():
        value, pullback, *_ = torch.func.vjp(function, *primals)
        return value, pullback
    try:
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in primals]
            outputs = function(*inputs)
    except RuntimeError as error:
        if not _of_inference(error):
            raise
        value, pullback, *_ = torch.func.vjp(function, *primals)
        return value, pullback
    several = isinstance(outputs, tuple)
    tracked = [out.requires_grad for out in (outputs if several else (outputs,))]

    def pulled(cotangents: Any) -> tuple[Tensor, ...]:
        pairs = zip(outputs if several else (outputs,), cotangents if several else (cotangents,), strict=True)
        kept = [pair for pair, follows in zip(pairs, tracked, strict=True) if follows]
        if not kept:
            return tuple(torch.zeros_like(t) for t in inputs)
        ends, seeds = zip(*kept, strict=True)
        return torch.autograd.grad(
            ends,
            inputs,
            seeds,
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )

    return tuple(out.detach() for out in outputs) if several else outputs.detach(), pulled


def _of_inference(error: RuntimeError) -> bool:
    """Whether torch says that a graph cannot keep a tensor made in inference mode."""
    return str(error).startswith("Inference tensors cannot be saved")


def value_and_gradient(f: Function, z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z), (*batch), and the gradient of its sum."""
    value, pullback = vjp(f, z)
    return value, pullback(torch.ones_like(value))[0]


def gradient(f: Function, z: Tensor) -> Tensor:
    """The gradient of the sum of f(z), differentiable in all that the call follows."""
    if transformed() or batching() or torch.is_inference_mode_enabled():
        g: Tensor = torch.func.grad(lambda q: f(q).sum())(z)
        return g
    followed = torch.is_grad_enabled()
    with torch.enable_grad():
        q = z if followed and z.requires_grad else z.detach().requires_grad_()
        try:
            value = f(q).sum()
        except RuntimeError as error:
            if followed or not _of_inference(error):
                raise
            return vjp(lambda q: f(q).sum(), z)[1](z.new_ones(()))[0]
        if not value.requires_grad:
            return torch.zeros_like(z)
        return torch.autograd.grad(value, q, create_graph=followed, allow_unused=True, materialize_grads=True)[0]


def pull(F: Function, z: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool], u: Tensor) -> list[Tensor | None]:
    """(dF/dt)' u for each wanted tensor t; None for the others."""
    chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
    gradients: list[Tensor | None] = [None] * len(tensors)
    if chosen:
        _, pullback = vjp(_partial(F, z, tensors, wanted), *chosen)
        found = iter(pullback(u))
        gradients = [next(found) if want else None for want in wanted]
    return gradients


def push(F: Function, z: Tensor, tensors: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """The sum of (dF/dt) dt over the tensors that have a tangent."""
    wanted = [dt is not None for dt in tangents]
    chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
    value, pullback = vjp(_partial(F, z, tensors, wanted), *chosen)
    r: Tensor = transpose(pullback, value)(tuple(dt for dt in tangents if dt is not None))
    return r


def _partial(F: Function, z: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool]) -> Function:
    """F as a function of the wanted tensors alone."""

    def function(*chosen: Tensor) -> Tensor:
        given = iter(chosen)
        return F(z, *(next(given) if want else t for t, want in zip(tensors, wanted, strict=True)))

    return function


def adjoint_product(F: Function, z: Tensor, tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """u -> (dF/dz)' u; F is evaluated once for all products, and once more for those of the transpose."""
    _, pullback = vjp(lambda q: F(q, *tensors), z)
    return lambda u: pullback(u)[0]


def transpose(product: Callable[[Tensor], Any], v: Tensor) -> Callable[[Any], Tensor]:
    """The transpose of a linear function whose argument looks like v."""
    _, pullback = vjp(product, torch.zeros_like(v))
    return lambda u: pullback(u)[0]


def jacobian(F: Function, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """dF/dz, (*batch, n, n), for z (*batch, n)."""
    return rows(adjoint_product(F, z, tensors), z)


def rows(product: Function, like: Tensor) -> Tensor:
    """The matrix whose row i is a product with e_i, (*batch, n, .), for vectors `like` (*batch, n)."""
    n, rank = like.shape[-1], like.dim() - 1
    unit = torch.eye(n, dtype=like.dtype, device=like.device)
    unit = unit.reshape(n, *(1,) * rank, n).expand(n, *like.shape)
    chunk = CHUNK // max(1, _extent(product, like)) if n * like.numel() > LARGE else n
    if chunk < min(FEW, n):
        return torch.stack([product(e) for e in unit], -2)
    M: Tensor = torch.func.vmap(product, chunk_size=None if chunk >= n else chunk)(unit)
    return M.movedim(0, -2)


def _extent(product: Function, like: Tensor) -> int:
    """The entries of the largest tensor that torch.func.vmap multiplies by the number of products.

    Beside what a product computes this is each factor of a batched matrix product, also one that is not mapped: of
    that vmap makes as many copies.
    """
    seen = _Extent()
    with seen:
        product(torch.zeros_like(like))
    return seen.largest


class _Extent(TorchDispatchMode):
    """Watches what is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        seen = (*args, out) if func is torch.ops.aten.bmm.default else () if func.is_view else (out,)
        self.largest = max((self.largest, *(t.numel() for t in seen if isinstance(t, Tensor))))
        return out
