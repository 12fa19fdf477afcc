# SPDX-License-Identifier: Apache-2.0
"""The weight split: one Cholesky-based kernel for the Newton system of every quadratic program.

The system, with a weight w_i >= 0 for every row of C = [A; G] (1/delta for equalities, z/(s + delta z) for
inequalities) and the weights of the bounds already on the diagonal of H0 = P + rho I + diag(w_box), is

    [ H0  C'   ] [dx]   [a]
    [ C  -1/w  ] [dv] = [c]

Condensing all rows into H0 + C' diag(w) C destroys P when active rows weigh 1e12; eliminating x needs P to be positive
definite. The split does neither. Each weight is cut in two, w = gamma + r^2 with gamma = min(w, cap). The harmless part
is condensed, and the heavy rows C_k (w > cap) are bordered:

    H = H0 + C' diag(gamma) C = L L',      V = L^-1 C_k' diag(r),      M = I + V'V = F F'

    u = L^-1 (a + C' gamma c),   t = M^-1 (V'u - r c_k),   dx = L^-T (u - V t)
    dv = gamma (C dx - c),       dv_k += r t                       (never w (C dx - c) with a large w: it cancels)

cap = 0 is the range-space form and cap = infinity the fully condensed one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .algebra import (
    NONZERO,
    cholesky,
    cholesky_solve,
    lower_solve,
    lower_solve_transposed,
    mm,
    pack_lower,
    unpack_lower,
)

CAP = 100.0  # of data scaled to order one; anything from 1 to 1e4 serves
CONDENSED = 1e8  # the largest weight that may be condensed and leave P eight digits
SPANNED = 1e-20  # squared distance of a row of order one that counts as none
LEVELS = (16, 64, 256, 1024)  # numbers of heavy rows that elements are grouped by


class SplitFactor:
    """Factorised [H0 C'; C -1/w] of a batch, with H0 = P + diag(diagonal).

    P (B, n, n), C (B, r, n), w (B, r), diagonal (B, n); `cap` is one for all or (B, 1). The k heaviest rows are
    bordered. `ok` (B,) tells where the factorisation exists. What has to be kept to solve again is C, w, `heavy` and
    `factors()`; V is a convenience that restored factors do without.
    """

    V: Tensor | None

    def __init__(self, P: Tensor, C: Tensor, w: Tensor, diagonal: Tensor, k: int, cap: float | Tensor = CAP):
        self._weigh(C, w, cap, heaviest(C, w, k, cap))
        H = torch.baddbmm(P, (C * self.gamma.unsqueeze(-1)).mT, C)
        H.diagonal(dim1=-2, dim2=-1).add_(diagonal)
        self.L, ok = cholesky(H)
        rows = C.gather(1, self.heavy.unsqueeze(-1).expand(-1, -1, C.shape[-1]))
        self.V = lower_solve(self.L, (rows * self.r.unsqueeze(-1)).mT)
        M = self.V.mT @ self.V
        M.diagonal(dim1=-2, dim2=-1).add_(1.0)
        self.F, ok_border = cholesky(M)
        self.ok = ok & ok_border

    def _weigh(self, C: Tensor, w: Tensor, cap: float | Tensor, heavy: Tensor) -> None:
        light = torch.where(w > cap, cap, w)
        self.C, self.heavy = C, heavy
        self.r = (w - light).gather(1, heavy).sqrt()
        condensed = torch.where(w <= CONDENSED, w, light)
        self.gamma = condensed.scatter(1, heavy, light.gather(1, heavy))

    @staticmethod
    def sizes(n: int, rows: int) -> tuple[int, int]:
        """(k, entries of `factors`) of a factor that is kept; more than 2n heavy rows depend on each other."""
        k = min(rows, 2 * n)
        return k, (n * (n + 1) + k * (k + 1)) // 2

    def factors(self) -> Tensor:
        """The lower triangles of L and F in one row for each element, (B, n(n + 1)/2 + k(k + 1)/2)."""
        return torch.cat([pack_lower(self.L), pack_lower(self.F)], 1)

    @classmethod
    def restore(cls, C: Tensor, w: Tensor, cap: float | Tensor, heavy: Tensor, factors: Tensor) -> SplitFactor:
        """The factor that `factors` and `heavy` were taken from."""
        self = object.__new__(cls)
        self._weigh(C, w, cap, heavy)
        n, k = C.shape[-1], heavy.shape[-1]
        L, F = factors.tensor_split([n * (n + 1) // 2], 1)
        self.L, self.F, self.V = unpack_lower(L, n), unpack_lower(F, k), None
        return self

    def solve(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(dx, dv) for right-hand sides a (B, n, R) and c (B, r, R)."""
        C, L, gamma = self.C, self.L, self.gamma.unsqueeze(-1)
        u = lower_solve(L, a + mm(C.mT, gamma * c))
        if self.heavy.shape[-1] == 0:
            dx = lower_solve_transposed(L, u)
            return dx, gamma * (mm(C, dx) - c)
        r, heavy = self.r.unsqueeze(-1), self.heavy.unsqueeze(-1).expand(-1, -1, c.shape[-1])
        if self.V is None:
            Vu = r * mm(C, lower_solve_transposed(L, u)).gather(1, heavy)
        else:
            Vu = mm(self.V.mT, u)
        t = cholesky_solve(self.F, Vu - r * c.gather(1, heavy))
        rt = torch.zeros_like(c).scatter_(1, heavy, r * t)
        Vt = lower_solve(L, mm(C.mT, rt)) if self.V is None else mm(self.V, t)
        dx = lower_solve_transposed(L, u - Vt)
        return dx, gamma * (mm(C, dx) - c) + rt


def heaviest(C: Tensor, w: Tensor, k: int, cap: float | Tensor) -> Tensor:
    """The k heaviest rows of each element (B, k), heaviest first, equals in their order.

    Where more than k are heavy they are chosen such that they span all of them. A heavy row that is left out is
    condensed where its weight permits, else it weighs only `cap`, which does no harm: it depends on those kept.
    """
    chosen: Tensor = w.argsort(stable=True, dim=-1, descending=True)[:, :k].contiguous()
    heavy = w > cap
    over = (heavy.sum(-1) > k).nonzero().squeeze(-1)
    if over.numel():
        rest, score = C[over] * heavy[over].unsqueeze(-1), w[over]
        for _ in range(C.shape[-1]):  # Gram-Schmidt with pivoting: the row farthest from those chosen comes next
            square, pivot = rest.square().sum(-1).max(-1, keepdim=True)
            score = score.scatter(1, pivot, torch.where(square > SPANNED, torch.inf, score.gather(1, pivot)))
            row = rest.gather(1, pivot.unsqueeze(-1).expand(-1, -1, C.shape[-1]))
            row = row / square.sqrt().clamp(min=NONZERO).unsqueeze(-1)
            rest = rest - (rest @ row.mT) @ row
        chosen[over] = score.topk(k, -1).indices
    return chosen


class GroupedFactor:
    """The same for elements that differ in how many rows are heavy, with as many bordered as each one needs.

    k is rounded up to one of a few levels and the elements of a level are factorised together: no element's arithmetic
    depends on what its neighbours need, not even in the order of a sum.
    """

    def __init__(self, P: Tensor, C: Tensor, w: Tensor, diagonal: Tensor):
        rows = C.shape[1]
        levels = [k for k in LEVELS if k < rows] + [rows]
        level = torch.searchsorted(torch.tensor(levels, device=w.device), (w > CAP).sum(-1))
        self.parts: list[tuple[Tensor | None, SplitFactor]] = []
        self.ok = torch.ones_like(level, dtype=torch.bool)
        for i in level.unique().tolist():
            which = (level == i).nonzero().squeeze(-1)
            if which.numel() == w.shape[0]:
                factor = SplitFactor(P, C, w, diagonal, levels[i])
                self.parts, self.ok = [(None, factor)], factor.ok
            else:
                factor = SplitFactor(P[which], C[which], w[which], diagonal[which], levels[i])
                self.parts.append((which, factor))
                self.ok[which] = factor.ok

    def solve(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(dx, dv) for right-hand sides a (B, n, R) and c (B, r, R)."""
        dx, dv = torch.empty_like(a), torch.empty_like(c)
        for group, factor in self.parts:
            if group is None:
                return factor.solve(a, c)
            dx[group], dv[group] = factor.solve(a[group], c[group])
        return dx, dv
