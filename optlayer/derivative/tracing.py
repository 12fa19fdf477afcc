# SPDX-License-Identifier: Apache-2.0
"""What torch must be told, and asked, so that one derivative rule serves all of its differentiators.

These helpers hold every use of a private name of torch in this library.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter

from .. import ops

Entry = TypeVar("Entry", bound=Callable[..., Any])

# The keys that torch adds to those of an operator's tensors, in ordinary and in inference mode.  Whatever else wants to
# see calls, a transform, a mode or a tracer, adds one more.
_ALONE = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_KEYS = (_ALONE | torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView), _ALONE)

# Tensors that torch.autograd.grad(..., is_grads_batched=True) maps carry it; those of torch.func.vmap another.
_BATCHED = torch._C._dispatch_key_parse("Batched")

# Inside it a call of an operator skips the operator's Autograd kernel, which is the Function that makes the call.
below_autograd = torch._C._AutoDispatchBelowAutograd


def transformed() -> bool:
    """Whether torch.func or forward mode is at work around this call."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def recording(tensors: Sequence[Tensor | None]) -> bool:
    """Whether this call may be differentiated."""
    if transformed():
        return True
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def unwatched(tensors: Sequence[Tensor | None], constant: bool = False) -> bool:
    """Whether only the engine would see an operator's call with these tensors: ordinary ones, on the CPU or CUDA.

    No transform, mode, tracer, tensor subclass or autocast waits for the call then; and if `constant`, no derivative.
    """
    tracked = constant and torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        kind = type(t)
        if (
            (kind is not Tensor and kind is not Parameter)
            or not (t.is_cpu or t.is_cuda)
            or (tracked and t.requires_grad)
        ):
            return False
    return (
        torch._C._dispatch_tls_local_include_set() in _KEYS
        and not torch._C._len_torch_function_stack()
        and not torch._C._is_any_autocast_enabled()
        and not (constant and forward_ad._current_level >= 0)
    )


def run(operator: str, tensors: Sequence[Tensor | None], *options: Any) -> Any:
    """An operator below autograd, in full precision.

    Its engine is called at once where nothing else would see the call: on a small problem the way through torch's
    dispatcher takes as long as the solve.
    """
    if operator in ops.engines and unwatched(tensors):
        return ops.engines[operator](*tensors, *options)
    device = next(t.device.type for t in tensors if t is not None)
    with below_autograd(), full_precision(device):
        return getattr(ops, operator)(*tensors, *options)


def apply(function: type[Function], *args: Any) -> Any:
    """``function.apply(*args)``, but where torch.func is not at work without the inspection that only it needs.

    torch looks up the signature of `forward` at every call for default arguments, of which there are none here; that
    takes as long as a small problem.
    """
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


def batched(t: Tensor) -> bool:
    """Whether ``is_grads_batched`` maps this tensor: a Function's own rule for vmap does not hear of that."""
    return bool(torch._C._dispatch_keys(t).has(_BATCHED))


def batching() -> bool:
    """Whether ``is_grads_batched`` is at work around this call."""
    nesting = torch._C._vmapmode_increment_nesting()
    torch._C._vmapmode_decrement_nesting()
    return nesting > 1


def unbatch(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int | None], Callable[[Tensor], Tensor]]:
    """What ``is_grads_batched`` maps as plain tensors with the mapped dimension first, and the way back."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    plain = [torch._remove_batch_dim(t, level, 1, 0) if batched(t) else t for t in tensors]
    dims = [0 if batched(t) else None for t in tensors]
    return plain, dims, lambda t: torch._add_batch_dim(t, 0, level)


def autocast_on(device: str) -> bool:
    """Whether autocast is at work on this type of device."""
    return (
        torch._C._is_any_autocast_enabled()
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """No autocast within: it would run the products of a derivative, and of an engine, in half precision."""
    return torch.autocast(device, enabled=False) if autocast_on(device) else contextlib.nullcontext()


def save(ctx: Any, wanted: Sequence[bool], *tensors: Tensor | None) -> None:
    """Keep tensors for a derivative: all of them for forward mode, which runs at once; for backward only the wanted."""
    ctx.save_for_forward(*tensors)
    ctx.save_for_backward(*(t if keep else None for t, keep in zip(tensors, wanted, strict=True)))
    ctx.set_materialize_grads(False)


def primals(ctx: Any) -> list[Any]:
    """The saved tensors, for a jvp, without the tangents of its own level: see `forward_mode`.

    The level is written out because traced graphs do not keep forward_ad's notion of the current one.
    """
    return [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors]


def alive(tensors: Sequence[Any]) -> list[Any]:
    """Tensors, for a backward that calls torch.func, without the wrappers of transforms that have ended.

    Backward may run after the transform that recorded it, and torch.func would wrap what is dead once more.
    """
    return [torch._C._functorch.unwrap_if_dead(t) if isinstance(t, Tensor) else t for t in tensors]


def forward_mode() -> contextlib.AbstractContextManager[Any]:
    """Forward mode, switched on again inside a jvp.

    torch calls jvp with forward mode off, so that an outer level of it would see constants: jvp(jvp) of any Function
    would be zero without a word.  Switched on, it needs values that are free of the tangents of the jvp's own level.
    """
    return forward_ad._set_fwd_grad_enabled(True)


def in_graph(function: Entry) -> Entry:
    """A function that Dynamo writes into its graph as one call, as it refuses to look into a Function that has a jvp.

    torch.compiler.allow_in_graph says so, but to import Dynamo takes longer than everything else here; so it is told
    when it first comes by.  It runs `_tell_dynamo` while it traces, before it looks at `function`.
    """
    _IN_GRAPH.append(function)

    @functools.wraps(function)
    def entry(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            _tell_dynamo()
        return function(*args)

    return entry  # type: ignore[return-value]


_IN_GRAPH: list[Callable[..., Any]] = []


def _tell_dynamo() -> bool:
    for function in _IN_GRAPH:
        torch.compiler.allow_in_graph(function)
    return True


_tell_dynamo._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what torch.compiler.assume_constant_result sets


def eager(function: Entry) -> Entry:
    """A function that Dynamo calls as it is, for its arguments are functions, which no graph takes.

    This is torch.compiler.disable, but Dynamo is imported by the first call.
    """
    entry: Entry = torch._compile._disable_dynamo(function)  # type: ignore[assignment]
    return entry


def bare(t: Tensor) -> Tensor:
    """The plain tensor under the wrappers of torch.func, detached; of each mapped dimension the first element."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        dim = functorch.maybe_get_bdim(t)
        t = functorch.get_unwrapped(t)
        if dim >= 0:
            t = t.select(dim, 0)
    return t.detach()


def watched(t: Tensor) -> bool:
    """Whether any differentiator or vmap around this call follows the tensor."""
    functorch = torch._C._functorch
    while True:
        if functorch.is_batchedtensor(t) or t.requires_grad or forward_ad.unpack_dual(t, level=0).tangent is not None:
            return True
        if not functorch.is_functorch_wrapped_tensor(t):
            return False
        t = functorch.get_unwrapped(t)


class Zeros(NamedTuple):
    """Zero right-hand sides, one element for the whole batch: they broadcast."""

    sizes: Sequence[int]
    dtype: torch.dtype
    device: torch.device

    def fill(self, r: Sequence[Tensor | None]) -> list[Tensor]:
        """The right-hand sides with zeros in place of None."""
        return [
            torch.zeros(size, dtype=self.dtype, device=self.device) if t is None else t
            for t, size in zip(r, self.sizes, strict=True)
        ]


def refuse_tangents(args: Sequence[Any]) -> None:
    """Raise if forward mode reaches an operator that a compiled or exported graph calls.

    Compiled kernels around it drop tangents without a word, so that a tangent that does arrive may be incomplete.
    """
    if forward_ad._current_level >= 0 and any(
        isinstance(t, Tensor) and forward_ad.unpack_dual(t, level=0).tangent is not None for t in args
    ):
        raise NotImplementedError(
            "forward mode cannot cross a compiled or exported graph: call torch.func.jvp inside the compiled function"
        )
