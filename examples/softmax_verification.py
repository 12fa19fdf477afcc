# SPDX-License-Identifier: Apache-2.0
"""Softmax is an argmax: its Jacobian from the optimality conditions, derived step by step, each step checked.

    maximise  theta'x + tau H(x)    subject to   1'x = 1,  x >= 0,         H(x) = -sum_i x_i log x_i

1. Lagrangian.  L = -theta'x + tau sum_i x_i log x_i + y (1'x - 1).  The slope of x_i log x_i is -inf at 0, which keeps
                x_i > 0: the inequalities are never active and have no multipliers.
2. Conditions.  F(x, y) = (-theta + tau (log x + 1) + y 1;  1'x - 1) = 0.  The first row says x = exp((theta - y) / tau
                - 1), the second y = tau logsumexp(theta / tau) - tau, of either sign: x = softmax(theta / tau).
3. Regularity.  K = dF/d(x, y) = [tau diag(1/x), 1; 1', 0] has the Schur complement -1'diag(x)1 / tau = -1 / tau, which
                is never zero, and F is smooth where x > 0: the implicit function theorem holds.
4. Derivative.  dF = 0 reads K (dx; dy) = (dtheta; 0), and K^-1 = [(diag(x) - xx') / tau, x; x', -tau], so that
                dx/dtheta = (diag(x) - xx') / tau   and   dy/dtheta = x'.
5. Value.       V = theta'x + tau H(x) = tau logsumexp(theta / tau) has dV/dtheta = x, without a derivative of x.
"""

import torch
from torch.func import jacrev

from optlayer import softmax, solve_qp
from optlayer.implicit import conditions, implicit, kkt, root

torch.manual_seed(0)
n, close = 8, torch.testing.assert_close
A, b = torch.ones(1, n, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
F = kkt(lambda x, theta, tau: -theta @ x + tau * x @ x.log(), eq=lambda x, theta, tau: A @ x - b, n=n, p=1)


def verify(theta: torch.Tensor, tau: torch.Tensor) -> None:
    x, y = torch.softmax(theta / tau, 0), tau * torch.logsumexp(theta / tau, 0) - tau
    w = F.pack(x, y[None])
    assert F(w, theta, tau).abs().max() <= 1e-14 * (1 + theta.abs().max())  # step 2: (x, y) is a root
    found = conditions(F, w, theta, tau)
    assert found.distance <= 1e-12 and found.condition.isfinite()  # step 3
    J = (torch.diag(x) - torch.outer(x, x)) / tau
    K = torch.cat([torch.cat([tau * torch.diag(1 / x), A.T], 1), torch.cat([A, 0 * b[None]], 1)])
    inverse = torch.cat([torch.cat([J, x[:, None]], 1), torch.cat([x[None], -tau * b[None]], 1)])
    close(K @ inverse, torch.eye(n + 1, dtype=torch.float64))  # step 4
    layers = {
        "the theorem, at softmax": lambda theta: implicit(F, w, theta, tau)[:n],
        "Newton's method on F": lambda theta: root(F, F.pack(A[0] / n, b), theta, tau).value[:n],
        "solve_qp with an entropy": lambda theta: solve_qp(None, -theta, A=A, b=b, entropy=tau).x,
        "optlayer.softmax": lambda theta: softmax(theta, temperature=tau),
    }
    print(f"tau = {float(tau):.1f}, y = {float(y):+.1e}, condition of K {float(found.condition):.0e}")
    for name, layer in layers.items():
        error = float((jacrev(layer)(theta) - J).abs().max())
        print(f"    largest error of dx/dtheta by {name:<24} {error:.0e}")
        assert (layer(theta) - x).abs().max() <= 1e-13 and error <= 1e-13 / tau
    close(jacrev(lambda theta: -solve_qp(None, -theta, A=A, b=b, entropy=tau).objective)(theta), x)  # step 5


for tau in torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64):
    theta = torch.randn(n, dtype=torch.float64)
    verify(theta, tau)
    verify(theta - tau * torch.logsumexp(theta / tau, 0) + tau, tau)  # shifted so that y = 0, which is nothing special
