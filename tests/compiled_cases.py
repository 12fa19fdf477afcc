# SPDX-License-Identifier: Apache-2.0
"""Compiled derivatives against eager ones, as a program: python compiled_cases.py BACKEND CASE...

test_derivative_compile.py runs it in processes of its own, because torch's forward mode does not recover within a
process from an error inside a compiled jvp: one failure would spread to every later test.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import dense_engine
import torch
from regular import OPTIONS, close, loss, outputs, regular, tracked
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from optlayer.derivative import adjoint, solve

PROGRAM = regular(2)[0]
SHARED = regular(3, shared=("P", "G", "A"))[0]
ALL = tuple(range(8))
CASES: dict[str, Callable[[str], None]] = {}


def case(function):
    CASES[function.__name__] = function
    return function


def compiled(function, backend, **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def same(function, backend, *arguments):
    close(compiled(function, backend)(*arguments), function(*arguments))


def of_q(function):
    """The function of q first, so that a transform acts on it, with the other blocks as arguments of the graph."""
    return lambda q, P, *rest: function(P, q, *rest)


AT_Q = (PROGRAM.q, PROGRAM.P, *PROGRAM[2:])


# ---- reverse mode ----------------------------------------------------------------------------------------------------


@case
def forward(backend):
    same(outputs, backend, *PROGRAM)
    raw = compiled(lambda *a: tuple(solve(*a, None, OPTIONS)), backend)(*PROGRAM)
    close(raw, tuple(solve(*PROGRAM, None, OPTIONS)))


@case
def backward(backend):
    for program in (PROGRAM, SHARED):
        blocks = tracked(program)
        with dense_engine.installed() as calls:
            gradients = torch.autograd.grad(compiled(loss, backend)(*blocks), blocks)
            assert calls == {"qp": 1, "kkt_solve": 1}
        close(gradients, torch.autograd.grad(loss(*blocks), blocks))


@case
def kept_factor(backend):
    """The compiled forward pass hands its factorisation to the compiled backward pass."""
    blocks = tracked(PROGRAM)
    raw = compiled(lambda *a: tuple(solve(*a, None, OPTIONS)), backend)(*blocks)
    close(raw, tuple(solve(*blocks, None, OPTIONS)))
    assert raw[11].shape[-1] > 0


@case
def absent_blocks(backend):
    P, q, *_, lb, ub = tracked(PROGRAM)
    function = lambda P, q, lb, ub: loss(P, q, None, None, None, None, lb, ub)  # noqa: E731
    gradients = torch.autograd.grad(compiled(function, backend)(P, q, lb, ub), (P, q, lb, ub))
    close(gradients, torch.autograd.grad(function(P, q, lb, ub), (P, q, lb, ub)))


@case
def dynamic_batch(backend):
    torch._dynamo.utils.counters.clear()
    function = compiled(loss, backend, dynamic=True)
    for batch in (2, 3, 5, 7):
        blocks = tracked(regular(batch, seed=batch)[0])
        close(torch.autograd.grad(function(*blocks), blocks), torch.autograd.grad(loss(*blocks), blocks))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@case
def gradient(backend):
    same(grad(loss, argnums=ALL), backend, *PROGRAM)


@case
def mapped(backend):
    same(vmap(outputs), backend, *PROGRAM)
    same(vmap(outputs, in_dims=(None, 0, None, 0, None, 0, 0, 0)), backend, *SHARED)


@case
def per_sample_gradient(backend):
    same(vmap(grad(of_q(loss))), backend, *AT_Q)


@case
def reverse_jacobian(backend):
    same(jacrev(of_q(outputs)), backend, *AT_Q)


@case
def gradient_of_gradient(backend):
    same(grad(lambda *a: grad(of_q(loss))(*a).pow(2).sum()), backend, *AT_Q)


@case
def checkpointed(backend):
    blocks = tracked(PROGRAM)
    function = lambda *a: checkpoint(loss, *a, use_reentrant=False)  # noqa: E731
    close(torch.autograd.grad(compiled(function, backend)(*blocks), blocks), torch.autograd.grad(loss(*blocks), blocks))


@case
def element_gradients(backend):
    def function(*program):
        raw = solve(*program, None, OPTIONS)
        return adjoint(*program, raw, g_x=torch.ones_like(raw.x), g_s=torch.ones_like(raw.s))

    same(function, backend, *PROGRAM)


@case
def autocast(backend):
    def function(*program):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(*program)

    blocks = tracked(PROGRAM)
    close(torch.autograd.grad(compiled(function, backend)(*blocks), blocks), torch.autograd.grad(loss(*blocks), blocks))


@case
def double_backward_is_refused(backend):
    """As for every function that AOTAutograd compiles; second derivatives belong inside the compiled function."""
    blocks = tracked(PROGRAM)
    (first,) = torch.autograd.grad(compiled(loss, backend)(*blocks), blocks[1], create_graph=True)
    try:
        torch.autograd.grad(first.pow(2).sum(), blocks)
    except RuntimeError:
        return
    raise AssertionError("no error")


def right_or_refused(function, expected):
    try:
        value = function()
    except Exception:
        return
    close(value, expected)


@case
def arguments_changed_before_backward(backend):
    function = compiled(outputs, backend)
    for place in range(8):
        for output in (0, 4):
            blocks = [t.clone() for t in PROGRAM]
            blocks[1].requires_grad_()
            value = function(*blocks)[output].sum()
            (expected,) = torch.autograd.grad(outputs(*blocks)[output].sum(), blocks[1])
            with torch.no_grad():
                blocks[place].add_(1)
            right_or_refused(lambda: torch.autograd.grad(value, blocks[1])[0], expected)  # noqa: B023


@case
def outputs_changed_before_backward(backend):
    blocks = tracked(PROGRAM)
    x = compiled(outputs, backend)(*blocks)[0]
    (expected,) = torch.autograd.grad(outputs(*blocks)[0].pow(2).sum(), blocks[1])
    value = x.pow(2).sum()
    with torch.no_grad():
        x.add_(1)
    right_or_refused(lambda: torch.autograd.grad(value, blocks[1])[0], expected)


@case
def gradients_taken_inside(backend):
    blocks = tracked(PROGRAM)
    function = lambda *a: torch.autograd.grad(loss(*a), a)  # noqa: E731
    right_or_refused(lambda: compiled(function, backend)(*blocks), function(*blocks))


@case
def transforms_around(backend):
    function = of_q(loss)
    for transform in (grad, vmap, lambda f: lambda q, *rest: jvp(lambda q: f(q, *rest), (q,), (q,))[1]):
        right_or_refused(lambda: transform(compiled(function, backend))(*AT_Q), transform(function)(*AT_Q))  # noqa: B023


# ---- forward mode ----------------------------------------------------------------------------------------------------


@case
def tangent(backend):
    same(lambda v, *a: jvp(lambda q: outputs(a[0], q, *a[2:]), (a[1],), (v,)), backend, PROGRAM.q, *PROGRAM)


@case
def forward_jacobian(backend):
    same(jacfwd(of_q(outputs)), backend, *AT_Q)


@case
def second_derivative(backend):
    same(hessian(of_q(loss)), backend, *AT_Q)


@case
def tangent_of_tangent(backend):
    def slope(function):
        return lambda q, *rest: jvp(lambda q: function(q, *rest), (q,), (torch.ones_like(q),))[1]

    twice = slope(slope(of_q(loss)))
    assert twice(*AT_Q).abs() > 1e-3
    same(twice, backend, *AT_Q)


@case
def third_derivative(backend):
    directions = torch.randn(2, *PROGRAM.q.shape, dtype=torch.float64)

    def along(c, P, q, *rest):
        return loss(P, q + torch.tensordot(c, directions, 1), *rest)

    same(jacrev(hessian(along)), backend, torch.zeros(2, dtype=torch.float64), *PROGRAM)


@case
def dual_numbers_inside(backend):
    def function(v, *program):
        with forward_ad.dual_level():
            out = outputs(program[0], forward_ad.make_dual(program[1], v), *program[2:])
            return [forward_ad.unpack_dual(t).tangent for t in out]

    same(function, backend, PROGRAM.q, *PROGRAM)


@case
def dual_numbers_around_are_refused(backend):
    function = compiled(outputs, backend)
    with forward_ad.dual_level():
        try:
            function(PROGRAM.P, forward_ad.make_dual(PROGRAM.q, PROGRAM.q), *PROGRAM[2:])
        except (NotImplementedError, RuntimeError):
            return
    raise AssertionError("no error")


def main(backend: str, names: list[str]) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    failed = 0
    with dense_engine.installed():
        for name in names or CASES:
            try:
                CASES[name](backend)
            except Exception:
                failed += 1
                sys.stdout.write(f"{name} on {backend}\n{traceback.format_exc()}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
