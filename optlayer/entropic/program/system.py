# SPDX-License-Identifier: Apache-2.0
"""The KKT system at a solution, from the few vectors that say what it is.

K = [ P + diag(tau / x)  A'  G'   I     ;        D = diag(1 / w),  D_box = diag(1 / w_box)
      A                  0   0    0     ;        w = infinity for an active row or bound, 0 for an inactive one,
      G                  0  -D    0     ;        the central z / s for one that is weakly active
      I                  0   0   -D_box ]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kkt.algebra import NONZERO, mm
from .kkt import KKT

UNDERFLOW = 1e-250  # an x / tau below this has no reciprocal worth having


class State(NamedTuple):
    """What K is: share (B, n) = x / tau, w_box (B, n), w (B, k) of rows of unit norm, ok (B, 1)."""

    share: Tensor
    w_box: Tensor
    w: Tensor
    ok: Tensor

    @staticmethod
    def size(n: int, k: int) -> int:
        """Entries of a packed state."""
        return 2 * n + k + 1

    def pack(self) -> Tensor:
        """All vectors in one row for each element, (B, size)."""
        return torch.cat([*self[:3], self.ok.to(self.w.dtype)], 1)

    @classmethod
    def unpack(cls, packed: Tensor, n: int, k: int) -> State:
        """The state that was packed."""
        share, w_box, w, ok = packed.split([n, n, k, 1], 1)
        return cls(share, w_box, w, ok > 0)

    def system(self, P: Tensor | None, C: Tensor, factors: Tensor | None = None) -> KKT:
        """K, factorised, with rows scaled to unit norm."""
        full = P is not None and P.shape[1] == P.shape[2]
        stiffness = torch.where(self.w_box.isinf(), 0.0, self.w_box)
        if P is not None and not full:
            stiffness = stiffness + P.squeeze(1)
        W = torch.where(self.w_box.isinf(), 0.0, self.share / (1 + self.share * stiffness))
        return KKT(P if full else None, C * units(C).unsqueeze(-1), W, self.w, exact=True, factors=factors)


def units(C: Tensor) -> Tensor:
    """(B, k): what brings the rows to unit norm."""
    length = torch.linalg.vector_norm(C, dim=-1)
    return torch.where(length > 0, 1 / length.clamp(min=NONZERO), 1.0)


def solve(
    P: Tensor | None, C: Tensor, state: State, factors: Tensor | None, rx: Tensor, rv: Tensor, r_box: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u_x, u_v, u_box, t for blocks of right-hand sides (B, ., R)."""
    kkt, unit = state.system(P, C, factors), units(C).unsqueeze(-1)
    share, w_box, there = state.share.unsqueeze(-1), state.w_box.unsqueeze(-1), state.w.unsqueeze(-1) > 0
    held, bounded = w_box.isinf(), bool((state.w_box > 0).any())
    full = P is not None and P.shape[1] == P.shape[2]

    def times_P(x: Tensor) -> Tensor:
        if P is None:
            return torch.zeros_like(x)
        return mm(P, x) if full else P.mT * x

    force, target = rx, rv * unit
    pinned = torch.where(held, r_box, 0.0)
    if bounded:
        force = force + torch.where((w_box > 0) & ~held, w_box * r_box, 0.0) - times_P(pinned)
        target = target - unit * mm(C, pinned)
    ux, uv = kkt.solve(force, torch.where(there, target, 0.0))
    ux, uv = ux + pinned, unit * torch.where(there, uv, 0.0)
    rest = rx - times_P(ux) - mm(C.mT, uv)
    soft = torch.where((w_box > 0) & ~held, w_box * (ux - r_box), 0.0)
    tiny = share < UNDERFLOW
    t = torch.where(tiny, torch.where(held, 0.0, rest - soft), ux / torch.where(tiny, 1.0, share))
    u_box = torch.where(held, rest - t, soft)
    ok = (state.ok.squeeze(-1) & kkt.ok)[:, None, None]
    if not bool(ok.all()):
        zero = torch.stack([(a == 0).all(1, keepdim=True) for a in (rx, rv, r_box)]).all(0)
        nothing = torch.where(zero, 0.0, torch.nan).to(torch.float64)
        ux, uv, u_box, t = (torch.where(ok, a, nothing) for a in (ux, uv, u_box, t))
    return ux, uv, u_box, t
