# SPDX-License-Identifier: Apache-2.0
"""Derivatives at an iterate instead of the limit: how far off are the implicit, the unrolled and the truncated one?"""

import pytest
import torch
from torch.func import jacrev

from optlayer.implicit import fixed_point, implicit

STEPS = range(0, 100, 10)


@pytest.fixture
def ridge():
    """w(t) = argmin |Xw - y|^2 + e^t |w|^2 by gradient descent.

    Eigenvalues of its Hessian, e^t, step, and at every tenth iterate the errors of w, of its implicit derivative in t
    and of the unrolled one.
    """
    X, y = torch.randn(40, 8, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    t, eye = torch.tensor(1.0, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(X.mT @ X + t.exp() * eye)
    step = 1 / eigenvalues[-1]

    def slope(w, t):
        return X.mT @ (X @ w - y) + t.exp() * w

    def exact(t):
        return torch.linalg.solve(X.mT @ X + t.exp() * eye, X.mT @ y)

    def iterate(t, k):
        w = torch.zeros(8, dtype=torch.float64)
        for _ in range(k):
            w = w - step * slope(w, t)
        return w

    limit, slope_of_limit, errors = exact(t), jacrev(exact)(t), []
    for k in STEPS:
        w = iterate(t, k)
        at_w, unrolled = jacrev(lambda t, w=w: implicit(slope, w, t))(t), jacrev(iterate)(t, k)
        errors.append(torch.stack([w - limit, at_w - slope_of_limit, unrolled - slope_of_limit]).norm(dim=-1))
    return eigenvalues, t.exp(), step, *torch.stack(errors, -1)


def test_the_implicit_derivative_is_as_accurate_as_the_iterate(ridge):
    """Blondel et al. 2021, theorem 1: here its error is lam H^-1 times that of w, at every iterate."""
    eigenvalues, lam, _, of_w, of_implicit, _ = ridge
    ratio = of_implicit / of_w
    assert of_w[-1] < 1e-11 * of_w[0]
    assert (ratio <= lam / eigenvalues[0] * (1 + 1e-3)).all() and (ratio >= lam / eigenvalues[-1]).all()
    slope = (of_implicit[-1] / of_implicit[5]).log() / (of_w[-1] / of_w[5]).log()
    assert slope.item() == pytest.approx(1, abs=1e-3)


def test_the_unrolled_derivative_falls_behind_by_a_factor_that_grows_with_the_iterations(ridge):
    """In the slowest mode, of eigenvalue h, it is 1 + k step h / (1 - step h) times as far off as the implicit one.

    That mode is what is left after some iterations.  On these data the factor is 28 after 81 of them.
    """
    eigenvalues, _, step, _, of_implicit, of_unrolled = ridge
    ratio = of_unrolled / of_implicit
    slowest = step * eigenvalues[0]
    factor = 1 + torch.tensor(STEPS, dtype=torch.float64) * slowest / (1 - slowest)
    # Faster modes still hold 1e-3 of the error after 50 iterations; after 90 rounding holds 1e-3 of it.
    assert ratio[5:].tolist() == pytest.approx(factor[5:].tolist(), rel=2e-3)
    assert factor[8] < 28 < factor[9]
    assert ratio[0].item() == pytest.approx(1, abs=1e-12)  # w = 0 whatever t: both are off by all of the derivative
    assert (ratio.diff() > 0).all()


def test_a_truncated_adjoint_converges_at_the_rate_of_the_map():
    """Grazzi et al. 2020: K steps u <- J'u + g in place of the solve are off by q^K, with q the radius of J = df/dz."""
    W, x, g = (torch.randn(size, dtype=torch.float64) for size in ((8, 8), (8,), (8,)))
    W = 0.45 * (W + W.mT) / torch.linalg.matrix_norm(W, 2)  # symmetric, so that J = DW has real eigenvalues
    x.requires_grad_()

    def f(z, x):
        return torch.tanh(W @ z + x)

    z = fixed_point(f, torch.zeros_like(g), x, method="newton").value
    (exact,) = torch.autograd.grad(z @ g, x)
    z = z.detach()

    def truncated(K):
        w = z
        for _ in range(K):
            w = f(w, x)
        (found,) = torch.autograd.grad(w @ g, x)
        return (found - exact).norm()

    q = torch.linalg.eigvals((1 - z.square()).unsqueeze(-1) * W).abs().max()
    assert 0.3 < q < 0.9
    assert ((truncated(25) / truncated(15)) ** 0.1).item() == pytest.approx(q.item(), rel=1e-3)
    assert truncated(200) < 1e-14
