# SPDX-License-Identifier: Apache-2.0
"""The penalty of a ridge regression, found by Newton's method on the validation loss of the diabetes data.

    w(r) = argmin |Xw - y|^2 / 2 + exp(r) |w|^2 / 2,      L(r) = mean (X_v w(r) - y_v)^2

With lam = exp(r) the solution is w = (X'X + lam I)^-1 X'y, and the hypergradient dL/dlam = -w'(X'X + lam I)^-1 dL/dw.
Newton's method takes L'' as well: the derivative of the hypergradient, by the same rule once more.
"""

import torch
from sklearn.datasets import load_diabetes

from optlayer.implicit import argmin

X, y = (torch.tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True, scaled=False))
data = torch.cat([X, y[:, None]], 1)
data = (data - data[:100].mean(0)) / data[:100].std(0)
(X, y), (X_v, y_v) = ((part[:, :-1], part[:, -1]) for part in (data[:100], data[100:]))
eye = torch.eye(X.shape[1], dtype=torch.float64)


def ridge(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return (X @ w - y).square().sum() / 2 + r.exp() * w.square().sum() / 2


def validation(r: torch.Tensor) -> torch.Tensor:
    w = argmin(ridge, torch.zeros(X.shape[1], dtype=torch.float64), r).value
    return (X_v @ w - y_v).square().mean()


# The hypergradient three times: implicitly, by the formula above, and by autograd through the closed form.
r = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
(implicit,) = torch.autograd.grad(validation(r), r)
H = X.T @ X + r.exp() * eye
w = torch.linalg.solve(H, X.T @ y)
loss = (X_v @ w - y_v).square().mean()
dw, through = torch.autograd.grad(loss, [w, r])
formula = -r.exp() * w @ torch.linalg.solve(H, dw)
print(f"dL/dr at lam = 1: {implicit.item():.15f}")
off = [(implicit - other).abs().item() for other in (formula, through)]
print(f"    off the formula by {off[0]:.0e}, off autograd through the closed form by {off[1]:.0e}")
torch.testing.assert_close(implicit, formula, rtol=1e-10, atol=0)
torch.testing.assert_close(implicit, through, rtol=1e-10, atol=0)

while implicit.abs() > 1e-12:
    loss = validation(r)
    (implicit,) = torch.autograd.grad(loss, r, create_graph=True)
    (curvature,) = torch.autograd.grad(implicit, r)
    print(f"lam = {r.exp().item():7.4f}   L = {loss.item():.8f}   dL/dr = {implicit.item():8.1e}")
    r = (r - (implicit / curvature.abs()).clamp(-2, 2)).detach().requires_grad_()

# 101 penalties at once: none is better.
with torch.no_grad():
    assert loss <= torch.func.vmap(validation)(torch.linspace(-5, 10, 101, dtype=torch.float64)).min()
