# SPDX-License-Identifier: Apache-2.0
"""Known results of the literature on implicit differentiation, reproduced."""

import itertools
import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.func import jacrev, jvp

from optlayer.implicit import LinearSettings, Report, argmin, fixed_point, implicit, root


def f(z, W, x):
    return torch.tanh(z @ W.mT + x)


def F(z, W, x):
    return z - f(z, W, x)


def model(n, batch, norm):
    """W with this spectral norm, and inputs."""
    W = torch.randn(n, n, dtype=torch.float64)
    return W * (norm / torch.linalg.matrix_norm(W, 2)), torch.randn(batch, n, dtype=torch.float64)


def unrolled(W, x, iterations):
    z = torch.zeros_like(x)
    for _ in range(iterations):
        z = f(z, W, x)
    return z


def bytes_saved(function):
    """What autograd keeps for backward, each storage once."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        out = function()  # noqa: F841  # alive, so that no storage is used twice
        return sum(kept.values())


def picard(W, x, iterations):
    stop = {"eps_abs": 1e-300, "eps_rel": 0.0, "max_iter": iterations}
    return fixed_point(f, torch.zeros_like(x), W, x, batch_dims=1, method="picard", on_failure="ignore", **stop).value


def test_memory_of_unrolling_grows_by_one_iterate_an_iteration_and_that_of_the_implicit_rule_not_at_all():
    W, x = (t.requires_grad_() for t in model(64, 32, 0.9))
    counts = {K: bytes_saved(lambda K=K: unrolled(W, x, K)) for K in (10, 20, 40)}
    assert counts[20] - counts[10] == 10 * x.numel() * 8
    assert counts[40] - counts[20] == 20 * x.numel() * 8
    implicit_counts = {bytes_saved(lambda K=K: picard(W, x, K)) for K in (10, 40, 160)}
    assert len(implicit_counts) == 1
    # W, x, the solution, and a status for each element: 64 KiB and a quarter
    assert implicit_counts.pop() == (W.numel() + 2 * x.numel()) * 8 + 32 * 8


def test_the_unrolled_gradient_approaches_the_implicit_one_like_the_contraction_rate():
    W, x = (t.requires_grad_() for t in model(64, 8, 0.9))
    z = fixed_point(f, torch.zeros_like(x), W, x, batch_dims=1, method="newton").value
    (g,) = torch.autograd.grad(z.square().sum(), W)
    D = torch.diag_embed(1 - z.detach().square())
    rate = torch.linalg.eigvals(D @ W.detach()).abs().max().item()
    errors = []
    for K in (10, 20, 30, 100):
        (h,) = torch.autograd.grad(unrolled(W, x, K).square().sum(), W)
        errors.append(((h - g).abs().max() / g.abs().max()).item())
    assert errors[-1] < 1e-14
    for before, after in itertools.pairwise(errors[:3]):
        assert 0.1 < after / before / rate**10 < 3  # up to the polynomial in front of rate^K


def test_newton_and_its_adjoint_work_where_the_neumann_series_diverges():
    W, x = model(12, 1, 3.0)
    # small inputs, so that tanh' is close to one
    solution = root(F, torch.zeros_like(x), W, 0.05 * x, batch_dims=1)
    z = solution.value
    DW = torch.diag_embed(1 - z.square()) @ W
    rho = torch.linalg.eigvals(DW).abs().max().item()
    assert rho > 1.1
    assert solution.residual.item() < 1e-14
    expected = torch.linalg.solve(torch.eye(12) - DW.mT, torch.ones(12, dtype=torch.float64))[0]
    for method in ("lu", "gmres"):
        start = (0.05 * x).requires_grad_()
        out = implicit(F, z, W, start, batch_dims=1, linsolve=method)
        (g,) = torch.autograd.grad(out.sum(), start)
        assert torch.allclose(g[0], (1 - z[0].square()) * expected, rtol=1e-7)
    u = term = torch.ones(1, 12, dtype=torch.float64)
    for _ in range(500):
        term = (DW.mT @ term.unsqueeze(-1)).squeeze(-1)
        u = u + term
    assert (u - expected).abs().max() > 1e6


def test_a_tangent_by_gmres_takes_few_products_and_equals_the_dense_one():
    W, x = model(400, 1, 0.9)
    x = x[0]
    z = root(F, torch.zeros_like(x), W, x, linsolve="gmres").value
    direction = torch.randn_like(x)
    report = Report()
    settings = LinearSettings("gmres", eps_rel=1e-10)
    _, dz = jvp(lambda x: implicit(F, z, W, x, linsolve=settings, report=report), (x,), (direction,))
    D = 1 - z.square()
    dense = torch.linalg.solve(torch.eye(400, dtype=torch.float64) - D.unsqueeze(-1) * W, D * direction)
    assert (dz - dense).norm() < 2e-10 * dense.norm()  # the residual is 1e-10, the condition of I - DW near one
    assert 18 <= report.iterations.item() <= 22  # 19 or 20 for eight random W


def ridge():
    X, y = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    return X, y, torch.tensor(0.7, dtype=torch.float64)


def test_the_jacobian_error_is_proportional_to_that_of_the_iterate():
    """Blondel et al. 2021, theorem 1, on ridge regression by gradient descent."""
    X, y, lam = ridge()

    def slope(w, lam):
        return X.mT @ (X @ w - y) + lam.exp() * w

    def exact(lam):
        return torch.linalg.solve(X.mT @ X + lam.exp() * torch.eye(6, dtype=torch.float64), X.mT @ y)

    step = 1 / (torch.linalg.matrix_norm(X, 2) ** 2 + lam.exp())
    w, errors = torch.zeros(6, dtype=torch.float64), []
    w_star, J_star = exact(lam), jacrev(exact)(lam)
    for k in range(121):
        if k % 20 == 0:
            J = jacrev(lambda lam, w=w: implicit(slope, w, lam))(lam)
            errors.append(((w - w_star).norm().log().item(), (J - J_star).norm().log().item()))
        w = w - step * slope(w, lam)
    (a, b), (c, d) = errors[1], errors[-1]
    assert c < a - 3
    assert (d - b) / (c - a) == pytest.approx(1.0, abs=0.02)


def test_the_fixed_point_adjoint_converges_at_the_contraction_rate():
    """Grazzi et al. 2020: u <- M'u + g has the error rate of the forward iteration."""
    M = torch.randn(8, 8, dtype=torch.float64)
    M = (M + M.mT) / 2
    M = M * (0.85 / torch.linalg.eigvalsh(M).abs().max())
    g = torch.randn(8, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(8, dtype=torch.float64) - M.mT, g)

    def iterate(K):
        stop = {"eps_abs": 1e-300, "eps_rel": 0.0, "max_iter": K}
        solution = fixed_point(lambda u: u @ M + g, torch.zeros_like(g), method="picard", on_failure="ignore", **stop)
        return (solution.value - exact).norm()

    assert (iterate(81) / iterate(61)).item() ** (1 / 20) == pytest.approx(0.85, abs=1e-3)


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_the_ridge_hypergradient_equals_that_of_the_closed_form(method):
    X, y, lam = ridge()
    lam.requires_grad_()

    def objective(w, lam):
        return ((X @ w - y).square().sum() + lam * w.square().sum()) / 2

    stop = {"eps_abs": 1e-12, "eps_rel": 0.0}
    w = argmin(objective, torch.zeros(6, dtype=torch.float64), lam, method=method, **stop).value
    direction = torch.randn(6, dtype=torch.float64)
    (g,) = torch.autograd.grad(w @ direction, lam)
    K = X.mT @ X + lam.detach() * torch.eye(6, dtype=torch.float64)
    expected = -direction @ torch.linalg.solve(K, torch.linalg.solve(K, X.mT @ y))
    assert g.item() == pytest.approx(expected.item(), rel=1e-10)


def test_backpropagation_is_the_adjoint_of_a_block_triangular_system():
    sizes = (3, 5, 4, 2)
    weights = [torch.randn(b, a, dtype=torch.float64, requires_grad=True) for a, b in itertools.pairwise(sizes)]
    x = torch.randn(3, dtype=torch.float64)

    def layers(x, *weights):
        out = []
        for W in weights:
            x = torch.tanh(W @ x)
            out.append(x)
        return torch.cat(out)

    def equations(z, *weights):
        """Each layer's output minus what it should be, given the layer before as z has it."""
        parts = z.split(sizes[1:])
        befores = (x, *parts[:-1])
        return torch.cat([h - torch.tanh(W @ b) for h, W, b in zip(parts, weights, befores, strict=True)])

    z = layers(x, *weights)
    by_backprop = torch.autograd.grad(z[-2:].square().sum(), weights)
    attached = implicit(equations, z.detach(), *weights)
    by_theorem = torch.autograd.grad(attached[-2:].square().sum(), weights)
    for a, b in zip(by_backprop, by_theorem, strict=True):
        assert (a - b).abs().max() < 1e-14


def test_the_start_has_no_part_in_the_derivative_but_a_proximal_term_gives_it_one():
    """The derivative of a minimiser with respect to where the descent began is zero, exactly (iMAML's way out)."""
    start = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
    phi = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def loss(z, phi):
        return (z - phi).square().sum() + z.square().square().sum()

    (g,) = torch.autograd.grad(argmin(loss, start, phi.requires_grad_()).value.sum(), start, allow_unused=True)
    assert g is None
    lam = 2.0

    def proximal(z, phi, anchor):
        return loss(z, phi) + lam / 2 * (z - anchor).square().sum()

    z = argmin(proximal, start.detach(), phi, start).value
    (g,) = torch.autograd.grad(z.sum(), start)
    H = 2 + 12 * z.detach().square()
    assert torch.allclose(g, lam / (lam + H), rtol=1e-12)


def test_two_scalar_curves_with_known_slopes():
    """y^2 = x at 4, and y = x^3 + 2 x^2 + x y + 4 with the slope (3 x^2 + 4 x + y) / (1 - x)."""
    for x, y in ((0.0, 4.0), (-1.0, 2.5), (2.0, -20.0)):
        t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        solution = root(lambda y, t: y - t**3 - 2 * t**2 - t * y - 4, torch.tensor(0.0, dtype=torch.float64), t)
        assert solution.value.item() == pytest.approx(y, abs=1e-12)
        (g,) = torch.autograd.grad(solution.value, t)
        assert g.item() == pytest.approx((3 * x**2 + 4 * x + y) / (1 - x), abs=1e-12)
    t = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(root(lambda z, t: z * z - t, torch.tensor(1.0, dtype=torch.float64), t).value, t)
    assert g.item() == pytest.approx(1 / (2 * math.sqrt(4)), rel=1e-14)
