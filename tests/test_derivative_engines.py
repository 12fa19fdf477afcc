# SPDX-License-Identifier: Apache-2.0
"""The rule on the engine that ships: it agrees with the dense engine of the tests and with finite differences."""

import dense_engine
import pytest
import regular as regular_programs
import torch
from regular import OPTIONS, close, loss, outputs, regular, tracked
from torch.autograd import gradcheck, gradgradcheck
from torch.profiler import ProfilerActivity, profile

from optlayer import ops
from optlayer.derivative import Raw, linear, solve

COLD = (None, None, None, None)
CASES = {
    "all blocks": ((), {}),
    "no bounds": (("lb", "ub"), {}),
    "no rows": (("G", "h"), {}),
    "no equalities": (("A", "b"), {}),
    "two equalities": ((), {"p": 2, "n": 8}),
    "many rows": ((), {"m": 20, "n": 8}),
    "shared matrices": ((), {"shared": ("P", "G", "A")}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def program(request):
    absent, sizes = request.param
    return regular(3, **sizes)[0]._replace(**dict.fromkeys(absent))


def given(program):
    return [None if t is None else t.clone().requires_grad_() for t in program]


def both(function):
    """The result of a function on the engine that ships, and on the dense one."""
    ours = function()
    with dense_engine.installed():
        return ours, function()


# Both engines solve to 1e-9 and polish to rounding; condition numbers of the systems here are below 1e4.
TOLERANCE = {"atol": 1e-8, "rtol": 1e-7}


def test_solutions_agree(program):
    close(*both(lambda: outputs(*program)), **TOLERANCE)


def test_gradients_of_order_one_and_two_agree(program):
    blocks = given(program)
    present = [t for t in blocks if t is not None]

    def gradients():
        first = torch.autograd.grad(loss(*blocks), present, create_graph=True)
        return first, torch.autograd.grad(sum(g.pow(2).sum() for g in first), present)

    close(*both(gradients), **TOLERANCE)


def test_tangents_agree(program):
    def tangents():
        return torch.func.jvp(lambda q: outputs(program[0], q, *program[2:]), (program[1],), (program[1],))[1]

    close(*both(tangents), **TOLERANCE)


def test_linear_systems_agree(program):
    def solution():
        raw = solve(*program, None, OPTIONS)
        random = torch.Generator().manual_seed(1)
        r = [torch.randn(4, *t.shape, dtype=t.dtype, generator=random) for t in raw[:4]]
        return linear(program[0], program[2], program[4], *raw[10:], raw.status, *r, "auto")

    close(*both(solution), **TOLERANCE)


def test_finite_differences():
    blocks = tracked(regular(2)[0])
    assert gradcheck(outputs, blocks, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(outputs, blocks, check_fwd_over_rev=True, fast_mode=True)


def factorisations(function):
    with profile(activities=[ProfilerActivity.CPU]) as record:
        function()
    return sum(event.name in ("aten::linalg_cholesky_ex", "aten::linalg_lu_factor_ex") for event in record.events())


def test_derivatives_of_every_order_factorise_nothing(monkeypatch):
    """Of the reference engine the profiler sees every factorisation."""
    monkeypatch.setattr(regular_programs, "OPTIONS", OPTIONS._replace(backend="reference"))
    blocks = tracked(regular(3)[0])
    made = []
    assert factorisations(lambda: made.append(loss(*blocks))) > 0
    grads = []
    assert factorisations(lambda: grads.extend(torch.autograd.grad(made[0], blocks, create_graph=True))) == 0
    assert factorisations(lambda: torch.autograd.grad(sum(g.pow(2).sum() for g in grads), blocks)) == 0
    slope = lambda: torch.func.jvp(lambda q: loss(blocks[0], q, *blocks[2:]), (blocks[1],), (blocks[1],))  # noqa: E731
    assert factorisations(slope) == factorisations(lambda: loss(*blocks))


def test_the_state_alone_serves_a_backward_pass():
    """As in a graph that was exported without gradients and is differentiated afterwards."""
    blocks = tracked(regular(3)[0])
    raw = ops.qp(*blocks, *COLD, *OPTIONS[:-1], False)
    assert Raw(*raw).factor.shape[-1] == 0
    gradients = torch.autograd.grad(sum((t * t * t / 3 + t).sum() for t in raw[:5]), blocks)
    close(gradients, torch.autograd.grad(loss(*blocks), blocks), **TOLERANCE)


FAILURES = {
    "invalid": ("q", torch.nan),
    "invalid P": ("P", torch.inf),
    "infeasible": ("ub", -100.0),
    "not convex": ("P", -100.0),
}


@pytest.mark.parametrize("on_failure", ["nan", "ignore"])
@pytest.mark.parametrize(("name", "value"), FAILURES.values(), ids=FAILURES.keys())
def test_failed_elements(name, value, on_failure):
    program = regular(3)[0]
    getattr(program, name)[1].view(-1)[0] = value
    blocks = tracked(program)
    raw = solve(*blocks, None, OPTIONS._replace(on_failure=on_failure))
    assert (raw.status == 1).tolist() == [True, False, True]
    kept = [0, 2]
    quiet = torch.autograd.grad(sum(t[kept].pow(2).sum() for t in raw[:5]), blocks, retain_graph=True)
    healthy = tracked([t[kept] for t in program])
    expected = torch.autograd.grad(sum(t.pow(2).sum() for t in outputs(*healthy)), healthy)
    for g, wanted in zip(quiet, expected, strict=True):
        assert (g[1] == 0).all()
        assert torch.equal(g[kept], wanted)
    for g in torch.autograd.grad(raw.x[1].sum(), blocks):
        assert g[1].isnan().any()
        assert (g[kept] == 0).all()


def test_an_iterate_that_is_not_a_solution_has_no_derivative():
    blocks = tracked(regular(3)[0])
    raw = solve(*blocks, None, OPTIONS._replace(on_failure="ignore", eps_abs=1e-40, eps_rel=0.0))
    assert (raw.status != 1).all() and raw.x.isfinite().all()
    for g in torch.autograd.grad(raw.x, blocks, torch.ones_like(raw.x) * torch.tensor([[0.0], [1.0], [0.0]])):
        assert g[1].isnan().any()
        assert (g[[0, 2]] == 0).all()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cuda_device_gives_the_same_derivatives(dtype):
    program = [t.to(dtype) for t in regular(3)[0]]
    here, there = tracked(program), tracked([t.cuda() for t in program])
    expected, gradients = torch.autograd.grad(loss(*here), here), torch.autograd.grad(loss(*there), there)
    scale = max(float(g.abs().max()) for g in expected)
    eps = 1e-8 if dtype == torch.float64 else 1e-4  # the accuracy of the solve, times the condition of the system
    close([g.cpu() for g in gradients], expected, atol=eps * scale, rtol=eps)
    tangents = torch.func.jvp(lambda q: outputs(there[0], q, *there[2:]), (there[1],), (there[1],))[1]
    reference = torch.func.jvp(lambda q: outputs(here[0], q, *here[2:]), (here[1],), (here[1],))[1]
    close([t.cpu() for t in tangents], reference, atol=eps * scale, rtol=eps)
