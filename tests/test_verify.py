# SPDX-License-Identifier: Apache-2.0
"""The report passes, covers what it promises, and notices what is wrong."""

import dataclasses
import math

import pytest
import torch
from test_entropic import capped, normal, uniform

from optlayer import verify


@pytest.fixture(scope="module")
def report() -> list[verify.Row]:
    return verify.run()


def test_everything_passes(report):
    assert not [row for row in report if not row.passed]


def test_the_grid_is_covered(report):
    for n in (2, 10, 100, 1000):
        jacobians = [row for row in report if row.check == "softmax: dx/dtheta" and row.problem.startswith(f"n={n},")]
        assert len(jacobians) == 7 and all(row.bar == 1e-9 for row in jacobians)
    assert {row.check[-1] for row in report if row.check.startswith("quadratic")} >= set("PqGhAb")
    assert sum("quadratic" in row.check for row in report) == 8
    assert sum("entropic program: gradient" in row.check for row in report) == 9
    assert sum("entropic program" in row.check for row in report) == 9 + 9


def test_the_problems_are_worth_the_differences():
    """Every argument of the quadratic program has a gradient; caps are active, but not all of them."""
    for row in verify.capped_rows(sizes=(10,)):
        active, caps = map(int, (row.problem.split()[1], row.problem.split()[3]))
        assert caps / 10 < active < caps
    for row in verify.program_rows():
        assert row.error > 0


def test_the_closed_form_of_caps():
    theta, upper = normal(10, 6), 0.2 + 0.2 * uniform(10, 6)
    x, active = verify._closed_capped(theta, upper)
    torch.testing.assert_close(x, capped(theta, upper))
    assert torch.equal(active, x == upper)


def test_a_wrong_jacobian_is_noticed(monkeypatch):
    right = verify.SoftmaxSolution.jacobian
    monkeypatch.setattr(verify.SoftmaxSolution, "jacobian", lambda self, name: right(self, name) * (1 + 1e-8))
    failed = {row.check for row in [*verify.softmax_rows((10,), (0.5,)), *verify.capped_rows((10,))] if not row.passed}
    assert failed >= {"softmax: dx/dtheta", "softmax: dx/dtemperature", "capped softmax: dx/dtheta"}
    assert "capped softmax: dx/dupper" in failed


def test_a_wrong_gradient_of_the_program_is_noticed(monkeypatch):
    right = verify.solve_qp

    def wrong(*problem, **more):
        solution = right(*problem, **more)
        return dataclasses.replace(solution, x=solution.x + 1e-3 * (solution.x - solution.x.detach()))

    monkeypatch.setattr(verify, "solve_qp", wrong)
    assert not any(row.passed for row in verify.program_rows())
    assert not any(row.passed for row in verify.program_rows(verify._entropic_program()))


def test_a_wrong_jacobian_of_an_entropic_program_is_noticed(monkeypatch):
    right = verify.Solution.jacobian
    monkeypatch.setattr(verify.Solution, "jacobian", lambda *names: right(*names) * (1 + 1e-8))
    passed = {row.check for row in verify.entropic_rows() if row.passed}
    assert passed == {"entropic program: x"}


def test_entropic_programs_are_worth_the_differences():
    """Every argument has a gradient: of rows, floors and caps some are active, but not all."""
    problem = verify._entropic_program()
    solution = verify.solve_qp(*problem.tensors, entropy=problem.entropy)
    for active in (solution.z > 0, solution.z_box > 0, solution.z_box < 0):
        assert active.any() and not active.all()
    for row in verify.program_rows(problem):
        assert row.error > 0


def test_not_a_number_does_not_pass():
    assert not verify.Row("", "", math.nan, 1.0).passed
    assert not verify.relative(torch.full((2, 2), torch.nan), torch.ones(2, 2)) <= 1


def test_the_verdict_is_the_last_line(report):
    lines = verify.text(report).splitlines()
    assert lines[-1] == f"all {len(report)} checks passed" and len(lines) == len(report) + 3
    assert verify.text([*report, verify.Row("x", "y", 1.0, 0.5)]).endswith(f"1 of {len(report) + 1} checks FAILED")
