# SPDX-License-Identifier: Apache-2.0
"""The compiled engine for entropic programs against the one written in torch: the same answers, lane by lane."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from entropic_cases import CURVATURES, F64, KINDS, entropic, transport
from torch import Tensor

from optlayer import SettingsError, Solution, Status, solve_qp
from optlayer.entropic.program import native
from optlayer.problem import validate
from optlayer.solvers import native as library

pytestmark = pytest.mark.skipif(not library.available(), reason="there is no compiled engine")

SCALES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e6)
OPTIONS = (1e-9, 1e-9, 200, True)
ROUNDING = 1e-11
"""Of x, and relative to the costs of log x: both engines end at the rounding of the forces."""


def tensors(given: dict[str, Any]) -> tuple[Tensor | None, ...]:
    """The nine tensors that the operator takes."""
    names = ("P", "q", "G", "h", "A", "b", "lb", "ub", "entropy")
    problem = validate(*(given.get(name) for name in names))
    return *problem.tensors, problem.entropy


def left(given: dict[str, Any]) -> int:
    """How many elements the compiled engine leaves to the other."""
    return int(native.qp(*tensors(given), *OPTIONS)[-1])


def both(given: dict[str, Any], **settings: Any) -> tuple[Solution, Solution]:
    """By the compiled engine and by the reference."""
    ours, theirs = (solve_qp(**given, backend=backend, **settings) for backend in ("native", "reference"))
    return ours, theirs


def assert_same(ours: Solution, theirs: Solution, size: float = 1.0) -> None:
    assert torch.equal(ours.status, theirs.status)
    assert torch.equal(ours.weakly_active, theirs.weakly_active)
    for name in ("x", "s", "log_x"):
        a, b = getattr(ours, name), getattr(theirs, name)
        atol = ROUNDING * (size if name == "log_x" else 1)
        torch.testing.assert_close(a, b, atol=atol, rtol=ROUNDING, equal_nan=True)


# ---- the same solution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_give_the_same_solution(kind: str, curvature: str) -> None:
    for scale in SCALES:
        given = entropic(kind, batch=5, scale=scale, curvature=curvature)
        assert left(given) == 0
        ours, theirs = both(given)
        assert_same(ours, theirs, 1 + scale)
        # rounding may decide whether a step more is taken, the path is the same
        assert (ours.iterations - theirs.iterations).abs().max() <= 4


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 64])
@pytest.mark.parametrize("kind", ["softmax", "cap", "cap alone", "floor"])
def test_any_number_of_variables(kind: str, n: int) -> None:
    for curvature in CURVATURES:
        given = entropic(kind, n, batch=3, scale=10.0, curvature=curvature)
        given["ub"] = given["ub"] + 0.1 if "ub" in given else None
        given = {name: t for name, t in given.items() if t is not None or name == "P"}
        assert left(given) == 0
        assert_same(*both(given), 10.0)


@pytest.mark.parametrize("batch", [(), (1,), (2,), (9,), (2, 5), (0,), (3, 0)], ids=str)
def test_any_batch(batch: tuple[int, ...]) -> None:
    count = torch.Size(batch).numel()
    given = entropic("moment and rows", batch=max(count, 1), curvature="full")
    shaped = {
        name: t[:count].reshape(*batch, *t.shape[1:]) if t is not None and t.dim() > 1 else t
        for name, t in given.items()
    }
    ours, theirs = both(shaped)
    assert ours.x.shape == (*batch, 16)
    assert_same(ours, theirs)


def test_many_random_problems() -> None:
    """Of ten thousand small problems of every kind none is left to the other engine, and all are solved."""
    for seed, kind in enumerate(KINDS):
        given = entropic(kind, 9, batch=1000, scale=100.0, seed=seed)
        assert left(given) <= 5, kind
        solution = solve_qp(**given, backend="native")
        assert solution.solved.all() and solution.is_optimal(1e-9, 1e-9).all()


def test_a_hundred_thousand_problems() -> None:
    q = 3 * torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    one = torch.ones(1, 4, dtype=F64)
    solution = solve_qp(None, q, A=one, b=one[:, 0], entropy=0.5, backend="native")
    torch.testing.assert_close(solution.x, torch.softmax(-2 * q, -1), atol=1e-14, rtol=1e-13)


def test_an_entropy_that_differs_from_element_to_element_and_float32() -> None:
    given = entropic("rows", batch=7)
    given["entropy"] = torch.logspace(-2, 2, 7, dtype=F64).unsqueeze(-1)
    assert left({**given, "entropy": given["entropy"].expand(7, 16)}) == 0
    assert_same(*both(given), 100.0)
    single = {name: t if t is None else t.float() for name, t in given.items()}
    ours, theirs = both(single)
    assert ours.x.dtype is torch.float32 and ours.solved.all() and theirs.solved.all()
    torch.testing.assert_close(ours.x, theirs.x, atol=1e-7, rtol=2**-22)  # rounded once, both


def gradients(given: dict[str, Any], backend: str) -> dict[str, Tensor]:
    """Of one sum of everything that the solution consists of."""
    leaves = {name: t.clone().requires_grad_() for name, t in given.items() if t is not None}
    solution = solve_qp(**{**given, **leaves}, backend=backend)
    outputs = (solution.x, solution.y, solution.z, solution.z_box, solution.s, solution.log_x)
    source = torch.Generator().manual_seed(0)
    loss = sum((torch.randn(t.shape, generator=source, dtype=F64) * t).sum() for t in outputs[:1] + outputs[-2:])
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_give_the_same_gradients(kind: str, curvature: str) -> None:
    """Of x, s and log x, and but for A in transport: with its redundant row multipliers are not unique."""
    for scale in (1.0, 100.0):
        given = entropic(kind, batch=5, scale=scale, curvature=curvature)
        ours, theirs = (gradients(given, backend) for backend in ("native", "reference"))
        if kind == "transport":
            del theirs["A"]
        for name, b in theirs.items():
            size = max(1.0, float(b.abs().max()))  # terms of size one may cancel
            torch.testing.assert_close(
                ours[name], b, atol=1e-9 * size, rtol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )


# ---- lanes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lane_does_not_depend_on_its_neighbours(kind: str, curvature: str) -> None:
    """Not in one bit: alone, among others, and among others that are infeasible, invalid or hard."""
    given = entropic(kind, batch=9, scale=10.0, curvature=curvature)
    whole = solve_qp(**given, backend="native")
    for e in (0, 4, 8):
        alone = solve_qp(
            **{name: t[e] if t is not None and len(t) == 9 else t for name, t in given.items()}, backend="native"
        )
        assert torch.equal(alone.x, whole.x[e]) and torch.equal(alone.log_x, whole.log_x[e])
    q = given["q"].clone()
    q[1], q[2, 0], q[3] = 1e9 * q[1], torch.nan, 0.0
    spoilt = solve_qp(**{**given, "q": q}, backend="native")
    others = [0, 4, 5, 6, 7, 8]
    assert torch.equal(spoilt.x[others], whole.x[others])
    assert torch.equal(spoilt.iterations[others], whole.iterations[others])
    assert spoilt.status[2] == Status.INVALID_DATA


def test_units_of_the_costs_do_not_matter_where_some_variables_are_bounded() -> None:
    random = torch.Generator().manual_seed(0)
    q, ub = torch.randn(8, 6, generator=random, dtype=F64), torch.full((6,), torch.inf, dtype=F64)
    ub[:3] = 0.5
    row = {"A": torch.ones(1, 6, dtype=F64), "b": torch.ones(1, dtype=F64), "ub": ub}
    ones, large = (solve_qp(None, c * q, entropy=c, backend="native", **row) for c in (1.0, 2.0**40))
    assert torch.equal(large.x, ones.x) and torch.equal(large.iterations, ones.iterations)


def test_infeasible_elements_have_their_certificate() -> None:
    given = entropic("cap", batch=8)
    ub = given["ub"].clone()
    ub[::3] *= 0.3
    ub[5] = -1.0
    ours, theirs = both({**given, "ub": ub})
    assert ours.status.tolist() == theirs.status.tolist() == [2, 1, 1, 2, 1, 2, 2, 1]
    lb = torch.zeros_like(ub)
    for solution in (ours, theirs):
        y, z_box = solution.certificate.y[0], solution.certificate.z_box[0]
        assert (y @ given["A"] + z_box).abs().max() <= 1e-8
        gap = given["b"] @ y + ub[0] @ z_box.clamp(min=0) + lb[0] @ z_box.clamp(max=0)
        torch.testing.assert_close(gap, torch.tensor(-1.0, dtype=F64))


def test_transport_with_the_redundant_row_and_rows_twice() -> None:
    marginals = torch.softmax(torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64), -1)
    given = {"P": None, "q": torch.rand(16, dtype=F64), "A": transport(4, 4), "b": marginals.flatten(1), "entropy": 0.1}
    assert left(given) == 0
    assert_same(*both(given), 10.0)
    twice = {**given, "A": given["A"].repeat(2, 1), "b": given["b"].repeat(1, 2)}
    assert left(twice) == 0
    assert_same(*both(twice), 10.0)


# ---- the operator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
def test_opcheck(curvature: str) -> None:
    given = entropic("moment and rows", batch=2, curvature=curvature)
    torch.library.opcheck(torch.ops.optlayer_native.entropic_qp.default, (*tensors(given), *OPTIONS))
    bare = tensors({"P": None, "q": given["q"], "entropy": given["entropy"]})
    torch.library.opcheck(torch.ops.optlayer_native.entropic_qp.default, (*bare, *OPTIONS))
    out = native.qp(*tensors(given), *OPTIONS)
    r = [torch.randn(3, *t.shape, dtype=F64) for t in out[:4]]
    arguments = (*(tensors(given)[i] for i in (0, 2, 4)), out[13], *r)
    torch.library.opcheck(torch.ops.optlayer_native.entropic_kkt_solve.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fake_outputs_are_like_real_ones(dtype: torch.dtype) -> None:
    data = [t if t is None else t.to(dtype) for t in tensors(entropic("group", batch=3, curvature="diagonal"))]
    real = torch.ops.optlayer_native.entropic_qp(*data, *OPTIONS)
    meta = torch.ops.optlayer_native.entropic_qp(*(t if t is None else t.to("meta") for t in data), *OPTIONS)
    for a, b in zip(real[:14], meta[:14], strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_tensors_of_any_layout() -> None:
    given = entropic("moment and rows", batch=6, curvature="full")
    expected = solve_qp(**given, backend="native").x
    apart = {
        name: t if t is None else torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]
        for name, t in given.items()
    }
    assert torch.equal(solve_qp(**apart, backend="native").x, expected)


def test_the_engine_is_chosen_by_size_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(backend: str, n: int, k: int, full: bool = False) -> bool:
        return native.takes(backend, torch.eye(n) if full else None, torch.zeros(2, n), k)

    assert takes("auto", 100, 3) and takes("native", 100, 3) and not takes("reference", 100, 3)
    assert takes("auto", 1, native.LONGEST) and takes("auto", native.LONGEST, 1)
    assert not takes("auto", native.LONGEST + 1, 0) and not takes("auto", 1, native.LONGEST + 1)
    assert takes("auto", 256, native.LARGEST // 256) and not takes("auto", 256, native.LARGEST // 256 + 1)
    assert takes("auto", native.LARGEST_FULL, 3, True) and not takes("auto", native.LARGEST_FULL + 1, 3, True)
    assert takes("native", native.LARGEST_FULL + 1, 3, True)
    monkeypatch.setattr(library, "_loaded", "it was not compiled")
    assert not takes("auto", 100, 3)
    with pytest.raises(SettingsError, match="but the compiled engine cannot be used: it was not compiled"):
        takes("native", 100, 3)
