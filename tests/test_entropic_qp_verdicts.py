# SPDX-License-Identifier: Apache-2.0
"""The status of every entropic program: infeasible with a proof, invalid, beyond a limit or the range of numbers."""

from typing import Any

import pytest
import torch
from entropic_cases import (
    CURVATURES,
    F64,
    KINDS,
    assert_close,
    at_scales,
    entropic,
    largest,
    normal,
    simplex,
    symmetric_product,
    transport,
)

import optlayer.problem
from optlayer import SolverError, Status, solve_qp
from optlayer.testing import assert_certified

pytestmark = pytest.mark.usefixtures("engine")


def infeasible() -> dict[str, dict[str, Any]]:
    one, q = torch.ones(1, 6, dtype=F64), normal(6)
    G = normal(2, 6)
    M = torch.cat([one, normal(1, 6)])
    return {
        "caps that sum to 0.99": {"q": q, **simplex(6), "ub": torch.full((6,), 0.165, dtype=F64)},
        "caps that sum to 0.9999": {"q": q, **simplex(6), "ub": torch.full((6,), 0.9999 / 6, dtype=F64)},
        "a negative sum": {"q": q, "A": one, "b": -one[:, 0]},
        "two sums": {"q": q, "A": one.expand(2, 6), "b": torch.tensor([1.0, 2.0], dtype=F64)},
        "floors that sum to 1.2": {"q": q, **simplex(6), "lb": torch.full((6,), 0.2, dtype=F64)},
        "a moment outside its range": {"q": q, "A": M, "b": torch.stack([one[0, 0], M[1].max() + 0.1])},
        "rows against each other": {"q": q, "G": torch.cat([G[:1], -G[:1]]), "h": torch.tensor([1.0, -1.1]).double()},
        "transport of different mass": {
            "q": normal(9),
            "A": transport(3, 3),
            "b": torch.tensor([0.3, 0.3, 0.4, 0.3, 0.3, 0.41], dtype=F64),
        },
        "a budget below the sum": {"q": q, **simplex(6), "G": one, "h": 0.9 * one[:, 0]},
    }


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("curvature", ["none", "full"])
@pytest.mark.parametrize("name", sorted(infeasible()))
def test_an_infeasible_problem_says_so_and_proves_it(name: str, curvature: str, scale: float) -> None:
    given = infeasible()[name]
    given["q"] = scale * given["q"]
    n = given["q"].shape[-1]
    L = normal(n, n, seed=1)
    solution = solve_qp(L @ L.T if curvature == "full" else None, **given, entropy=1.0)
    assert solution.status == Status.PRIMAL_INFEASIBLE
    assert solution.x.isnan().all()
    # x >= 0 is a constraint of an entropic problem: stated as a bound, the certificate is that of the program without
    floor = given.get("lb", torch.zeros(n, dtype=F64)).clamp(min=0)
    problem = optlayer.problem.validate(None, **{**given, "lb": floor})
    _, y, z, z_box = solution.certificate
    r, t = z_box.clone(), floor @ z_box.clamp(max=0)
    if problem.A is not None:
        r, t = r + y @ problem.A, t + problem.b @ y
    if problem.G is not None:
        r, t = r + z @ problem.G, t + problem.h @ z
    if problem.ub is not None:
        t = t + problem.ub @ z_box.clamp(min=0)
    else:
        assert (z_box <= 0).all()
    assert_certified(solution)
    assert (z >= 0).all() and largest(r) <= 1e-7
    assert_close(t, torch.tensor(-1.0, dtype=F64), atol=1e-9)


def test_crossed_bounds_are_infeasible() -> None:
    for bounds in ({"lb": 0.5, "ub": torch.full((3,), 0.2, dtype=F64)}, {"ub": -0.1}):
        solution = solve_qp(None, normal(3), **bounds, entropy=1.0)
        assert solution.status == Status.PRIMAL_INFEASIBLE
        assert_certified(solution)


def test_invalid_elements_spoil_nobody_else() -> None:
    given = entropic("moment and rows", batch=8, curvature="full")
    alone = solve_qp(**given)
    spoilt = {name: t if t is None else t.clone() for name, t in given.items()}
    spoilt["entropy"][0, 3], spoilt["entropy"][1, 2], spoilt["entropy"][2, 0] = 0.0, -1.0, torch.nan
    spoilt["q"][3, 1], spoilt["h"][4, 0], spoilt["P"][5, 1, 1] = torch.nan, -torch.inf, torch.inf
    spoilt["P"][6] -= 10 * torch.eye(16, dtype=F64)
    solution = solve_qp(**spoilt)
    assert solution.status.tolist() == [*[Status.INVALID_DATA] * 6, Status.NON_CONVEX, Status.SOLVED]
    assert solution.x[:7].isnan().all() and (solution.x[7] == alone.x[7]).all()
    assert solve_qp(-torch.ones(1, 3, dtype=F64), normal(3), entropy=1.0).status == Status.NON_CONVEX


def test_failures_are_raised_with_the_name_of_the_argument() -> None:
    tau = torch.tensor([[1.0], [0.0]], dtype=F64)
    with pytest.raises(SolverError, match=r"element 1: INVALID_DATA in entropy \(1 of 2 failed\)"):
        solve_qp(None, normal(2, 3), **simplex(3), entropy=tau, on_failure="raise")
    with pytest.warns(RuntimeWarning, match="the problem: PRIMAL_INFEASIBLE"):
        assert solve_qp(None, normal(3), **simplex(3), ub=0.1, entropy=1.0, on_failure="warn").x.isnan().all()
    lb, ub = torch.tensor([0.0, 0.75, 0.0], dtype=F64), torch.tensor(0.5, dtype=F64)
    with pytest.raises(SolverError, match=r"PRIMAL_INFEASIBLE, as lb exceeds ub by 0\.25 for variable 1"):
        solve_qp(None, normal(3), lb=lb, ub=ub, entropy=1.0, on_failure="raise")
    best = solve_qp(None, normal(3), **simplex(3), ub=0.1, entropy=1.0, on_failure="ignore")
    assert best.x.isfinite().all()


def test_a_solution_beyond_the_range_of_float32_is_no_solution_in_it() -> None:
    q = torch.tensor([[-100.0, 0.0, -100.0], [0.0, 0.0, 0.0]], dtype=F64)
    assert solve_qp(None, q, entropy=1.0).solved.all()
    assert solve_qp(None, q.float(), entropy=1.0).solved.tolist() == [False, True]


def test_a_solution_beyond_the_range_of_float64_is_no_solution() -> None:
    solution = solve_qp(None, torch.tensor([-1e3, 0.0], dtype=F64), entropy=1.0)
    assert solution.status == Status.NUMERICAL_ERROR


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e3])
def test_a_singular_P_alone_is_never_called_solved_wrongly(scale: float) -> None:
    """x may be as large as exp(scale) along the null space, where Px cancels: solved, or a status says why not."""
    L = normal(20, 8, 4)
    P, q = scale * L @ L.mT, normal(20, 8, scale=scale, seed=1)
    solution = solve_qp(P, q, entropy=1.0, on_failure="ignore")
    force = symmetric_product(P, solution.x) + q + solution.log_x + 1
    size = 1 + symmetric_product(P.abs(), solution.x.abs()) + q.abs()
    assert (force / size).abs()[solution.solved].max() <= 1e-9 if solution.solved.any() else scale > 10
    if scale <= 10:
        assert solution.solved.all()


def test_a_limit_on_the_iterations_is_kept() -> None:
    given = entropic("moment and rows", scale=1e3)
    solution = solve_qp(**given, max_iter=2)
    assert (solution.iterations <= 2).all() and not solution.solved.all()
    assert set(solution.status.tolist()) <= {Status.MAX_ITERATIONS, Status.ALMOST_SOLVED, Status.SOLVED}


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_what_the_limit_leaves_unsolved_is_of_the_size_of_a_solution(curvature: str, limit: int) -> None:
    """All x here are shares of one; an iterate, which need not be feasible yet, is at most ten times that."""
    for kind in KINDS:
        given = at_scales(kind, (1.0, 1e3, 1e6), curvature)
        solution = solve_qp(**given, max_iter=limit, on_failure="ignore")
        assert (solution.x >= 0).all() and (solution.x <= 10).all(), kind
        size = 1e3 * (1 + given["q"].abs().amax(-1, keepdim=True))
        for t in (solution.y, solution.z, solution.z_box, solution.s):
            assert (t.abs() <= size).all(), kind
        assert torch.equal(solution.solved, solution.is_optimal())
