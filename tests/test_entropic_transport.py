# SPDX-License-Identifier: Apache-2.0
"""Entropic optimal transport down to temperatures where the plan is a vertex: the rows cannot feel most of it then.

With uniform marginals the vertices are permutations.  A plan near one has n entries that the marginals feel and others
that fall below their rounding; what keeps the blocks of the plan in balance is lost, and with it one multiplier each.
"""

import itertools
import math

import pytest
import torch
from entropic_cases import F64, transport
from torch import Tensor

from optlayer import Solution, solve_qp

TEMPERATURES = (1.0, 0.1, 0.02, 0.01, 0.005, 0.001, 1e-4, 1e-5)
SHAPES = ((2, 2), (4, 4), (3, 5), (8, 8), (12, 12))


def costs(kind: str, r: int, c: int, batch: int = 20) -> Tensor:
    """Uniform in [0, 1], normal, small integers (with ties), or distances of points of the line (with ties)."""
    source = torch.Generator().manual_seed(r + 100 * c)
    if kind == "uniform":
        C = torch.rand(batch, r, c, generator=source, dtype=F64)
    elif kind == "normal":
        C = torch.randn(batch, r, c, generator=source, dtype=F64)
    elif kind == "integer":
        C = torch.randint(0, 4, (batch, r, c), generator=source).double()
    else:
        u, v = (torch.rand(batch, size, generator=source, dtype=F64) for size in (r, c))
        C = (u.unsqueeze(-1) - v.unsqueeze(-2)).abs()
    return C.flatten(1)


def marginals(kind: str, r: int, c: int, batch: int = 20) -> Tensor:
    """(batch, r + c): uniform, or multiples of 2^-16, whose sums are one in every precision."""
    if kind == "uniform":
        return torch.cat([torch.full((batch, size), 1 / size, dtype=F64) for size in (r, c)], 1)
    sides = []
    for size in (r, c):
        source = torch.Generator().manual_seed(size)
        side = (torch.softmax(torch.randn(batch, size, generator=source, dtype=F64), -1) * 2**16).round()
        side[:, 0] += 2**16 - side.sum(-1)
        sides.append(side / 2**16)
    return torch.cat(sides, 1)


def plan(C: Tensor, b: Tensor, tau: Tensor | float, r: int, c: int, redundant: bool = True) -> Solution:
    rows = slice(None) if redundant else slice(-1)
    A = transport(r, c).to(C.dtype)
    return solve_qp(None, C, A=A[rows], b=b[:, rows].to(C.dtype), entropy=tau)


@pytest.mark.parametrize("redundant", [True, False])
@pytest.mark.parametrize("marginal", ["uniform", "dyadic"])
@pytest.mark.parametrize("kind", ["uniform", "normal", "integer", "distance"])
def test_every_plan_is_found(kind: str, marginal: str, redundant: bool) -> None:
    """The marginals to 1e-14, 45 roundings of one, and log X - (f + g - C) / tau constant in every entry above zero."""
    for (r, c), tau in itertools.product(SHAPES, TEMPERATURES):
        C, b = costs(kind, r, c), marginals(marginal, r, c)
        solution = plan(C, b, tau, r, c, redundant)
        assert solution.solved.all(), f"{r} x {c}, tau {tau}: {solution.status_names()}"
        A = transport(r, c)
        assert ((solution.x @ A.T - b).abs().amax() <= 1e-14) and (solution.x >= 0).all()
        assert solution.log_x is not None
        y = torch.nn.functional.pad(solution.y, (0, A.shape[0] - solution.y.shape[1]))
        force = C + y @ A + tau * (solution.log_x + 1)
        assert force.abs().amax() <= 1e-14 * (1 + C.abs().amax() + y.abs().amax())
        assert (solution.x - solution.log_x.exp()).abs().amax() <= 1e-14


@pytest.mark.parametrize("kind", ["uniform", "normal", "integer", "distance"])
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 16)])
def test_every_plan_is_found_in_float32(shape: tuple[int, int], kind: str) -> None:
    """Eighths and the like are exact in float32, so that the marginals do not contradict each other."""
    r, c = shape
    for tau, marginal in itertools.product(TEMPERATURES, ("uniform", "dyadic")):
        C, b = costs(kind, r, c), marginals(marginal, r, c)
        solution = plan(C.float(), b, tau, r, c)
        assert solution.solved.all(), f"{marginal}, tau {tau}: {solution.status_names()}"
        # found in float64 for the rounded costs, then rounded itself
        exact = plan(C.float().double(), b, torch.tensor(tau).double(), r, c)
        assert (solution.x - exact.x).abs().amax() <= torch.finfo(torch.float32).eps


@pytest.mark.parametrize("marginal", ["uniform", "dyadic"])
@pytest.mark.parametrize("tau", [1.0, 0.1, 0.02])
def test_a_plan_is_the_limit_of_sinkhorns_scaling(tau: float, marginal: str) -> None:
    r, c = 3, 5
    C, b = costs("uniform", r, c), marginals(marginal, r, c)
    log_a, log_b = b.log().split([r, c], 1)
    M = -C.reshape(-1, r, c) / tau
    g = torch.zeros_like(log_b)
    for _ in range(20000):
        f = log_a - torch.logsumexp(M + g.unsqueeze(-2), -1)
        g = log_b - torch.logsumexp(M + f.unsqueeze(-1), -2)
    X = (M + f.unsqueeze(-1) + g.unsqueeze(-2)).exp().flatten(1)
    assert (X.reshape(-1, r, c).sum(-1) - log_a.exp()).abs().amax() <= 1e-12  # Sinkhorn has converged
    assert (plan(C, b, tau, r, c).x - X).abs().amax() <= 1e-12


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_the_cold_plan_is_the_best_permutation(kind: str) -> None:
    n = 5
    C = costs(kind, n, n)
    permutations = torch.tensor(list(itertools.permutations(range(n))))
    totals = C.reshape(-1, n, n)[:, torch.arange(n), permutations].sum(-1)
    (least, second), which = totals.topk(2, largest=False).values.unbind(-1), totals.argmin(-1)
    tau = 1e-4
    clear = second - least > 40 * tau  # e^-40 of any other permutation: below the rounding of 1 / n
    assert clear.sum() >= 15
    best = torch.nn.functional.one_hot(permutations[which], n).double().flatten(1) / n
    found = plan(C, marginals("uniform", n, n), tau, n, n).x
    assert (found - best)[clear].abs().amax() <= 1e-15


@pytest.mark.parametrize("redundant", [True, False])
@pytest.mark.parametrize("marginal", ["uniform", "dyadic"])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (8, 8)])
def test_the_gradient_of_a_plan_is_the_finite_difference(
    shape: tuple[int, int], marginal: str, redundant: bool
) -> None:
    """tau dX/dC and tau dX/dtau are of order one; a step of h tau misses them by h^2, 1e-8 here."""
    r, c = shape
    b, h, batch = marginals(marginal, r, c), 1e-4, 20
    w, move = (torch.randn(k, generator=torch.Generator().manual_seed(k), dtype=F64) for k in (r * c, r * c + 1))
    for kind, size in itertools.product(("uniform", "normal"), TEMPERATURES):
        C = costs(kind, r, c).requires_grad_()
        tau = torch.full((batch, 1), size, dtype=F64, requires_grad=True)

        def value(C: Tensor, tau: Tensor) -> Tensor:
            return plan(C, b, tau, r, c, redundant).x @ w

        by_C, by_tau = torch.autograd.grad(value(C, tau).sum(), (C, tau))
        with torch.no_grad():
            step = h * size * move[:-1]
            along = (value(C + step, tau) - value(C - step, tau)) / (2 * h)
            scaled = (value(C, tau * (1 + h)) - value(C, tau * (1 - h))) / (2 * h)
        assert (size * (by_C @ move[:-1]) - along).abs().amax() <= 2e-8
        assert (size * by_tau.squeeze(-1) - scaled).abs().amax() <= 2e-8


def test_soft_top_k_at_every_scale() -> None:
    """Entropies of x and of 1 - x: x = sigmoid(theta - nu).  At scale 100 most x or 1 - x are below rounding."""
    n, k = 10, 3
    eye, one = torch.eye(n, dtype=F64), torch.ones(1, n, dtype=F64)
    A = torch.cat([torch.cat([eye, eye], 1), torch.cat([one, 0 * one], 1)])
    b = torch.cat([one[0], k * one[:, 0]])
    for scale in (0.1, 1.0, 10.0, 50.0, 100.0, 200.0, 1e3):
        theta = scale * torch.randn(64, n, generator=torch.Generator().manual_seed(0), dtype=F64)
        solution = solve_qp(None, torch.cat([-theta, 0 * theta], -1), A=A, b=b, entropy=1.0)
        assert solution.solved.all(), f"scale {scale}"
        low, high = theta.amin(-1, keepdim=True) - 50, theta.amax(-1, keepdim=True) + 50
        for _ in range(200):
            nu = (low + high) / 2
            over = torch.sigmoid(theta - nu).sum(-1, keepdim=True) > k
            low, high = torch.where(over, nu, low), torch.where(over, high, nu)
        # nu is rounded to the size of theta
        bar = 1e-13 + 8 * torch.finfo(F64).eps * scale * math.log(n)
        assert (solution.x[:, :n] - torch.sigmoid(theta - nu)).abs().amax() <= bar, f"scale {scale}"
