# SPDX-License-Identifier: Apache-2.0
"""Fuzz: thousands of small QPs of many classes, never a wrong status, and hardly ever none.

Two linear programs, solved by HiGHS, tell what the status must be, whatever the problem is:

    feasible:   is there x with Gx <= h, Ax = b, lb <= x <= ub?
    descending: is there d with Pd = 0, Ad = 0, Gd <= 0, d >= 0 where lb is finite, d <= 0 where ub is, q'd < 0?

A convex QP is solvable iff it is feasible and not descending; a feasible one that descends is unbounded; an infeasible
one has a Farkas certificate, and if it descends too then the ray is as true an answer.
"""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.engine import solve, solve_all
from benchmarks.referee import Array, Problem
from optlayer import Status

pytestmark = pytest.mark.usefixtures("engine")

linprog = pytest.importorskip("scipy.optimize").linprog


def feasible(p: Problem) -> bool:
    """Whether a point satisfies all constraints, by HiGHS."""
    if (p.lb > p.ub).any():
        return False
    bounds = np.column_stack([p.lb, p.ub])
    rows = {"A_ub": p.G, "b_ub": p.h} if len(p.h) else {}
    equal = {"A_eq": p.A, "b_eq": p.b} if len(p.b) else {}
    found = linprog(np.zeros(len(p.q)), **rows, **equal, bounds=bounds, method="highs")
    assert found.status in (0, 2), found.message
    return bool(found.status == 0)


def descending(p: Problem) -> bool:
    """Whether a direction of recession lowers the objective without limit, by HiGHS."""
    flat = np.vstack([p.P, p.A])
    bounds = np.column_stack([np.where(np.isfinite(p.lb), 0.0, -1.0), np.where(np.isfinite(p.ub), 0.0, 1.0)])
    rows = {"A_ub": p.G, "b_ub": np.zeros(len(p.h))} if len(p.h) else {}
    found = linprog(p.q, **rows, A_eq=flat, b_eq=np.zeros(len(flat)), bounds=bounds, method="highs")
    assert found.status == 0, found.message
    return bool(found.fun < -1e-7)


def expected(p: Problem) -> set[Status]:
    """The statuses that are true of a problem."""
    down = {Status.DUAL_INFEASIBLE} if descending(p) else set()
    if not feasible(p):
        return down | {Status.PRIMAL_INFEASIBLE}
    return down or {Status.SOLVED}


def free(n: int) -> tuple[Array, Array]:
    return np.full(n, -np.inf), np.full(n, np.inf)


def dense(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """Positive definite, feasible."""
    L, x = rng.standard_normal((n, n)), rng.standard_normal(n)
    G, A = rng.standard_normal((m, n)), rng.standard_normal((p, n))
    h = G @ x + rng.uniform(0, 1, m) * rng.integers(0, 2, m)
    return Problem("", L @ L.T + 0.01 * np.eye(n), rng.standard_normal(n), G, h, A, A @ x, *free(n))


def semidefinite(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """P of half rank, boxed and feasible."""
    base = dense(rng, n, m, p)
    L, x = rng.standard_normal((n, n // 2)), rng.standard_normal(n)
    lb, ub = x - rng.uniform(0, 2, n), x + rng.uniform(0, 2, n)
    return Problem("", L @ L.T, base.q, base.G, base.G @ x + rng.uniform(0, 1, m), base.A, base.A @ x, lb, ub)


def linear(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """An LP; bounded by its box."""
    base = semidefinite(rng, n, m, p)
    return Problem("", np.zeros((n, n)), base.q, base.G, base.h, base.A, base.b, base.lb, base.ub)


def integers(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """Small integers everywhere: ties, degenerate vertices, redundant rows, any status."""
    L = rng.integers(-2, 3, (n, int(rng.integers(0, n + 1)))).astype(float)
    G, A = rng.integers(-2, 3, (m, n)).astype(float), rng.integers(-1, 2, (p, n)).astype(float)
    h, b, q = (rng.integers(-1, 4, k).astype(float) for k in (m, p, n))
    lb = np.where(rng.random(n) < 0.5, rng.integers(-3, 1, n), -np.inf)
    ub = np.where(rng.random(n) < 0.5, rng.integers(0, 3, n), np.inf)
    return Problem("", L @ L.T, q, G, h, A, b, lb, ub)


def doubled(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """Half of the rows, inequalities and equalities, are copies and sums of the other half; x is at many of them."""
    base = dense(rng, n, m, p)
    half, A, b = m // 2, base.A.copy(), base.b.copy()
    G, h = base.G.copy(), base.h.copy()
    G[m - half :], h[m - half :] = G[:half], h[:half]
    if p > 1:
        A[-1], b[-1] = A[:-1].sum(0), b[:-1].sum()
    return Problem("", base.P, base.q, G, h, A, b, *free(n))


def infeasible(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """A positive combination of rows says 0 <= -1."""
    base = dense(rng, n, m, p)
    weights = rng.uniform(0.1, 1, m - 1)
    G, h = base.G.copy(), base.h.copy()
    G[-1], h[-1] = -(weights @ G[:-1]), -(weights @ h[:-1]) - rng.uniform(0.1, 2)
    return Problem("", base.P, base.q, G, h, base.A, base.b, *free(n))


def unbounded(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """A random direction of recession without curvature, along which q falls."""
    base = dense(rng, n, m, p)
    d = rng.standard_normal(n)
    d /= np.linalg.norm(d)
    flat = np.eye(n) - np.outer(d, d)
    G = base.G @ flat - np.outer(rng.uniform(0, 1, m) * rng.integers(0, 2, m), d)
    A, x = base.A @ flat, rng.standard_normal(n)
    q = base.q - d * (d @ base.q + rng.uniform(0.5, 2))
    return Problem("", flat @ base.P @ flat, q, G, G @ x + rng.uniform(0, 1, m), A, A @ x, *free(n))


def scaled(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """Rows, variables and objective in units that differ by up to 1e6."""
    base = semidefinite(rng, n, m, p)
    e, f, d = (10.0 ** rng.uniform(-3, 3, k) for k in (m, p, n))
    c = 10.0 ** rng.uniform(-3, 3)
    G, A = e[:, None] * base.G * d, f[:, None] * base.A * d
    P, q = c * d[:, None] * base.P * d, c * d * base.q
    return Problem("", P, q, G, e * base.h, A, f * base.b, base.lb / d, base.ub / d)


def fixed(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """Some variables fixed, some free, some bounded on one side."""
    base = semidefinite(rng, n, m, p)
    kind = rng.integers(0, 4, n)
    middle = (base.lb + base.ub) / 2
    lb = np.where(kind == 0, middle, np.where(kind == 1, -np.inf, base.lb))
    ub = np.where(kind == 0, middle, np.where(kind == 2, np.inf, base.ub))
    h, b = base.G @ middle + rng.uniform(0, 1, m), base.A @ middle
    return Problem("", base.P + 0.1 * np.eye(n), base.q, base.G, h, base.A, b, lb, ub)


def parallel(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """Half of the rows are copies of others up to 1e-6; slacks from none to 1e-7 to 1."""
    base, x = dense(rng, n, m, p), rng.standard_normal(n)
    G = base.G.copy()
    for i in range(m // 2):
        G[m - 1 - i] = G[i] * (1 + 1e-6 * rng.standard_normal(n))
    h = G @ x + rng.uniform(0, 1, m) * rng.integers(0, 2, m) * 10.0 ** rng.uniform(-7, 0, m)
    return Problem("", base.P, 10 * base.q, G, h, base.A, base.A @ x, *free(n))


def ties(rng: np.random.Generator, n: int, m: int, p: int) -> Problem:
    """An LP over the unit box whose costs and rows are -1, 0, 1: whole faces of solutions, degenerate vertices."""
    G, x = rng.integers(-1, 2, (m, n)).astype(float), rng.integers(0, 2, n).astype(float)
    q, none = rng.integers(-1, 2, n).astype(float), np.zeros((p, n))
    return Problem("", np.zeros((n, n)), q, G, np.maximum(G @ x, 0), none, np.zeros(p), np.zeros(n), np.ones(n))


CLASSES = [dense, semidefinite, linear, integers, doubled, infeasible, unbounded, scaled, fixed, parallel, ties]
SHAPES = [(2, 3, 0), (3, 5, 1), (5, 4, 2), (8, 12, 3), (15, 10, 5)]
BATCH = 32


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_status_is_wrong(kind: Callable[..., Problem], shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng([CLASSES.index(kind), *shape])
    problems = [kind(rng, *shape) for _ in range(BATCH)]
    unsure = 0
    for i, (p, answer) in enumerate(zip(problems, solve_all(problems), strict=True)):
        assert not answer.wrong(p), (i, answer.wrong(p))
        if answer.status in (Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE):
            assert answer.status in expected(p), (i, answer.status.name)
        else:
            unsure += 1
    assert unsure == 0, f"{unsure} of {BATCH} end without a statement"


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A QP of small integers; every block may be absent and every bound infinite."""
    n, m, p, rank = (draw(st.integers(low, high)) for low, high in ((1, 5), (0, 7), (0, 3), (0, 5)))

    def matrix(rows: int, columns: int, size: int) -> Array:
        entries = draw(st.lists(st.integers(-size, size), min_size=rows * columns, max_size=rows * columns))
        return np.array(entries, float).reshape(rows, columns)

    L, G, A = matrix(n, rank, 2), matrix(m, n, 3), matrix(p, n, 2)
    q, h, b = matrix(1, n, 3)[0], matrix(1, m, 3)[0], matrix(1, p, 2)[0]
    lb, ub = -np.abs(matrix(1, n, 3)[0]), np.abs(matrix(1, n, 3)[0])
    lb[np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))] = -np.inf
    ub[np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))] = np.inf
    return Problem("", L @ L.T, q, G, h, A, b, lb, ub)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems())
def test_every_small_problem_of_integers_has_its_true_status(p: Problem) -> None:
    answer = solve(p)
    assert not answer.wrong(p), answer.wrong(p)
    assert answer.status in expected(p), answer.status.name
