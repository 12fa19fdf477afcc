# SPDX-License-Identifier: Apache-2.0
"""The derivative of a validation loss with respect to the penalty of a lasso, on the diabetes data.

    w(lam) = argmin |Zw - t|^2 / (2N) + lam |w|_1,      L(lam) = |Z_v w(lam) - t_v|^2 / (2 N_v)

With w = u - v and u, v >= 0 the lasso is a QP.  On the support S of w, dw_S / dlam = -(Z_S'Z_S / N)^-1 sign(w_S).
"""

import torch
from sklearn.datasets import load_diabetes

from optlayer import solve_qp

X, y = (torch.tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True, scaled=False))
data = torch.cat([X, y[:, None]], 1)
data = (data - data[:300].mean(0)) / data[:300].std(0, correction=0)
(Z, t), (Z_v, t_v) = ((part[:, :-1], part[:, -1]) for part in (data[:300], data[300:]))

G, c = Z.T @ Z / len(Z), Z.T @ t / len(Z)
P = torch.cat([torch.cat([G, -G], 1), torch.cat([-G, G], 1)])
lam = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
u, v = solve_qp(P, torch.cat([lam - c, lam + c]), lb=0.0).x.chunk(2)
w = u - v
loss = (Z_v @ w - t_v).square().mean() / 2
loss.backward()

S = w.detach().abs() > 1e-9
dw = -torch.linalg.solve(G[S][:, S], w.detach()[S].sign())
closed = (Z_v @ w - t_v) @ (Z_v[:, S] @ dw) / len(t_v)
print(f"support of w: {S.nonzero().flatten().tolist()}, validation loss {float(loss.detach()):.6f}")
print(f"dL/dlam through the QP  {float(lam.grad):.12f}")
print(f"dL/dlam in closed form  {float(closed.detach()):.12f}")
torch.testing.assert_close(lam.grad, closed.detach(), rtol=1e-8, atol=0)
