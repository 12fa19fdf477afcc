# SPDX-License-Identifier: Apache-2.0
"""Layers with a closed form, 64 random problems each, up to scores far apart, where derivatives vanish.

    maximise  theta'x - sum_i omega(x_i)    subject to  sum(x) = k  and bounds

has the Jacobian diag(d) - d d' / sum(d), with d_i = 1 / omega''(x_i) where x_i is off its bounds and 0 elsewhere.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import Solution, solve_qp

F64 = torch.float64
BATCH, N, K = 64, 10, 3
EYE, ONE = torch.eye(N, dtype=F64), torch.ones(1, N, dtype=F64)
CAPS = torch.linspace(0.12, 0.3, N, dtype=F64)

pytestmark = pytest.mark.parametrize("sigma", [1.0, 5.0, 20.0])


def scores(sigma: float) -> Tensor:
    return sigma * torch.randn(BATCH, N, dtype=F64)


def jacobian(d: Tensor) -> Tensor:
    total = d.sum(-1)[:, None, None]
    return torch.diag_embed(d) - torch.where(total > 0, d[:, :, None] * d[:, None, :] / total, 0)


def shifted(x: Callable[[Tensor], Tensor], theta: Tensor, total: float) -> Tensor:
    """x(theta - nu) with the nu that makes it sum to `total`, by bisection; x increases."""
    low, high = theta.amin(-1, keepdim=True) - 50, theta.amax(-1, keepdim=True) + 50
    for _ in range(200):
        nu = (low + high) / 2
        above = x(theta - nu).sum(-1, keepdim=True) > total
        low, high = torch.where(above, nu, low), torch.where(above, high, nu)
    return x(theta - high)


def check(solution: Solution, x: Tensor, d: Tensor) -> None:
    """To 1e-11: both engines stop at residuals below 1e-9, at the end of quadratic convergence or after a polish."""
    assert solution.solved.all() and (solution.weakly_active == 0).all()
    torch.testing.assert_close(solution.x[:, :N], x, rtol=0, atol=1e-11)
    torch.testing.assert_close(-solution.jacobian("x", "q")[:, :N, :N], jacobian(d), rtol=0, atol=1e-11)


def test_softmax(sigma: float) -> None:
    theta = scores(sigma)
    p = torch.softmax(theta, -1)
    check(solve_qp(None, -theta, A=ONE, b=ONE[:, 0], entropy=1.0), p, p)
    J = torch.vmap(torch.func.jacrev(optlayer.softmax))(theta)
    torch.testing.assert_close(J, jacobian(p), rtol=0, atol=1e-14)


def test_constrained_softmax(sigma: float) -> None:
    theta = scores(sigma)
    x = shifted(lambda t: torch.minimum(t.exp(), CAPS), theta, 1)
    check(solve_qp(None, -theta, A=ONE, b=ONE[:, 0], ub=CAPS, entropy=1.0), x, torch.where(x < CAPS, x, 0))


def test_sparsemax(sigma: float) -> None:
    theta = scores(sigma)
    x = shifted(lambda t: t.clamp(min=0), theta, 1)
    check(solve_qp(EYE, -theta, A=ONE, b=ONE[:, 0], lb=0.0), x, (x > 0).double())


def test_budget_sparsemax(sigma: float) -> None:
    theta = scores(sigma)
    x = shifted(lambda t: t.clamp(0, 1), theta, K)
    check(solve_qp(EYE, -theta, A=ONE, b=K * ONE[:, 0], lb=0.0, ub=1.0), x, ((x > 0) & (x < 1)).double())


def test_soft_top_k(sigma: float) -> None:
    """The entropy of x and of 1 - x, the second block."""
    theta = scores(sigma)
    x = shifted(torch.sigmoid, theta, K)
    A = torch.cat([torch.cat([EYE, EYE], 1), torch.cat([ONE, 0 * ONE], 1)])
    b = torch.cat([ONE[0], K * ONE[:, 0]])
    check(solve_qp(None, torch.cat([-theta, 0 * theta], -1), A=A, b=b, entropy=1.0), x, x * (1 - x))
