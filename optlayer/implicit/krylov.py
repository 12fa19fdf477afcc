# SPDX-License-Identifier: Apache-2.0
"""Iterative solvers of linear systems that know the matrix by its products alone.

    cg        symmetric positive definite A              one product an iteration
    bicgstab  any square A, little memory                two products, may break down
    gmres     any square A, least residual in its space  one product, memory of `RESTART` vectors

Each element of the batch is a system of its own: b (*batch, n), and all scalars are (*batch, 1).  An element that is
done no longer moves.  Right-hand sides come in with unit norm (linear.py sees to it), so that neither tiny nor huge
ones lose digits.  None of the solvers judges itself: they return an iterate and the number of iterations, and the
caller measures the true residual.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kkt import algebra

Product = Callable[[Tensor], Tensor]
RESTART = 40
STALLED = 0.9  # a restarted cycle that leaves more than this of the residual has stagnated


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a'b, (*batch, 1)."""
    return (a * b).sum(-1, keepdim=True)


def norm(a: Tensor) -> Tensor:
    """The Euclidean norm, (*batch, 1), without overflow or underflow of the squares."""
    info = torch.finfo(a.dtype)
    size = algebra.norm(a).unsqueeze(-1).clamp(info.tiny, info.max)
    length: Tensor = size * torch.linalg.vector_norm(a / size, dim=-1, keepdim=True)
    return length


def zero_counts(b: Tensor) -> Tensor:
    """(*batch) int64, zero."""
    return b.new_zeros(b.shape[:-1], dtype=torch.int64)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b = 0."""
    return (a / b).masked_fill(b == 0, 0)


def cg(A: Product, b: Tensor, eps: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """Conjugate gradients."""
    x, r, p = torch.zeros_like(b), b, b
    rr, count = dot(r, r), zero_counts(b)
    for _ in range(max_iter):
        going = rr > eps * eps
        if not going.any():
            break
        Ap = A(p)
        curvature = dot(p, Ap)
        going = going & (curvature > 0)  # not positive definite: stop there
        if not going.any():
            break
        alpha = torch.where(going, divide(rr, curvature), 0)
        x, r = x + alpha * p, r - alpha * Ap
        before, rr = rr, torch.where(going, dot(r, r), rr)
        p = torch.where(going, r + divide(rr, before) * p, 0)
        count = count + going.squeeze(-1)
    return x, count


def bicgstab(A: Product, b: Tensor, eps: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """Stabilised biconjugate gradients (van der Vorst 1992); the best iterate is kept, for its residual jumps."""
    x, r, p = torch.zeros_like(b), b, b
    rho, count = dot(b, r), zero_counts(b)
    best, least = x, norm(r)
    going = least > eps
    for _ in range(max_iter):
        if not going.any():
            break
        v = A(p)
        alpha = divide(rho, dot(b, v))
        s = r - alpha * v
        t = A(s)
        omega = divide(dot(t, s), dot(t, t))
        x = torch.where(going, x + alpha * p + omega * s, x)
        r = torch.where(going, s - omega * t, r)
        size, before = norm(r), rho
        better = going & (size < least)
        best, least = torch.where(better, x, best), torch.where(better, size, least)
        rho = dot(b, r)
        beta = divide(rho, before) * divide(alpha, omega)
        p = r + beta * (p - omega * v)
        count = count + going.squeeze(-1)
        # beta = 0 or a residual that is not finite: broken down
        going = going & (size > eps) & (beta != 0) & size.isfinite()
    return best, count


def gmres(A: Product, b: Tensor, eps: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """Generalised minimal residuals (Saad and Schultz 1986), restarted after `RESTART` iterations."""
    x, r = torch.zeros_like(b), b
    size, count = norm(r), zero_counts(b)
    going, left = size > eps, max_iter
    while left > 0 and going.any():
        steps = min(RESTART, left, b.shape[-1])
        dx, taken = _cycle(A, r, eps, steps, going)
        trial = x + dx
        r_trial = b - A(trial)
        size_trial = norm(r_trial)
        better = going & (size_trial < size)
        x, r = torch.where(better, trial, x), torch.where(better, r_trial, r)
        going = better & (size_trial > eps) & (size_trial < STALLED * size)
        size = torch.where(better, size_trial, size)
        count, left = count + taken, left - steps
    return x, count


def _cycle(A: Product, r: Tensor, eps: float, steps: int, going: Tensor) -> tuple[Tensor, Tensor]:
    """The correction from one Krylov space of at most `steps` dimensions, and the iterations of each element.

    Arnoldi: A V_k = V_{k+1} H.  The residual that the best combination of V_k would leave is beta / |y|, where y is the
    vector with y_0 = 1 and H'y = 0: one more entry of y for each column, and no factorisation until the end.
    """
    batch, n = r.shape[:-1], r.shape[-1]
    beta = norm(r)
    V = r.new_zeros(*batch, steps + 1, n)
    H = r.new_zeros(*batch, steps + 1, steps)
    y = r.new_zeros(*batch, steps + 1)
    V[..., 0, :] = torch.where(going, divide(r, beta), 0)
    y[..., 0] = 1
    count = zero_counts(r)
    active = going
    taken = steps
    for k in range(steps):
        w = A(V[..., k, :])
        basis = V[..., : k + 1, :]
        h = (basis @ w.unsqueeze(-1)).squeeze(-1)
        w = w - (h.unsqueeze(-2) @ basis).squeeze(-2)
        again = (basis @ w.unsqueeze(-1)).squeeze(-1)  # twice is enough
        w, h = w - (again.unsqueeze(-2) @ basis).squeeze(-2), h + again
        height = norm(w)
        small = height <= 10 * torch.finfo(r.dtype).eps * norm(
            h
        )  # the space is invariant: rounding is all that is left
        height = torch.where(small, 0, height)
        # An element that is done gets a column of its own that takes no part.
        H[..., : k + 1, k] = torch.where(active, h, 0)
        H[..., k + 1, k] = torch.where(active, height, 1).squeeze(-1)
        y_next = -divide(dot(y[..., : k + 1], h), height)
        y[..., k + 1] = torch.where(active & ~small, y_next, 0).squeeze(-1)
        count = count + active.squeeze(-1)
        active = active & ~small & (beta > eps * torch.linalg.vector_norm(y, dim=-1, keepdim=True))
        V[..., k + 1, :] = torch.where(active, divide(w, height), 0)
        if not active.any():
            taken = k + 1
            break
    H, V = H[..., : taken + 1, :taken], V[..., :taken, :]
    Q, R = torch.linalg.qr(H)
    s = torch.linalg.solve_triangular(R, Q[..., 0, :].unsqueeze(-1) * beta.unsqueeze(-1), upper=True).squeeze(-1)
    dx = (s.unsqueeze(-2) @ V).squeeze(-2)
    return torch.where(going & dx.isfinite().all(-1, keepdim=True), dx, 0), count
