# SPDX-License-Identifier: Apache-2.0
"""Agreement with two independent interior point solvers, Clarabel and PIQP, on random families."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.engine import solve
from benchmarks.exact import known
from benchmarks.referee import HUGE, Array, Problem
from optlayer import Status


def dense(seed: int) -> Problem:
    return known(seed, n=20, m=25, p=4, active=6, bounded=10, at_bound=4).problem


def rank_deficient(seed: int) -> Problem:
    return known(seed, n=16, m=12, p=3, active=5, eigenvalues=np.r_[np.zeros(8), np.linspace(1, 5, 8)]).problem


def linear(seed: int) -> Problem:
    return known(seed, n=12, m=20, p=2, active=6, bounded=8, at_bound=4, eigenvalues=np.zeros(12)).problem


def boxed(seed: int) -> Problem:
    return known(seed, n=25, m=0, p=0, active=0, bounded=25, at_bound=12).problem


def equalities(seed: int) -> Problem:
    return known(seed, n=15, m=0, p=6, active=0, bounded=0, at_bound=0).problem


def portfolio(seed: int) -> Problem:
    """min 1/2 x'(FF' + D)x - r'x on the simplex."""
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((30, 5))
    P = F @ F.T + np.diag(rng.uniform(0, 1, 30))
    none, free = np.zeros((0, 30)), np.full(30, np.inf)
    q, ones, zeros = -rng.uniform(0, 2, 30), np.ones((1, 30)), np.zeros(30)
    return Problem("portfolio", P, q, none, np.zeros(0), ones, np.ones(1), zeros, free)


def clarabel(p: Problem) -> Array:
    package = pytest.importorskip("clarabel")
    sparse = pytest.importorskip("scipy.sparse")
    unit, low, high = np.eye(len(p.q)), p.lb > -HUGE, p.ub < HUGE
    C = np.vstack([p.A, p.G, unit[high], -unit[low]])
    d = np.concatenate([p.b, p.h, p.ub[high], -p.lb[low]])
    cones = [package.ZeroConeT(len(p.b)), package.NonnegativeConeT(len(d) - len(p.b))]
    settings = package.DefaultSettings()
    settings.verbose = False
    settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = 1e-10
    P = sparse.csc_matrix(np.triu(p.P))
    found = package.DefaultSolver(P, p.q, sparse.csc_matrix(C), d, cones, settings).solve()
    assert "Solved" in str(found.status)
    return np.array(found.x)


def piqp(p: Problem) -> Array:
    package = pytest.importorskip("piqp")
    solver = package.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = 1e-10
    G, h = (np.asfortranarray(p.G), p.h) if len(p.h) else (None, None)
    A, b = (np.asfortranarray(p.A), p.b) if len(p.b) else (None, None)
    solver.setup(np.asfortranarray(p.P), p.q, A, b, G, None, h, p.lb, p.ub)
    assert solver.solve() == package.PIQP_SOLVED
    return np.asarray(solver.result.x)


@pytest.mark.parametrize("peer", [clarabel, piqp])
@pytest.mark.parametrize("family", [dense, rank_deficient, linear, boxed, equalities, portfolio])
@pytest.mark.parametrize("seed", range(3))
def test_two_solvers_find_the_same_point(
    family: Callable[[int], Problem], peer: Callable[[Problem], Array], seed: int
) -> None:
    problem = family(seed)
    answer, x = solve(problem), peer(problem)
    assert answer.status == Status.SOLVED
    assert not answer.wrong(problem)
    # The solutions are unique and well conditioned (< 1e3); the peer's residuals are below 1e-9, which leaves 1e-6.
    assert np.abs(answer.x - x).max() <= 1e-6 * max(1.0, np.abs(x).max())
