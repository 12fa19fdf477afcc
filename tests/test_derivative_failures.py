# SPDX-License-Identifier: Apache-2.0
"""Elements without a solution: a zero cotangent gives exactly zero, any other NaN, and neighbours notice nothing."""

import dense_engine
import pytest
import torch
from regular import OPTIONS, close, loss, outputs, regular, tracked

from optlayer.derivative import adjoint, solve

pytestmark = pytest.mark.parametrize("engine", ["dense", "native", "reference"], indirect=True)

NAMES = ("P", "q", "G", "h", "A", "b", "lb", "ub")
BAD = 1  # the element that fails, between two that do not


@pytest.fixture(autouse=True)
def calls(engine):
    with dense_engine.installed() if engine == "dense" else dense_engine.counted() as counted:
        yield counted


def spoilt(name, value, shared=()):
    """Three programs, of which the middle one cannot be solved; some arguments may be shared by all."""
    program, _ = regular(3, shared=shared)
    if "q" in shared:
        program = program._replace(q=program.q[0])
    if "h" in shared:
        program = program._replace(h=program.h.amax(0) + 3)  # room for every element
    getattr(program, name)[BAD].flatten()[0] = value
    return tracked(program)


def parts(t, bad=BAD):
    return t[[i for i in range(3) if i != bad]], t[bad]


def masked_loss(program):
    out = solve(*program, None, OPTIONS)
    solved = (out.status == 1).unsqueeze(-1)
    assert solved.flatten().tolist() == [True, False, True]
    return sum(torch.where(solved, t, 0).pow(3).sum() for t in out[:5])


SPOILS = [
    *((name, torch.nan) for name in NAMES),
    *((name, torch.inf) for name in ("P", "q", "G", "A", "b")),
]


@pytest.mark.parametrize(("name", "value"), SPOILS, ids=str)
def test_a_masked_loss_gives_exactly_zero_there_and_the_usual_elsewhere(name, value):
    program = spoilt(name, value)
    gradients = torch.autograd.grad(masked_loss(program), program)
    healthy = tracked([parts(t)[0] for t in program])
    expected = torch.autograd.grad(sum(t.pow(3).sum() for t in outputs(*healthy)), healthy)
    for gradient, wanted in zip(gradients, expected, strict=True):
        others, bad = parts(gradient)
        assert (bad == 0).all()
        assert torch.equal(others, wanted)


@pytest.mark.parametrize("output", range(5))
@pytest.mark.parametrize(("name", "value"), [("q", torch.nan), ("G", torch.inf), ("P", torch.nan)], ids=str)
def test_a_cotangent_gives_nan_there_and_nothing_elsewhere(name, value, output):
    program = spoilt(name, value)
    out = outputs(*program)[output]
    cotangent = torch.zeros_like(out)
    cotangent[BAD, 0] = 1
    for gradient in torch.autograd.grad(out, program, cotangent):
        others, bad = parts(gradient)
        assert (others == 0).all()
        assert bad.isnan().any()


@pytest.mark.parametrize("sign", [1, -1])
def test_cotangents_of_z_and_s_do_not_cancel(sign):
    program = spoilt("G", torch.nan)
    _, _, z, _, s = outputs(*program)
    (gradient,) = torch.autograd.grad(z.sum() + sign * s.sum(), program[3])
    assert parts(gradient)[1].isnan().all()


@pytest.mark.parametrize("shared", [("P",), ("G", "h"), ("A",), ("q",), ("P", "G", "A")], ids=" ".join)
def test_shared_arguments_receive_the_sum_over_the_others(shared):
    name = "b" if "q" in shared else "q"
    program = spoilt(name, torch.nan, shared)
    gradients = torch.autograd.grad(masked_loss(program), program)
    healthy = tracked([t if k in shared else parts(t)[0] for k, t in zip(NAMES, program, strict=True)])
    expected = torch.autograd.grad(sum(t.pow(3).sum() for t in outputs(*healthy)), healthy)
    for k, gradient, wanted in zip(NAMES, gradients, expected, strict=True):
        close(gradient if k in shared else parts(gradient)[0], wanted)


@pytest.mark.parametrize("shared", [("P",), ("G", "h"), ("A",)], ids=" ".join)
def test_a_cotangent_on_a_failed_element_spoils_shared_gradients_loudly(shared):
    program = spoilt("q", torch.nan, shared)
    gradients = dict(zip(NAMES, torch.autograd.grad(sum(t.sum() for t in outputs(*program)), program), strict=True))
    assert all(gradients[k].isnan().any() for k in shared)


@pytest.mark.parametrize("name", ["P", "G", "A"])
def test_nan_in_shared_data_fails_all_elements_and_a_zero_cotangent_is_still_zero(name):
    program = list(regular(3)[0])
    place = NAMES.index(name)
    program[place] = program[place][0].clone()
    program[place][0, 0] = torch.nan
    program = tracked(program)
    out = outputs(*program)
    for gradient in torch.autograd.grad(out, program, [torch.zeros_like(t) for t in out]):
        assert (gradient == 0).all()


@pytest.mark.parametrize("shared", [(), ("P",), ("q", "h"), ("G",), ("A",)], ids=lambda s: " ".join(s) or "none")
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_second_order_of_a_masked_loss(shared, value):
    """The gradient of |gradient|^2 is zero at the failed element and leaves the others as they would be without it."""
    program = spoilt("b", value, shared)

    def penalty(blocks, loss):
        gradients = torch.autograd.grad(loss, blocks, create_graph=True)
        return sum(g.pow(2).sum() for g in gradients)

    second = torch.autograd.grad(penalty(program, masked_loss(program)), program)
    healthy = tracked([t if k in shared else parts(t)[0] for k, t in zip(NAMES, program, strict=True)])
    expected = torch.autograd.grad(penalty(healthy, sum(t.pow(3).sum() for t in outputs(*healthy))), healthy)
    for k, gradient, wanted in zip(NAMES, second, expected, strict=True):
        close(gradient if k in shared else parts(gradient)[0], wanted)
        assert k in shared or (parts(gradient)[1] == 0).all()


def test_second_order_with_nan_in_the_matrices():
    for name in ("P", "G", "A"):
        program = spoilt(name, torch.nan)
        gradients = torch.autograd.grad(masked_loss(program), program, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), program)
        assert all((parts(g)[1] == 0).all() and g.isfinite().all() for g in second)


def test_forward_mode():
    program = [t.detach() for t in spoilt("G", torch.nan)]
    tangents = [torch.randn_like(t).nan_to_num() for t in program]
    tangents = [torch.where(t.isinf(), 0, d) for t, d in zip(program, tangents, strict=True)]
    healthy, directions = [parts(t)[0] for t in program], [parts(t)[0] for t in tangents]
    _, expected = torch.func.jvp(outputs, tuple(healthy), tuple(directions))
    _, loud = torch.func.jvp(outputs, tuple(program), tuple(tangents))
    for t in tangents:
        t[BAD] = 0
    _, quiet = torch.func.jvp(outputs, tuple(program), tuple(tangents))
    for a, b, wanted in zip(loud, quiet, expected, strict=True):
        close(parts(a)[0], wanted)
        close(parts(b)[0], wanted)
        assert parts(a)[1].isnan().any()
        assert (parts(b)[1] == 0).all()


def test_gradients_of_each_element():
    program = spoilt("P", torch.nan)
    raw = solve(*program, None, OPTIONS)
    ones = {name: torch.ones_like(t) for name, t in zip(("g_x", "g_y", "g_z", "g_box", "g_s"), raw[:5], strict=True)}
    for gradient in adjoint(*program, raw, **ones).values():
        others, bad = parts(gradient)
        assert others.isfinite().all() and bad.isnan().any()
    for t in ones.values():
        t[BAD] = 0
    for gradient in adjoint(*program, raw, **ones).values():
        assert (parts(gradient)[1] == 0).all()


def test_vmapped_elements_fail_alone():
    program = [t.detach() for t in spoilt("q", torch.nan)]
    gradients = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(8))))(*program)
    healthy = [parts(t)[0] for t in program]
    expected = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(8))))(*healthy)
    close([parts(g)[0] for g in gradients], expected)
    assert all(parts(g)[1].isnan().any() for g in gradients)
