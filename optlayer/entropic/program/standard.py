# SPDX-License-Identifier: Apache-2.0
"""A batch of entropic programs as the interior point method wants it.

    minimise  1/2 x'Px + 1/2 sum curvature_i x_i^2 + q'x + sum tau_i x_i log x_i
    subject to  Cx = d in the first p rows,  Cx <= d in the others,  lb <= x <= ub

One leading batch dimension, float64.  What differs from element to element is a mask and not a shape.  Rows are scaled
to unit norm; a row with h = +inf is zero.  The entropy keeps x >= 0, so that only a positive lb is a bound.  A variable
with lb = ub, or ub = 0, is fixed: its column is zero and the other blocks bear what its value contributes.  So is one
that a row forces to zero, where a sum with positive weights has nothing to share out.  A row of G that no free variable
enters decides nothing, unless it is violated: it becomes 0 <= 1.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ...kkt.algebra import NONZERO, dot, highest, mv, norm, tmv
from ...problem import CORES, HUGE
from ...solvers.standard import CONVEXITY, convex
from ...status import Status
from .kkt import shift

QP_CORES = tuple(CORES.values())  # number of dimensions of each tensor of a program that are not batch


class Data(NamedTuple):
    """The data as given, broadcast to (B, ...) and float64; P is None, the diagonal (B, 1, n) or (B, n, n)."""

    P: Tensor | None
    q: Tensor
    C: Tensor  # [A; G] (B, k, n)
    d: Tensor  # [b; h] (B, k)
    lb: Tensor
    ub: Tensor
    tau: Tensor


class Standard(NamedTuple):
    """The program (see the module); masks are float64, 1 where so."""

    P: Tensor | None  # (B, n, n) symmetric
    curvature: Tensor  # (B, n), the diagonal of a diagonal P
    q: Tensor  # (B, n)
    tau: Tensor  # (B, n)
    C: Tensor  # (B, k, n)
    d: Tensor  # (B, k)
    lb: Tensor  # (B, n), 0 where there is none
    ub: Tensor  # (B, n), 1 where there is none
    lower: Tensor  # (B, n) mask
    upper: Tensor  # (B, n) mask
    free: Tensor  # (B, n) mask, 0 for fixed variables
    value: Tensor  # (B, n), of the fixed variables, else 0
    unit: Tensor  # (B, k): rows are this many times those given
    given: Tensor  # (B, k): d with a contradiction that may be rounding, which d is rid of; certificates use it
    contradiction: Tensor  # (B, p): the part of b that hardly any x reaches, where it is not rounding
    size: Tensor  # (B, k): of the terms that d is the sum of, whose rounding it bears
    null: Tensor  # (B, p, p or 0): orthonormal columns, or zeros, y with A'y = 0
    forced: Tensor  # (B, n): the round in which a row forced the variable to zero, or 0
    forcing: Tensor  # (B, k): the round in which the row did so, or 0

    def times_P(self, x: Tensor) -> Tensor:
        """(P + diag(curvature)) x."""
        product = self.curvature * x
        return product if self.P is None else product + mv(self.P, x)

    def least(self, rows: Tensor) -> Tensor:
        """Multipliers (B, k) without the part of y along A'y = 0, where it is most of y: rounding accumulates there."""
        p = self.null.shape[1]
        y, z = rows.split([p, rows.shape[1] - p], 1)
        less = y - mv(self.null, tmv(self.null, y))
        return torch.cat([torch.where((norm(less) < norm(y) / 10).unsqueeze(-1), less, y), z], 1)

    def absorbed(self, C: Tensor, rows: Tensor) -> Tensor:
        """Multipliers (B, k) of the rows C as given that leave no C'rows < 0 at a variable that is forced to zero.

        A forcing row has d = 0 and weights of one sign on the variables of its round and of later ones: enough of it
        takes their C'rows to zero or more, and it takes none of what the rows prove.
        """
        for stage in range(int(self.forced.max()), 0, -1):
            now = self.forced == stage
            lack = torch.where(now, tmv(C, rows).neg().clamp(min=0), 0.0)
            weights = C * ((self.forcing == stage).unsqueeze(-1) & now.unsqueeze(-2))
            enough = torch.where(weights != 0, lack.unsqueeze(-2) / weights.abs().clamp(min=NONZERO), 0.0)
            rows = rows + weights.sum(-1).sign() * highest(enough)
        return rows


def effective(data: Data) -> tuple[Tensor, Tensor]:
    """The bounds that count: lb >= 0, and infinities for sizes that stand for none."""
    lb = torch.where(data.lb <= -HUGE, 0.0, data.lb).clamp(min=0)
    return lb, torch.where(data.ub >= HUGE, torch.inf, data.ub)


def judge(data: Data, p: int) -> Tensor:
    """Status (B,) of the data: INVALID_DATA, NON_CONVEX, PRIMAL_INFEASIBLE for crossed bounds, else UNSOLVED."""
    P, q, C, d, lb, ub, tau = data
    bad = ~(q.isfinite() & tau.isfinite() & (tau > 0)).all(-1) | (~C.isfinite()).flatten(1).any(-1)
    bad = bad | (d.isnan() | (d == -torch.inf)).any(-1) | (d[:, :p] == torch.inf).any(-1)
    bad = bad | (lb.isnan() | ub.isnan() | (lb == torch.inf) | (ub == -torch.inf)).any(-1)
    status = torch.full(bad.shape, int(Status.UNSOLVED), device=q.device)
    low, high = effective(data)
    status = torch.where((low > high).any(-1), int(Status.PRIMAL_INFEASIBLE), status)
    if P is not None:
        bad = bad | (~P.isfinite()).flatten(1).any(-1)
        if P.shape[1] == P.shape[2]:
            sound = convex(torch.where(bad[:, None, None], 0.0, P))
        else:
            sound = (P + CONVEXITY * P.abs().amax(-1, keepdim=True) >= 0).all(-1).squeeze(-1)
        status = torch.where(~sound, int(Status.NON_CONVEX), status)
    return torch.where(bad, int(Status.INVALID_DATA), status)


def standardise(data: Data, p: int, proof: float) -> Standard:
    """Masks and units for valid data; `proof` is what counts as a violation, relative to the terms of a row."""
    P, q, C, d, _, _, tau = data
    lb, ub = effective(data)
    fixed = lb == ub
    live = d < HUGE
    C, d = C * live.unsqueeze(-1), torch.where(live, d, 1.0)
    size = d.abs()
    value = torch.where(fixed, lb, 0.0)
    full = P is not None and P.shape[1] == P.shape[2]
    curvature = torch.zeros_like(q) if P is None or full else P.squeeze(1).clamp(min=0)
    P = P if full else None
    if bool(fixed.any()):
        d, size = d - mv(C, value), size + mv(C.abs(), value)
        C = C * (~fixed).unsqueeze(-2)
    forced, forcing = _forced(C, d, size, lb, p)
    fixed = fixed | (forced > 0)
    free = (~fixed).to(q.dtype)
    if bool(fixed.any()):
        C = C * free.unsqueeze(-2)
        if P is not None:
            q = q + mv(P, value)
            P = P * free.unsqueeze(-1) * free.unsqueeze(-2)
        q, curvature = q * free, curvature * free
    length = torch.linalg.vector_norm(C, dim=-1)
    unit = torch.where(length > 0, 1 / length.clamp(min=NONZERO), 1.0)
    idle = (length == 0) & (d >= -proof * size)
    idle[:, :p] = False
    C, d, size = C * unit.unsqueeze(-1), torch.where(idle, 1.0, d * unit), size * unit
    upper = ub.isfinite() & ~fixed
    null = _null(C[:, :p])
    contradiction = mv(null, tmv(null, d[:, :p]))
    sizes = dot(size[:, :p], size[:, :p])
    rounding = (dot(contradiction, contradiction) <= proof**2 * sizes).unsqueeze(-1)
    return Standard(
        P,
        curvature,
        q,
        tau,
        C,
        torch.cat([d[:, :p] - torch.where(rounding, contradiction, 0.0), d[:, p:]], 1),
        torch.where(fixed, 0.0, lb),
        torch.where(upper, ub, 1.0),
        ((lb > 0) & ~fixed).to(q.dtype),
        upper.to(q.dtype),
        free,
        value,
        unit,
        d,
        torch.where(rounding, 0.0, contradiction),
        size,
        null,
        forced,
        forcing,
    )


def _forced(C: Tensor, d: Tensor, size: Tensor, lb: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """The rounds of `Standard.forced` and `Standard.forcing`, from rows without the variables that are fixed already.

    Every variable that goes to zero leaves the other rows, of which some may have weights of one sign then.
    """
    forced, forcing = (torch.zeros_like(t, dtype=torch.int64) for t in (lb, d))
    empty = d.abs() <= shift(lb.shape[1]) * size
    if not bool(empty.any()):
        return forced, forcing
    equality = torch.arange(d.shape[1], device=d.device) < p
    for stage in itertools.count(1):
        C = C * (forced == 0).unsqueeze(-2)
        one_sided = (C >= 0).all(-1) | (C <= 0).all(-1) & equality
        enters = C != 0
        now = empty & one_sided & enters.any(-1) & ~(enters & (lb > 0).unsqueeze(-2)).any(-1)
        if not bool(now.any()):
            break
        forcing = torch.where(now, stage, forcing)
        forced = torch.where((enters & now.unsqueeze(-1)).any(1), stage, forced)
    return forced, forcing


def _null(A: Tensor) -> Tensor:
    """The combinations of the rows of A, of unit length, that vanish; no columns where there are none in the batch.

    A y with |A'y| of 3e-6 counts as one, for eigenvalues of AA' tell no more: that is no proof that b'y is zero.
    """
    B, p = A.shape[:2]
    if p == 0:
        return A.new_zeros(B, 0, 0)
    AA = A @ A.mT
    AA.diagonal(dim1=-2, dim2=-1).add_(shift(p))
    pivots = torch.linalg.cholesky_ex(AA)[0].diagonal(dim1=-2, dim2=-1).square()
    some = (~(pivots > 1e-11).all(-1)).nonzero().squeeze(-1)
    null = A.new_zeros(B, p, p if some.numel() else 0)
    if some.numel():
        values, vectors = torch.linalg.eigh(AA[some])
        null[some] = vectors * (values < 1e-12 * max(p, 10)).unsqueeze(-2)
    return null
