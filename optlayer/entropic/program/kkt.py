# SPDX-License-Identifier: Apache-2.0
"""The KKT matrix of an entropic program, factorised by its structure.

    K = [ P + diag(1/W)  C'         ;        W (B, n) >= 0: what a unit of force moves each variable by, P set aside
          C              -diag(1/w) ]        w (B, k): infinity for a row that holds, 0 for one that is not there

Where x_i is small W_i = x_i / tau_i is, and 1/W_i may overflow; so everything is scaled symmetrically by sqrt(W), and
the rows by g = sqrt(w / (1 + w)):

    M = I + sqrt(W) P sqrt(W),      T = g C sqrt(W),      S = T M^-1 T' + diag(1 / (1 + w))        (k, k)
    S m = T M^-1 sqrt(W) r1 - g r2,      dx = sqrt(W) M^-1 (sqrt(W) r1 - T' m),      l = g m

S has its diagonal scaled to one before it is factorised.  Without P, or with a diagonal one, which goes into W, M is
the identity: the cost is O(n k^2 + k^3).  A full P adds O(n^3 + n^2 k).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kkt.algebra import NONZERO, cholesky_solve, lower_solve, mm

EPS = torch.finfo(torch.float64).eps
LOOSE = 0.1  # below this share of the force on a variable P is a perturbation
DEPENDENT = 1e-11  # a squared pivot of S below this belongs to a row that depends on those before it
NULL = 1e-13  # an eigenvalue of S below this, relative to k, is zero


def shift(k: int) -> float:
    """What keeps the scaled S (k, k) of dependent rows definite; its factors do not feel what moves a row by less."""
    return float(8 * EPS * max(k, 1) ** 0.5)


class KKT:
    """K of a batch, factorised.  P (B, n, n) symmetric or None, C (B, k, n), all float64.

    `factors` are those of an equal system; with `exact` S is deflated where it is singular, and solves are projected.
    """

    def __init__(
        self, P: Tensor | None, C: Tensor, W: Tensor, w: Tensor, exact: bool = False, factors: Tensor | None = None
    ):
        self.P, self.C, self.exact = P, C, exact
        (B, k, n), self.has_rows = C.shape, C.shape[1] > 0
        self.W, self.root = W.unsqueeze(-1), W.sqrt().unsqueeze(-1)
        self.a = (1 / (1 + w)).unsqueeze(-1)
        self.g = torch.where(w == torch.inf, 1.0, w / (1 + w)).sqrt().unsqueeze(-1)
        self.T = C * self.g * self.root.mT
        self.ok = torch.ones(B, dtype=torch.bool, device=C.device)
        self.L: Tensor | None = None
        if factors is not None:
            size = n * n if P is not None else 0
            self.L = factors[:, :size].view(B, n, n) if P is not None else None
            self.F = factors[:, size : size + k * k].view(B, k, k)
            self.unit, singular = factors[:, size + k * k :].split([k, 1], 1)
            self.unit, self.singular = self.unit.unsqueeze(-1), singular.squeeze(-1) > 0
        else:
            self._factorise()
        if P is not None:
            self.loose = self.W * P.abs().sum(-1, keepdim=True) < LOOSE

    def _factorise(self) -> None:
        k = self.C.shape[1]
        half = self.T.mT
        if self.P is not None:
            M = self.root * self.P * self.root.mT
            M.diagonal(dim1=-2, dim2=-1).add_(1 + 4 * EPS)
            self.L, info = torch.linalg.cholesky_ex(M)
            self.ok = self.ok & (info == 0)
            half = lower_solve(self.L, half)
        S = half.mT @ half
        S.diagonal(dim1=-2, dim2=-1).add_(self.a.squeeze(-1))
        diagonal = S.diagonal(dim1=-2, dim2=-1)
        # a row of zeros keeps its unit: a large one would multiply the rounding that it leaves in the others
        self.unit = torch.where(diagonal > NONZERO, diagonal.clamp(min=NONZERO).rsqrt(), 1.0).unsqueeze(-1)
        S = self.unit * S * self.unit.mT
        S.diagonal(dim1=-2, dim2=-1).add_(shift(k))  # refinement takes it out again
        self.F, info = torch.linalg.cholesky_ex(S)
        self.ok = self.ok & (info == 0)
        self.dependent = self.F.diagonal(dim1=-2, dim2=-1).square() < DEPENDENT
        self.singular = self.dependent.any(-1)
        if self.exact and bool(self.singular.any()):
            self._deflate(S)

    def _deflate(self, S: Tensor) -> None:
        """Put ones in place of the zero eigenvalues of S: consistent right-hand sides do not notice."""
        which = self.singular.nonzero().squeeze(-1)
        values, vectors = torch.linalg.eigh(S[which])
        null = values < NULL * max(S.shape[-1], 10)
        N = vectors * null.unsqueeze(-2)
        self.F[which], info = torch.linalg.cholesky_ex(S[which] + N @ N.mT)
        self.ok[which] = self.ok[which] & (info == 0)
        self.singular[which] = null.any(-1)

    @staticmethod
    def size(n: int, k: int, full: bool) -> int:
        """Entries per element of the packed factors."""
        return (n * n if full else 0) + k * k + k + 1

    def factors(self) -> Tensor:
        """What the factorisation keeps, (B, size)."""
        parts = [self.F.flatten(1), self.unit.squeeze(-1), self.singular.unsqueeze(-1).to(self.F.dtype)]
        return torch.cat(parts if self.L is None else [self.L.flatten(1), *parts], 1)

    def _tangential(self, r: Tensor) -> Tensor:
        """M^-1 r."""
        return r if self.L is None else cholesky_solve(self.L, r)

    def _rows(self, r: Tensor) -> Tensor:
        """S^-1 r."""
        m: Tensor = self.unit * cholesky_solve(self.F, self.unit * r)
        return m

    def _times_rows(self, m: Tensor) -> Tensor:
        """S m."""
        return mm(self.T, self._tangential(mm(self.T.mT, m))) + self.a * m

    def solve(self, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
        """(dx, l) with K (dx, l) = (r1, r2), blocks (B, n, R) and (B, k, R).

        Where rows depend on each other, l is one of the solutions; of an `exact` system the least squares solution of
        least norm, in scaled units.
        """
        force = self.root * r1
        t = self._tangential(force)
        if not self.has_rows:
            return self._sharpened(r1, self.root * t), r2
        m = self._rows(mm(self.T, t) - self.g * r2)
        if self.exact and bool(self.singular.any()):
            # what S does not reach is taken out of the right-hand side, and with it out of m
            m = torch.where(self.singular[:, None, None], self._rows(self._times_rows(m)), m)
        dx = self.root * self._tangential(force - mm(self.T.mT, m))
        left = self.g * (r2 - mm(self.C, dx)) + self.a * m
        if self.exact and bool(self.singular.any()):  # the part that no x can repair
            left = torch.where(self.singular[:, None, None], self._times_rows(self._rows(left)), left)
        m = m - self._rows(left)
        l = self.g * m
        # in this form small components of dx are right to as many digits as large ones
        if self.P is None:
            return self.W * (r1 - mm(self.C.mT, l)), l
        dx = self.root * self._tangential(force - mm(self.T.mT, m))
        return self._sharpened(r1 - mm(self.C.mT, l), dx), l

    def _sharpened(self, force: Tensor, dx: Tensor) -> Tensor:
        """dx = W (force - P dx) where P hardly matters: it is right relative to itself there."""
        if self.P is None:
            return self.W * force
        return torch.where(self.loose, self.W * (force - mm(self.P, dx)), dx)
