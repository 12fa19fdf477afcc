# SPDX-License-Identifier: Apache-2.0
"""A layer that is the solution of an equation (DEQ; Bai, Kolter and Koltun 2019) reads handwritten digits.

    z = tanh(Wz + u),   u = Ux + b,      scores = Vz + c

|W| <= 0.9 makes the right-hand side a contraction, |tanh'| being at most 1, so that z exists and is unique.  With
D = diag(1 - z^2) and a cotangent g of z, (I - DW)'v = g gives dL/du = Dv and dL/dW = Dv z'.  Beside it the same network
with 32 iterations unrolled: as accurate, but it keeps every iterate for backward, the implicit layer only the last.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from optlayer.implicit import fixed_point

X, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
X = X.float() / 16


def f(z: Tensor, W: Tensor, u: Tensor) -> Tensor:
    return torch.tanh(z @ W.mT + u)


class Network(nn.Module):
    def __init__(self, unrolled: int = 0, n: int = 64) -> None:
        super().__init__()
        self.U, self.V = nn.Linear(64, n), nn.Linear(n, 10)
        self.W, self.unrolled = nn.Parameter(torch.randn(n, n) / (2 * n**0.5)), unrolled

    def forward(self, x: Tensor) -> Tensor:
        W = self.W * (0.9 / torch.linalg.matrix_norm(self.W, 2)).clamp(max=1)
        z = torch.zeros_like(u := self.U(x))
        for _ in range(self.unrolled):
            z = f(z, W, u)
        if not self.unrolled:
            solution = fixed_point(f, z, W, u, batch_dims=1, method="picard", eps_abs=1e-4, eps_rel=0.0)
            z, self.iterations = solution.value, int(solution.iterations.max())
        return self.V(z)


def train(network: Network, epochs: int = 15) -> float:
    learned, held_out = torch.randperm(len(X)).split(1437)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in learned[torch.randperm(len(learned))].split(64):
            loss = nn.functional.cross_entropy(network(X[batch]), y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return (network(X[held_out]).argmax(1) == y[held_out]).float().mean().item()


for unrolled in (0, 32):
    torch.manual_seed(0)
    accuracy = train(network := Network(unrolled))
    kind = f"{unrolled} iterations unrolled" if unrolled else f"implicit, {network.iterations} iterations to 1e-4"
    print(f"{kind}: {sum(p.numel() for p in network.parameters()):,} parameters, test accuracy {accuracy:.3f}")
    assert accuracy > 0.95
