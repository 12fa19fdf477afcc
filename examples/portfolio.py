# SPDX-License-Identifier: Apache-2.0
"""A portfolio of given expected return, its exact sensitivities, and its long-only sibling.

    minimise  1/2 w'Sw    subject to   1'w = 1,  mu'w = rho       (and w >= 0)

Without w >= 0 the optimality conditions are linear: [S A'; A 0] (w, y) = (0, b) with A = [1'; mu'], b = (1, rho).  The
multiplier of a constraint is the price of its right-hand side: d(risk) / db = -y.
"""

import torch

from optlayer import solve_qp

torch.manual_seed(0)
n = 5
F = torch.randn(n, 3, dtype=torch.float64)
S = 0.04 * (F @ F.T + torch.eye(n, dtype=torch.float64))
mu = torch.linspace(0.02, 0.10, n, dtype=torch.float64)
A, b = torch.stack([torch.ones_like(mu), mu]), torch.tensor([1.0, 0.08], dtype=torch.float64, requires_grad=True)
q = torch.zeros(n, dtype=torch.float64)

solution = solve_qp(S, q, A=A, b=b)
K = torch.cat([torch.cat([S, A.T], 1), torch.cat([A, torch.zeros(2, 2, dtype=torch.float64)], 1)])
inverse = torch.linalg.inv(K)
print("weights              ", [round(v, 4) for v in solution.x.tolist()])
print("d weights / d return ", [round(v, 3) for v in solution.jacobian("x", "b")[:, 1].tolist()])
torch.testing.assert_close(solution.x, inverse[:n, n:] @ b)
torch.testing.assert_close(solution.jacobian("x", "b"), inverse[:n, n:])

(price,) = torch.autograd.grad(solution.objective, b)
print(f"price of a unit of return, as a gradient {float(price[1]):.6f}, as a multiplier {-solution.y[1].item():.6f}")
torch.testing.assert_close(price, -solution.y.detach())

long_only = solve_qp(S, q, A=A, b=b, lb=0.0)
print("long-only            ", [round(v, 4) for v in long_only.x.tolist()])
print("multipliers of w >= 0", [round(v, 4) for v in long_only.z_box.tolist()])
assert long_only.is_optimal() and long_only.objective >= solution.objective
# The price of lifting w_i >= 0, as a gradient; it is zero where w_i > 0.
bounds = torch.zeros(n, dtype=torch.float64, requires_grad=True)
(price,) = torch.autograd.grad(solve_qp(S, q, A=A, b=b.detach(), lb=bounds).objective, bounds)
torch.testing.assert_close(price, -long_only.z_box.detach())
assert (long_only.z_box <= 0).all() and (long_only.z_box < -1e-6).any() and (price * long_only.x).abs().max() <= 1e-9

# The whole frontier is one call: the batch is the right-hand side.
frontier = solve_qp(S, q, A=A, b=torch.stack([torch.ones(7), torch.linspace(0.03, 0.09, 7)], 1).double(), lb=0.0)
assert frontier.is_optimal().all()
print("frontier             ", [round(v, 4) for v in (2 * frontier.objective).sqrt().tolist()])
