# SPDX-License-Identifier: Apache-2.0
"""The KKT system at a solution: the one matrix that every derivative of the solution is solved with.

        [ P  A' G'  I     ]        D = diag(1/w),  D_box = diag(1/w_box)
    K = [ A  0  0   0     ]        w = infinity for an active row or bound, 0 for an inactive one,
        [ G  0 -D   0     ]        z/s, the central value, for one that is weakly active
        [ I  0  0  -D_box ]

Rows and bounds of weight zero are not there: their multiplier does not move. Active bounds are eliminated, exactly;
weakly active ones sit on the diagonal of P. What remains is regularised by rho = delta = 1e-12 (1e-6 for float32
data, whose rounding may have turned a zero eigenvalue of P negative), factorised by the
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

CAP = 1.0  # less than the method's own: the less of the rows is condensed, the more digits of P a kept factor has
REFINEMENTS = 4  # two are enough but for rows that share their weights
WORTHWHILE = 0.7  # a refinement that leaves more than this of the residual is the last
SLOWER, NEAR_ROUNDING = 1e3, 1e-11  # so is one that gains so many times less than the one before, near rounding
INCONSISTENT = 1e-7  # a right-hand side that leaves more than this of itself is outside the range of K
PASSES = 6  # each leaves 1e-3 or 1e-4 of the part that it takes out
PURE = 1e-7  # of the whole: a part below this is not looked at again
ROUNDING = 2e-15  # of the right-hand side: what is left is rounding. 1e-14 costs 1e-7 where cond(P) = 1e12


class Grain(NamedTuple):
    """What counts as zero in scaled data, by the precision in which they were given."""

    rho: float  # that regularises K, and delta
    singular: float  # squared pivots below this: solutions or multipliers may not be unique
    vanishing: float  # part of a vector that may be left where K maps it to zero


DOUBLE = Grain(1e-12, 1e-8, 1e-13)  # two refinements reach 5e-8 on the hardest derivatives; rho = 1e-10 would need ten
SINGLE = Grain(1e-6, 1e-3, 1e-6)


def grain(dtype: torch.dtype) -> Grain:
    """That of data of this dtype."""
    return SINGLE if dtype == torch.float32 else DOUBLE


class State(NamedTuple):
    """The weights of K in the scaled units, and the units. w (B, p + m), w_box (B, n), ok (B, 1).

    `cap` (B, 1) is that of the weight split, CAP or, in range-space form, 0; None is CAP everywhere."""

    scaling: Scaling
    w: Tensor
    w_box: Tensor
    ok: Tensor
    cap: Tensor | None = None
    grain: Grain = DOUBLE

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
    def unpack(cls, packed: Tensor, n: int, rows: int, grain: Grain = DOUBLE) -> State:
        """The state that was packed."""
        D, w_box, E, w, c, kind = packed.split([n, n, rows, rows, 1, 1], 1)
        return cls(Scaling(D, E, c), w, w_box, kind > 0, torch.where(kind == 2, 0.0, CAP).to(D.dtype), grain)


class System:
    """K of a batch, factorised. P (B, n, n), C = [A; G] (B, p + m, n), both unscaled."""

    def __init__(self, P: Tensor, C: Tensor, state: State, heavy: Tensor | None = None, factors: Tensor | None = None):
        self.P, self.C, self.state = P, C, state
        D, E, c = state.scaling
        self.free = state.w_box != float("inf")
        self.bounded = bool((state.w_box > 0).any())
        columns = (D * self.free).unsqueeze(-2)
        scaled = C * E.unsqueeze(-1) * columns
        w = (state.w.reciprocal() + state.grain.rho).reciprocal()
        cap = CAP if state.cap is None else state.cap
        if factors is None or heavy is None:
            H = P * c.unsqueeze(-1) * columns * columns.mT
            diagonal = torch.where(self.free, state.w_box + state.grain.rho, 1.0)
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
        projected on it, and what K maps to zero is taken out of the solution: what is returned is the least squares
        solution of least norm, in scaled units. A right-hand side that is not finite gives NaN.
        """
        if start is not None:
            return self._refined(rx, rv, r_box, start, refinements)[:3]
        ux, uv, u_box, a, b, size = self._refined(rx, rv, r_box, None, refinements)
        sound = size.isfinite()
        lost = sound & (torch.cat([a, b], 1).abs().amax(1, keepdim=True) > INCONSISTENT * size)
        if lost.any():
            rx, rv = self._projected(rx, rv, lost, size)
            again = self._refined(rx, rv, r_box, None, refinements)
            ux, uv, u_box = (torch.where(lost, new, old) for new, old in zip(again[:3], (ux, uv, u_box), strict=True))
        vague = sound & (lost | (self.singular & self.ok)[:, None, None])
        if vague.any():
            ux, uv = self._shortest(ux, uv, vague)
            if self.bounded:
                u_box = self._box(rx, r_box, ux, uv)
        spoilt = ~sound
        return (
            ux.masked_fill(spoilt, torch.nan),
            uv.masked_fill(spoilt, torch.nan),
            u_box.masked_fill(spoilt, torch.nan),
        )

    @property
    def singular(self) -> Tensor:
        """Where (B,) K is singular, or so nearly that rho and delta make the difference."""
        pivots, border = (t.diagonal(dim1=-2, dim2=-1).square() for t in (self.kernel.L, self.kernel.F))
        dependent = border < self.state.grain.singular * self.kernel.r.square()
        return (pivots < self.state.grain.singular).any(-1) | dependent.any(-1)

    def _projected(self, rx: Tensor, rv: Tensor, which: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """The right-hand side without the part outside the range of K; `size` is its largest entry."""
        (D, E, c), w, rho = (
            (t.unsqueeze(-1) for t in self.state.scaling),
            self.state.w.unsqueeze(-1),
            self.state.grain.rho,
        )
        bx, bv = torch.where(self.free.unsqueeze(-1), c * D * rx, 0.0), torch.where(w > 0, E * rv, 0.0)
        for _ in range(PASSES):
            x, v, vanishes = self._null_part(bx / rho, bv / -rho)
            which = which & vanishes
            x, v = torch.where(which, rho * x, 0.0), torch.where(which, -rho * v, 0.0)
            bx, bv = bx - x, bv - v
            rx, rv = rx - x / (c * D), rv - v / E
            which = which & (torch.cat([x, v], 1).abs().amax(1, keepdim=True) > PURE * size)
            if not which.any():
                break
        return rx, rv

    def _shortest(self, ux: Tensor, uv: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """u without the part that K maps to zero."""
        D, E, c = (t.unsqueeze(-1) for t in self.state.scaling)
        x, v = ux / D, uv * c / E
        for _ in range(PASSES):
            part_x, part_v, vanishes = self._null_part(x, v)
            which = which & vanishes
            part_x, part_v = torch.where(which, part_x, 0.0), torch.where(which, part_v, 0.0)
            x, v = x - part_x, v - part_v
            gone, left = (torch.cat(t, 1).abs().amax(1, keepdim=True) for t in ((part_x, part_v), (x, v)))
            which = which & (gone > PURE * left)
            if not which.any():
                break
        return D * x, E * v / c

    def _null_part(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The part of (x, v), in scaled units, that K maps to zero, and where K does so indeed.

        (K + R)^-1 R, where R is the regularisation, leaves that part as it is and rho of all else. Twice, that nearly
        singular directions are spared.
        """
        (D, E, c), w, w_box = self.state.scaling, self.state.w.unsqueeze(-1), self.state.w_box.unsqueeze(-1)
        D, E, c = D.unsqueeze(-1), E.unsqueeze(-1), c.unsqueeze(-1)
        free, there, rho = self.free.unsqueeze(-1), w > 0, self.state.grain.rho
        for _ in range(2):
            x, v = self.kernel.solve(torch.where(free, rho * x, 0.0), torch.where(there, -rho * v, 0.0))
        x = torch.where(free, x, 0.0)
        compliance = torch.where(there, w, 1.0).reciprocal()
        a = torch.where(free, c * D * mm(self.P, D * x) + D * mm(self.C.mT, E * v) + w_box * x, 0.0)
        b = torch.where(there, E * mm(self.C, D * x) - compliance * v, 0.0)
        left, whole = (torch.cat(t, 1).abs().amax(1, keepdim=True) for t in ((a, b), (x, v)))
        return x, v, left <= self.state.grain.vanishing * whole

    def _box(self, rx: Tensor, r_box: Tensor, ux: Tensor, uv: Tensor) -> Tensor:
        """What the bounds' multipliers move by."""
        (D, _, c), w_box = (t.unsqueeze(-1) for t in self.state.scaling), self.state.w_box.unsqueeze(-1)
        free = self.free.unsqueeze(-1)
        stiffness = torch.where(free, w_box, 0.0) / (c * D * D)
        return torch.where(
            free, torch.where(stiffness > 0, stiffness * (ux - r_box), 0.0), rx - mm(self.P, ux) - mm(self.C.mT, uv)
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
                a = cD * (
                    rx - mm(self.P, ux) - mm(self.C.mT, uv) - torch.where(stiffness > 0, stiffness * (ux - r_box), 0.0)
                )
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
            u_box = self._box(rx, r_box, bx, bv)
        return bx, bv, u_box, ba, bb, size
