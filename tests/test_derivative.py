# SPDX-License-Identifier: Apache-2.0
"""The derivative equals finite differences, at first, second and third order, whatever blocks a program has."""

import dense_engine
import pytest
import torch
from regular import OPTIONS, close, loss, outputs, regular, tracked
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from optlayer.derivative import adjoint, solve

pytestmark = pytest.mark.parametrize("engine", ["dense", "native", "reference"], indirect=True)

BLOCKS = {
    "no G": ("G", "h"),
    "no A": ("A", "b"),
    "no lb": ("lb",),
    "no ub": ("ub",),
    "no bounds": ("lb", "ub"),
    "only rows": ("A", "b", "lb", "ub"),
    "only P and q": ("G", "h", "A", "b", "lb", "ub"),
}


@pytest.fixture(autouse=True)
def calls(engine):
    with dense_engine.installed() if engine == "dense" else dense_engine.counted() as counted:
        yield counted


def with_absent(program, absent):
    """The function of the blocks that remain, and these."""
    places = [i for i, name in enumerate(program._fields) if name not in absent]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        blocks = [None] * 8
        for i, t in zip(places, given, strict=True):
            blocks[i] = t
        return tuple(t for t in outputs(*blocks) if t.numel())

    return function, tracked([program[i] for i in places])


# ---- finite differences ----------------------------------------------------------------------------------------------


def test_first_order_of_every_output_in_every_argument(engine):
    """Entry by entry; with the slowest engine along random directions, where every wrong entry shows too."""
    program, _ = regular(2)
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(outputs, tracked(program), fast_mode=engine == "reference", **modes)


def test_second_order_of_every_output_in_every_argument():
    program, _ = regular(2)
    assert gradgradcheck(outputs, tracked(program), check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("absent", BLOCKS.values(), ids=BLOCKS.keys())
def test_orders_one_and_two_without_a_block(absent):
    function, given = with_absent(regular(2)[0], absent)
    assert gradcheck(function, given, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, given, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", ["q", "G", "A"])
def test_third_order(name):
    program, _ = regular(1)
    place = program._fields.index(name)

    def second(t: Tensor) -> Tensor:
        f = loss(*program[:place], t, *program[place + 1 :])
        (g,) = torch.autograd.grad(f, t, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), t, create_graph=True)[0]

    assert gradcheck(second, tracked([program[place]]), fast_mode=True)


@pytest.mark.parametrize("name", ["P", "q", "G", "h", "A", "b", "lb", "ub"])
def test_second_order_when_one_argument_alone_requires_gradients(name):
    program, _ = regular(2)
    place = program._fields.index(name)
    only = tracked([program[place]])
    assert gradgradcheck(lambda t: outputs(*program[:place], t, *program[place + 1 :]), only, fast_mode=True)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_shared_arguments_receive_the_sum_over_the_batch():
    program, _ = regular(3)
    shared = tracked([program.P[0], program.q, program.G[:1], program.h + 1, program.A[0], program.b, *program[6:]])
    whole = tracked([t.detach().expand_as(like) for t, like in zip(shared, program, strict=True)])
    gradients = torch.autograd.grad(loss(*shared), shared)
    expected = torch.autograd.grad(loss(*whole), whole)
    close(gradients, [t.sum_to_size(like.shape) for t, like in zip(expected, gradients, strict=True)])
    assert gradcheck(outputs, shared, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(outputs, shared, check_fwd_over_rev=True, fast_mode=True)


def test_batch_dimensions_broadcast_both_ways():
    program, _ = regular(2)
    P, q, G, h, A, b, lb, ub = program
    mixed = tracked([P[:1], torch.stack([q, q + 0.1, q - 0.1]), G, h[None], A, b[0], lb[:1] - 1, ub])
    whole = tracked(
        [t.detach().expand(3, 2, *t.shape[t.dim() - k :]) for t, k in zip(mixed, (2, 1) * 3 + (1, 1), strict=True)]
    )
    gradients, expected = torch.autograd.grad(loss(*mixed), mixed), torch.autograd.grad(loss(*whole), whole)
    close(gradients, [t.sum_to_size(like.shape) for t, like in zip(expected, mixed, strict=True)])


@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 0), (2, 2)], ids=str)
def test_gradients_have_the_shape_of_their_arguments(batch):
    program = tracked(regular(*batch)[0])
    gradients = torch.autograd.grad(loss(*program), program)
    assert [g.shape for g in gradients] == [t.shape for t in program]
    assert all(g.isfinite().all() for g in gradients)


def test_empty_blocks_equal_absent_ones():
    P, q, *_ = tracked(regular(2)[0])
    empty = tracked([q.new_zeros(2, 0, 5), q.new_zeros(2, 0), q.new_zeros(0, 5), q.new_zeros(0)])
    given, absent = outputs(P, q, *empty, None, None), outputs(P, q, *[None] * 6)
    close(given, absent)
    close(torch.autograd.grad(given[0].sum(), (P, q, *empty))[:2], torch.autograd.grad(absent[0].sum(), (P, q)))
    assert gradgradcheck(lambda P, q: outputs(P, q, *empty, None, None)[0], (P, q), fast_mode=True)


def test_one_variable():
    """min x^2/2 - x subject to x <= h: x = h and z = 1 - h for h < 1."""
    P, q, G = (torch.full(size, v, dtype=torch.float64) for size, v in (((1, 1), 1.0), ((1,), -1.0), ((1, 1), 1.0)))
    h = torch.tensor([[0.25], [0.5]], dtype=torch.float64, requires_grad=True)
    x, _, z, _, s = outputs(P, q, G, h, None, None, None, None)
    close((x, z, s), (h, 1 - h, torch.zeros_like(h)))
    close(torch.autograd.grad(x.sum(), h, retain_graph=True)[0], torch.ones_like(h))
    close(torch.autograd.grad(z.sum(), h)[0], -torch.ones_like(h))


def test_strides_do_not_matter():
    program = [t.detach() for t in regular(2)[0]]
    views = [
        torch.stack([t, t], -1)[..., 0].mT.contiguous().mT if t.dim() == 3 else torch.stack([t, t], -1)[..., 0]
        for t in program
    ]
    strided = [t.requires_grad_() for t in views]
    assert not any(t.is_contiguous() for t in strided[:2])
    plain = tracked(program)
    close(torch.autograd.grad(loss(*strided), strided), torch.autograd.grad(loss(*plain), plain))
    cotangent = torch.randn(5, 2, dtype=torch.float64).T
    x, X = outputs(*strided)[0], outputs(*plain)[0]
    close(torch.autograd.grad(x, strided, cotangent), torch.autograd.grad(X, plain, cotangent.contiguous()))


# ---- what the mathematics says ---------------------------------------------------------------------------------------


def test_only_the_symmetric_part_of_P_counts_and_its_gradient_is_symmetric():
    program, known = regular(2)
    skew = torch.randn(2, 5, 5, dtype=torch.float64)
    P = (program.P + skew - skew.mT).requires_grad_()
    out = outputs(P, *program[1:])
    close(out, (known.x, known.y, known.z, known.z_box, known.s))
    (gradient,) = torch.autograd.grad(sum(t.sum() for t in out), P)
    close(gradient, gradient.mT, atol=1e-13)  # rounding
    tangent = torch.randn(2, 5, 5, dtype=torch.float64)
    _, change = torch.func.jvp(lambda P: outputs(P, *program[1:]), (program.P,), (tangent - tangent.mT,))
    close(change, [torch.zeros_like(t) for t in change])


def test_equality_constrained_program_is_a_linear_system():
    """Without inequalities (x, y) = [P A'; A 0]^-1 (-q, b), which torch differentiates by itself."""
    P, q, _, _, A, b, *_ = tracked(regular(2, p=2)[0])
    K = torch.cat([torch.cat([P, A.mT], -1), torch.cat([A, A.new_zeros(2, 2, 2)], -1)], -2)
    w = torch.linalg.solve(K, torch.cat([-q, b], -1))
    x, y, *_ = outputs(P, q, None, None, A, b, None, None)
    close((x, y), w.split([5, 2], -1))
    weights = torch.randn(2, 7, dtype=torch.float64)
    mine = torch.autograd.grad((torch.cat([x, y], -1) * weights).sum(), (P, q, A, b), create_graph=True)
    theirs = torch.autograd.grad((w * weights).sum(), (P, q, A, b), create_graph=True)
    close(mine[1:], theirs[1:])
    close(mine[0], (theirs[0] + theirs[0].mT) / 2)
    close(
        torch.autograd.grad(sum(g.pow(2).sum() for g in mine[1:]), (P, q, A, b))[1:],
        torch.autograd.grad(sum(g.pow(2).sum() for g in theirs[1:]), (P, q, A, b))[1:],
    )


def test_projection_onto_a_box():
    """min |x - t|^2 / 2 over lb <= x <= ub is clamp(t, lb, ub), and the bounds' multiplier is t - x."""
    t = torch.tensor([-2.0, 0.3, 2.0, -3.0, 3.0], dtype=torch.float64, requires_grad=True)
    lb = torch.tensor([-1.0, -1.0, -1.0, -torch.inf, -1.0], dtype=torch.float64, requires_grad=True)
    ub = torch.tensor([1.0, 1.0, 1.0, 1.0, torch.inf], dtype=torch.float64, requires_grad=True)
    x, _, _, z_box, _ = outputs(torch.eye(5, dtype=torch.float64), -t, *[None] * 4, lb, ub)
    close((x, z_box), (t.clamp(lb, ub), t - t.clamp(lb, ub)))
    for mine, theirs in ((x, t.clamp(lb, ub)), (z_box, t - t.clamp(lb, ub))):
        weights = torch.arange(1.0, 6.0, dtype=torch.float64)
        close(
            torch.autograd.grad((mine * weights).sum(), (t, lb, ub), retain_graph=True),
            torch.autograd.grad((theirs * weights).sum(), (t, lb, ub), retain_graph=True),
        )


def test_linear_program():
    """min q'x over A x = b, 0 <= x <= 1, a vertex: x answers to b and the bounds, the multipliers to q and A only."""
    q = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    A, b = (
        torch.ones(1, 3, dtype=torch.float64, requires_grad=True),
        torch.tensor([1.5], dtype=torch.float64, requires_grad=True),
    )
    lb, ub = (
        torch.zeros(3, dtype=torch.float64, requires_grad=True),
        torch.ones(3, dtype=torch.float64, requires_grad=True),
    )
    data = (q, A, b, lb, ub)

    def program(q, A, b, lb, ub):
        out = outputs(None, q, None, None, A, b, lb, ub)
        return out[0], out[1], out[3]

    close(program(*data)[0], torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert gradcheck(program, data, check_forward_ad=True)
    assert gradgradcheck(program, data, check_fwd_over_rev=True, fast_mode=True)


def test_infinite_rows_and_bounds_have_gradient_zero():
    program, _ = regular(2)
    h = program.h.clone()
    h[:, 2] = torch.inf
    blocks = tracked([*program[:3], h, *program[4:]])
    x, y, z, z_box, s = outputs(*blocks)
    assert (s[:, 2] == torch.inf).all() and (z[:, 2] == 0).all()
    sum_of_s = torch.where(s.isinf(), 0, s).sum() + s.sum()  # a cotangent of one also on the infinite row
    gradients = torch.autograd.grad(x.sum() + y.sum() + z.sum() + z_box.sum() + sum_of_s, blocks)
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[2][:, 2] == 0).all() and (gradients[3][:, 2] == 0).all()
    assert (gradients[6][:, 2] == 0).all() and (gradients[7][:, 2] == 0).all()
    without = [t.detach() for t in (*program[:2], program.G[:, :2], program.h[:, :2], *program[4:])]
    plain = tracked(without)
    expected = torch.autograd.grad(sum(t.sum() for t in outputs(*plain)[:4]) + 2 * outputs(*plain)[4].sum(), plain)
    close([gradients[i] for i in (0, 1, 4, 5, 6, 7)], [expected[i] for i in (0, 1, 4, 5, 6, 7)])
    close((gradients[2][:, :2], gradients[3][:, :2]), expected[2:4])
    _, tangents = torch.func.jvp(
        lambda q: outputs(program.P, q, program.G, h, *program[4:]), (program.q,), (program.q,)
    )
    assert all(t.isfinite().all() for t in tangents) and (tangents[4][:, 2] == 0).all()


def test_a_weakly_active_bound_has_the_central_derivative():
    """min |x - t|^2 / 2 over x >= 0 at t = 0: x = max(t, 0) has left derivative 0 and right derivative 1."""
    t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    raw = solve(torch.eye(1, dtype=torch.float64), -t, *[None] * 4, torch.zeros_like(t), None, None, OPTIONS)
    assert raw.weakly_active.item() == 1
    (gradient,) = torch.autograd.grad(raw.x.sum(), t)
    close(gradient, torch.tensor([0.5], dtype=torch.float64), atol=1e-6)


def test_float32_follows_float64():
    program, _ = regular(4)
    exact = tracked(program)
    single = tracked([t.float() for t in program])
    expected, gradients = torch.autograd.grad(loss(*exact), exact), torch.autograd.grad(loss(*single), single)
    assert all(g.dtype == torch.float32 for g in gradients)
    scale = max(
        g.abs().max() for g in expected
    )  # the data themselves are rounded to 6e-8, the system has condition 1e2
    close([g.double() for g in gradients], expected, atol=1e-4 * scale, rtol=1e-4)


# ---- which gradients -------------------------------------------------------------------------------------------------


def test_warm_starts_and_statuses_are_constants():
    program = tracked(regular(2)[0])
    starts = [t.detach().requires_grad_() for t in outputs(*program)[:4]]
    raw = solve(*program, starts, OPTIONS)
    assert [t.requires_grad for t in raw] == [True] * 5 + [False] * (len(raw) - 5)
    assert torch.autograd.grad(raw.x.sum(), starts, allow_unused=True) == (None,) * 4


@pytest.mark.parametrize("output", range(5))
def test_one_output_alone_may_be_differentiated(output):
    program = tracked(regular(2)[0])
    gradients = torch.autograd.grad(outputs(*program)[output].sum(), program)
    ones = [torch.ones_like(t) if i == output else torch.zeros_like(t) for i, t in enumerate(outputs(*program))]
    close(gradients, torch.autograd.grad(outputs(*program), program, ones))


def test_adjoint_gives_the_gradients_of_each_element():
    program, _ = regular(3)
    shared = (program.P[0], program.q, program.G, program.h + 1, *program[4:])
    raw = solve(*shared, None, OPTIONS)
    cotangents = {
        name: torch.randn(4, *t.shape, dtype=t.dtype)
        for name, t in zip(("g_x", "g_y", "g_z", "g_box", "g_s"), raw[:5], strict=True)
    }
    gradients = adjoint(*shared, raw, **cotangents)
    whole = tracked([t.expand(3, *t.shape[-2:]) if i == 0 else t for i, t in enumerate(shared)])
    out = outputs(*whole)
    for k in range(4):
        expected = torch.autograd.grad(out, whole, [g[k] for g in cotangents.values()], retain_graph=True)
        close([g[k] for g in gradients.values()], expected)


def test_adjoint_returns_what_is_wanted_and_given():
    program, _ = regular(2)
    program = program._replace(A=None, b=None)
    raw = solve(*program, None, OPTIONS)
    jacobian = adjoint(*program, raw, g_x=torch.eye(5, dtype=torch.float64).reshape(5, 1, 5), wanted=("q", "A", "lb"))
    assert {name: t.shape for name, t in jacobian.items()} == {"q": (5, 2, 5), "lb": (5, 2, 5)}
    P, q, G, h, _, _, lb, ub = program
    expected = torch.func.vmap(torch.func.jacrev(lambda q, P, G, h, lb, ub: outputs(P, q, G, h, None, None, lb, ub)[0]))
    close(jacobian["q"], expected(q, P, G, h, lb, ub).movedim(1, 0))
