# SPDX-License-Identifier: Apache-2.0
"""Softmax as the solution of an optimisation problem, and its derivative from the optimality conditions.

    maximise  theta'x - tau sum_i x_i log x_i    subject to   sum(x) = 1,  0 <= x <= u

Without u the solution is p = softmax(theta / tau) with Jacobian (diag(p) - pp') / tau.  With u, the x_i below their
bounds share what the others leave: with A = {x < u} and r = 1 - sum of u outside A, x_A = r softmax(theta_A / tau), and
the Jacobian is (diag(x_A) - x_A x_A' / r) / tau on A and zero elsewhere.
"""

import torch

import optlayer

torch.manual_seed(0)
theta = torch.randn(8, dtype=torch.float64)
for tau in (1.0, 0.1, 0.01):
    J = torch.autograd.functional.jacobian(lambda t, tau=tau: optlayer.softmax(t, temperature=tau), theta)
    p = torch.softmax(theta / tau, 0)
    closed = (torch.diag(p) - torch.outer(p, p)) / tau
    error = float((J - closed).norm() / closed.norm())
    print(f"tau = {tau:<5} max(p) = {float(p.max()):.3f}  relative error of the Jacobian {error:.0e}")
    assert error <= 1e-9 + 1e-13 / tau

u = torch.full((8,), 0.2, dtype=torch.float64)
x = optlayer.softmax(theta, upper=u)
J = torch.autograd.functional.jacobian(lambda t: optlayer.softmax(t, upper=u), theta)
A = x < u - 1e-9
r = 1 - u[~A].sum()
x_A = torch.where(A, x, 0.0)
closed = torch.diag(x_A) - torch.outer(x_A, x_A) / r
print(f"with x <= 0.2: x = {[round(v, 3) for v in x.tolist()]}, error {float((J - closed).norm() / closed.norm()):.0e}")
torch.testing.assert_close(x[A], r * torch.softmax(theta[A], 0), rtol=0, atol=1e-9)
torch.testing.assert_close(J, closed, rtol=0, atol=1e-9)
