# SPDX-License-Identifier: Apache-2.0
"""The solution judges itself, differentiates itself, and travels through torch as a pytree."""

import copy
import dataclasses
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from optlayer import Point, ProblemError, Solution, solve_qp
from optlayer.problem import CORES, NAMES, Problem
from optlayer.testing import assert_certified, random_qp

F64 = torch.float64
OUTPUTS = ("x", "y", "z", "z_box", "s")


def a_problem(batch: tuple[int, ...] = (2, 3), seed: int = 1) -> Problem:
    return random_qp(6, 5, 2, batch=batch, bounds=True, shared=("G",), seed=seed)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return a_problem()


@pytest.fixture(scope="module")
def solution(problem: Problem) -> Solution:
    return solve_qp(*problem.tensors)


def test_shapes_and_dtypes(solution: Solution, problem: Problem) -> None:
    batch, n, m, p = (2, 3), problem.n, problem.m, problem.p
    for name, size in zip(OUTPUTS, (n, p, m, n, m), strict=True):
        t = getattr(solution, name)
        assert (t.shape, t.dtype) == ((*batch, size), F64)
    for t in (solution.status, solution.iterations, solution.weakly_active):
        assert (t.shape, t.dtype) == (batch, torch.int64)
    assert [t.shape[-1] for t in solution.certificate] == [n, p, m, n]
    assert solution.solved.dtype is torch.bool
    assert solution.problem.tensors == problem.tensors


def test_it_prints_how_many_are_solved(solution: Solution) -> None:
    sizes = "batch=(2, 3), n=6, m=5, p=2"
    assert repr(solution) == f"Solution(6 of 6 solved, {sizes}, dtype=torch.float64, device=cpu)"
    half = dataclasses.replace(solution, status=torch.tensor([[1, 1, 1], [2, 5, 9]]))
    assert repr(half).startswith("Solution(3 of 6 solved, batch")
    assert repr(solution.kkt) == f"KKT({sizes})"


def test_residuals_print_their_values_and_those_of_a_batch_their_largest(solution: Solution) -> None:
    r = solution.residuals()
    worst = ", ".join(f"{name}={float(getattr(r, name).max()):.3g}" for name in ("primal", "dual", "gap"))
    assert repr(r) == f"Residuals(batch=(2, 3), at most {worst})"
    assert repr(type(r)(*(t.clone().requires_grad_() for t in r))) == repr(r), "and warns of nothing"
    one = type(r)(*(t[0, 1].clone().requires_grad_() for t in r))
    assert repr(one).startswith(f"Residuals(primal={float(r.primal[0, 1]):.3g}, dual=")
    gone = torch.tensor([[False, True, False]])
    half = type(r)(*(t.masked_fill(gone, torch.nan) for t in r))
    rest = ", ".join(f"{name}={float(getattr(r, name)[:, ::2].max()):.3g}" for name in ("primal", "dual", "gap"))
    assert repr(half) == f"Residuals(batch=(2, 3), at most {rest}, 2 of 6 are NaN)"
    assert repr(type(r)(*(t[:0] for t in r))) == "Residuals(batch=(0, 3))"
    assert repr(type(r)(*(t.to("meta") for t in r))) == "Residuals(batch=(2, 3))"


def test_it_prints_without_a_count_where_that_would_wait_or_trace(solution: Solution) -> None:
    meta = dataclasses.replace(solution, status=solution.status.to("meta"))
    assert repr(meta).startswith("Solution(batch=(2, 3), n=6")
    with pytest.raises(ProblemError, match="the problem is on the device meta"):
        meta.status_names()
    with torch._subclasses.FakeTensorMode() as mode:
        fake = dataclasses.replace(solution, status=mode.from_tensor(solution.status))
        assert repr(fake).startswith("Solution(batch=(2, 3), n=6")
    printed = []

    def mapped(status: Tensor) -> Tensor:
        printed.append(repr(dataclasses.replace(solution, status=status)))
        return status

    torch.func.vmap(mapped)(solution.status)
    assert printed[0].startswith("Solution(batch=(3,), n=6")


def test_the_status_has_names_in_the_shape_of_the_batch(solution: Solution) -> None:
    status = torch.tensor([[1, 1, 1], [2, 5, 9]])
    assert dataclasses.replace(solution, status=status).status_names() == [
        ["SOLVED"] * 3,
        ["PRIMAL_INFEASIBLE", "MAX_ITERATIONS", "INVALID_DATA"],
    ]
    assert dataclasses.replace(solution, status=status[1, 0]).status_names() == "PRIMAL_INFEASIBLE"


def test_it_is_immutable(solution: Solution) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.x = solution.y  # type: ignore[misc]


# ---- judgement -------------------------------------------------------------------------------------------------------


def test_residuals_are_small_at_the_solution_and_as_large_as_the_error_elsewhere(solution: Solution) -> None:
    assert solution.is_optimal().all()
    assert solution.is_optimal(1e-12, 1e-12).all()
    A, b = solution.problem.A, solution.problem.b
    assert A is not None
    assert b is not None
    moved = dataclasses.replace(solution, x=solution.x + 0.1)
    assert not moved.is_optimal().any()
    left = ((A @ moved.x.unsqueeze(-1)).squeeze(-1) - b).abs().amax(-1)
    assert (moved.primal_residual() >= left).all()
    assert (moved.dual_residual() > 1e-3).all()
    assert (moved.duality_gap() > 1e-3).all()


def test_the_objective_is_half_xPx_plus_qx(solution: Solution) -> None:
    P, q, x = solution.problem.P, solution.problem.q, solution.x
    assert P is not None
    torch.testing.assert_close(solution.objective, 0.5 * torch.einsum("...i,...ij,...j", x, P, x) + (q * x).sum(-1))


def test_the_accuracy_asked_for_is_the_default_of_the_judgement() -> None:
    problem = a_problem()
    exact = solve_qp(*problem.tensors)
    x = exact.x + 1e-7
    assert not dataclasses.replace(exact, x=x).is_optimal().any()
    assert dataclasses.replace(solve_qp(*problem.tensors, eps_abs=1e-3), x=x).is_optimal().all()


def test_single_precision_is_judged_in_double_precision_and_under_autocast() -> None:
    """Evaluated in float32, the residuals of these large data would be rounding; in bfloat16, nothing at all."""
    problem = random_qp(40, 30, 10, batch=(4,), bounds=True, seed=2, dtype=torch.float32)
    solution = solve_qp(*problem.tensors)
    found = solution.residuals()
    assert found.primal.dtype is F64
    assert solution.objective.dtype is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for a, b in zip(found, solution.residuals(), strict=True):
            assert torch.equal(a, b)
    assert solution.is_optimal().all()


def test_nothing_is_optimal_about_a_failed_element() -> None:
    problem = a_problem(batch=(3,))
    problem.q[1] = torch.nan
    solution = solve_qp(*problem.tensors)
    assert solution.solved.tolist() == solution.is_optimal().tolist() == [True, False, True]
    assert solution.objective.isnan().tolist() == [False, True, False]


def test_the_judgement_is_differentiable() -> None:
    q = torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)
    solution = solve_qp(torch.eye(2, dtype=F64), q)
    (gradient,) = torch.autograd.grad(solution.objective, q)
    torch.testing.assert_close(gradient, solution.x.detach())  # the envelope theorem: d(objective)/dq = x


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", NAMES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_the_jacobian_equals_autograd_row_by_row(solution: Solution, output: str, parameter: str) -> None:
    problem = solution.problem
    tensors = dict(zip(NAMES, problem.tensors, strict=True))
    t = tensors[parameter]
    assert t is not None
    core = t.shape[t.ndim - CORES[parameter] :]
    own = t.expand(2, 3, *core).clone().requires_grad_()  # one per element, also where the batch shares it
    value = getattr(solve_qp(**{**tensors, parameter: own}), output)
    rows = [torch.autograd.grad(value[..., i].sum(), own, retain_graph=True)[0] for i in range(value.shape[-1])]
    jacobian = solution.jacobian(output, parameter)
    assert jacobian.shape == (*value.shape, *core)
    torch.testing.assert_close(jacobian, torch.stack(rows, 2), rtol=1e-12, atol=1e-12)


def test_the_jacobian_of_nothing_is_empty() -> None:
    solution = solve_qp(*random_qp(4, batch=(3,)).tensors)
    assert solution.jacobian("z", "q").shape == (3, 0, 4)
    assert solution.jacobian("s", "P").shape == (3, 0, 4, 4)
    assert solve_qp(*random_qp(4, 2, batch=(0,)).tensors).jacobian("z", "G").shape == (0, 2, 2, 4)


def test_the_jacobian_of_a_failed_element_is_nan_and_its_neighbours_are_untouched() -> None:
    problem = a_problem(batch=(3,))
    expected = solve_qp(*problem.tensors).jacobian("x", "q")
    problem.q[1] = torch.nan
    found = solve_qp(*problem.tensors).jacobian("x", "q")
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@pytest.mark.parametrize(
    ("output", "parameter", "message"),
    [
        ("w", "q", "output is 'w', expected one of x, y, z, z_box, s"),
        ("x", "theta", "parameter is 'theta', expected one of those given: P, q, lb"),
        ("x", "A", "parameter is 'A', expected one of those given: P, q, lb"),
    ],
)
def test_a_jacobian_of_unknown_names_is_refused(output: str, parameter: str, message: str) -> None:
    solution = solve_qp(torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64), lb=-1)
    with pytest.raises(ValueError, match=re.escape(message)):
        solution.jacobian(output, parameter)


def kkt_matrix(solution: Solution, i: int) -> tuple[Tensor, Tensor]:
    """K of element i over its active rows and bounds, dense, and the mask of what is active."""
    problem = solution.problem
    assert problem.P is not None
    assert problem.A is not None
    assert problem.G is not None
    P, G, A = problem.P[i], problem.G[i], problem.A[i]
    n, m, p = problem.n, problem.m, problem.p
    rows = torch.cat([A, G, torch.eye(n, dtype=F64)])
    K = torch.zeros(n + p + m + n, n + p + m + n, dtype=F64)
    K[:n, :n], K[n:, :n], K[:n, n:] = P, rows, rows.T
    on = torch.ones(n + p, dtype=torch.bool)
    return K, torch.cat([on, solution.z[i] > 1e-6, solution.z_box[i].abs() > 1e-6])


def test_kkt_solve_equals_a_dense_solve() -> None:
    solution = solve_qp(*random_qp(6, 5, 2, batch=(3,), bounds=True, seed=3).tensors)
    r = Point(
        *(torch.randn(4, 3, t.shape[-1], dtype=F64) for t in (solution.x, solution.y, solution.z, solution.z_box))
    )
    u = torch.cat(solution.kkt.solve(*r), -1)
    assert u.shape == (4, 3, 19)
    for i in range(3):
        K, on = kkt_matrix(solution, i)
        expected = torch.linalg.solve(K[on][:, on], torch.cat(r, -1)[:, i, on].T).T
        torch.testing.assert_close(u[:, i, on], expected, rtol=1e-9, atol=1e-9)
        assert (u[:, i, ~on] == 0).all()


def test_parts_of_a_right_hand_side_that_are_left_out_are_zero(solution: Solution) -> None:
    r = torch.randn_like(solution.x)
    full = solution.kkt.solve(r, *(torch.zeros_like(t) for t in (solution.y, solution.z, solution.z_box)))
    for a, b in zip(full, solution.kkt.solve(r), strict=True):
        assert torch.equal(a, b)
    for t in solution.kkt.solve():
        assert (t == 0).all()


def test_minus_the_jacobian_with_respect_to_q_is_the_inverse_of_kkt(solution: Solution) -> None:
    unit = torch.eye(6, dtype=F64).reshape(6, 1, 1, 6)
    u = solution.kkt.solve(r_x=unit)
    torch.testing.assert_close(solution.jacobian("x", "q"), -u.x.movedim(0, -1), rtol=1e-12, atol=1e-12)


# ---- elements of the batch -------------------------------------------------------------------------------------------

INDICES = [
    1,
    -1,
    slice(1),
    (slice(None), 2),
    (1, 0),
    (..., 0),
    (0, ...),
    [1, 0, 1],
    (None, 1),
    torch.tensor([1, 1]),
    torch.tensor([True, False]),
    torch.tensor([[True, False, True], [False, False, True]]),
]
WITH_AN_ENTROPY = {"A": torch.ones(1, 6, dtype=F64), "b": torch.ones(1, dtype=F64), "ub": 0.4, "entropy": 0.5}


def taken(t: Tensor, index: Any, batch: int = 2) -> Tensor:
    """The same elements of a tensor of shape (*batch, ...)."""
    return torch.stack([row[index] for row in t.flatten(batch).unbind(-1)], -1).unflatten(-1, t.shape[batch:])


@pytest.mark.parametrize("entropic", [False, True], ids=["", "entropic"])
def test_elements_have_all_that_belongs_to_them(problem: Problem, engine: str, entropic: bool) -> None:
    """Values to the bit; what is computed from them by rounding, for products of other batches round differently."""
    whole = solve_qp(None, problem.q, **WITH_AN_ENTROPY) if entropic else solve_qp(*problem.tensors)
    r = torch.linspace(-1, 1, 6, dtype=F64)
    products, jacobians = whole.kkt.solve(r_x=r).x, {name: whole.jacobian("x", name) for name in ("q", "A")}
    for index in INDICES:
        some = whole[index]
        for name in (*OUTPUTS, "ray", *(["log_x"] if entropic else [])):
            if getattr(whole, name).shape[-1]:
                assert torch.equal(getattr(some, name), taken(getattr(whole, name), index)), (name, index)
        for name in ("status", "iterations", "weakly_active"):
            assert torch.equal(getattr(some, name), getattr(whole, name)[index])
        assert some.problem.batch == some.status.shape
        shared = "A" if entropic else "G"
        assert getattr(some.problem, shared) is getattr(whole.problem, shared)
        assert some.is_optimal().all()
        pairs = [(some.objective, whole.objective[index]), (some.kkt.solve(r_x=r).x, taken(products, index))]
        pairs += [(some.jacobian("x", name), taken(whole_one, index)) for name, whole_one in jacobians.items()]
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_elements_pass_their_gradients_on(problem: Problem) -> None:
    P, q, *rest = (t.clone().requires_grad_() for t in problem.tensors)
    solution = solve_qp(P, q, *rest)
    (found,) = torch.autograd.grad(solution[:, 1:].x.sum() + solution[1, 2].z.sum(), q, retain_graph=True)
    (expected,) = torch.autograd.grad(solution.x[:, 1:].sum() + solution.z[1, 2].sum(), q, retain_graph=True)
    assert torch.equal(found, expected)
    (through_data,) = torch.autograd.grad(solution[0].objective.sum(), q)
    assert through_data[0].any() and not through_data[1].any()


def test_elements_of_every_leading_shape_are_reached(problem: Problem) -> None:
    """Data that broadcast within the batch are those of each element; a loop goes over the first dimension."""
    P, q, *rest = problem.tensors
    whole = solve_qp(P[:1, :1], q, *rest)
    assert whole[1, 2].is_optimal() and whole[1, 2].problem.P.shape == (6, 6)
    assert [torch.equal(one.x, x) for one, x in zip(whole, whole.x, strict=True)] == [True, True]
    warm = solve_qp(*whole[0].problem.tensors, warm_start=whole[0])
    torch.testing.assert_close(warm.x, whole.x[0], rtol=0, atol=1e-9)
    assert whole[:0].x.shape == (0, 3, 6)


def test_certificates_are_those_of_the_elements() -> None:
    floor = torch.tensor([[0.0], [2.0]], dtype=F64)
    solution = solve_qp(None, torch.ones(2, 1, dtype=F64), lb=floor, G=torch.ones(1, 1, dtype=F64), h=floor[0] + 1)
    assert solution.status_names() == ["SOLVED", "PRIMAL_INFEASIBLE"]
    assert_certified(solution[1])
    assert len(solution[solution.solved].x) == 1 and solution[~solution.solved].x.isnan().all()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (2, r"no such elements of the batch \(2, 3\): index 2 is out of bounds"),
        ((0, 0, 0), r"no such elements of the batch \(2, 3\): too many indices"),
        ("x", r"no such elements of the batch \(2, 3\)"),
        (slice(None, None, -1), r"no such elements of the batch \(2, 3\): .*step must be greater than zero"),
    ],
)
def test_an_index_beyond_the_batch_is_refused(solution: Solution, index: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        solution[index]


def test_one_solution_alone_cannot_be_indexed(solution: Solution) -> None:
    with pytest.raises(ProblemError, match="no batch dimensions, expected at least one to index"):
        solution[0, 0][0]


# ---- travel ----------------------------------------------------------------------------------------------------------


def leaves(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


@pytest.mark.parametrize(
    "travel", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), lambda s: pytree.tree_map(torch.clone, s)]
)
def test_a_copy_is_a_working_solution(solution: Solution, travel: Any) -> None:
    copied = travel(solution)
    assert isinstance(copied, Solution)
    assert copied.settings == solution.settings
    for a, b in zip(leaves(solution), leaves(copied), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(copied.jacobian("x", "h"), solution.jacobian("x", "h"))


def test_a_solution_can_leave_vmap_with_shared_data_and_inner_batches(problem: Problem) -> None:
    P, q, G, h, A, b, lb, ub = problem.tensors
    more = q + torch.randn(4, 1, 1, 6, dtype=F64)
    expected = solve_qp(P, more, G, h, A, b, lb, ub)
    found = torch.func.vmap(lambda q: solve_qp(P, q, G, h, A, b, lb, ub))(more)
    assert found.problem.batch == (4, 2, 3)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.is_optimal(), expected.is_optimal())
    torch.testing.assert_close(found.jacobian("x", "G"), expected.jacobian("x", "G"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_solution_can_leave_a_compiled_function(problem: Problem, solution: Solution, backend: str) -> None:
    torch._dynamo.reset()
    found = torch.compile(lambda *t: solve_qp(*t, max_iter=50), fullgraph=True, backend=backend)(*problem.tensors)
    assert isinstance(found, Solution)
    assert found.settings == solution.settings.override(max_iter=50)
    assert torch.equal(found.x, solution.x)
    assert torch.equal(found.jacobian("z", "A"), solution.jacobian("z", "A"))


def test_its_methods_compile(problem: Problem, solution: Solution) -> None:
    torch._dynamo.reset()

    def report(s: Solution) -> tuple[Tensor, ...]:
        judged = (s.solved, s.is_optimal(), s.objective, s.primal_residual(), s.dual_residual(), s.duality_gap())
        return *judged, *s.kkt.solve(r_x=s.x), s.jacobian("x", "q")

    found = torch.compile(lambda *t: report(solve_qp(*t)), fullgraph=True, backend="aot_eager")(*problem.tensors)
    for a, b in zip(report(solution), found, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
