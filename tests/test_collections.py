# SPDX-License-Identifier: Apache-2.0
"""A quick part of the problem collections; `python -m benchmarks.reliability` runs them all."""

import numpy as np
import pytest

from benchmarks import referee
from benchmarks.engine import CERTIFICATE, solve, solve_all
from optlayer import Status

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.data,
    pytest.mark.skipif(
        not (referee.data_root() / "mm").exists(),
        reason=f"no collections in {referee.data_root()} (OPTLAYER_TEST_DATA)",
    ),
]

QPS = [
    *[("mm", name) for name in ("DUALC1", "GENHS28", "HS21", "HS35", "HS51", "HS53", "LOTSCHD", "QAFIRO", "QPCBLEND")],
    *[("mm", name) for name in ("CVXQP1_S", "DUAL1", "QSC205", "QSHARE2B", "TAME", "ZECEVIC2", "PRIMALC2", "QBRANDY")],
    *[("mpc", name) for name in ("LIPMWALK0", "WHLIPBAL0")],
    *[("ffa", name) for name in ("DOCSLS", "GNAR1", "ICULS0")],
    ("piqpdata", "scenario_mpc_small"),
]
LPS = ["adlittle", "boeing2", "kb2", "sc50a", "stocfor1"]
INFEASIBLE = ["bgprtr", "galenet", "itest6"]


@pytest.mark.parametrize(("collection", "name"), QPS)
def test_a_collected_qp_is_solved_at_the_default_tolerance(collection: str, name: str) -> None:
    problem = referee.load(collection, name)
    answer = solve(problem)
    assert answer.status == Status.SOLVED
    assert not answer.wrong(problem)


@pytest.mark.parametrize("name", ["CVXQP1_S", "DUALC1", "HS35", "LOTSCHD", "QAFIRO", "QSHARE2B"])
def test_a_collected_qp_is_solved_to_an_absolute_tolerance(name: str) -> None:
    problem = referee.load("mm", name)
    answer = solve(problem, eps_abs=1e-6, eps_rel=0.0)
    assert answer.status == Status.SOLVED
    assert not answer.wrong(problem, 1e-6, 0.0)


@pytest.mark.parametrize("name", LPS)
def test_a_collected_lp_reaches_its_known_optimum(name: str) -> None:
    problem = referee.load("netlib", name)
    answer = solve(problem, eps_abs=1e-6, eps_rel=1e-6)
    assert answer.status == Status.SOLVED
    assert not answer.wrong(problem, 1e-6, 1e-6)
    # The gap is at most 1e-6 relative, and so is the reference's.
    assert abs(answer.verdict(problem).objective - problem.optimum) <= 1e-5 * max(1.0, abs(problem.optimum))


@pytest.mark.parametrize("name", INFEASIBLE)
def test_an_infeasible_lp_is_proven_so(name: str) -> None:
    problem = referee.load("infeas", name)
    answer = solve(problem)
    assert answer.status == Status.PRIMAL_INFEASIBLE
    assert answer.proof(problem) <= CERTIFICATE


def test_the_control_problems_of_one_robot_are_one_batch() -> None:
    problems = [p for p in referee.problems("mpc") if p.name.startswith("LIPMWALK")]
    for problem, answer in zip(problems, solve_all(problems), strict=True):
        alone = solve(problem)
        assert answer.status == alone.status == Status.SOLVED
        assert not answer.wrong(problem)
        # P has condition 320, so residuals of 1e-9 leave less than 1e-6 of freedom in x.
        assert np.abs(answer.x - alone.x).max() <= 1e-6 * max(1.0, np.abs(alone.x).max())
