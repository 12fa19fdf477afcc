# SPDX-License-Identifier: Apache-2.0
"""Programs with an entropy whose solution is known in closed form, and the same layers without one."""

from typing import Any

import pytest
import torch
from entropic_cases import F64, assert_close, largest, normal, simplex, sorted_softmax, transport
from torch import Tensor

import optlayer
from optlayer import Status, solve_qp

pytestmark = pytest.mark.usefixtures("engine")

EPS = torch.finfo(F64).eps


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_softmax_with_temperature(scale: float, tau: float) -> None:
    theta = normal(5, 20, scale=scale)
    solution = solve_qp(None, -theta, **simplex(20), entropy=tau)
    # theta / tau is rounded before it is exponentiated, by torch.softmax and here alike
    assert_close(solution.x, torch.softmax(theta / tau, -1), atol=4 * EPS * (1 + scale / tau))
    assert_close(solution.log_x, torch.log_softmax(theta / tau, -1), rtol=1e-14, atol=1e-13)
    assert_close(solution.y.squeeze(-1), tau * torch.logsumexp(theta / tau, -1) - tau, rtol=1e-14)


def test_softmax_at_the_ends_of_the_exponent_range() -> None:
    """x underflows, log x does not; multiples of 2^-10 make every difference exact."""
    theta = torch.tensor([0.0, -1.0, -700.0, -5000.0, -1e8], dtype=F64)
    solution = solve_qp(None, -theta, **simplex(5), entropy=1.0)
    assert solution.solved
    assert_close(solution.log_x, torch.log_softmax(theta, -1), rtol=4 * EPS, atol=0)
    assert solution.x[3:].eq(0).all() and solution.is_optimal()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_constrained_softmax(scale: float) -> None:
    """Martins and Kreutzer (2017): x_A = (1 - S) softmax(theta_A), and its derivatives."""
    theta, upper = normal(12, scale=scale), torch.linspace(0.075, 0.2, 12, dtype=F64)
    solution = solve_qp(None, -theta, **simplex(12), ub=upper, entropy=1.0)
    x = sorted_softmax(theta, upper)
    assert_close(solution.x, x)
    active = x == upper
    assert active.any() and ((solution.z_box > 0) == active).all() and solution.weakly_active == 0
    below, room = torch.where(active, 0, x), 1 - x[active].sum()
    toward_theta = torch.diag(below) - below.outer(below) / room
    toward_upper = torch.diag(active.double()) - below.outer(active.double()) / room
    assert_close(-solution.jacobian("x", "q"), toward_theta)
    assert_close(solution.jacobian("x", "ub"), toward_upper)
    assert_close(solution.x, optlayer.softmax(theta, 1.0, upper))


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01, 1e-3])
@pytest.mark.parametrize("redundant", [True, False])
def test_entropic_optimal_transport_two_by_two(eps: float, redundant: bool) -> None:
    """Uniform marginals: X = 1/2 [[p, 1-p], [1-p, p]], p = sigmoid((C12 + C21 - C11 - C22) / (2 eps))."""
    C = torch.tensor([0.3, 0.33, 0.31, 0.29], dtype=F64)
    rows = slice(None) if redundant else slice(3)
    b = torch.full((4,), 0.5, dtype=F64)
    solution = solve_qp(None, C, A=transport(2, 2)[rows], b=b[rows], entropy=eps)
    p = torch.sigmoid((C[1] + C[2] - C[0] - C[3]) / (2 * eps))
    assert_close(solution.x, torch.stack([p, 1 - p, 1 - p, p]) / 2)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=F64)
    assert_close(solution.jacobian("x", "q"), -p * (1 - p) / (4 * eps) * sign.outer(sign), atol=1e-13 / eps)


def test_entropic_optimal_transport_is_sinkhorn() -> None:
    """X = diag(u) exp(-C / eps) diag(v): Sinkhorn's scaling, iterated to its limit."""
    r, c, eps = 6, 8, 0.2
    C, a, b = normal(r, c).abs(), torch.softmax(normal(r, seed=1), -1), torch.softmax(normal(c, seed=2), -1)
    K = torch.exp(-C / eps)
    v = torch.ones_like(b)
    for _ in range(5000):
        u = a / (K @ v)
        v = b / (K.T @ u)
    solution = solve_qp(None, C.flatten(), A=transport(r, c), b=torch.cat([a, b]), entropy=eps)
    assert_close(solution.x.reshape(r, c), u[:, None] * K * v, atol=1e-12, rtol=1e-10)


def test_marginals_rounded_to_float32_contradict_each_other() -> None:
    """As the README says: their sums differ by a rounding of float32, above 1e-9 and below 1e-6."""
    a, b = (torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=F64) for seed in (0, 1))
    a, b = (a / a.sum()).float().double(), (b / b.sum()).float().double()
    C, A = normal(64), transport(8, 8)
    assert 4e-9 < float((a.sum() - b.sum()).abs()) < 1e-6
    assert solve_qp(None, C, A=A, b=torch.cat([a, b]), entropy=0.5).status == Status.PRIMAL_INFEASIBLE
    assert solve_qp(None, C, A=A, b=torch.cat([a, b]), entropy=0.5, eps_abs=1e-6).solved
    assert solve_qp(None, C, A=A, b=torch.cat([a / a.sum(), b / b.sum()]), entropy=0.5).solved


def test_transport_with_marginals_of_zero() -> None:
    """There is no interior: x is zero, to rounding, where a marginal is."""
    a, b = torch.tensor([0.0, 0.4, 0.6], dtype=F64), torch.tensor([0.5, 0.0, 0.5], dtype=F64)
    solution = solve_qp(None, normal(9), A=transport(3, 3), b=torch.cat([a, b]), entropy=0.5)
    assert solution.solved
    X = solution.x.reshape(3, 3)
    assert largest(X[0]) <= 1e-12 and largest(X[:, 1]) <= 1e-12
    assert_close(X.sum(1), a, atol=1e-12)


def test_several_moments_make_an_exponential_family() -> None:
    """The maximum entropy under moments is exp(-(q + A'y) / tau - 1); Newton's method on y alone finds it too."""
    A, q, tau = torch.cat([torch.ones(1, 30, dtype=F64), normal(2, 30)]), normal(30, seed=3), 0.7
    b = A @ torch.softmax(normal(30, seed=4), -1)
    y = torch.zeros(3, dtype=F64)
    for _ in range(100):
        x = torch.exp(-(q + y @ A) / tau - 1)
        step = torch.linalg.solve((A * x) @ A.T / tau, A @ x - b)
        y = y + step.clamp(-0.5, 0.5)
    solution = solve_qp(None, q, A=A, b=b, entropy=tau)
    assert_close(solution.x, torch.exp(-(q + y @ A) / tau - 1), rtol=1e-11)
    assert_close(solution.y, y, rtol=1e-11, atol=1e-11)


def test_without_constraints_x_is_an_exponential() -> None:
    q, tau = normal(4, 6, scale=20.0), torch.tensor([[0.5], [1.0], [2.0], [4.0]], dtype=F64)
    solution = solve_qp(None, q, entropy=tau)
    assert_close(solution.x, torch.exp(-q / tau - 1))
    assert_close(solution.objective, -(tau * solution.x).sum(-1))


def test_without_constraints_a_diagonal_makes_a_lambert_function() -> None:
    """d x + q + tau (log x + 1) = 0: x = tau/d W(d/tau exp(-q/tau - 1)), checked by its equation."""
    q, d = normal(50, scale=30.0), normal(50, seed=1).abs()
    x = solve_qp(d.unsqueeze(0), q, entropy=0.5).x
    assert largest((d * x + q + 0.5 * (x.log() + 1)) / (1 + q.abs())) <= 1e-14


# ---- the same layers without an entropy, as quadratic programs -------------------------------------------------------


def test_sparsemax_budget_sparsemax_and_soft_top_k() -> None:
    """J = diag(d) - d d' / sum d, with d = 1 / omega'' on the free set and 0 elsewhere."""
    n, k = 9, 3
    theta = normal(n, seed=5)
    eye = torch.eye(n, dtype=F64)

    def jacobian(d: Tensor) -> Tensor:
        return torch.diag(d) - d.outer(d) / d.sum()

    # sparsemax: the projection on the simplex, by sorting
    t = theta.sort(descending=True).values
    size = int((1 + torch.arange(1, n + 1) * t > t.cumsum(0)).sum())
    x = (theta - (t[:size].sum() - 1) / size).clamp(min=0)
    solution = solve_qp(eye, -theta, **simplex(n), lb=0.0)
    assert_close(solution.x, x, atol=1e-10)
    assert_close(-solution.jacobian("x", "q"), jacobian((x > 0).double()), atol=1e-10)

    # budget sparsemax: 0 <= x <= 1, sum x = k; the shift nu by bisection
    def bisected(f: Any) -> Tensor:
        low, high = torch.tensor(-50.0, dtype=F64), torch.tensor(50.0, dtype=F64)
        for _ in range(200):
            nu = (low + high) / 2
            low, high = (nu, high) if f(theta + nu).sum() < k else (low, nu)
        return f(theta + high)

    x = bisected(lambda t: t.clamp(0, 1))
    solution = solve_qp(eye, -theta, **simplex(n, k), lb=0.0, ub=1.0)
    assert_close(solution.x, x, atol=1e-10)
    assert_close(-solution.jacobian("x", "q"), jacobian(((x > 0) & (x < 1)).double()), atol=1e-10)

    # soft top-k: entropy of x and of 1 - x, which is a second block w = 1 - x
    x = bisected(torch.sigmoid)
    A = torch.cat([torch.cat([eye, eye], 1), torch.cat([torch.ones(1, n), torch.zeros(1, n)], 1).double()])
    b = torch.cat([torch.ones(n, dtype=F64), torch.full((1,), k, dtype=F64)])
    solution = solve_qp(None, torch.cat([-theta, torch.zeros(n, dtype=F64)]), A=A, b=b, entropy=1.0)
    assert_close(solution.x[:n], x, atol=1e-12)
    assert_close(-solution.jacobian("x", "q")[:n, :n], jacobian(x * (1 - x)), atol=1e-12)


def test_entmax_is_the_limit_of_its_local_programs() -> None:
    """alpha-entmax is x = [(alpha - 1) theta - nu]_+^(1 / (alpha - 1)), by its optimality condition.

    The QP that matches gradient and curvature of its regulariser at x on the support has x for its solution, and its
    Jacobian is that of the closed form, with d = x^(2 - alpha).
    """
    theta, alpha = normal(7, seed=6), 1.5
    low, high = torch.tensor(-50.0, dtype=F64), torch.tensor(50.0, dtype=F64)
    for _ in range(200):
        nu = (low + high) / 2
        total = (((alpha - 1) * theta - nu).clamp(min=0) ** (1 / (alpha - 1))).sum()
        low, high = (nu, high) if total > 1 else (low, nu)
    x = ((alpha - 1) * theta - high).clamp(min=0) ** (1 / (alpha - 1))
    support = x > 0
    d = torch.where(support, x ** (2 - alpha), 0.0)
    curvature = torch.where(support, 1 / d.clamp(min=1e-300), 1.0)
    # omega(x) = sum (x^alpha - x) / (alpha (alpha - 1)): gradient x^(alpha-1) / (alpha-1), up to a constant
    q = x ** (alpha - 1) / (alpha - 1) - theta - curvature * x
    solution = solve_qp(torch.diag(curvature), q, **simplex(7), lb=0.0)
    assert support.any() and not support.all()
    assert_close(solution.x, x, atol=1e-10)
    assert_close(-solution.jacobian("x", "q"), torch.diag(d) - d.outer(d) / d.sum(), atol=1e-9)
