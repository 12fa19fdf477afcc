# SPDX-License-Identifier: Apache-2.0
"""When the engine is called at once and when an operator goes through torch's dispatcher, where others may see it."""

import contextlib

import dense_engine
import pytest
import torch
from regular import close, outputs, regular, tracked
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from optlayer.derivative import tracing


@pytest.fixture(autouse=True)
def calls():
    with dense_engine.installed() as counted:
        yield counted


class Seen(TorchDispatchMode):
    """Keeps the names of the operators that pass by."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Passing(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A subclass without behaviour of its own, as users write them."""


SIGHTED = {
    "dispatch mode": Seen,
    "function mode": Passing,
    "default device": lambda: torch.device("cpu"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_ordinary_tensors_are_unwatched(mode):
    with mode():
        assert tracing.unwatched([torch.ones(2), None, torch.nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize("mode", SIGHTED.values(), ids=SIGHTED.keys())
def test_modes_watch(mode):
    t = torch.ones(2)
    with mode():
        assert not tracing.unwatched([t])
    assert tracing.unwatched([t])


@pytest.mark.parametrize(
    "other", [torch.ones(2, device="meta"), torch.ones(2).as_subclass(Marked)], ids=["meta", "sub"]
)
def test_other_tensors_are_watched(other):
    assert not tracing.unwatched([torch.ones(2), other])


def test_transforms_and_tracers_watch():
    seen = []

    def look(t):
        seen.append(tracing.unwatched([t]))
        return t.sum()

    t = torch.ones(2)
    for transform in (torch.vmap, torch.func.grad, torch.func.functionalize):
        transform(look)(t)
    torch.func.jvp(look, (t,), (t,))
    make_fx(look)(t)
    make_fx(look, pre_dispatch=True)(t)
    torch.autograd.grad((w := t.clone().requires_grad_()) * Look.apply(w, seen), w, torch.eye(2), is_grads_batched=True)
    assert seen == [False] * len(seen)
    assert len(seen) == 7


class Look(torch.autograd.Function):
    """The identity; keeps whether its cotangent is watched."""

    @staticmethod
    def forward(ctx, t, seen):
        ctx.seen = seen
        return t.clone()

    @staticmethod
    def backward(ctx, cotangent):
        ctx.seen.append(tracing.unwatched([cotangent]))
        return cotangent, None


def test_a_dispatch_mode_sees_the_operators():
    blocks = tracked(regular(2)[0])
    with Seen() as mode:
        torch.autograd.grad(outputs(*blocks)[0].sum(), blocks)
    assert [name for name in mode.names if name.startswith("optlayer")] == [
        "optlayer.qp.default",
        "optlayer.kkt_solve.default",
    ]


def test_the_way_does_not_matter(calls):
    """Through the dispatcher or not, the gradients of the matrices by an engine or by the rule: the same numbers."""
    blocks = tracked(regular(2)[0])
    direct = torch.autograd.grad(outputs(*blocks)[0].sum(), blocks)
    with Seen():
        watched = torch.autograd.grad(outputs(*blocks)[0].sum(), blocks)
    close(direct, watched, atol=1e-14, rtol=1e-14)
    assert calls == {"qp": 2, "kkt_solve": 2}


def test_an_apply_that_torch_func_does_not_see_is_that_of_torch():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(t):
            return 2 * t

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, cotangent):
            return 2 * cotangent

        @staticmethod
        def jvp(ctx, tangent):
            return 2 * tangent

    t = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad(tracing.apply(Double, t).sum(), t)[0].tolist() == [2.0] * 3
    with forward_ad.dual_level():
        dual = tracing.apply(Double, forward_ad.make_dual(t.detach(), t.detach()))
        assert forward_ad.unpack_dual(dual).tangent.tolist() == [2.0] * 3
    assert torch.func.grad(lambda t: tracing.apply(Double, t).sum())(t.detach()).tolist() == [2.0] * 3
