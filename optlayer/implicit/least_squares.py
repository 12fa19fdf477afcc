# SPDX-License-Identifier: Apache-2.0
"""Iterative least squares: min |Ax - b|, and of all minimisers the shortest, from products with A and A'.

    normal_cg  conjugate gradients on A'A x = A'b without forming A'A (Hestenes and Stiefel's CGLS)
    lsmr       Golub-Kahan bidiagonalisation, |A'r| falls monotonically (Fong and Saunders 2011)

Both start at zero and stay in the range of A', which is why the shortest solution comes out.  They stop when A'r is
small beside |A| |r|, or r beside b: (*batch, 1) scalars, elements that are done do not move, as in krylov.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .krylov import Product, divide, dot, norm, zero_counts


def normal_cg(A: Product, At: Product, b: Tensor, eps: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """CGLS; the iterate and the number of iterations."""
    r, s = b, At(b)
    x, p = torch.zeros_like(s), s
    ss, size, squares = dot(s, s), norm(b), torch.zeros_like(dot(s, s))
    count = zero_counts(b)
    for _ in range(max_iter):
        left = norm(r)
        going = (ss.sqrt() > eps * squares.sqrt() * left) & (ss > 0) & (left > eps * size)
        if not going.any():
            break
        Ap = A(p)
        stretch = dot(Ap, Ap)
        squares = torch.maximum(squares, divide(stretch, dot(p, p)))  # grows to |A|^2
        alpha = torch.where(going, divide(ss, stretch), 0)
        x, r = x + alpha * p, r - alpha * Ap
        s = torch.where(going, At(r), s)
        before, ss = ss, torch.where(going, dot(s, s), ss)
        p = torch.where(going, s + divide(ss, before) * p, p)
        count = count + going.squeeze(-1)
    return x, count


def lsmr(A: Product, At: Product, b: Tensor, eps: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """LSMR, in the names of the paper; the iterate and the number of iterations.

    The residual r is carried along: A v is at hand, so A h and A hbar follow the recurrences of h and hbar.
    """
    r, size = b, norm(b)
    u = divide(b, size)
    v = At(u)
    alpha = norm(v)
    v = divide(v, alpha)
    one = torch.ones_like(alpha)
    alphabar, zetabar, rho, rhobar, cbar, sbar = alpha, alpha * size, one, one, one, torch.zeros_like(one)
    x, h, hbar = torch.zeros_like(v), v, torch.zeros_like(v)
    Av = A(v)
    Ah, Ahbar = Av, torch.zeros_like(b)
    squares = alpha.square()  # grows to the squared Frobenius norm of A
    count = zero_counts(b)
    going = torch.ones_like(one, dtype=torch.bool)
    for _ in range(max_iter):
        left = norm(r)
        going = going & (zetabar.abs() > eps * squares.sqrt() * left) & (left > eps * size)
        if not going.any():
            break
        # Bidiagonalisation: beta u = A v - alpha u,  alpha v = A'u - beta v.
        u = Av - alpha * u
        beta = norm(u)
        u = divide(u, beta)
        v = At(u) - beta * v
        alpha = norm(v)
        v = divide(v, alpha)
        Av = A(v)
        squares = squares + beta.square() + alpha.square()
        # Rotations of the bidiagonal matrix and of the product R R'.
        rho_old, rho = rho, torch.hypot(alphabar, beta)
        c, s = divide(alphabar, rho), divide(beta, rho)
        theta, alphabar = s * alpha, c * alpha
        thetabar, rhobar_old = sbar * rho, rhobar
        rhobar = torch.hypot(cbar * rho, theta)
        cbar, sbar = divide(cbar * rho, rhobar), divide(theta, rhobar)
        zeta, zetabar = cbar * zetabar, -sbar * zetabar
        # The iterate and its residual.
        turn = divide(thetabar * rho, rho_old * rhobar_old)
        hbar, Ahbar = h - turn * hbar, Ah - turn * Ahbar
        step = torch.where(going, divide(zeta, rho * rhobar), 0)
        x, r = x + step * hbar, r - step * Ahbar
        turn = divide(theta, rho)
        h, Ah = v - turn * h, Av - turn * Ah
        count = count + going.squeeze(-1)
    return x, count
