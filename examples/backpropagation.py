# SPDX-License-Identifier: Apache-2.0
"""Backpropagation is the implicit function theorem on a triangular system.

A network z_l = tanh(W_l z_{l-1}), l = 1..L, is the root z = (z_1, ..., z_L) of

    F(z, W)_l = z_l - tanh(W_l z_{l-1}) = 0,         dF/dz = [  I               ]        D_l = diag(1 - z_l^2)
                                                             [-D_2 W_2   I      ]
                                                             [       -D_3 W_3  I]

The theorem solves (dF/dz)'u = dl/dz and returns dl/dW = -(dF/dW)'u.  The matrix is upper triangular with ones on its
diagonal, never singular, and back-substitution, from the last layer to the first, is backpropagation:

    u_l = dl/dz_l + W_{l+1}' D_{l+1} u_{l+1},        dl/dW_l = D_l u_l z_{l-1}'
"""

from itertools import pairwise

import torch

from optlayer.implicit import implicit

torch.manual_seed(0)
sizes = (4, 7, 6, 5, 3)
W = [torch.randn(m, n, dtype=torch.float64, requires_grad=True) for n, m in pairwise(sizes)]
x, target = torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)


def F(z: torch.Tensor, *W: torch.Tensor) -> torch.Tensor:
    layers = z.split(sizes[1:])
    before = (x, *layers[:-1])
    return torch.cat([a - torch.tanh(M @ b) for a, M, b in zip(layers, W, before, strict=True)])


def loss(z: torch.Tensor) -> torch.Tensor:
    return (z[-3:] - target).square().sum()


layers = [x]
for M in W:
    layers.append(torch.tanh(M @ layers[-1]))
by_backpropagation = torch.autograd.grad(loss(layers[-1]), W)

# The theorem is told the root and the equation, and nothing about an order of the layers.
z = torch.cat(layers[1:]).detach()
by_the_theorem = torch.autograd.grad(loss(implicit(F, z, *W)), W)

# Back-substitution by hand: the last block first.
J = torch.autograd.functional.jacobian(lambda z: F(z, *W), z)
assert torch.equal(J, J.tril()) and (J.diagonal() == 1).all()
z_bar = torch.autograd.functional.jacobian(loss, z)
u = torch.linalg.solve_triangular(J.T, z_bar[:, None], upper=True)[:, 0].split(sizes[1:])
before = (x, *z.split(sizes[1:])[:-1])
by_substitution = [torch.outer((1 - a**2) * v, b) for a, v, b in zip(z.split(sizes[1:]), u, before, strict=True)]

for name, found in {"the theorem": by_the_theorem, "back-substitution": by_substitution}.items():
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, by_backpropagation, strict=True))
    print(f"gradients by {name:<18} differ from those of backpropagation by {error:.0e}, relative to the largest")
    assert error <= 1e-14
