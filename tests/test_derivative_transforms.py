# SPDX-License-Identifier: Apache-2.0
"""torch.func and forward mode: every way to a derivative gives the same one."""

import dense_engine
import pytest
import torch
from regular import close, loss, outputs, regular, tracked
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

pytestmark = pytest.mark.parametrize("engine", ["dense", "native", "reference"], indirect=True)

ALL = tuple(range(8))


@pytest.fixture(autouse=True)
def calls(engine):
    with dense_engine.installed() if engine == "dense" else dense_engine.counted() as counted:
        yield counted


@pytest.fixture
def program():
    return regular(2)[0]


def along(name, program, function=loss):
    """The function of one argument that remains when the others are fixed, and this argument."""
    place = program._fields.index(name)
    return (lambda t: function(*program[:place], t, *program[place + 1 :])), program[place]


# ---- first order -----------------------------------------------------------------------------------------------------


def test_grad_vjp_and_jvp_agree_with_backward(program):
    blocks = tracked(program)
    expected = torch.autograd.grad(loss(*blocks), blocks)
    close(grad(loss, argnums=ALL)(*program), expected)
    value, pullback = vjp(loss, *program)
    close(pullback(torch.ones_like(value)), expected)
    close(pullback(torch.ones_like(value)), expected)
    tangents = tuple(torch.where(t.isinf(), 0, torch.randn_like(t)) for t in program)
    _, change = jvp(loss, tuple(program), tangents)
    close(change, sum((a * b).sum() for a, b in zip(tangents, expected, strict=True)))


@pytest.mark.parametrize("name", ["P", "q", "G", "h", "A", "b", "lb", "ub"])
def test_jacrev_equals_jacfwd(name, program, calls):
    function, at = along(name, program, outputs)
    backward, forward = jacrev(function)(at), jacfwd(function)(at)
    close(backward, forward)
    assert calls == {"qp": 2, "kkt_solve": 2}  # each way one solve, with all directions at once


# ---- vmap ------------------------------------------------------------------------------------------------------------


def test_nested_vmap(program):
    nested = regular(2, 3)[0]
    close(vmap(vmap(outputs))(*nested), outputs(*nested))


def test_vmap_over_any_dimension_and_with_shared_arguments():
    P, q, G, h, A, b, lb, ub = regular(3, shared=("P", "A"))[0]
    mapped = vmap(outputs, in_dims=(None, 1, 2, -1, None, 0, 0, 1))
    close(mapped(P, q.mT, G.permute(1, 2, 0), h.mT, A, b, lb, ub.mT), outputs(P, q, G, h, A, b, lb, ub))


def test_vmap_maps_an_outer_dimension_over_a_batch(program):
    h = torch.stack([program.h, program.h + 1])
    mapped = vmap(lambda h: outputs(*program[:3], h, *program[4:]))(h)
    close(mapped, outputs(*program[:3], h, *program[4:]))


def test_each_level_of_vmap_may_map_another_argument():
    P, q, G, h, A, b, lb, ub = regular(2, shared=("P", "G", "A"))[0]
    table = vmap(lambda q: vmap(lambda h: outputs(P, q, G, h, A, b[0], lb[0] - 9, ub[0] + 9))(h))(q)
    close(table, outputs(P, q.unsqueeze(1), G, h, A, b[0], lb[0] - 9, ub[0] + 9))


def test_per_sample_gradients_equal_a_loop(program):
    each = vmap(grad(loss, argnums=ALL))(*program)
    loop = [grad(loss, argnums=ALL)(*(t[i] for t in program)) for i in range(2)]
    close(each, [torch.stack(g) for g in zip(*loop, strict=True)])


def test_per_sample_gradients_of_a_shared_argument(program):
    program, _ = regular(3, shared=("P",))
    rest = program[1:]
    each = vmap(grad(loss), in_dims=(None, *(0,) * 7))(program.P, *rest)
    close(each, torch.stack([grad(loss)(program.P, *(t[i] for t in rest)) for i in range(3)]))
    total = grad(
        lambda P: sum(t.pow(3).sum() / 3 + t.sum() for t in vmap(outputs, in_dims=(None, *(0,) * 7))(P, *rest))
    )
    close(total(program.P), each.sum(0))


def test_per_sample_gradients_of_a_module(program):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.h = torch.nn.Parameter(program.h[0] + 1)

        def forward(self, q):
            return outputs(program.P[0], q, program.G[0], self.h, *[None] * 4)[0]

    layer = Layer()
    parameters = {k: v.detach() for k, v in layer.named_parameters()}
    each = vmap(grad(lambda p, q: functional_call(layer, p, (q,)).pow(2).sum()), in_dims=(None, 0))(
        parameters, program.q
    )
    close(each["h"].sum(0), torch.autograd.grad(layer(program.q).pow(2).sum(), layer.h)[0])


# ---- second order and higher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["P", "q", "G", "A", "ub"])
def test_hessian_four_ways(name, program):
    function, at = along(name, program)
    if name in "PGA":  # fewer entries keep the four tables small
        place, direction = at, torch.randn(3, *at.shape, dtype=at.dtype)
        close_up, at = function, torch.zeros(3, dtype=at.dtype)
        function = lambda c: close_up(place + torch.tensordot(c, direction, 1))  # noqa: E731
    expected = jacrev(jacrev(function))(at)
    for way in (hessian(function), jacfwd(jacfwd(function)), jacrev(jacfwd(function))):
        close(way(at), expected, rtol=1e-6, atol=1e-7)
    assert expected.abs().max() > 1e-3


def test_hessian_costs_one_solve_of_the_program(program, calls):
    function, at = along("q", program)
    hessian(function)(at)
    assert calls["qp"] == 1


def test_hessian_vector_products(program):
    function, at = along("q", program)
    direction = torch.randn_like(at)
    product = torch.tensordot(hessian(function)(at), direction, 2)
    close(jvp(grad(function), (at,), (direction,))[1], product)
    close(grad(lambda q: jvp(function, (q,), (direction,))[1])(at), product)
    close(jvp(lambda q: jvp(function, (q,), (direction,))[1], (at,), (direction,))[1], (direction * product).sum())


def test_forward_mode_nests_to_third_order(program):
    """torch calls the jvp of a Function with forward mode off; without care the inner derivative would be zero."""
    function, at = along("q", program)
    direction = torch.randn_like(at)

    def slope(f):
        return lambda q: jvp(f, (q,), (direction,))[1]

    third = slope(slope(slope(function)))(at)
    backward = grad(lambda q: (grad(lambda q: (grad(function)(q) * direction).sum())(q) * direction).sum())(at)
    close(third, (backward * direction).sum(), rtol=1e-6)
    assert third.abs() > 1e-3


def test_third_derivatives_agree(program):
    scale, direction = torch.zeros(2, dtype=torch.float64), torch.randn(2, *program.q.shape, dtype=torch.float64)
    function = lambda c: loss(program.P, program.q + torch.tensordot(c, direction, 1), *program[2:])  # noqa: E731
    close(jacrev(hessian(function))(scale), jacfwd(hessian(function))(scale), rtol=1e-6, atol=1e-7)


def test_vmapped_hessian_equals_a_loop(program):
    each = vmap(hessian(loss, argnums=1))(*program)
    close(each, torch.stack([hessian(loss, argnums=1)(*(t[i] for t in program)) for i in range(2)]))


# ---- forward_ad ------------------------------------------------------------------------------------------------------


def test_dual_numbers(program):
    direction = torch.randn_like(program.q)
    expected = jvp(lambda q: outputs(program.P, q, *program[2:]), (program.q,), (direction,))[1]
    for context in (torch.enable_grad, torch.no_grad):
        with context(), forward_ad.dual_level():
            dual = forward_ad.make_dual(program.q, direction)
            tangents = [forward_ad.unpack_dual(t).tangent for t in outputs(program.P, dual, *program[2:])]
        close(tangents, expected)


def test_reverse_over_dual_numbers(program):
    q = program.q.clone().requires_grad_()
    direction = torch.randn_like(q)
    with forward_ad.dual_level():
        slope = forward_ad.unpack_dual(loss(program.P, forward_ad.make_dual(q, direction), *program[2:])).tangent
    function, at = along("q", program)
    close(torch.autograd.grad(slope, q)[0], jvp(grad(function), (at,), (direction,))[1])


def test_dual_numbers_over_reverse(program):
    direction = torch.randn_like(program.q)
    with forward_ad.dual_level():
        q = forward_ad.make_dual(program.q.clone().requires_grad_(), direction)
        (gradient,) = torch.autograd.grad(loss(program.P, q, *program[2:]), q, create_graph=True)
        product = forward_ad.unpack_dual(gradient).tangent
    function, at = along("q", program)
    close(product, jvp(grad(function), (at,), (direction,))[1])
