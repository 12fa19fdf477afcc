# SPDX-License-Identifier: Apache-2.0
"""The optimality conditions of programs with an entropy, written out once more: at every scale, in every size."""

import itertools
import time

import pytest
import torch
from entropic_cases import (
    CURVATURES,
    F64,
    KINDS,
    assert_close,
    assert_kkt,
    at_scales,
    entropic,
    largest,
    normal,
    symmetric_product,
)
from torch import Tensor

import optlayer.residuals
from optlayer import solve_qp

pytestmark = pytest.mark.usefixtures("engine")

SCALES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e6)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimality_conditions_hold_at_every_scale_of_the_costs(kind: str, curvature: str) -> None:
    whole = solve_qp(**at_scales(kind, SCALES, curvature))
    for i, scale in enumerate(SCALES):
        given = entropic(kind, scale=scale, curvature=curvature)
        solution = whole[4 * i : 4 * (i + 1)]
        assert solution.solved.all(), f"scale {scale}"
        # The method does not care about the scale: it takes 6 to 25 iterations at all of them.
        assert solution.iterations.max() <= 40, f"scale {scale}"
        assert_kkt(solution, given)
        assert solution.is_optimal(1e-11, 1e-11).all()
        if scale in (1.0, 1e4):  # the closing leaves nothing of a looser accuracy
            assert largest(solution.x - solve_qp(**given, eps_abs=1e-6, eps_rel=1e-6).x) <= 1e-10


@pytest.mark.parametrize("n", [1, 2, 3, 200])
@pytest.mark.parametrize("kind", ["softmax", "cap", "cap alone", "floor"])
def test_any_number_of_variables(kind: str, n: int) -> None:
    for scale in (0.1, 10.0, 1e4):
        given = entropic(kind, n, scale=scale)
        given["ub"] = given["ub"] + 0.1 if "ub" in given else None
        given = {name: t for name, t in given.items() if t is not None or name == "P"}
        solution = solve_qp(**given)
        assert solution.solved.all()
        assert_kkt(solution, given)


def test_the_solution_is_the_minimum() -> None:
    """No feasible point near it has a smaller objective; both are evaluated by the definition."""
    given = entropic("moment and rows", n=8, batch=3, curvature="full")
    solution = solve_qp(**given)

    def objective(x: Tensor) -> Tensor:
        return (0.5 * x * symmetric_product(given["P"], x) + given["q"] * x + given["entropy"] * x * x.log()).sum(-1)

    assert_close(solution.objective, objective(solution.x))
    rows = torch.cat([given["A"], given["G"]], 1)
    _, _, V = torch.linalg.svd(rows)
    along = V[:, rows.shape[1] :] if rows.shape[1] < 8 else V[:, -1:] * 0
    steps = (normal(50, 3, along.shape[1]).unsqueeze(-2) @ along).squeeze(-2)
    for size in (1e-3, 1e-5):
        nearby = solution.x + size * steps * solution.x.amin(-1, keepdim=True)
        assert (objective(nearby) >= solution.objective - 1e-15).all()


def test_numbers_that_the_solution_reports_are_those_of_the_definition() -> None:
    given = entropic("group", curvature="diagonal")
    solution = solve_qp(**given)
    r = solution.residuals()
    x = solution.x
    value = (0.5 * given["P"].squeeze(-2) * x * x + given["q"] * x + given["entropy"] * x * x.log()).sum(-1)
    assert_close(r.objective, value)
    assert_close(r.dual_objective, value)  # strong duality
    assert largest(solution.duality_gap()) <= 1e-13
    # a point that is not optimal is not called so
    moved = solve_qp(**{**given, "q": given["q"] + 0.01 * normal(16)})
    wrong = optlayer.residuals.residuals(
        *solution.problem.tensors, moved.x, moved.y, moved.z, moved.z_box, solution.problem.entropy
    )
    assert (wrong.dual >= 1e-3).all()
    assert not wrong.within(1e-6, 1e-6).any()


@pytest.mark.parametrize("curvature", ["none", "diagonal"])
def test_a_hundred_thousand_items_with_three_rows(curvature: str) -> None:
    """O(n k^2): half a second where it was measured; a dense n x n matrix would need 80 GB."""
    n = 100_000
    q = normal(n).requires_grad_()
    A = torch.cat([torch.ones(1, n, dtype=F64), normal(2, n, seed=1)])
    b = A @ torch.softmax(normal(n, seed=2), -1)
    P = normal(1, n, seed=3).abs() if curvature == "diagonal" else None
    begin = time.process_time()
    solution = solve_qp(P, q, A=A, b=b, entropy=1.0)
    (solution.x * normal(n, seed=4)).sum().backward()
    assert time.process_time() - begin < 20
    assert solution.solved
    assert_kkt(solution, {"P": P, "q": q.detach(), "A": A, "b": b, "entropy": torch.ones(n, dtype=F64)})
    # the gradient is orthogonal to the rows: moving q by A'y moves y alone
    assert largest(A @ q.grad) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_tight_caps_on_a_hundred_thousand_items(scale: float) -> None:
    """The caps sum to 1.001, and outliers change bound one after another: up to 100 iterations; 20 are the rule."""
    given = entropic("tight cap", 100_000, 1, scale)
    solution = solve_qp(**given)
    assert solution.solved.all() and solution.iterations.max() <= 150
    assert_kkt(solution, given)


def test_many_random_problems() -> None:
    """Every kind at three scales, 40 problems each: all solved, none in more than 40 iterations."""
    for kind, curvature, scale in itertools.product(KINDS, CURVATURES, (0.1, 100.0, 1e5)):
        given = entropic(kind, 9, 40, scale, curvature, seed=7)
        solution = solve_qp(**given)
        assert solution.solved.all() and solution.iterations.max() <= 40, (kind, curvature, scale)


def test_a_P_of_rank_one() -> None:
    given = entropic("cap", scale=10.0)
    v = normal(16)
    solution = solve_qp(**{**given, "P": 10 * v.outer(v)})
    assert solution.solved.all()
    assert_kkt(solution, {**given, "P": 10 * v.outer(v)})
