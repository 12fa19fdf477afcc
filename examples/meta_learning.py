# SPDX-License-Identifier: Apache-2.0
"""Meta-learning with implicit gradients (iMAML: Rajeswaran, Finn, Kakade and Levine 2019) on sinusoids.

    adapt    phi_t = argmin over phi of  l(phi, ten samples of task t) + lam/2 |phi - theta|^2
    learn    minimise the mean over the tasks t of  l(phi_t, ten other samples of task t)  over theta

A task is y = a sin(x - b) with a in [0.1, 5] and b in [0, pi].  phi is the last layer of a network, whose other layers
the tasks share and learn with theta.  With H the Hessian of l at phi_t, dphi_t/dtheta = (I + H / lam)^-1: a gradient
needs the adapted weights, not the steps that led to them.
"""

import torch
from torch import Tensor, nn

from optlayer.implicit import argmin

torch.manual_seed(0)
lam, n = 0.01, 20
features = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, n), nn.Tanh()).double()
theta = nn.Parameter(torch.zeros(n, dtype=torch.float64))


def sample(tasks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, x = (torch.rand(tasks, k, dtype=torch.float64) for k in (1, 1, 20))
    x = 10 * x - 5
    y = (0.1 + 4.9 * a) * torch.sin(x - torch.pi * b)
    return x[:, :10, None], y[:, :10], x[:, 10:, None], y[:, 10:]


def error(phi: Tensor, A: Tensor, y: Tensor) -> Tensor:
    return ((A @ phi.unsqueeze(-1)).squeeze(-1) - y).square().mean(-1)


def inner(phi: Tensor, theta: Tensor, A: Tensor, y: Tensor) -> Tensor:
    return error(phi, A, y) / 2 + lam / 2 * (phi - theta).square().sum(-1)


def learn(x: Tensor, y: Tensor, x_q: Tensor, y_q: Tensor) -> Tensor:
    A = features(x)
    phi = argmin(inner, torch.zeros(len(x), n, dtype=torch.float64), theta, A, y, batch_dims=1).value
    return error(phi, features(x_q), y_q).mean()


new, optimiser = sample(200), torch.optim.Adam([theta, *features.parameters()], lr=0.01)
print(f"200 new tasks, adapted to ten samples: mean squared error {(before := learn(*new).item()):.3f} before learning")
for step in range(1, 201):
    loss = learn(*sample(16))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 50 == 0:
        print(f"    after {step:3d} steps {(after := learn(*new).item()):.3f}")
print(f"    and without adaptation {error(theta, features(new[2]), new[3]).mean().item():.3f}")
assert after < 0.05 * before

A, y = features(new[0][0]).detach(), new[1][0]
J = torch.func.jacrev(lambda theta: argmin(inner, theta, theta, A, y).value)(theta.detach())
torch.testing.assert_close(J, torch.linalg.inv(torch.eye(n, dtype=torch.float64) + A.T @ A / len(A) / lam))
