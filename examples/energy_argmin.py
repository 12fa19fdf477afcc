# SPDX-License-Identifier: Apache-2.0
"""Learning an energy through its minimiser: a denoiser of step signals with two parameters.

    y(w) = argmin_y E(y, w),        E(y, w) = 1/2 |y - noisy|^2 + a sum_i (sqrt(s^2 + (y_{i+1} - y_i)^2) - s)

with w = (log a, log s): noise is smoothed, jumps larger than s cost little more than small ones.  E is strictly convex
in y, so that H = d2E / dy dy' is regular.  With B = d2E / dy dw', the derivative of dE/dy = 0 is

    H dy + B dw = 0,    hence    dl/dw = -B'H^-1 dl/dy    for a loss l(y(w)),

one linear solve, however many steps led to y.
"""

import torch
from torch.func import grad, hessian, jacrev, vmap

from optlayer.implicit import argmin

torch.manual_seed(0)
batch, n = 8, 32
clean = torch.randn(batch, 4, dtype=torch.float64).repeat_interleave(n // 4, -1)
noisy = clean + 0.3 * torch.randn(batch, n, dtype=torch.float64)


def E(y: torch.Tensor, w: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    a, s = w.exp()
    return (y - noisy).square().sum(-1) / 2 + a * ((s**2 + y.diff(dim=-1).square()).sqrt() - s).sum(-1)


def loss(w: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = argmin(E, start, w, noisy, batch_dims=1).value
    return (y - clean).square().mean(), y


w = torch.tensor([-2.0, 0.0], dtype=torch.float64, requires_grad=True)
optimiser, y = torch.optim.Adam([w], lr=0.3), noisy
print(f"mean squared error of the noisy signals {float((noisy - clean).square().mean()):.4f}")
for step in range(12):
    optimiser.zero_grad()
    error, y = loss(w, y.detach())  # the last minimiser is where the next search starts
    error.backward()
    if step % 4 == 0:
        print(f"step {step}: error {error.item():.4f} at log a = {w[0].item():+.2f}, log s = {w[1].item():+.2f}")
    optimiser.step()

w, y = w.detach(), y.detach()
print(f"learned: error {loss(w, y)[0]:.4f}")

gradient, y = grad(loss, has_aux=True)(w, y)
H, B = vmap(hessian(E), (0, None, 0))(y, w, noisy), vmap(jacrev(grad(E), 1), (0, None, 0))(y, w, noisy)
theorem = -(B.mT @ torch.linalg.solve(H, 2 * (y - clean)[..., None] / y.numel())).sum(0)[:, 0]
difference = torch.stack([(loss(w + d, y)[0] - loss(w - d, y)[0]) / 2e-5 for d in 1e-5 * torch.eye(2).double()])
for name, other, tolerance in (("-B'H^-1 dl/dy", theorem, 1e-12), ("central differences", difference, 1e-6)):
    distance = (gradient - other).norm() / other.norm()
    print(f"the gradient differs from {name} by {distance:.0e}")
    assert distance <= tolerance
