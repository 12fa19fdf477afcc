# SPDX-License-Identifier: Apache-2.0
"""The range-space shortcut: eliminate x once, then factorise only rows.

For a positive definite and reasonably conditioned P without bounds, the system of split.py has the Schur complement

    S = C P^-1 C' + diag(1/w),       t = S^-1 (C P^-1 a - c),       dx = P^-1 (a - C' t),       dv = t

in which only the diagonal changes from one iteration to the next. P^-1, W = P^-1 C' and K = C W are formed once; an
iteration costs the Cholesky factorisation of S and a few products. It pays while there are not many more rows than
variables."""

from __future__ import annotations

import torch
from torch import Tensor

from .algebra import cholesky, cholesky_solve, lower_solve, mm

PIVOT_RATIO = 1e-6  # least admissible min L_ii^2 / max L_ii^2: errors of the adjoint stay below 1e-10
ROWS_PER_VARIABLE = 1.6  # where its cost meets the split's
LARGEST_RECIPROCAL = 1e60  # of a weight: a row of weight zero is not there


class RangeSpace:
    """What does not change over the iterations: P^-1, W = P^-1 C', K = C W, from L with L L' = P (B, n, n)."""

    def __init__(self, L: Tensor, C: Tensor):
        n = L.shape[-1]
        identity = torch.eye(n, dtype=L.dtype, device=L.device).expand_as(L)
        both = lower_solve(L, torch.cat([identity, C.mT], -1))
        V = both[..., n:]
        self.K = V.mT @ V
        self.both = both.mT @ both[..., :n]  # P^-1 over W', of shape (B, n + r, n)

    def take(self, index: Tensor) -> RangeSpace:
        """The same for some elements of the batch."""
        part = object.__new__(RangeSpace)
        part.both, part.K = self.both[index], self.K[index]
        return part

    def factor(self, w: Tensor) -> RangeFactor:
        """Factorise for the weights w (B, r)."""
        return RangeFactor(self, w)


class RangeFactor:
    """S = K + diag(1/w), factorised; the same interface as SplitFactor."""

    def __init__(self, space: RangeSpace, w: Tensor):
        self.space = space
        S = space.K.clone()
        S.diagonal(dim1=-2, dim2=-1).add_(w.reciprocal().clamp(max=LARGEST_RECIPROCAL))
        self.F, self.ok = cholesky(S)

    def solve(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(dx, dv) for right-hand sides a (B, n, R) and c (B, r, R)."""
        both, n = self.space.both, a.shape[1]
        u, Wa = mm(both, a).split([n, c.shape[1]], 1)
        t = cholesky_solve(self.F, Wa - c)
        return u - mm(both[:, n:].mT, t), t


def admissible(L: Tensor, ok: Tensor, rows: int, bounded: Tensor) -> Tensor:
    """Which elements (B,) may take the shortcut: L the Cholesky factor of the scaled P where `ok`, `bounded` (B,)."""
    pivots = L.diagonal(dim1=-2, dim2=-1).square()
    conditioned = pivots.amin(-1) >= PIVOT_RATIO * pivots.amax(-1)
    return ok & conditioned & ~bounded & (rows <= ROWS_PER_VARIABLE * L.shape[-1])
