# SPDX-License-Identifier: Apache-2.0
"""Certificates prove what they say, in the iterates and from the two projections."""

import torch
from torch import Tensor

from optlayer.kkt.program import Program
from optlayer.solvers.certificate import farkas, ray
from optlayer.solvers.elastic import infeasibility, unboundedness
from optlayer.solvers.newton import Rules
from optlayer.solvers.standard import Standard, standardise

f64 = torch.float64
inf = torch.inf
ONE = torch.ones(1, dtype=torch.float64)
RULES = Rules(eps_abs=1e-9, eps_rel=1e-9, max_iter=200)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=f64)


def standard(P: Tensor, q: Tensor, C: Tensor, d: Tensor, lb: Tensor, ub: Tensor) -> Standard:
    return standardise(*Program(P, q, C, d, lb, ub))


def test_farkas_by_hand() -> None:
    """x <= 1 and -x <= -2: (1, 1) proves a gap of 1."""
    C = torch.tensor([[[1.0], [-1.0]]], dtype=f64)
    v = row(3, 3)
    ratio, scaled, z_box = farkas((v.unsqueeze(1) @ C).squeeze(1), row(1, -2), v, None, None, 1e-9, row(1), ONE)
    assert ratio.tolist() == [0.0]
    assert scaled.tolist() == [[1.0, 1.0]]
    assert z_box.tolist() == [[0.0]]


def test_bounds_absorb_the_residual() -> None:
    """x_0 + x_1 >= 3 with x <= 1: the row alone is no certificate, with the bounds' multipliers it is exact."""
    Cv, d = row(-1, -1), row(-3)
    ratio, v, z_box = farkas(Cv, d, row(1), row(-inf, -inf), row(1, 1), 1e-9, row(1, 1), ONE)
    assert ratio.tolist() == [0.0]
    assert v.tolist() == [[1.0]]
    assert z_box.tolist() == [[1.0, 1.0]]


def test_no_gap_proves_nothing() -> None:
    ratio, _, _ = farkas(row(0.0), row(0.0), row(1.0), None, None, 1e-9, row(1), ONE)
    assert ratio.tolist() == [inf]
    ratio, _, _ = farkas(row(0.0), row(-1e-17), row(1.0), None, None, 1e-9, row(1), ONE)
    assert ratio.tolist() == [0.0], "relative to its own data the gap is whole"
    ratio, _, _ = farkas(row(0, 0), row(1.0, -1.0 - 1e-12), row(1, 1), None, None, 1e-9, row(1, 1), ONE)
    assert ratio.tolist() == [inf], "a gap of 1e-12 of the data is below the tolerance of feasibility"


def test_ray_by_hand() -> None:
    """min -x_0, x_0 + x_1 <= 1: falls along (1, -1), not along (1, 0)."""
    q, zero = row(-1, 0), row(0, 0)
    good, d = ray(q, row(2, -2), zero, row(0), 0, None, None, 1e-9, row(1, 1, 1), 2 * ONE)
    assert good.tolist() == [0.0]
    assert d.tolist() == [[1.0, -1.0]]
    bad, _ = ray(q, row(2, 0), zero, row(2), 0, None, None, 1e-9, row(1, 1, 1), 2 * ONE)
    assert bad.tolist() == [inf]
    bounded, _ = ray(q, row(2, -2), zero, row(0), 0, row(-inf, 0), row(inf, inf), 1e-9, row(1, 1, 1), 2 * ONE)
    assert bounded.tolist() == [1.0]
    rising, _ = ray(q, row(-2, 2), zero, row(0), 0, None, None, 1e-9, row(1, 1, 1), 2 * ONE)
    assert rising.tolist() == [inf]


def test_the_nearest_feasible_point_certifies_infeasibility() -> None:
    """Rows x_0 + x_1 <= -1 under x >= 0, far apart and by 1e-6 only; a feasible neighbour is not accused."""
    for gap in (1.0, 1e-6):
        C = torch.ones(2, 1, 2, dtype=f64)
        d = torch.tensor([[-gap], [gap]], dtype=f64)
        lb, ub = torch.zeros(2, 2, dtype=f64), torch.full((2, 2), inf, dtype=f64)
        problem = standard(torch.eye(2, dtype=f64).expand(2, 2, 2), torch.ones(2, 2, dtype=f64), C, d, lb, ub)
        ratio, v = infeasibility(problem, 0, RULES)
        assert ratio[0] < 1e-8
        assert ratio[1] > 1e-3
        torch.testing.assert_close(v[0] * gap, torch.ones(1, dtype=f64), rtol=1e-6, atol=0)


def test_the_steepest_ray_certifies_unboundedness() -> None:
    """P of rank 1, falling along its null space; the neighbour's null space is blocked by a bound."""
    P = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=f64).expand(2, 2, 2)
    q = torch.tensor([[-1.0, 0.0], [-1.0, 0.0]], dtype=f64)
    lb, ub = torch.full((2, 2), -inf, dtype=f64), torch.full((2, 2), inf, dtype=f64)
    ub[1, 0] = 5.0
    C, d = torch.zeros(2, 0, 2, dtype=f64), torch.zeros(2, 0, dtype=f64)
    violation, direction = unboundedness(standard(P, q, C, d, lb, ub), 0, RULES)
    assert violation[0] < 1e-8
    assert violation[1] > 1e-3
    torch.testing.assert_close(direction[0], torch.tensor([1.0, -1.0], dtype=f64), rtol=1e-8, atol=1e-8)


def test_small_units_accuse_nobody() -> None:
    """1e-10 x = 1 has a solution and 1e-9 curvature is curvature, as equilibrated units tell."""
    ratio, _, _ = farkas(row(1e-10), row(-1.0), row(1.0), None, None, 1e-9, row(1e10), ONE)
    assert ratio.tolist() == [inf]
    violation, _ = ray(row(1, 1), row(0, -1), row(0, -1e-9), row(-1), 0, None, None, 1e-9, row(1, 1e9, 1), ONE)
    assert violation.tolist() == [inf]
