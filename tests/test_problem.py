# SPDX-License-Identifier: Apache-2.0
"""Arguments are checked before any work; residuals are what a plain loop over the formulas computes."""

import copy
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from optlayer import ProblemError
from optlayer.problem import CORES, HUGE, NAMES, Problem, validate
from optlayer.residuals import Residuals, residuals
from optlayer.testing import planted_qp, random_qp

F64 = torch.float64


def arguments(n: int = 4, m: int = 3, p: int = 2, batch: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
    """A valid set of arguments, some of them changed."""
    shapes = {"P": (n, n), "q": (n,), "G": (m, n), "h": (m,), "A": (p, n), "b": (p,), "lb": (n,), "ub": (n,)}
    return {name: torch.zeros(*batch, *shape, dtype=F64) for name, shape in shapes.items()} | changes


def zeros(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# ---- what is accepted ------------------------------------------------------------------------------------------------


def test_all_blocks_but_q_may_be_absent() -> None:
    problem = validate(None, zeros(4))
    assert (problem.batch, problem.n, problem.m, problem.p) == ((), 4, 0, 0)
    assert problem.tensors == (None, problem.q, None, None, None, None, None, None)


def test_tensors_are_kept_as_given() -> None:
    given = arguments(batch=(5,))
    problem = validate(**given)
    assert all(t is given[name] for name, t in zip(NAMES, problem.tensors, strict=True))
    assert (problem.batch, problem.n, problem.m, problem.p) == ((5,), 4, 3, 2)


def test_batch_dimensions_broadcast() -> None:
    problem = validate(zeros(4, 4), zeros(7, 1, 4), zeros(5, 3, 4), zeros(3), lb=zeros(1, 1, 1, 4))
    assert problem.batch == (1, 7, 5)


@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)])
def test_empty_batches_are_valid(batch: tuple[int, ...]) -> None:
    assert validate(**arguments(batch=batch, P=zeros(4, 4))).batch == batch


def test_blocks_without_rows_are_valid() -> None:
    problem = validate(**arguments(m=0, p=0))
    assert (problem.m, problem.p) == (0, 0)


@pytest.mark.parametrize("bound", [2, 2.5, -math.inf, torch.tensor(2.5, dtype=F64)])
def test_one_number_bounds_all_variables(bound: Any) -> None:
    problem = validate(None, zeros(3, 4), lb=bound, ub=bound)
    assert problem.lb is not None
    assert problem.ub is not None
    assert problem.lb.tolist() == problem.ub.tolist() == [float(bound)] * 4
    assert problem.lb.dtype is F64


def test_a_learned_number_as_bound_is_differentiable() -> None:
    bound = torch.tensor(2.0, dtype=F64, requires_grad=True)
    problem = validate(None, zeros(4), ub=bound)
    assert problem.ub is not None
    problem.ub.sum().backward()
    assert bound.grad is not None
    assert bound.grad.item() == 4


def test_values_are_not_looked_at() -> None:
    nan = torch.full((4,), torch.nan, dtype=F64)
    validate(torch.diag(nan), nan, nan[None, :], nan[:1], lb=nan, ub=-torch.inf)


def test_half_precision_needs_autocast_and_mixes_with_float32_under_it() -> None:
    half = zeros(4, dtype=torch.bfloat16)
    with pytest.raises(
        ProblemError, match=r"q has dtype torch.bfloat16, .*; half precision is accepted under torch.auto"
    ):
        validate(None, half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        problem = validate(zeros(4, 4, dtype=torch.float32), half, lb=0.1)
        assert problem.lb is not None
        assert problem.lb.dtype is torch.float32
        with pytest.raises(ProblemError, match=r"P has dtype torch.float64 but q has torch.bfloat16"):
            validate(zeros(4, 4), half)


def test_fake_and_meta_tensors_are_valid() -> None:
    problem = validate(**{name: t.to("meta") for name, t in arguments(batch=(2,)).items()})
    assert problem.batch == (2,)
    with torch._subclasses.FakeTensorMode() as mode:
        assert validate(**{name: mode.from_tensor(t) for name, t in arguments(batch=(2,)).items()}).n == 4


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"q": [1.0, 2.0]}, "q is a list, expected a torch.Tensor of shape (*batch, n)"),
    ({"q": None}, "q is a NoneType, expected a torch.Tensor of shape (*batch, n)"),
    ({"q": zeros()}, "q has shape (), expected (*batch, n) with n >= 1"),
    ({"q": zeros(3, 0)}, "q has shape (3, 0), expected (*batch, n) with n >= 1"),
    ({"q": zeros(4, dtype=torch.int64)}, "q has dtype torch.int64, expected torch.float64 or torch.float32"),
    ({"q": zeros(4, dtype=torch.complex128)}, "q has dtype torch.complex128, expected torch.float64 or torch.float32"),
    ({"q": zeros(4, dtype=torch.float16)}, "q has dtype torch.float16, expected torch.float64 or torch.float32; half"),
    ({"P": np.zeros((4, 4))}, "P is a numpy.ndarray, expected a torch.Tensor or None"),
    ({"P": 1.0}, "P is a float, expected a torch.Tensor or None"),
    ({"P": zeros(4)}, "P has shape (4,), expected (*batch, 4, 4) because q has shape (4,)"),
    ({"P": zeros(3, 3), "q": zeros(3, 1)}, "because q has shape (3, 1) (is q a column? expected (*batch, n))"),
    ({"P": None, "G": zeros(2, 3), "q": zeros(3, 1)}, "q has shape (3, 1) (is q a column? expected (*batch, n))"),
    ({"P": zeros(3, 4)}, "P has shape (3, 4), expected (*batch, 4, 4) because q has shape (4,)"),
    ({"P": zeros(5, 4, 3)}, "P has shape (5, 4, 3), expected (*batch, 4, 4) because q has shape (4,)"),
    ({"P": zeros(4, 4, dtype=torch.float32)}, "P has dtype torch.float32 but q has torch.float64: expected one dtype"),
    ({"P": zeros(4, 4, dtype=torch.int32)}, "P has dtype torch.int32, expected torch.float64 or torch.float32"),
    ({"P": zeros(4, 4).to("meta")}, "P is on meta but q is on cpu: expected one device for all arguments"),
    ({"P": zeros(4, 4).to_sparse()}, "P has layout torch.sparse_coo, expected a dense tensor (torch.strided)"),
    ({"G": zeros(3, 5)}, "G has shape (3, 5), expected (*batch, m, 4) because q has shape (4,)"),
    ({"G": zeros(4)}, "G has shape (4,), expected (*batch, m, 4) because q has shape (4,)"),
    ({"h": zeros(2)}, "h has shape (2,), expected (*batch, 3) because G has shape (3, 4)"),
    ({"h": zeros(3, 1)}, "h has shape (3, 1), expected (*batch, 3) because G has shape (3, 4)"),
    ({"h": zeros()}, "h has shape (), expected (*batch, m)"),
    ({"h": None}, "G is given without h: expected both or neither"),
    ({"G": None}, "h is given without G: expected both or neither"),
    ({"A": zeros(2, 3)}, "A has shape (2, 3), expected (*batch, p, 4) because q has shape (4,)"),
    ({"b": zeros(5)}, "b has shape (5,), expected (*batch, 2) because A has shape (2, 4)"),
    ({"b": None}, "A is given without b: expected both or neither"),
    ({"A": None}, "b is given without A: expected both or neither"),
    ({"lb": zeros(3)}, "lb has shape (3,), expected (*batch, 4) because q has shape (4,)"),
    ({"ub": zeros(4, 1)}, "ub has shape (4, 1), expected (*batch, 4) because q has shape (4,)"),
    ({"ub": "1"}, "ub is a str, expected a torch.Tensor of shape (*batch, 4), a number or None"),
    ({"lb": True}, "lb is a bool, expected a torch.Tensor of shape (*batch, 4), a number or None"),
    ({"lb": float("nan")}, "lb is nan, expected a number or None"),
    ({"lb": 2.0, "ub": 1}, "lb is 2.0 and ub is 1, expected lb <= ub"),
    ({"lb": zeros(4, dtype=torch.float32)}, "lb has dtype torch.float32 but q has torch.float64: expected one dtype"),
    (
        {"q": zeros(5, 4), "G": zeros(3, 3, 4)},
        "q has shape (5, 4) and G has shape (3, 3, 4): expected batch shapes that broadcast, found (5,) and (3,)",
    ),
    (
        {"P": zeros(2, 1, 4, 4), "b": zeros(3, 1, 2)},
        "P has shape (2, 1, 4, 4) and b has shape (3, 1, 2): "
        "expected batch shapes that broadcast, found (2, 1) and (3, 1)",
    ),
    (
        {"q": zeros(0, 4), "h": zeros(2, 3)},
        "q has shape (0, 4) and h has shape (2, 3): expected batch shapes that broadcast, found (0,) and (2,)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_wrong_argument_is_named_with_what_was_found_and_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)):
        validate(**arguments(**changes))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_shapes_are_accepted_exactly_when_torch_can_broadcast_them(data: st.DataObject) -> None:
    """The oracle is independent: core dimensions must agree, batch dimensions pass torch.broadcast_shapes."""
    size = st.sampled_from([0, 1, 2, 3])
    wanted = {"n": data.draw(st.sampled_from([1, 2, 3])), "m": data.draw(size), "p": data.draw(size)}
    cores = {"P": "nn", "q": "n", "G": "mn", "h": "m", "A": "pn", "b": "p", "lb": "n", "ub": "n"}
    wrong = data.draw(st.sampled_from([None, None, *NAMES]))
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, letters in cores.items():
        if name != "q" and data.draw(st.booleans()) and name not in "GhAb":
            shapes[name] = None
            continue
        core = [wanted[letter] for letter in letters]
        if name == wrong:
            i = data.draw(st.integers(0, len(core) - 1))
            core[i] = data.draw(st.integers(0, 4))
        shapes[name] = (*data.draw(st.lists(st.sampled_from([0, 1, 2]), max_size=2)), *core)
    tensors = {name: None if shape is None else zeros(*shape) for name, shape in shapes.items()}

    given_shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    assert shapes["q"] is not None
    n = shapes["q"][-1]
    right = n >= 1
    for name, shape in given_shapes.items():
        right &= name in "hb" or shape[-1] == n
        right &= name != "P" or shape[-2] == n
    right &= given_shapes["G"][-2] == given_shapes["h"][-1] and given_shapes["A"][-2] == given_shapes["b"][-1]
    try:
        batch = torch.broadcast_shapes(*(shape[: len(shape) - CORES[name]] for name, shape in given_shapes.items()))
    except RuntimeError:
        right = False

    if right:
        problem = validate(**tensors)  # type: ignore[arg-type]
        assert problem.batch == batch
    else:
        with pytest.raises(ProblemError):
            validate(**tensors)  # type: ignore[arg-type]


# ---- the record ------------------------------------------------------------------------------------------------------


def test_a_problem_prints_its_shapes() -> None:
    problem = validate(None, zeros(2, 4), lb=zeros(4))
    assert repr(problem) == "Problem(q=(2, 4), lb=(4,), dtype=torch.float64, device=cpu)"


def test_a_problem_survives_copy_pickle_and_pytree() -> None:
    problem = random_qp(4, 3, 0, batch=(2,), bounds=True)
    doubled = pytree.tree_map(lambda t: t, problem)
    for copied in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem)), doubled):
        assert isinstance(copied, Problem)
        for a, b in zip(problem.tensors, copied.tensors, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]


def test_a_problem_can_leave_vmap_with_shared_tensors_and_inner_batches() -> None:
    """Tensors that the inner batch shares must still broadcast when vmap has put its own dimension in front."""
    q, G, h = torch.randn(7, 2, 4, dtype=F64), torch.randn(3, 4, dtype=F64), torch.randn(7, 3, dtype=F64)
    problem = torch.func.vmap(lambda q, h: validate(None, q, G, h))(q, h)
    assert problem.batch == (7, 2)
    assert problem.h is not None
    assert torch.equal(problem.h, h[:, None, :])


# ---- residuals -------------------------------------------------------------------------------------------------------


def plain(problem: Problem, x: Any, y: Any, z: Any, z_box: Any) -> dict[str, float]:
    """The residuals of one element, entry by entry, from the formulas of the docstring."""
    P, q, G, h, A, b, lb, ub = (None if t is None else t.numpy() for t in problem.tensors)
    n, m, p = problem.n, problem.m, problem.p
    S = np.zeros((n, n)) if P is None else np.array([[(P[i, j] + P[j, i]) / 2 for j in range(n)] for i in range(n)])
    Px = [sum(S[i, j] * x[j] for j in range(n)) for i in range(n)]
    Ax = [sum(A[i, j] * x[j] for j in range(n)) for i in range(p)]
    Gx = [sum(G[i, j] * x[j] for j in range(n)) for i in range(m)]
    Aty = [sum(A[i, j] * y[i] for i in range(p)) for j in range(n)]
    Gtz = [sum(G[i, j] * z[i] for i in range(m)) for j in range(n)]
    primal, primal_scale, dual = [0.0], [0.0], [0.0]
    xPx = sum(x[i] * Px[i] for i in range(n))
    qx = sum(q[i] * x[i] for i in range(n))
    support = 0.0
    for i in range(p):
        primal.append(abs(Ax[i] - b[i]))
        primal_scale += [abs(Ax[i]), abs(b[i])]
        support += b[i] * y[i]
    for i in range(m):
        if h[i] < HUGE:
            primal.append(max(Gx[i] - h[i], 0))
            primal_scale += [abs(Gx[i]), abs(h[i])]
            support += h[i] * z[i]
            dual.append(max(-z[i], 0))
        else:
            dual.append(abs(z[i]))
    for j in range(n):
        if lb is not None and lb[j] > -HUGE:
            primal.append(max(lb[j] - x[j], 0))
            support += lb[j] * min(z_box[j], 0)
        else:
            dual.append(max(-z_box[j], 0))
        if ub is not None and ub[j] < HUGE:
            primal.append(max(x[j] - ub[j], 0))
            support += ub[j] * max(z_box[j], 0)
        else:
            dual.append(max(z_box[j], 0))
        if lb is not None or ub is not None:
            primal_scale.append(abs(x[j]))
        dual.append(abs(Px[j] + q[j] + Aty[j] + Gtz[j] + z_box[j]))
    objective, dual_objective = xPx / 2 + qx, -xPx / 2 - support
    return {
        "primal": max(primal),
        "dual": max(dual),
        "gap": abs(xPx + qx + support),
        "objective": objective,
        "dual_objective": dual_objective,
        "primal_scale": max(primal_scale),
        "dual_scale": max(abs(v) for v in (*Px, *q, *Aty, *Gtz, *z_box)),
        "gap_scale": min(abs(objective), abs(dual_objective)),
    }


CASES = [
    pytest.param(5, 4, 2, True, "regular", id="all blocks"),
    pytest.param(5, 4, 0, False, "psd", id="inequalities"),
    pytest.param(5, 0, 2, False, "regular", id="equalities"),
    pytest.param(3, 0, 0, True, "regular", id="bounds"),
    pytest.param(3, 0, 0, False, "regular", id="unconstrained"),
    pytest.param(4, 5, 1, True, "lp", id="linear program"),
]


def anywhere(problem: Problem, batch: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    """A point that solves nothing."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (problem.n, problem.p, problem.m, problem.n)
    return tuple(torch.randn(*batch, size, generator=generator, dtype=F64) for size in sizes)


@pytest.mark.parametrize(("n", "m", "p", "bounds", "kind"), CASES)
def test_residuals_equal_a_plain_loop(n: int, m: int, p: int, bounds: bool, kind: Any) -> None:
    problem = random_qp(n, m, p, kind=kind, bounds=bounds, seed=1)
    if problem.h is not None:
        problem.h[0] = torch.inf
    if problem.P is not None:
        problem.P[0, -1] += 1  # only the symmetric part counts
    point = anywhere(problem, (), seed=2)
    found = residuals(*problem.tensors, *point)
    for name, value in plain(problem, *(t.numpy() for t in point)).items():
        # sums of at most a dozen products of numbers of size one: a few roundings
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-13, abs=1e-13), name


@pytest.mark.parametrize(("n", "m", "p", "bounds", "kind"), CASES)
def test_residuals_vanish_at_the_planted_solution(n: int, m: int, p: int, bounds: bool, kind: Any) -> None:
    problem, point = planted_qp(n, m, p, batch=(6,), kind=kind, bounds=bounds, seed=3)
    found = residuals(*problem.tensors, *point)
    assert found.within(1e-13, 1e-13).all()
    torch.testing.assert_close(found.objective, found.dual_objective, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [(), ("P",), ("P", "G", "A")])
def test_a_batch_equals_its_elements(shared: tuple[str, ...]) -> None:
    problem = random_qp(5, 4, 2, batch=(2, 3), bounds=True, shared=shared, seed=4)
    point = anywhere(problem, (2, 3), seed=5)
    together = residuals(*problem.tensors, *point)
    for i in range(2):
        for j in range(3):
            named = zip(NAMES, problem.tensors, strict=True)
            one = [t if t is None or t.ndim == CORES[name] else t[i, j] for name, t in named]
            alone = residuals(*one, *(t[i, j] for t in point))  # type: ignore[arg-type]
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i, j], b, rtol=1e-13, atol=1e-13)


def test_a_wrong_multiplier_shows_in_the_dual_residual() -> None:
    """Each sign and each multiplier of an absent bound is part of dual feasibility, stationary or not."""
    one = torch.ones(1, dtype=F64)
    for sides, y, z, z_box in [
        ({"G": one[None], "h": one}, 0, -0.5, 0),
        ({"G": one[None], "h": torch.inf * one}, 0, 0.5, 0),
        ({"lb": 0 * one}, 0, 0, 0.5),
        ({"ub": one}, 0, 0, -0.5),
        ({"lb": -torch.inf * one, "ub": one}, 0, 0, -0.5),
        ({}, 0, 0, 0.5),
    ]:
        q = -one * (z + z_box)  # stationary
        problem = validate(None, q, **sides)
        point = (0 * one, y * one[:0], z * one[: problem.m], z_box * one)
        assert residuals(*problem.tensors, *point).dual.item() == 0.5


def test_infinite_bounds_contribute_nothing() -> None:
    problem, point = planted_qp(4, 3, 1, bounds=True, seed=6)
    lb, ub, h = problem.lb, problem.ub, problem.h
    assert lb is not None
    assert ub is not None
    assert h is not None
    huge = [torch.where(t.isinf(), sign * 1e20, t) for t, sign in ((lb, -1), (ub, 1))]
    for a, b in zip(
        residuals(*problem.tensors, *point),
        residuals(*problem.tensors[:6], *huge, *point),
        strict=True,
    ):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_never_within(name: str) -> None:
    problem, point = planted_qp(4, 3, 1, bounds=True, seed=7)
    tensors = dict(zip(NAMES, problem.tensors, strict=True))
    t = tensors[name]
    assert t is not None
    tensors[name] = torch.full_like(t, torch.nan)
    assert not residuals(*tensors.values(), *point).within(1e3, 1e3)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_residuals_of_an_empty_batch(batch: tuple[int, ...]) -> None:
    problem, point = planted_qp(4, 3, 1, batch=batch, bounds=True)
    for t in residuals(*problem.tensors, *point):
        assert t.shape == batch


def test_residuals_are_differentiable_in_problem_and_point() -> None:
    problem = random_qp(4, 3, 1, batch=(2,), bounds=True, seed=8)
    given = [t.clone().requires_grad_() for t in (*problem.tensors, *anywhere(problem, (2,), seed=9)) if t is not None]
    assert torch.autograd.gradcheck(lambda *t: tuple(residuals(*t)), given, check_forward_ad=True)


def test_residuals_pass_vmap_and_compile() -> None:
    problem = random_qp(4, 3, 1, batch=(5,), bounds=True, seed=10)
    given = (*problem.tensors, *anywhere(problem, (5,), seed=11))
    expected = residuals(*given)
    compiled = torch.compile(residuals, fullgraph=True, backend="aot_eager")
    for found in (torch.func.vmap(residuals)(*given), compiled(*given)):
        assert isinstance(found, Residuals)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_validate_compiles_once_for_all_batch_sizes() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def total(P: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
        problem = validate(P, q, G, h, lb=-1.0)
        assert problem.lb is not None
        return problem.q.sum() + problem.lb.sum()

    for size in (5, 7, 9):
        given = arguments(batch=(size,), P=zeros(4, 4))
        assert total(given["P"], given["q"], given["G"], given["h"]).item() == -4
    assert counter.frame_count == 1


@pytest.mark.cuda
def test_neither_checks_nor_residuals_wait_for_the_device() -> None:
    problem, point = planted_qp(5, 4, 2, batch=(6,), bounds=True, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        validate(*problem.tensors)
        validate(None, problem.q, lb=-1.0, ub=1)
        found = residuals(*problem.tensors, *point).within(1e-9, 1e-9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.all()
