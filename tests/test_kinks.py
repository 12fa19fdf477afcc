# SPDX-License-Identifier: Apache-2.0
"""Where a solution has no derivative, or none in some direction, what is returned can still be trusted."""

import pytest
import torch
from torch import Tensor

from optlayer import Status, solve_qp

f64 = torch.float64

pytestmark = pytest.mark.usefixtures("engine")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=f64)


@pytest.mark.parametrize("unit", [0.1, 1.0, 10.0])
def test_more_active_rows_than_variables_give_an_average_of_the_one_sided_derivatives(unit: float) -> None:
    """min 1/2 |x|^2 - 2 x_0 s.t. x_0 + x_1 = 1, x_0 <= h, x_1 >= 0.4 at h = 0.6: three active rows in the plane.

    dx/dh is (0, 0) to the right, where the bound takes over, and (1, -1) to the left.
    """
    h = tensor(0.6).squeeze().requires_grad_()
    A, b = unit * tensor(1, 1).unsqueeze(0), unit * tensor(1)
    s = solve_qp(eye(2), tensor(-2, 0), G=tensor(1, 0).unsqueeze(0), h=h.unsqueeze(0), A=A, b=b, lb=tensor(0, 0.4))
    first, second = (torch.autograd.grad(s.x[i], h, retain_graph=True)[0] for i in (0, 1))
    assert 0.05 < first < 0.95
    assert abs(first + second) < 1e-7, "the equality holds along the derivative; weights of 1e8 leave 1e-8"
    assert s.weakly_active == 1


@pytest.mark.parametrize("copies", [2, 3, 7])
@pytest.mark.parametrize("n", [1, 2])
def test_identical_active_rows_share_the_derivative(n: int, copies: int) -> None:
    h = torch.ones(copies, dtype=f64, requires_grad=True)
    s = solve_qp(eye(n), torch.full((n,), -3.0, dtype=f64), G=eye(n)[:1].expand(copies, n), h=h)
    (g,) = torch.autograd.grad(s.x[0], h)
    # the shares go with z^2, and steps in float32 leave the multipliers of equal rows equal to about 1e-5
    torch.testing.assert_close(g, torch.ones_like(h) / copies, rtol=0, atol=1e-4)
    assert abs(g.sum() - 1) < 1e-6, "whatever the shares, the bound moves with all of them; least shared weight 1e6"
    assert s.weakly_active == copies - 1


def test_multipliers_of_redundant_equalities_stay_near_the_least_ones() -> None:
    """The third row is the sum of the others: y + t (1, 1, -1) serves as well, for any t, and no solver may wander off.

    Of 64 problems some are badly conditioned, so the largest of all is compared.
    """
    source = torch.Generator().manual_seed(0)
    A, x, q = (torch.rand(64, *shape, generator=source, dtype=f64) - 0.5 for shape in ((2, 5), (5,), (5,)))
    A = torch.cat([A, A.sum(1, keepdim=True)], 1)
    s = solve_qp(eye(5), 4 * q, A=A, b=(A @ (x + 0.5).unsqueeze(-1)).squeeze(-1), lb=0.0)
    assert s.solved.all()
    least = torch.linalg.pinv(A.mT) @ (A.mT @ s.y.unsqueeze(-1))
    assert s.y.abs().max() < 10 * least.abs().max(), "without care it is a hundred times as large"


def test_redundant_equalities_are_no_kink() -> None:
    A, b = tensor(1, 1).expand(3, 2), tensor(1, 1, 1).requires_grad_()
    s = solve_qp(eye(2), tensor(0, 0), A=A, b=b)
    (g,) = torch.autograd.grad(s.x[0], b)
    torch.testing.assert_close(g.sum(), torch.tensor(0.5, dtype=f64), rtol=1e-9, atol=0)
    assert s.weakly_active == 0


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 0, 1, 2, 3, 4], [0, 1, 5, 2, 3, 4]])
def test_many_dependent_rows_hide_no_other(order: list[int]) -> None:
    """Five copies of x_0 = 1 and one x_1 = 2: more rows than a factor keeps, and the single one must be kept."""
    A = torch.cat([tensor(1, 0).expand(5, 2), tensor(0, 1).unsqueeze(0)])[order]
    b = tensor(1, 1, 1, 1, 1, 2)[order].requires_grad_()
    s = solve_qp(eye(2), tensor(1, 1), A=A, b=b)
    (g,) = torch.autograd.grad(s.x[1], b)
    torch.testing.assert_close(g[order.index(5)], torch.tensor(1.0, dtype=f64), rtol=1e-9, atol=0)


def test_a_minimiser_that_is_not_unique_does_not_move_along_the_minimisers() -> None:
    """P = ones(2, 2): x_0 + x_1 is determined, x_0 - x_1 is not; the least norm derivative is P's pseudo-inverse."""
    q = tensor(-1, -1).requires_grad_()
    s = solve_qp(torch.ones(2, 2, dtype=f64), q)
    (g,) = torch.autograd.grad(s.x[0], q)
    torch.testing.assert_close(g, tensor(-0.25, -0.25), rtol=0, atol=1e-9)
    costs = tensor(1, 1, 1).requires_grad_()  # a linear program whose costs tie
    s = solve_qp(None, costs, A=tensor(1, 1, 1).unsqueeze(0), b=tensor(1), lb=0.0)
    (g,) = torch.autograd.grad(s.x[0], costs)
    torch.testing.assert_close(g, tensor(0, 0, 0), rtol=0, atol=1e-9)


def test_weakly_active_rows_are_found_where_all_forces_vanish() -> None:
    for copies in (1, 2, 5):
        q = tensor(0).requires_grad_()
        s = solve_qp(eye(1), q, G=torch.ones(copies, 1, dtype=f64), h=torch.zeros(copies, dtype=f64))
        (g,) = torch.autograd.grad(s.x[0], q)
        assert s.weakly_active == copies
        assert -0.9 < g < -0.1, "between the one-sided derivatives -1 and 0"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_cotangent_that_is_not_finite_is_not_lost(value: float) -> None:
    q = tensor(1, 2).requires_grad_()
    (g,) = torch.autograd.grad(solve_qp(eye(2), q, lb=-10.0).x, q, tensor(value, 1))
    assert g.isnan().all()


@pytest.mark.parametrize("size", [1e4, 1e9, 1e12, 1e19])
def test_far_bounds_and_rows_do_not_matter(size: float) -> None:
    L = torch.randn(40, 6, 6, dtype=f64)
    P, q = L @ L.mT, torch.randn(40, 6, dtype=f64)
    G, h = torch.randn(40, 12, 6, dtype=f64), torch.rand(40, 12, dtype=f64)
    plain = solve_qp(P, q, G, h)
    far = torch.full((40, 1), size, dtype=f64)
    row = solve_qp(P, q, torch.cat([G, torch.ones(40, 1, 6, dtype=f64)], 1), torch.cat([h, far], 1))
    box = solve_qp(P, q, G, h, lb=-size, ub=size)
    for other in (row, box):
        assert other.solved.all()
        # bounds of 1e4 to 1e6 shape the starting point and cost iterations, larger ones do not
        assert other.iterations.double().mean() < 3 * plain.iterations.double().mean()
        torch.testing.assert_close(other.x, plain.x, rtol=0, atol=1e-8)
        assert other.weakly_active.sum() == 0


def test_a_bound_of_1e20_is_an_absent_one() -> None:
    q = torch.randn(5, 3, dtype=f64)
    huge, none = (solve_qp(eye(3), q, lb=-limit, ub=tensor(0.3, limit, limit)) for limit in (1e20, torch.inf))
    assert torch.equal(huge.x, none.x)
    assert solve_qp(eye(3), q, lb=1e20).status.eq(Status.INVALID_DATA).all(), "an infinite lower bound leaves nothing"


def test_small_units_accuse_nobody() -> None:
    s = solve_qp(eye(1), tensor(0), A=tensor(1e-10).unsqueeze(0), b=tensor(1))
    assert s.status == Status.SOLVED
    torch.testing.assert_close(s.x, tensor(1e10))
    s = solve_qp(torch.diag(tensor(1, 1e-9)), tensor(1, 1), G=tensor(1, 1).unsqueeze(0), h=tensor(1))
    assert s.status == Status.SOLVED
    torch.testing.assert_close(s.x, tensor(-1, -1e9), rtol=1e-7, atol=0)


def test_negative_eigenvalues_are_facts_beyond_rounding_and_the_reason_where_a_solve_fails() -> None:
    for q in (tensor(0, 0), tensor(1, -1)):
        assert solve_qp(torch.diag(tensor(1e6, -1e2)), q, lb=-1.0, ub=1.0).status == Status.NON_CONVEX
    # within the rounding of data, 3e-5 max |P|, but unbounded: no solve can succeed, and it is not the numerics' fault
    assert solve_qp(torch.diag(tensor(1, 1, -1e-6)), tensor(1, 1, 1)).status == Status.NON_CONVEX


@pytest.mark.parametrize("size", [1e6, 1e30, 1e150, torch.nan])
def test_an_absurd_warm_start_does_no_harm(size: float) -> None:
    L, q = torch.randn(10, 4, 4, dtype=f64), torch.randn(10, 4, dtype=f64)
    G, h = torch.randn(10, 6, 4, dtype=f64), torch.rand(10, 6, dtype=f64)
    P = L @ L.mT + eye(4)
    guess = (size * torch.randn(10, 4, dtype=f64), None, size * torch.rand(10, 6, dtype=f64), None)
    s = solve_qp(P, q, G, h, warm_start=guess)
    assert s.solved.all()
    torch.testing.assert_close(s.x, solve_qp(P, q, G, h).x, rtol=0, atol=1e-8)


def test_equalities_that_rounding_contradicts_are_solved_in_float32() -> None:
    """Three rows and their sum, rounded to float32: inconsistent by 1e-7, which the accuracy of 1e-5 permits."""
    A = torch.randn(50, 3, 8, dtype=f64)
    x = torch.rand(50, 8, dtype=f64)
    A = torch.cat([A, A.sum(1, keepdim=True)], 1)
    b = (A @ x.unsqueeze(-1)).squeeze(-1)
    s = solve_qp(None, torch.rand(50, 8), A=A.float(), b=b.float(), lb=0.0)
    assert (
        s.solved.double().mean() >= 0.9
    )  # of 1,000 such programs 997 are; beside a degenerate vertex y may drift away
