# SPDX-License-Identifier: Apache-2.0
"""Equality constraints, by elimination and by Lagrange: a rod is heated by u so that its temperature y is near t.

    minimise  J(u, y) = 1/2 |y - t|^2 + mu/2 |u|^2    subject to    G(y, u) = Dy + y^3 - u = 0

with the second differences D, y = 0 at both ends.  dG/dy = D + 3 diag(y^2) is positive definite: there is one y(u) for
every u, and f(u) = J(u, y(u)) has no constraint.  Its gradient takes one linear solve, the adjoint equation

    (dG/dy)'p = dJ/dy,        df/du = dJ/du - (dG/du)'p = dJ/du + p,

and the stationary points of f are those of the Lagrangian J + l'G, with l = -p.
"""

import torch
from torch.func import grad, jacrev

from optlayer.implicit import argmin, kkt, root

n, mu = 19, torch.tensor(1e-4, dtype=torch.float64)
place, eye = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1], torch.eye(n + 1, dtype=torch.float64)
D = (n + 1) ** 2 * (eye[1:] - eye[:-1]) @ (eye[1:] - eye[:-1]).T
t, zero = torch.where(place < 0.5, 1.0, -0.5).double(), torch.zeros_like(place)


def J(u, y, mu):
    return ((y - t).square().sum() + mu * u.square().sum()) / 2


def G(y, u):
    return D @ y + y**3 - u


def f(u, mu):
    return J(u, root(G, zero, u).value, mu)


def lagrange(mu):
    F = kkt(lambda x, mu: J(x[:n], x[n:], mu), eq=lambda x, mu: G(x[n:], x[:n]), n=2 * n, p=n)
    return root(F, torch.zeros(3 * n, dtype=torch.float64), mu).value.chunk(3)


def adjoint(u, y):
    return torch.linalg.solve(jacrev(G)(y, u).T, grad(J, 1)(u, y, mu))


def compare(what, found, expected):
    error = (found - expected).norm() / expected.norm()
    print(f"{what:<52} relative difference {error:.0e}")
    assert error <= 1e-10


u, y, l = lagrange(mu)
compare("u of least f, and u at the root of the KKT conditions", argmin(f, zero, mu).value, u)
compare("-p, and the multiplier l", -adjoint(u, y), l)
compare("du/dmu through both", jacrev(lambda mu: argmin(f, zero, mu).value)(mu), jacrev(lagrange)(mu)[0])
u = torch.sin(7 * place)
compare("df/du, and the adjoint equation, at another u", grad(f)(u, mu), mu * u + adjoint(u, root(G, zero, u).value))
print("temperatures", [round(v, 2) for v in y.tolist()])
