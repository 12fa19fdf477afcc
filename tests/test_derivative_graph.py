# SPDX-License-Identifier: Apache-2.0
"""The rule inside torch's autograd engine: what it saves, notices, frees and leaves alone."""

import threading
import weakref

import dense_engine
import pytest
import torch
from regular import OPTIONS, close, loss, outputs, regular, tracked
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from optlayer.derivative import solve, tracing, variation
from optlayer.solvers import choose

NAMES = ("P", "q", "G", "h", "A", "b", "lb", "ub")
MUTATED = r"modified by an inplace operation"


@pytest.fixture(autouse=True)
def calls():
    with dense_engine.installed() as counted:
        yield counted


@pytest.fixture
def program():
    return regular(2)[0]


@pytest.fixture
def blocks(program):
    return tracked(program)


@pytest.fixture
def expected(blocks):
    return torch.autograd.grad(loss(*blocks), blocks)


# ---- how much is computed and kept -----------------------------------------------------------------------------------


def test_number_of_solves_at_each_order(blocks, calls):
    value = loss(*blocks)
    assert calls == {"qp": 1, "kkt_solve": 0}
    first = torch.autograd.grad(value, blocks, create_graph=True)
    assert calls == {"qp": 1, "kkt_solve": 1}
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), blocks, create_graph=True)
    assert calls == {"qp": 1, "kkt_solve": 3}
    torch.autograd.grad(sum(g.pow(2).sum() for g in second), blocks)
    assert calls == {"qp": 1, "kkt_solve": 7}


def test_the_factorisation_is_kept_only_where_something_differentiates(program, blocks):
    def kept(*given):
        return solve(*given, None, OPTIONS).factor.shape[-1] > 0

    assert kept(*blocks)
    assert not kept(*program)
    with torch.no_grad():
        assert not kept(*blocks)
    with torch.inference_mode():
        assert not kept(*blocks)
    with forward_ad.dual_level():
        assert kept(program.P, forward_ad.make_dual(program.q, program.q), *program[2:])


@pytest.mark.parametrize("name", NAMES)
def test_only_wanted_outer_products_are_formed(name, program, monkeypatch):
    formed = []

    def outer(rows, columns, shape):
        formed.append(shape)
        return original(rows, columns, shape)

    original = variation.outer
    monkeypatch.setattr(variation, "outer", outer)
    monkeypatch.setattr(choose, "pull", lambda *_: None)  # by the rule, not by an engine
    place = NAMES.index(name)
    (only,) = tracked([program[place]])
    gradient, *_ = torch.autograd.grad(loss(*program[:place], only, *program[place + 1 :]), only)
    assert formed == ([gradient.shape] if name in "PGA" else [])


def test_only_what_backward_needs_is_saved(program):
    def saved(*required):
        kept = []
        blocks = [t.detach().clone().requires_grad_(name in required) for name, t in zip(NAMES, program, strict=True)]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
            raw = solve(*blocks, None, OPTIONS)
        matrices = [(2, 5, 5), (2, 3, 5), (2, 1, 5)]
        engine = [tuple(t.shape) for t in (raw.state, raw.factor, raw.index, raw.status)]
        slack = [(2, 3)]
        for shape in matrices + engine + slack:  # always: the system, and which rows are infinite
            kept.remove(shape)
        return kept

    assert saved("q") == saved("h") == saved("b") == []
    assert saved("lb") == saved("ub") == [(2, 5)]  # which bound is active
    assert saved("P") == [(2, 5)]  # x
    assert sorted(saved("A")) == [(2, 1), (2, 5)]  # y, x
    assert sorted(saved("G")) == [(2, 3), (2, 5)]  # z, x


def test_the_graph_is_freed_without_the_garbage_collector(blocks):
    out = outputs(*blocks)
    node = weakref.ref(out[0].grad_fn)
    del out
    assert node() is None


# ---- the engine's own rules ------------------------------------------------------------------------------------------


def test_a_graph_may_be_retained_and_is_gone_otherwise(blocks):
    value = loss(*blocks)
    first = torch.autograd.grad(value, blocks, retain_graph=True)
    close(torch.autograd.grad(value, blocks), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, blocks)


def test_several_forwards_before_any_backward(program, blocks):
    P, q, *rest = blocks
    values = [loss(P, q * k, *rest) for k in (1.0, 1.01, 0.99)]
    late = [torch.autograd.grad(v, q)[0] for v in reversed(values)][::-1]
    close(late, [torch.autograd.grad(loss(P, q * k, *rest), q)[0] for k in (1.0, 1.01, 0.99)])


@pytest.mark.parametrize("output", range(5))
def test_an_output_changed_in_place_is_noticed(output, blocks):
    out = outputs(*blocks)
    value = sum(t.pow(2).sum() for t in out)
    with torch.no_grad():
        out[output].add_(1)
    with pytest.raises(RuntimeError, match=MUTATED):
        torch.autograd.grad(value, blocks)


@pytest.mark.parametrize("name", ["state", "factor", "index", "status"])
def test_the_engines_state_changed_in_place_is_noticed(name, blocks):
    raw = solve(*blocks, None, OPTIONS)
    getattr(raw, name).zero_()
    with pytest.raises(RuntimeError, match=MUTATED):
        torch.autograd.grad(raw.x.sum(), blocks)


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_changed_in_place_is_noticed_where_it_matters(name, program, blocks):
    """The matrices enter the gradient: a change is an error.  The vectors do not, and the gradient stays right."""
    expected = torch.autograd.grad(outputs(*blocks)[0].sum(), blocks[1])
    given = [t.detach().clone() for t in program]
    q = given[1].requires_grad_()
    given[1] = q.clone()
    x = outputs(*given)[0]
    with torch.no_grad():
        given[NAMES.index(name)].add_(1)
    if name in "PGA":
        with pytest.raises(RuntimeError, match=MUTATED):
            torch.autograd.grad(x.sum(), q)
    else:
        close(torch.autograd.grad(x.sum(), q), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, blocks, expected, calls):
    before = calls["qp"]
    value = checkpoint(loss, *blocks, use_reentrant=reentrant)
    value.backward()
    close([t.grad for t in blocks], expected)
    assert calls["qp"] - before == 2


def test_saved_tensors_may_be_packed_and_offloaded(blocks, expected):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone().numpy(), torch.from_numpy):
        value = loss(*blocks)
    close(torch.autograd.grad(value, blocks), expected)
    with torch.autograd.graph.save_on_cpu():
        value = loss(*blocks)
    close(torch.autograd.grad(value, blocks), expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode(blocks, expected):
    with torch.autograd.detect_anomaly():
        close(torch.autograd.grad(loss(*blocks), blocks), expected)


def test_threads(program, expected):
    results = []

    def work():
        blocks = tracked(program)
        results.append(torch.autograd.grad(loss(*blocks), blocks))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        close(result, expected, atol=0, rtol=0)


def test_inference_mode(program, blocks):
    with torch.inference_mode():
        out = [t.clone() for t in outputs(*blocks)]
    close(out, outputs(*program))


def test_fake_tensors(program, blocks):
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in program]
        gradients = torch.autograd.grad(loss(*fakes), fakes)
    assert [g.shape for g in gradients] == [t.shape for t in blocks]


def test_meta_tensors(blocks):
    metas = [t.detach().to("meta").requires_grad_() for t in blocks]
    gradients = torch.autograd.grad(loss(*metas), metas)
    assert [g.shape for g in gradients] == [t.shape for t in blocks]


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_autocast_changes_nothing_in_full_precision(dtype, program):
    plain, cast = tracked([t.to(dtype) for t in program]), tracked([t.to(dtype) for t in program])
    expected = torch.autograd.grad(loss(*plain), plain, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in expected), plain)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(loss(*cast), cast, create_graph=True)
        close(gradients, expected, atol=0, rtol=0)
        q, tangent = program.q.to(dtype), torch.ones_like(program.q).to(dtype)
        inside = torch.func.jvp(lambda q: outputs(cast[0], q, *cast[2:]), (q,), (tangent,))[1]
    # torch runs the backward of its own products under autocast too if called there, as it does in any model
    close(torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), cast), second, atol=0, rtol=0)
    close(inside, torch.func.jvp(lambda q: outputs(cast[0], q, *cast[2:]), (q,), (tangent,))[1], atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_in_float32_under_autocast(dtype, program):
    half = tracked([t.to(dtype) for t in program])
    single = tracked([t.float() for t in half])
    with torch.autocast("cpu", torch.bfloat16):
        x = outputs(*half)[0]
        with torch.no_grad():
            close(outputs(*half)[0], x)
    assert x.dtype == torch.float32
    gradients, expected = torch.autograd.grad(x.sum(), half), torch.autograd.grad(outputs(*single)[0].sum(), single)
    assert all(g.dtype == dtype for g in gradients)
    close(gradients, [g.to(dtype) for g in expected])


# ---- names of torch that are not public ------------------------------------------------------------------------------


def test_the_private_names_of_torch_that_the_rule_uses(program):
    """They mean what the rule takes them to mean; when torch changes one, this is where it shows."""
    assert torch._C._are_functorch_transforms_active() is False
    assert torch.func.vmap(lambda t: t + torch._C._are_functorch_transforms_active())(torch.zeros(2)).tolist() == [1, 1]
    assert forward_ad._current_level == -1
    with forward_ad.dual_level():
        assert forward_ad._current_level == 0
    assert not tracing.transformed()
    with tracing.below_autograd():
        t = torch.ones(1, requires_grad=True) * 2
        assert not t.requires_grad
    with torch.autograd.forward_ad._set_fwd_grad_enabled(False), tracing.forward_mode():
        assert torch._C._is_fwd_grad_enabled()
