# SPDX-License-Identifier: Apache-2.0
"""The penalty of a lasso by gradient descent on a validation loss, on the diabetes data (Bertrand et al. 2020).

    w(lam) = argmin |Zw - t|^2 / (2N) + lam |w|_1,      L(lam) = |Z_v w(lam) - t_v|^2 / (2 N_v)

With w = u - v and u, v >= 0 the lasso is a QP.  On the support S of w, dw_S / dlam = -(Z_S'Z_S / N)^-1 sign(w_S).

What is verified, at lam = 0.1 on the first 300 patients, with columns of mean 0 and variance 1: dL/dlam through the QP
equals this closed form to 1e-8 and central differences to 1e-6.  Its value, and S, depend on how the data are split and
scaled, which the paper's own figures leave open.
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


def lasso(lam: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w (*batch, n) and the validation loss (*batch) of penalties (*batch, 1)."""
    u, v = solve_qp(P, torch.cat([lam - c, lam + c], -1), lb=0.0).x.chunk(2, -1)
    return u - v, ((u - v) @ Z_v.T - t_v).square().mean(-1) / 2


lam = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
w, loss = lasso(lam)
(g,) = torch.autograd.grad(loss, lam)
S = w.detach().abs() > 1e-9
dw = -torch.linalg.solve(G[S][:, S], w[S].sign())
closed = (Z_v @ w - t_v) @ (Z_v[:, S] @ dw) / len(t_v)
with torch.no_grad():
    difference = (lasso(lam + 1e-6)[1] - lasso(lam - 1e-6)[1]) / 2e-6
print(f"lam = 0.1: support of w {S.nonzero().flatten().tolist()}, validation loss {loss.item():.6f}")
for name, value in {"through the QP": g, "in closed form": closed, "by differences": difference}.items():
    print(f"    dL/dlam {name} {value.item():.12f}")
torch.testing.assert_close(g[0], closed, rtol=1e-8, atol=0)
torch.testing.assert_close(g[0], difference, rtol=1e-6, atol=0)

# Descent in log(lam) finds a local minimum; L is smooth only as long as S stays the same, and may have one for each S.
for _ in range(100):
    lam = (lam * (-30 * lam * g).exp()).detach().requires_grad_()
    w, loss = lasso(lam)
    (g,) = torch.autograd.grad(loss, lam)
print(f"after descent: lam = {lam.item():.6f}, dL/dlam = {g.item():.0e}, validation loss {loss.item():.6f}")
nearby = lasso(lam.detach() * torch.linspace(0.98, 1.02, 21, dtype=torch.float64)[:, None])[1]
assert g.abs() < 1e-9 and loss <= nearby.min() + 1e-12
everywhere = torch.logspace(-4, 0, 1000, dtype=torch.float64)[:, None]
best, place = lasso(everywhere)[1].min(0)
print(f"best of 1000 in one call: lam = {everywhere[place].item():.6f}, validation loss {best.item():.6f}")
