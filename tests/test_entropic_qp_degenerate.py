# SPDX-License-Identifier: Apache-2.0
"""Entropic programs with more active constraints than variables, with dependent rows, with starts that are far away."""

import pytest
import torch
from entropic_cases import F64, assert_close, entropic, largest, normal, simplex, sorted_softmax

from optlayer import solve_qp

pytestmark = pytest.mark.usefixtures("engine")


def test_a_weakly_active_cap_has_the_central_derivative() -> None:
    """x_2 meets its cap with a multiplier of zero: the derivative lies between the one-sided ones."""
    theta = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    p = torch.softmax(theta, -1)
    upper = torch.tensor([1.0, 1.0, float(p[2])], dtype=F64)
    solution = solve_qp(None, -theta, **simplex(3), ub=upper, entropy=1.0)
    assert_close(solution.x, p, atol=1e-14)
    assert solution.weakly_active == 1
    free = torch.diag(p) - p.outer(p)
    below = torch.cat([p[:2], p.new_zeros(1)])
    held = torch.diag(below) - below.outer(below) / (1 - p[2])
    J = -solution.jacobian("x", "q")
    share = (J[2, 2] / free[2, 2]).item()
    assert 0.01 < share < 0.99
    assert_close(J, share * free + (1 - share) * held, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0, 1e4])
def test_caps_that_leave_no_choice(scale: float) -> None:
    """They sum to one: x is at all of them, their multipliers are not unique, and the derivatives stay finite."""
    upper = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    solution = solve_qp(None, normal(3, 4, scale=scale), **simplex(4), ub=upper, entropy=1.0)
    assert solution.solved.all()
    assert_close(solution.x, upper.expand(3, 4), atol=1e-9)
    assert (solution.weakly_active >= 1).all()
    assert solution.jacobian("x", "q").isfinite().all() and solution.jacobian("x", "ub").isfinite().all()


def test_caps_of_a_tenth_and_large_costs() -> None:
    """Ten of 49 variables are at caps that sum to one, to rounding: the bounds and the row depend on each other."""
    theta = normal(20, 49, scale=1e3)
    solution = solve_qp(None, -theta, **simplex(49), ub=0.1, entropy=1.0)
    assert solution.solved.all()
    expected = torch.stack([sorted_softmax(t, torch.full_like(t, 0.1)) for t in theta])
    assert_close(solution.x, expected, atol=1e-9)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6, 1e9])
def test_a_row_may_ask_for_more_than_the_entropy_would_give(scale: float) -> None:
    """Alone x would be exp(-scale): far from the least that the row asks for, yet not infeasible."""
    G, h = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]], dtype=F64), torch.tensor([-3.0, -1.0], dtype=F64)
    for x in ([3.0], [1.0, 1.0]):  # the least that do: one unit of x_2 does what two of x_1 would
        solution = solve_qp(None, torch.full((len(x),), scale, dtype=F64), G[:, : len(x)], h, entropy=1.0)
        assert solution.solved and solution.iterations <= 20
        assert_close(solution.x, torch.tensor(x, dtype=F64))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, 1e8])
def test_variables_that_no_row_holds_beside_others(scale: float) -> None:
    """They are exponentials, as small as exp(-scale), and do not disturb those of rows, floors or caps."""
    theta = torch.tensor([0.0, -0.5, -1.0, -1.0, -2.0], dtype=F64)
    q = scale * -theta + 1
    row = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]], dtype=F64)
    solution = solve_qp(None, q, A=row, b=row[0, :1], entropy=1.0)
    assert solution.solved and solution.iterations <= 20
    assert_close(solution.x, torch.cat([torch.softmax(-q[:3], -1), torch.exp(-q[3:] - 1)]))
    lb = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5], dtype=F64)
    solution = solve_qp(None, q, lb=lb, entropy=1.0)
    assert solution.solved and solution.iterations <= 25
    assert_close(solution.x, torch.maximum(lb, torch.exp(-q - 1)))


def test_a_budget_given_twice_at_a_temperature_near_zero() -> None:
    """One of the two is released, its multiplier of 10^4 goes to the other: a step that rounding makes inexact."""
    source = torch.Generator().manual_seed(0)
    q = 1e4 * torch.randn(64, 5, generator=source, dtype=F64)
    G = torch.randn(64, 1, 5, generator=source, dtype=F64)
    inside = torch.softmax(torch.randn(64, 5, generator=source, dtype=F64), -1)
    h = (G @ inside.unsqueeze(-1)).squeeze(-1)
    once = solve_qp(None, q, G, h, torch.ones(1, 5, dtype=F64), torch.ones(1, dtype=F64), entropy=1e-4)
    G, h = torch.cat([G, 3 * G], 1), torch.cat([h, 3 * h], 1)
    twice = solve_qp(None, q, G, h, torch.ones(1, 5, dtype=F64), torch.ones(1, dtype=F64), entropy=1e-4)
    assert once.solved.all() and twice.solved.all()
    assert_close(twice.x, once.x, atol=1e-9)
    assert (twice.s.amin(-1) >= -1e-14).all()


def test_rows_that_float32_rounds_out_of_each_others_reach() -> None:
    """Equalities, budgets and caps that meet in one point, each rounded: there is none, by 1e-7; the nearest solves it.

    The bar of 1e-6 is 16 roundings.
    """
    source = torch.Generator().manual_seed(0)
    x = torch.softmax(torch.randn(64, 3, generator=source, dtype=F64), -1)
    A, G = torch.ones(1, 3, dtype=F64), torch.randn(64, 3, 3, generator=source, dtype=F64)
    q = torch.randn(64, 3, generator=source, dtype=F64)
    given = {"G": G, "h": (G @ x.unsqueeze(-1)).squeeze(-1), "A": A, "b": A[0, :1], "ub": x}
    solution = solve_qp(None, q.float(), **{name: t.float() for name, t in given.items()}, entropy=0.5)
    assert solution.solved.all()
    assert largest(solution.x - x) <= 1e-6


def test_multipliers_of_dependent_rows_stay_small() -> None:
    """Rows 1, 2, -1 times one whose multiplier is y: the smallest are y (1, 2, -1) / 6, and not much more is found.

    What accumulates along A'y = 0 would be millions here, and float32 would round the others away.
    """
    given = entropic("cap", scale=1e3)
    b = torch.tensor([1.0, 2.0, -1.0], dtype=F64)
    A = b.unsqueeze(-1) * given["A"]
    solution, plain = solve_qp(**{**given, "A": A, "b": b}), solve_qp(**given)
    assert_close(solution.x, plain.x, atol=1e-12)
    assert_close((solution.y * b).sum(-1, keepdim=True), plain.y, atol=1e-9)
    assert (solution.y.abs().amax(-1) <= 20 * plain.y.squeeze(-1).abs()).all()
    single = {name: t if t is None else t.float() for name, t in {**given, "A": A, "b": b}.items()}
    assert solve_qp(**single).solved.all()
