# SPDX-License-Identifier: Apache-2.0
"""The operators' schemas, fake kernels, vmap rules and the door for engines."""

import dense_engine
import pytest
import torch
from regular import OPTIONS, close, regular
from torch._subclasses import FakeTensorMode

import optlayer.derivative  # noqa: F401  (gives the operators their Autograd kernels)
from optlayer import ops
from optlayer.problem import broadcast

COLD = (None, None, None, None)


@pytest.fixture(autouse=True)
def calls():
    with dense_engine.installed() as counted:
        yield counted


def solved(program, keep_factor=True):
    return ops.qp(*program, *COLD, *OPTIONS[:-1], keep_factor)


def kkt_arguments(program, out, *extra):
    x, y, z, z_box = out[:4]
    r = [
        torch.randn(*extra, *t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(1))
        for t in (x, y, z, z_box)
    ]
    return program[0], program[2], program[4], *out[10:], *r, "auto"


BLOCKS = {
    "all": (),
    "no P": ("P",),
    "no G": ("G", "h"),
    "no A": ("A", "b"),
    "no bounds": ("lb", "ub"),
    "only q and P": ("G", "h", "A", "b", "lb", "ub"),
}


@pytest.mark.parametrize("absent", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("keep_factor", [True, False])
def test_fake_outputs_have_the_shapes_types_and_strides_of_real_ones(absent, keep_factor):
    program, _ = regular(3)
    program = program._replace(**dict.fromkeys(absent))
    real = solved(program, keep_factor)
    meta = solved([None if t is None else t.to("meta") for t in program], keep_factor)
    for a, b in zip(real, meta, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)], ids=str)
def test_fake_outputs_for_any_batch(batch):
    program, _ = regular(*batch)
    meta = solved([t.to("meta") for t in program])
    assert [a.shape for a in solved(program)] == [b.shape for b in meta]


def test_leading_dimensions_broadcast():
    program, _ = regular(3)
    program = program._replace(P=program.P[0], q=program.q.expand(2, 3, 5)[:, :1], h=program.h + 1)
    assert solved(program)[0].shape == (2, 3, 5)
    with FakeTensorMode() as mode:
        assert solved([mode.from_tensor(t) for t in program])[0].shape == (2, 3, 5)


@pytest.mark.parametrize(
    "shapes", [(), ((),), ((3,), ()), ((2, 1), (1, 3)), ((4, 2, 1), (5,)), ((0,), (1, 1)), ((2, 0), (1,))]
)
def test_shapes_broadcast_as_in_torch(shapes):
    assert broadcast(*shapes) == torch.broadcast_shapes(*shapes)


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((2,), (0,)), ((2, 3), (2, 1), (3, 1))])
def test_shapes_that_do_not_broadcast_are_refused(shapes):
    with pytest.raises(RuntimeError, match="do not broadcast"):
        broadcast(*shapes)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_qp(requires_grad):
    program = [t.clone().requires_grad_(requires_grad) for t in regular(2)[0]]
    torch.library.opcheck(ops.qp, (*program, *COLD, *OPTIONS[:-1], True))
    torch.library.opcheck(ops.qp, (None, program[1], None, None, *program[4:], *COLD, *OPTIONS[:-1], False))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_kkt_solve(requires_grad):
    program, _ = regular(2)
    arguments = kkt_arguments(program, solved(program), 3)
    arguments = [
        t.clone().requires_grad_(requires_grad and i not in (3, 4, 5)) if isinstance(t, torch.Tensor) else t
        for i, t in enumerate(arguments)
    ]
    torch.library.opcheck(ops.kkt_solve, tuple(arguments))


def test_right_hand_sides_broadcast_among_each_other_and_against_the_batch(calls):
    program, _ = regular(2)
    out = solved(program)
    P, G, A, *state, rx, ry, rz, r_box, backend = kkt_arguments(program, out, 3)
    u = ops.kkt_solve(P, G, A, *state, rx, ry[:1], rz[0], r_box[0, 0], backend)
    assert [t.shape for t in u] == [(3, 2, 5), (3, 2, 1), (3, 2, 3), (3, 2, 5)]
    for i in range(3):
        close(ops.kkt_solve(P, G, A, *state, rx[i], ry[0], rz[0], r_box[0, :1], backend), [t[i] for t in u])


def test_vmap_of_the_bare_operators_is_one_call_and_equals_the_loop(calls):
    program, _ = regular(3, 2)
    out = torch.vmap(lambda *a: solved(a), in_dims=1, out_dims=1)(*program)
    assert calls["qp"] == 1
    close(out, solved(program))
    arguments = kkt_arguments(program, solved(program))
    u = torch.vmap(lambda *a: ops.kkt_solve(*a, "auto"))(*arguments[:-1])
    assert calls["kkt_solve"] == 1
    close(u, ops.kkt_solve(*arguments))


def test_vmap_leaves_shared_arguments_unexpanded():
    program, _ = regular(3)
    seen = []

    def spy(*arguments):
        seen.append([None if t is None else tuple(t.shape) for t in arguments[:8]])
        return dense_engine.qp(*arguments)

    ops.implement("qp", spy)
    P, q, *rest = program
    torch.vmap(lambda q: solved((P[0], q, *rest)), in_dims=1)(torch.stack([q, 2 * q], 1))
    assert seen[0][:3] == [(5, 5), (2, 3, 5), (3, 3, 5)]


def test_an_engine_is_replaced_and_handed_back():
    def engine(*arguments):
        return dense_engine.qp(*arguments)

    assert ops.implement("qp", engine) is dense_engine.qp
    assert ops.implement("qp", dense_engine.qp) is engine


def test_an_unknown_operator_is_named():
    with pytest.raises(ValueError, match=r"optlayer has no operator 'lp'; expected 'qp' or 'kkt_solve'"):
        ops.implement("lp", lambda *a: a)


def test_an_operator_without_engine_says_what_registers_one(monkeypatch):
    monkeypatch.delitem(ops.engines, "qp")
    with pytest.raises(
        NotImplementedError, match=r"no solver implements optlayer::qp; importing optlayer registers one"
    ):
        solved(regular()[0])
