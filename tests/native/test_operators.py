# SPDX-License-Identifier: Apache-2.0
"""The compiled operators: schemas, fake kernels, and tensors of any layout."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dense_engine
import pytest
import torch
from regular import Program, close, regular
from torch import Tensor

from optlayer import ProblemError, derivative, ops
from optlayer.derivative.variation import pull
from optlayer.problem import validate
from optlayer.solvers import native
from optlayer.testing import random_qp

pytestmark = pytest.mark.skipif(not native.available(), reason="there is no compiled engine")
OPTIONS = (1e-9, 1e-9, 200, 0, True)


def solved(program: Program, keep_factor: bool = True) -> list[Tensor]:
    eps = OPTIONS[:2] if program.q.dtype == torch.float64 else (1e-4, 1e-4)
    *out, unsolved = torch.ops.optlayer_native.qp(*program, *eps, *OPTIONS[2:], keep_factor)
    assert unsolved == 0
    return out


def system(program: Program, *extra: int) -> tuple[Tensor, ...]:
    """The arguments of kkt_solve with random right-hand sides."""
    out = solved(program)
    r = [torch.randn(*extra, *t.shape, dtype=t.dtype) for t in out[:4]]
    return program.P, program.G, program.A, *out[10:13], *r


def pairs(*batch: int) -> list[Tensor]:
    """(x, y, z) and (ux, uy, uz)."""
    return [torch.randn(*batch, size, dtype=torch.float64) for size in (5, 1, 3) * 2]


@pytest.mark.parametrize("keep_factor", [True, False])
def test_opcheck_of_qp(keep_factor: bool) -> None:
    program, _ = regular(2)
    torch.library.opcheck(torch.ops.optlayer_native.qp.default, (*program, *OPTIONS, keep_factor))
    without = program._replace(P=None, G=None, h=None)
    torch.library.opcheck(torch.ops.optlayer_native.qp.default, (*without, *OPTIONS, keep_factor))


def test_opcheck_of_kkt_solve() -> None:
    torch.library.opcheck(torch.ops.optlayer_native.kkt_solve.default, system(regular(2)[0], 3))


@pytest.mark.parametrize("wanted", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_opcheck_of_pull(wanted: tuple[int, int, int]) -> None:
    torch.library.opcheck(torch.ops.optlayer_native.pull.default, (*pairs(2, 3), *wanted))


@pytest.mark.parametrize("wanted", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_opcheck_of_kkt_pull(wanted: tuple[int, int, int]) -> None:
    program, _ = regular(2, 3)
    torch.library.opcheck(torch.ops.optlayer_native.kkt_pull.default, (*system(program), *solved(program)[:3], *wanted))


@pytest.mark.parametrize("batch", [(), (0,), (1,), (7,), (2, 3), (20,)], ids=str)
@pytest.mark.parametrize("wanted", [(0, 1, 2), (1, 1, 1), (2, 2, 2), (1, 0, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_kkt_pull_is_kkt_solve_and_pull(
    batch: tuple[int, ...], wanted: tuple[int, int, int], dtype: torch.dtype
) -> None:
    program = Program(*(t.to(dtype) for t in regular(*batch)[0]))
    *given, rx, ry, rz, r_box = system(program)
    w = solved(program)[:3]
    if batch and batch[0] > 3:  # a failed element without a gradient takes no part
        for t in w:
            t[3] = torch.nan
        for t in (rx, rz, r_box):
            t[3] = 0
    given += [rx, torch.zeros_like(ry[(0,) * len(batch)]) if ry.numel() else ry, rz, r_box]  # one for all elements
    u = torch.ops.optlayer_native.kkt_solve(*given)
    apart = torch.ops.optlayer_native.pull(*w, *u[:3], *wanted)
    y, z = (t if want else None for t, want in zip(w[1:], (wanted[2], wanted[1]), strict=True))
    together = torch.ops.optlayer_native.kkt_pull(*given, w[0], y, z, *wanted)
    close(together[:4], u, atol=0, rtol=0)
    # an engine may take u before its rounding and add in another order: 20 terms of size 100 at most
    close(together[4:], apart, atol=20 * 100 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fake_outputs_are_like_real_ones(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    program = Program(*(t.to(dtype) for t in regular(*batch)[0]))
    real = torch.ops.optlayer_native.qp(*program, *OPTIONS, True)
    meta = torch.ops.optlayer_native.qp(*(t.to("meta") for t in program), *OPTIONS, True)
    for a, b in zip(real[:13], meta[:13], strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def apart(t: Tensor, core: int) -> Tensor:
    """The same values, every second one of a larger tensor."""
    return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0] if core else t


LAYOUTS = {
    "every second value": lambda program: [apart(t, 1) for t in program],
    "transposed": lambda program: [t if t.dim() < 3 else t.mT.contiguous().mT for t in program],
    "batch dimensions exchanged": lambda program: [t.transpose(0, 1).contiguous().transpose(0, 1) for t in program],
    "a slice of a larger batch": lambda program: [torch.cat([t, t + torch.nan])[: len(t)] for t in program],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_change_no_bit(layout) -> None:
    program, _ = regular(4, 3)
    close(solved(Program(*layout(program))), solved(program), atol=0, rtol=0)


def test_broadcast_arguments_change_no_bit() -> None:
    """Every pattern of full, single and absent batch dimensions, expanded or not."""
    program, _ = regular(1)
    program = Program(*(t[0] for t in program))
    q, h = torch.randn(4, 1, 5, dtype=torch.float64), program.h + torch.rand(3, 3, dtype=torch.float64)
    P, G, lb = program.P.expand(4, 3, 5, 5), program.G.expand(3, 3, 5), program.lb.expand(1, 1, 5)
    mixed = program._replace(P=P, q=q, G=G, h=h, lb=lb)
    whole = zip(mixed, ops.QP_CORES, strict=False)
    full = Program(*(t.expand(4, 3, *t.shape[t.dim() - core :]).contiguous() for t, core in whole))
    close(solved(mixed), solved(full), atol=0, rtol=0)


def test_right_hand_sides_broadcast() -> None:
    P, G, A, *state, rx, ry, rz, r_box = system(regular(2, 4)[0], 3)
    rx, ry, rz, r_box = rx, ry[:, :, :1], rz[0], r_box[0, 0, 0]
    full = [t.expand(3, 2, 4, t.shape[-1]).contiguous() for t in (rx, ry, rz, r_box)]
    u = torch.ops.optlayer_native.kkt_solve(P, G, A, *state, rx, ry, rz, r_box)
    close(u, torch.ops.optlayer_native.kkt_solve(P, G, A, *state, *full), atol=0, rtol=0)
    strange = [t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for t in full]
    close(u, torch.ops.optlayer_native.kkt_solve(P, G, A, *state, *strange), atol=0, rtol=0)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (5000,), (0,), (2, 3)], ids=str)
def test_pull_is_that_of_the_derivative_rule(batch: tuple[int, ...]) -> None:
    values = pairs(*batch)
    w, u = (values[0], values[1], values[2]), (values[3], values[4], values[5])
    rows = {"P": 5, "G": 3, "A": 1}
    for wanted in ((1, 1, 1), (2, 2, 2), (0, 2, 1)):
        shapes = [(*(batch if k == 1 else (1,) * len(batch)), r, 5) for k, r in zip(wanted, rows.values(), strict=True)]
        expected = pull(w, u, [torch.Size(s) for s in shapes], [k > 0 for k in wanted])
        found = torch.ops.optlayer_native.pull(*values, *wanted)
        for k, a, b in zip(wanted, found, expected, strict=True):
            if k:
                torch.testing.assert_close(a.reshape(b.shape), b, atol=1e-12, rtol=1e-12)


def test_threads_change_no_bit() -> None:
    program, _ = regular(500)
    count = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = solved(program)
        torch.set_num_threads(3)
        close(solved(program), alone, atol=0, rtol=0)
    finally:
        torch.set_num_threads(count)
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: solved(program), range(8)):
            close(out, alone, atol=0, rtol=0)


def test_what_does_not_fit_is_refused_and_not_read() -> None:
    program, _ = regular(2)
    wrong = [
        program._replace(q=program.q[..., :-1]),
        program._replace(h=program.h[..., :-1]),
        program._replace(G=None),
        program._replace(lb=program.lb.float()),
        program._replace(ub=torch.cat([program.ub] * 2)[:3]),
        program._replace(P=program.P[0, 0]),
    ]
    for case in wrong:
        with pytest.raises(RuntimeError):
            solved(case)
    P, G, A, state, *rest = system(program)
    with pytest.raises(RuntimeError, match="state has another shape"):
        torch.ops.optlayer_native.kkt_solve(P, G, A, state[..., :-1], *rest)
    with pytest.raises(RuntimeError, match="a matrix has more elements than the batch"):
        torch.ops.optlayer_native.kkt_solve(P.expand(3, 2, 5, 5), G, A, state, *rest)
    with pytest.raises(RuntimeError, match="more right-hand sides than one"):
        torch.ops.optlayer_native.kkt_pull(*system(program, 3), *solved(program)[:3], 1, 1, 1)
    with pytest.raises(RuntimeError, match="y or z is absent"):
        torch.ops.optlayer_native.kkt_pull(*system(program), solved(program)[0], None, None, 0, 1, 0)


OPEN = derivative.Options(1e-9, 1e-9, 200, "auto", "auto", "nan")


def test_a_small_problem_is_solved_at_once_as_otherwise() -> None:
    program, _ = regular(3)
    found = derivative.solve_at_once(program, OPEN)
    assert found is not None
    close(found, derivative.solve(*program, None, OPEN), atol=0, rtol=0)
    close(derivative.solve_at_once([t[0] for t in program], OPEN)[0], found[0][0], atol=1e-13, rtol=0)


WRONG: dict[str, tuple[tuple[str, ...], Callable[[Tensor], Any]]] = {
    "no dimensions": (("P", "q", "G", "h", "A", "b"), lambda t: t.flatten()[0]),
    "too short": (("P", "q", "G", "A", "lb", "ub"), lambda t: t[..., :-1]),
    "empty": (("q", "h", "b"), lambda t: t[..., :0]),
    "another batch": (Program._fields, lambda t: t[:2]),
    "another dtype": (Program._fields, lambda t: t.float()),
    "half precision": (("q",), lambda t: t.half()),
    "another device": (Program._fields, lambda t: t.to("meta")),
    "sparse": (("P", "G", "A"), lambda t: t.to_sparse()),
    "absent": (("q", "G", "h", "A", "b"), lambda t: None),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (names, _) in WRONG.items() for name in names])
def test_what_is_wrong_is_not_solved_at_once(kind: str, name: str) -> None:
    program, _ = regular(3)
    program = program._replace(**{name: WRONG[kind][1](getattr(program, name))})
    assert derivative.solve_at_once(program, OPEN) is None
    with pytest.raises(ProblemError):
        validate(*program)


@pytest.mark.parametrize(("matrix", "vector"), [("G", "h"), ("A", "b")])
def test_rows_without_their_other_side_are_not_solved_at_once(matrix: str, vector: str) -> None:
    program, _ = regular(3)
    empty = getattr(program, matrix)[..., :0, :]
    assert derivative.solve_at_once(program._replace(**{matrix: empty, vector: None}), OPEN) is None


def test_what_another_engine_or_a_transform_should_see_is_not_solved_at_once() -> None:
    program, _ = regular(3)
    assert derivative.solve_at_once(program, OPEN._replace(backend="reference")) is None
    assert derivative.solve_at_once(program._replace(b=program.b.clone().requires_grad_()), OPEN) is None
    large = random_qp(native.LARGEST + 1, 0)
    assert derivative.solve_at_once(large.tensors, OPEN) is None
    with dense_engine.installed():
        assert derivative.solve_at_once(program, OPEN) is None
    with torch.device("cpu"):  # a mode that sees every function of torch
        assert derivative.solve_at_once(program, OPEN) is None
    seen = []
    torch.vmap(lambda q: seen.append(derivative.solve_at_once(program._replace(q=q), OPEN)) or q)(program.q)
    assert seen == [None]
