# SPDX-License-Identifier: Apache-2.0
"""The KKT system at a solution: the one matrix that every derivative of the solution is solved with.

        [ P  A' G'  I     ]        D = diag(1/w),  D_box = diag(1/w_box)
    K = [ A  0  0   0     ]        w = infinity for an active row or bound, 0 for an inactive one,
        [ G  0 -D   0     ]        z/s, the central value, for one that is weakly active
        [ I  0  0  -D_box ]

Rows and bounds of weight zero are not there: their multiplier does not move. Active bounds are eliminated, exactly;
weakly active ones sit on the diagonal of P. What remains is regularised by rho = delta = 1e-12, factorised by the
weight split in the equilibrated units of scaling.py, and every solve is refined against K itself, unscaled and
unregularised.

`State` says what K is (a few vectors), the factors make it quick: from the state alone they can be made again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .algebra import mm
from .scaling import Scaling
from .split import SplitFactor

RHO = DELTA = 1e-12  # with them two refinements reach 5e-8 on the hardest derivatives; 1e-10 would need ten
CAP = 1.0  # less than the method's own: the less of the rows is condensed, the more digits of P a kept factor has
REFINEMENTS = 4  # two are enough but for rows that share their weights
WORTHWHILE = 0.7  # a refinement that leaves more than this of the residual is the last
SLOWER, NEAR_ROUNDING = 1e3, 1e-11  # so is one that gains so many times less than the one before, near rounding
INCONSISTENT = 1e-7  # a right-hand side that leaves more than this of itself is outside the range of K
PROJECTIONS = 4  # each takes all but 1e-4 of that part out
ROUNDING = 2e-15  # of the right-hand side: what is left is rounding. 1e-14 costs 1e-7 where cond(P) = 1e12


class State(NamedTuple):
    """The weights of K in the scaled units, and the units. w (B, p + m), w_box (B, n), ok (B, 1).

    `cap` (B, 1) is that of the weight split, CAP or, in range-space form, 0; None is CAP everywhere."""

    scaling: Scaling
    w: Tensor
    w_box: Tensor
    ok: Tensor
    cap: Tensor | None = None

    @staticmethod
    def size(n: int, rows: int) -> int:
        """Entries of a packed state."""
        return 2 * n + 2 * rows + 2

    def pack(self) -> Tensor:
        """All vectors in one row for each element, (B, size). The last entry is 0 where there is no factorisation, 1
        where its cap is CAP and 2 where it is 0."""
        D, E, c = self.scaling
        kind = self.ok.to(D.dtype)
        if self.cap is not None:
            kind = kind * (1.0 + (self.cap == 0))
        return torch.cat([D, self.w_box, E, self.w, c, kind], 1)

    @classmethod
    def unpack(cls, packed: Tensor, n: int, rows: int) -> State:
        """The state that was packed."""
        D, w_box, E, w, c, kind = packed.split([n, n, rows, rows, 1, 1], 1)
        return cls(Scaling(D, E, c), w, w_box, kind > 0, torch.where(kind == 2, 0.0, CAP).to(D.dtype))


class System:
    """K of a batch, factorised. P (B, n, n), C = [A; G] (B, p + m, n), both unscaled."""

    def __init__(self, P: Tensor, C: Tensor, state: State, heavy: Tensor | None = None, factors: Tensor | None = None):
        self.P, self.C, self.state = P, C, state
        D, E, c = state.scaling
        self.free = state.w_box != float("inf")
        self.bounded = bool((state.w_box > 0).any())
        columns = (D * self.free).unsqueeze(-2)
        scaled = C * E.unsqueeze(-1) * columns
        w = (state.w.reciprocal() + DELTA).reciprocal()
        cap = CAP if state.cap is None else state.cap
        if factors is None or heavy is None:
            H = P * c.unsqueeze(-1) * columns * columns.mT
            diagonal = torch.where(self.free, state.w_box + RHO, 1.0)
            self.kernel = SplitFactor(H, scaled, w, diagonal, SplitFactor.sizes(C.shape[2], C.shape[1])[0], cap)
            self.ok = self.kernel.ok & state.ok.squeeze(-1)
        else:
            self.kernel = SplitFactor.restore(scaled, w, cap, heavy, factors)
            self.ok = state.ok.squeeze(-1)

    def solve(
        self,
        rx: Tensor,
        rv: Tensor,
        r_box: Tensor,
        start: tuple[Tensor, Tensor] | None = None,
        refinements: int = REFINEMENTS,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u_x, u_v, u_box with K u = (rx, rv, r_box); blocks of shape (B, ., R), v stacks y and z.

        `start` is a first guess of (u_x, u_v), where a multiplier that is not unique comes out nearest to. Without one,
        a right-hand side outside the range of a singular K (a minimiser or multipliers that are not unique) is
        projected on it: what is returned is the least squares solution of least norm, in scaled units. A right-hand
        side that is not finite gives NaN.
        """
        if start is not None:
            return self._refined(rx, rv, r_box, start, refinements)[:3]
        ux, uv, u_box, a, b, size = self._refined(rx, rv, r_box, None, refinements)
        for _ in range(PROJECTIONS):
            left = torch.cat([a, b], 1).abs().amax(1, keepdim=True)
            lost = (left > INCONSISTENT * size) & size.isfinite()
            if not lost.any():
                break
            # the residual that no refinement removes is the part outside the range
            (D, E, c) = (t.unsqueeze(-1) for t in self.state.scaling)
            rx = torch.where(lost, rx - a / (c * D), rx)
            rv = torch.where(lost, rv - b / E, rv)
            again = self._refined(rx, rv, r_box, None, refinements)
            ux, uv, u_box = (torch.where(lost, new, old) for new, old in zip(again[:3], (ux, uv, u_box), strict=True))
            a, b = (torch.where(lost, new, 0.0) for new in again[3:5])
        spoilt = ~size.isfinite()
        return (
            ux.masked_fill(spoilt, torch.nan),
            uv.masked_fill(spoilt, torch.nan),
            u_box.masked_fill(spoilt, torch.nan),
        )

    def _refined(
        self, rx: Tensor, rv: Tensor, r_box: Tensor, start: tuple[Tensor, Tensor] | None, refinements: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Solve with the regularised factor and refine against K; u, its scaled residuals a and b, and the size of r.

        Each element keeps the best of its iterates, and the loop ends when none improves any more.
        """
        (D, E, c), w, w_box = self.state.scaling, self.state.w.unsqueeze(-1), self.state.w_box.unsqueeze(-1)
        D, E, c = D.unsqueeze(-1), E.unsqueeze(-1), c.unsqueeze(-1)
        free, there = self.free.unsqueeze(-1), w > 0
        compliance = torch.where(there, w, 1.0).reciprocal()
        ux, uv = (torch.zeros_like(rx), torch.zeros_like(rv)) if start is None else start
        ux, uv = torch.where(free, ux, r_box), torch.where(there, uv, 0.0)
        cD, Ec, Et = torch.where(free, c * D, 0.0), E / c, torch.where(there, E, 0.0)
        softness = torch.where(there, compliance / Ec, 0.0)
        stiffness = torch.where(free, w_box, 0.0) / (c * D * D)
        size = torch.cat([cD * rx, torch.where(there, E * rv, 0.0)], 1).abs().amax(1, keepdim=True)
        if self.bounded:
            size = size + torch.where(w_box > 0, r_box, 0.0).abs().amax(1, keepdim=True)
        best, going = torch.full_like(size, torch.inf), torch.ones_like(size, dtype=torch.bool)
        rate, bx, bv, ba, bb = best, ux, uv, torch.zeros_like(rx), torch.zeros_like(rv)
        for k in range(refinements + 2):
            if k == 0 and start is None and not self.bounded:  # u = 0
                a, b = cD * rx, torch.where(there, E * rv, 0.0)
            else:
                a = cD * (rx - mm(self.P, ux) - mm(self.C.mT, uv) - stiffness * (ux - r_box))
                b = torch.where(there, Et * (rv - mm(self.C, ux)) + softness * uv, 0.0)
            error = torch.cat([a, b / (1 + compliance)], 1).abs().amax(1, keepdim=True)
            better = going & (error < best)
            bx, bv, ba, bb = (torch.where(better, new, old) for new, old in ((ux, bx), (uv, bv), (a, ba), (b, bb)))
            last, rate = rate, error / best
            going = better & (error > ROUNDING * size)
            if k > 1:
                going = going & (rate < WORTHWHILE) & ((rate < SLOWER * last) | (error > NEAR_ROUNDING * size))
            best = torch.where(better, error, best)
            if k == refinements + 1 or not going.any():
                break
            dx, dv = self.kernel.solve(a, b)
            ux, uv = bx + D * dx, bv + Ec * dv
        u_box = torch.zeros_like(bx)
        if self.bounded:
            u_box = torch.where(free, stiffness * (bx - r_box), rx - mm(self.P, bx) - mm(self.C.mT, bv))
        return bx, bv, u_box, ba, bb, size
