# SPDX-License-Identifier: Apache-2.0
"""Small problems of other solvers' test suites, whose statuses and answers are known (unit_cases.json)."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.engine import solve
from benchmarks.referee import Array, Problem, data_root, from_rows
from optlayer import Status

pytestmark = pytest.mark.usefixtures("engine")

FILE = data_root() / "unit_cases.json"
CASES: list[dict[str, Any]] = json.loads(FILE.read_text())["cases"] if FILE.exists() else []
SOLVED, PRIMAL, DUAL = {Status.SOLVED}, {Status.PRIMAL_INFEASIBLE}, {Status.DUAL_INFEASIBLE}
EXPECTED = {
    "optimal": SOLVED,
    "primal_infeasible": PRIMAL,
    "dual_infeasible": DUAL,
    "primal_and_dual_infeasible": PRIMAL | DUAL,
    "invalid_or_infeasible": PRIMAL | {Status.INVALID_DATA},
    "any_no_crash": set(Status) - {Status.UNSOLVED},
    "non_convex": {Status.NON_CONVEX},
    "invalid": {Status.INVALID_DATA},
    "invalid_or_symmetrised": SOLVED,
}


def numbers(values: Any) -> Array:
    """A list, which may hold "inf", "-inf" and "nan", as an array."""
    return np.array(values, dtype=object).astype(float)


def problem_of(case: dict[str, Any]) -> Problem:
    q = numbers(case["q"])
    rows = numbers(case["A"]).reshape(-1, len(q))
    l, u, lb, ub = (numbers(case[k]) for k in ("l", "u", "lb", "ub"))
    optimum = float("nan") if case["obj"] is None else float(case["obj"])
    return from_rows(case["name"], numbers(case["P"]), q, rows, l, u, lb, ub, float(case["r"]), optimum)


@pytest.mark.data
@pytest.mark.skipif(not CASES, reason=f"no unit_cases.json in {data_root()} (OPTLAYER_TEST_DATA)")
@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_a_known_case_has_its_known_status_and_answer(case: dict[str, Any]) -> None:
    problem = problem_of(case)
    answer = solve(problem)
    assert answer.status in EXPECTED[case["status"]], answer.status.name
    assert not answer.wrong(problem)
    if answer.status != Status.SOLVED:
        return
    # The stored figures have six digits or more; the gap test of the referee has already bounded the objective's error.
    if case["obj"] is not None:
        verdict = answer.verdict(problem)
        assert abs(verdict.objective - problem.optimum) <= 1e-6 * max(1.0, abs(problem.optimum))
    if case["x"] is not None:
        x = numbers(case["x"])
        assert np.abs(answer.x - x).max() <= 1e-6 * max(1.0, np.abs(x).max())
    if case["status"] == "invalid_or_symmetrised":
        # the minimiser for the symmetric part of P, as the case's note says
        assert np.abs(answer.x + 0.4).max() <= 1e-9
