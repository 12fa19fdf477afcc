# SPDX-License-Identifier: Apache-2.0
"""The degenerate zoo: redundant, doubled, empty, weakly active rows; vertices; fixed variables; bad neighbours; scales.

Every answer is verified by the referee. Where x is compared, its tolerance says why.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import optlayer
from benchmarks.engine import CERTIFICATE, Answer, arguments, solve, solve_all
from benchmarks.exact import known
from benchmarks.referee import Array, Problem
from optlayer import Status

pytestmark = pytest.mark.usefixtures("engine")

EXACT = 1e-8
"""Of |x - x*| relative to max(1, |x*|): the polish solves the active set's KKT system (condition < 1e6) to rounding."""


def problem(
    P: object, q: object, G: object = (), h: object = (), A: object = (), b: object = (), **bounds: object
) -> Problem:
    """A problem from nested lists; absent rows and bounds as they are in a Problem."""
    q_ = np.array(q, float)
    n = len(q_)
    P_, G_, A_ = (np.array(M, float).reshape(-1, n) for M in (P, G, A))
    lb, ub = (np.array(bounds.get(k, np.full(n, sign * np.inf)), float) for k, sign in (("lb", -1), ("ub", 1)))
    return Problem("", P_, q_, G_, np.array(h, float), A_, np.array(b, float), lb, ub)


def solved(p: Problem, x: object = None, **settings: object) -> Answer:
    """The verified answer to a problem that has one, at x where that is unique and known."""
    answer = solve(p, **settings)
    assert answer.status == Status.SOLVED, answer.status.name
    assert not answer.wrong(p)
    if x is not None:
        x_ = np.array(x, float)
        assert np.abs(answer.x - x_).max() <= EXACT * max(1.0, np.abs(x_).max())
    return answer


# Rows


def test_a_redundant_equality_changes_nothing() -> None:
    k = known(0)
    A, b = np.vstack([k.problem.A, k.problem.A.sum(0)]), np.append(k.problem.b, k.problem.b.sum())
    solved(replace(k.problem, A=A, b=b), k.solve()["x"].astype(float))


def test_an_inconsistent_redundant_equality_is_infeasible() -> None:
    k = known(0)
    A, b = np.vstack([k.problem.A, k.problem.A.sum(0)]), np.append(k.problem.b, k.problem.b.sum() + 1)
    p = replace(k.problem, A=A, b=b)
    answer = solve(p)
    assert answer.status == Status.PRIMAL_INFEASIBLE
    assert answer.proof(p) <= CERTIFICATE


def test_doubled_rows_share_their_multiplier() -> None:
    k = known(1)
    once, p = k.solve(), k.problem
    p = replace(p, G=np.vstack([p.G, p.G]), h=np.tile(p.h, 2), A=np.vstack([p.A, p.A]), b=np.tile(p.b, 2))
    answer = solved(p, once["x"].astype(float))
    z, y = answer.z.reshape(2, -1).sum(0), answer.y.reshape(2, -1).sum(0)
    assert np.abs(z - once["z"].astype(float)).max() <= EXACT * 10  # |z*| < 10; the sum is unique, the split is not
    assert np.abs(y - once["y"].astype(float)).max() <= EXACT * 10


def test_weakly_active_rows_are_counted_and_do_not_move_x() -> None:
    # min 1/2 |x - t|^2 s.t. x_1 <= t_1: the unconstrained minimiser lies on the boundary, its multiplier is zero
    p = problem(np.eye(2), [-1, -2], G=[[1, 0]], h=[1])
    solved(p, [1, 2])
    found = optlayer.solve_qp(*(v for v in arguments([p]).values() if v is not None))
    assert int(found.weakly_active) == 1


def test_a_weakly_active_bound_is_counted_as_a_row_is() -> None:
    p = problem(np.eye(2), [-1, -2], ub=[1, np.inf])
    solved(p, [1, 2])
    tensors = arguments([p])
    found = optlayer.solve_qp(tensors["P"], tensors["q"], ub=tensors["ub"])  # type: ignore[arg-type]
    assert int(found.weakly_active) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_weakly_active_row_beside_active_ones_changes_nothing_but_the_count(seed: int) -> None:
    k = known(seed)
    p, x = k.problem, k.solve()["x"].astype(float)
    g = np.random.default_rng([seed, 5]).standard_normal(len(x))
    p = replace(p, G=np.vstack([p.G, g]), h=np.append(p.h, g @ x))
    assert solved(p, x).z[-1] <= EXACT
    tensors = arguments([p])
    assert int(optlayer.solve_qp(tensors.pop("P"), tensors.pop("q"), **tensors).weakly_active) == 1  # type: ignore[arg-type]


def test_identical_weakly_active_rows_get_identical_derivatives() -> None:
    # x(h) = min(t, h_1, h_2) at t = h_1 = h_2: by symmetry the central value weighs both rows alike, within [0, 1/2]
    h = torch.ones(2, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    x = optlayer.solve_qp(one, -one[0], one.expand(2, 1), h).x
    (g,) = torch.autograd.grad(x.sum(), h)
    assert abs(float(g[0] - g[1])) <= 1e-9
    assert -1e-9 <= float(g.sum()) <= 1 + 1e-9


def test_empty_rows_are_harmless_or_infeasible() -> None:
    k = known(2)
    p = k.problem
    n = len(p.q)
    zero = np.vstack([p.G, np.zeros((2, n))]), np.append(p.h, [0.0, 3.0])
    x = k.solve()["x"].astype(float)
    solved(replace(p, G=zero[0], h=zero[1]), x)
    solved(replace(p, A=np.vstack([p.A, np.zeros(n)]), b=np.append(p.b, 0.0)), x)
    for bad in (
        replace(p, G=zero[0], h=np.append(p.h, [-1.0, 3.0])),
        replace(p, A=np.vstack([p.A, np.zeros(n)]), b=np.append(p.b, 1.0)),
    ):
        answer = solve(bad)
        assert answer.status == Status.PRIMAL_INFEASIBLE
        assert answer.proof(bad) <= CERTIFICATE


@pytest.mark.parametrize("huge", [1e20, 1e30, np.inf])
def test_a_bound_of_1e20_is_no_bound(huge: float) -> None:
    k = known(3)
    p, n = k.problem, len(k.problem.q)
    free = replace(
        p,
        G=np.vstack([p.G, np.ones((1, n))]),
        h=np.append(p.h, huge),
        lb=np.where(np.isfinite(p.lb), p.lb, -huge),
        ub=np.where(np.isfinite(p.ub), p.ub, huge),
    )
    assert solved(free, k.solve()["x"].astype(float)).z[-1] == 0.0


def test_more_active_rows_than_variables() -> None:
    # the corner (1, 1) of the box, cut again through that corner by three more rows
    G = [[1, 0], [0, 1], [1, 1], [2, 1], [1, 3]]
    solved(problem(np.eye(2), [-5, -5], G=G, h=[1, 1, 2, 3, 4]), [1, 1])


# Cost


def test_an_lp_has_its_vertex() -> None:
    # max x + 2y on the simplex x + y <= 1
    p = problem(np.zeros((2, 2)), [-1, -2], G=[[1, 1], [-1, 0], [0, -1]], h=[1, 0, 0])
    assert np.abs(solved(p, [0, 1]).z - [2, 1, 0]).max() <= EXACT


@pytest.mark.parametrize("seed", range(5))
def test_a_random_lp_vertex_is_exact(seed: int) -> None:
    k = known(seed, eigenvalues=np.zeros(10), active=5, at_bound=3)
    solved(k.problem, k.solve()["x"].astype(float))


def test_a_degenerate_lp_with_a_face_of_solutions_is_solved() -> None:
    solved(problem(np.zeros((3, 3)), [1, 1, 1], A=[[1, 1, 1]], b=[1], lb=[0, 0, 0]))


def test_no_cost_at_all_is_a_feasibility_problem() -> None:
    k = known(4)
    solved(replace(k.problem, P=np.zeros_like(k.problem.P), q=np.zeros_like(k.problem.q)))


def test_only_the_symmetric_part_of_P_counts() -> None:
    k = known(5)
    n = len(k.problem.q)
    skew = np.triu(np.arange(n * n, dtype=float).reshape(n, n), 1)
    solved(replace(k.problem, P=k.problem.P + skew - skew.T), k.solve()["x"].astype(float))


@pytest.mark.parametrize("eigenvalue", [-1.0, -1e-2, -1e-3])
def test_a_negative_eigenvalue_is_named(eigenvalue: float) -> None:
    k = known(6, eigenvalues=np.r_[np.linspace(1, 2, 9), eigenvalue])
    assert solve(k.problem).status == Status.NON_CONVEX


# Feasible sets without an interior


def test_all_variables_fixed() -> None:
    x = np.array([1.0, -2.0, 3.0])
    answer = solved(problem(np.eye(3), [1, 1, 1], lb=x, ub=x), x)
    assert np.abs(answer.z_box + x + 1).max() <= EXACT * 4


def test_some_variables_fixed() -> None:
    k = known(7)
    p, x = k.problem, k.solve()["x"].astype(float)
    lb, ub = p.lb.copy(), p.ub.copy()
    lb[:3] = ub[:3] = x[:3]
    solved(replace(p, lb=lb, ub=ub), x)


def test_all_fixed_at_an_infeasible_point() -> None:
    p = problem(np.eye(2), [0, 0], A=[[1, 1]], b=[5], lb=[1, 1], ub=[1, 1])
    answer = solve(p)
    assert answer.status == Status.PRIMAL_INFEASIBLE
    assert answer.proof(p) <= CERTIFICATE


def test_inequalities_that_leave_one_point() -> None:
    solved(problem([[1]], [0], G=[[1], [-1]], h=[2, -2]), [2])


def test_inequalities_that_leave_a_line() -> None:
    # x + y <= 1 and x + y >= 1: an equality in disguise; the nearest point of the line to the origin
    solved(problem(np.eye(2), [0, 0], G=[[1, 1], [-1, -1]], h=[1, -1]), [0.5, 0.5])


def test_crossed_bounds_are_infeasible() -> None:
    # they prove themselves: z_box, one number for both bounds of a variable, cannot weigh both
    assert solve(problem(np.eye(2), [0, 0], lb=[1, 0], ub=[0, 1])).status == Status.PRIMAL_INFEASIBLE


def test_an_unbounded_problem_returns_its_ray() -> None:
    p = problem(np.diag([1.0, 0.0]), [0, -1], G=[[1, 0]], h=[1])
    answer = solve(p)
    assert answer.status == Status.DUAL_INFEASIBLE
    assert answer.proof(p) <= CERTIFICATE


# Neighbours


def infeasible(p: Problem) -> Problem:
    G, h = p.G.copy(), p.h.copy()
    G[1], h[1] = -G[0], -h[0] - 1
    return replace(p, G=G, h=h)


def unbounded(p: Problem) -> Problem:
    # no curvature, no rows, no bounds: q alone decides
    free = np.full(len(p.q), np.inf)
    return replace(p, P=0 * p.P, G=0 * p.G, h=np.abs(p.h), A=0 * p.A, b=0 * p.b, lb=-free, ub=free)


def not_a_number(p: Problem) -> Problem:
    q = p.q.copy()
    q[0] = np.nan
    return replace(p, q=q)


def non_convex(p: Problem) -> Problem:
    return replace(p, P=p.P - 20 * np.eye(len(p.q)))


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (infeasible, Status.PRIMAL_INFEASIBLE),
        (unbounded, Status.DUAL_INFEASIBLE),
        (not_a_number, Status.INVALID_DATA),
        (non_convex, Status.NON_CONVEX),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_bad_neighbour_changes_no_bit(spoil: Callable[[Problem], Problem], status: Status) -> None:
    healthy = [known(i, structure=0).problem for i in range(6)]
    spoiled = [spoil(p) if i == 2 else p for i, p in enumerate(healthy)]
    before, after = solve_all(healthy), solve_all(spoiled)
    assert after[2].status == status
    for i in (0, 1, 3, 4, 5):
        assert after[i].status == Status.SOLVED
        assert after[i].iterations == before[i].iterations
        for name in ("x", "y", "z", "z_box"):
            assert np.array_equal(getattr(after[i], name), getattr(before[i], name)), (i, name)


# Laws


def close(found: Array, expected: Array, scale: float = 1.0) -> bool:
    """Equal up to the rounding of two polished solves of problems of condition below 1e4."""
    return bool(np.abs(found - expected).max() <= EXACT * max(1.0, np.abs(expected).max()) * scale)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
@pytest.mark.parametrize("what", ["objective", "rows", "variables"])
@pytest.mark.parametrize("seed", range(3))
def test_scaling_laws(what: str, factor: float, seed: int) -> None:
    """Objective times c: multipliers too. Rows times r: theirs over r. Variables times v: x times v, z_box over v."""
    k = known(seed)
    base, answer = k.solve(), solve(k.scaled(**{what: factor}).problem)
    c, r, v = (factor if what == name else 1.0 for name in ("objective", "rows", "variables"))
    assert answer.status == Status.SOLVED
    assert close(answer.x / v, base["x"].astype(float))
    assert close(answer.y / c * r, base["y"].astype(float))
    assert close(answer.z / c * r, base["z"].astype(float))
    assert close(answer.z_box / c * v, base["z_box"].astype(float))


@pytest.mark.parametrize("seed", range(3))
def test_permuting_variables_and_rows_permutes_the_answer(seed: int) -> None:
    p = known(seed).problem
    rng = np.random.default_rng(seed)
    i, j, k = rng.permutation(len(p.q)), rng.permutation(len(p.h)), rng.permutation(len(p.b))
    permuted = Problem("", p.P[i][:, i], p.q[i], p.G[j][:, i], p.h[j], p.A[k][:, i], p.b[k], p.lb[i], p.ub[i])
    one, other = solve(p), solve(permuted)
    pairs = [(other.x, one.x[i]), (other.y, one.y[k]), (other.z, one.z[j]), (other.z_box, one.z_box[i])]
    assert all(close(a, b) for a, b in pairs)


def test_shifting_the_variables_shifts_the_answer() -> None:
    p, t = known(8).problem, np.linspace(-3, 3, 10)
    shifted = replace(p, q=p.q - p.P @ t, h=p.h + p.G @ t, b=p.b + p.A @ t, lb=p.lb + t, ub=p.ub + t)
    assert close(solve(shifted).x, solve(p).x + t)


def test_a_batch_is_its_elements() -> None:
    """Statuses and iterations bit for bit, values to rounding: batched and single matrix products round differently."""
    problems = [known(i, structure=i // 3).problem for i in range(12)]
    problems[4], problems[7] = infeasible(problems[4]), non_convex(problems[7])
    for p, together in zip(problems, solve_all(problems), strict=True):
        alone = solve(p)
        assert together.status == alone.status
        if alone.status == Status.SOLVED:
            assert together.iterations == alone.iterations
            assert all(close(getattr(together, k), getattr(alone, k)) for k in ("x", "y", "z", "z_box"))


def test_leading_dimensions_broadcast() -> None:
    """P (3, 1, n, n) with q (4, n) is a (3, 4) batch, each element solved as alone."""
    elements = [[known(i, structure=j).problem for i in range(4)] for j in range(3)]
    P = torch.tensor(np.stack([row[0].P for row in elements]))[:, None]
    G = torch.tensor(np.stack([row[0].G for row in elements]))[:, None]
    q, h = (torch.tensor(np.stack([[getattr(p, k) for p in row] for row in elements])) for k in ("q", "h"))
    found = optlayer.solve_qp(P, q[0], G, h)
    assert found.x.shape == (3, 4, 10)
    assert found.z.shape == (3, 4, 10)
    assert found.y.shape == (3, 4, 0)
    assert found.status.shape == (3, 4)
    for j in range(3):
        for i in range(4):
            alone = optlayer.solve_qp(P[j, 0], q[0, i], G[j, 0], h[j, i])
            assert int(alone.status) == int(found.status[j, i])
            assert close(found.x[j, i].numpy(), alone.x.numpy())


def test_a_batch_of_size_zero() -> None:
    found = optlayer.solve_qp(torch.eye(3, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64))
    assert found.x.shape == (0, 3)
    assert found.status.shape == (0,)


@pytest.mark.parametrize(
    ("p", "x"),
    [
        (problem([[2]], [-4]), 2.0),
        (problem([[2]], [-4], ub=[1]), 1.0),
        (problem([[2]], [-4], G=[[1]], h=[0.5]), 0.5),
        (problem([[0]], [1], lb=[-3]), -3.0),
        (problem([[2]], [-4], A=[[2]], b=[6]), 3.0),
    ],
)
def test_one_variable(p: Problem, x: float) -> None:
    solved(p, [x])


@pytest.mark.parametrize("scaling", [{}, {"objective": 1e6}, {"objective": 1e-6}, {"rows": 1e6}, {"variables": 1e-6}])
@pytest.mark.parametrize("seed", range(3))
def test_float32_in_float32_out(seed: int, scaling: dict[str, float]) -> None:
    """The answer to the rounded problem to 1e-4: tolerance 1e-5 asked, times the condition (< 10) of these problems."""
    k = known(seed).scaled(**scaling).rounded(np.float32)
    tensors = arguments([k.problem], torch.float32)
    found = optlayer.solve_qp(tensors.pop("P"), tensors.pop("q"), **tensors)  # type: ignore[arg-type]
    assert found.x.dtype == found.z.dtype == torch.float32
    assert int(found.status) == Status.SOLVED
    x = k.solve()["x"].astype(float)
    assert np.abs(found.x.double().numpy() - x).max() <= 1e-4 * np.abs(x).max()


def test_duplicating_an_element_duplicates_its_answer() -> None:
    p = known(9).problem
    one, other = solve_all([p, p])
    assert np.array_equal(one.x, other.x)
    assert one.iterations == other.iterations
