# SPDX-License-Identifier: Apache-2.0
"""The interior point loop: it stops per element, and what it measures is what a plain computation finds."""

import pytest
import torch

from optlayer.kkt.algebra import take
from optlayer.kkt.program import Program
from optlayer.kkt.scaling import equilibrate
from optlayer.solvers import reference
from optlayer.solvers.interior import iterate
from optlayer.solvers.newton import Newton, Point, Rules, scale
from optlayer.solvers.standard import standardise
from optlayer.status import Status

f64 = torch.float64
RULES = Rules(eps_abs=1e-9, eps_rel=1e-9, max_iter=200)


def program(B: int = 6, n: int = 5, p: int = 1, m: int = 6, boxes: bool = True) -> Program:
    """Random, strictly feasible around a drawn point, lower bounds on even variables, upper ones on odd ones."""
    L, x = torch.randn(B, n, n, dtype=f64), torch.randn(B, n, dtype=f64)
    C = torch.randn(B, p + m, n, dtype=f64)
    slack = torch.rand(B, p + m, dtype=f64)
    slack[:, :p] = 0
    some = torch.arange(n) % 2 == 0
    lb = torch.where(some, x - 0.1, -torch.inf) if boxes else torch.full_like(x, -torch.inf)
    ub = torch.where(some, torch.inf, x + 0.5) if boxes else torch.full_like(x, torch.inf)
    return Program(L @ L.mT, torch.randn(B, n, dtype=f64), C, (C @ x.unsqueeze(-1)).squeeze(-1) + slack, lb, ub)


@pytest.mark.parametrize("boxes", [False, True])
def test_contract_is_the_plain_residual(boxes: bool) -> None:
    """The loop's unscaled residuals, computed from scaled products, equal those of problem.residuals."""
    data = program(boxes=boxes)
    standard = standardise(*data)
    scaling = equilibrate(standard.P, standard.q, standard.C)
    scaled = scale(standard, scaling, 1)
    newton = Newton(scaled, 1, RULES)
    at = newton.start()
    measured = newton.measure(at).contract
    D, E, c = scaling
    z = at.z * scaled.live
    v = torch.cat([at.y, z[:, :6]], 1) * E / c
    z_box = (z[:, 11:] - z[:, 6:11]) / (c * D) if boxes else torch.zeros_like(at.x)
    plain = reference._merit(data, 1, RULES, D * at.x, v, z_box)
    torch.testing.assert_close(measured, plain, rtol=1e-9, atol=0)


def test_each_element_stops_by_itself_and_is_frozen() -> None:
    """Iterations and points are those of the element alone, whatever the others take."""
    data = program()
    standard = standardise(*data)
    whole = iterate(scale(standard, equilibrate(standard.P, standard.q, standard.C), 1), 1, RULES)
    assert (whole.status == Status.SOLVED).all()
    assert whole.iterations.unique().numel() > 1, "the example must have elements that differ"
    for i in range(6):
        one = take(standard, torch.tensor([i]))
        alone = iterate(scale(one, equilibrate(one.P, one.q, one.C), 1), 1, RULES)
        assert alone.iterations[0] == whole.iterations[i]
        # batched and single products may sum in another order
        torch.testing.assert_close(alone.point.x[0], whole.point.x[i], rtol=1e-9, atol=1e-9)


def test_the_iteration_limit_is_kept() -> None:
    data = standardise(*program())
    scaled = scale(data, equilibrate(data.P, data.q, data.C), 1)
    out = iterate(scaled, 1, RULES._replace(max_iter=2))
    assert out.iterations.tolist() == [2] * 6
    assert (out.status == Status.MAX_ITERATIONS).all()
    assert out.contract.isfinite().all()


def test_a_step_keeps_slacks_and_multipliers_positive_and_reduces_the_primal_residual() -> None:
    data = standardise(*program())
    newton = Newton(scale(data, equilibrate(data.P, data.q, data.C), 1), 1, RULES)
    at = newton.start()
    proximal = torch.full((6, 1), 1e-6, dtype=f64)
    for _ in range(4):
        r = newton.measure(at)
        at, ok = newton.advance(at, r, proximal, proximal)
        assert ok.all()
        assert (at.z > 0).all()
        assert (at.s > 0).all()
        after = newton.measure(at)
        # it is linear in the step (the dual one is not where primal and dual steps differ); delta adds 1e-6 of dz
        assert (after.worst[0] <= r.worst[0] * 1.001 + 1e-6).all()


def test_a_warm_start_at_the_solution_needs_fewer_iterations() -> None:
    data = program(B=20)
    cold = reference.solve(data, 1, RULES, "auto")
    warm = reference.solve(data, 1, RULES, "auto", reference.Start(cold.x, cold.v, cold.z_box))
    assert (warm.status == Status.SOLVED).all()
    assert warm.iterations.sum() < 0.7 * cold.iterations.sum()
    torch.testing.assert_close(warm.x, cold.x, rtol=1e-9, atol=1e-9)


def test_a_warm_start_that_is_not_finite_is_ignored() -> None:
    data = program()
    cold = reference.solve(data, 1, RULES, "auto")
    broken = reference.solve(data, 1, RULES, "auto", reference.Start(cold.x * torch.nan, cold.v, cold.z_box))
    assert torch.equal(cold.x, broken.x)


def test_points_are_chosen_element_by_element() -> None:
    a, b = (Point(*(torch.full((2, k), float(i)) for k in (3, 1, 2, 2))) for i in (1, 2))
    mixed = a.where(torch.tensor([True, False]), b)
    assert all(t[0].eq(1).all() and t[1].eq(2).all() for t in mixed)
