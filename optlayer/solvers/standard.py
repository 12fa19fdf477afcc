# SPDX-License-Identifier: Apache-2.0
"""A batch of quadratic programs as the interior point method wants it.

    min 1/2 x'Px + q'x   s.t.  Cx = d on the first p rows (A, b),  Cx <= d on the others (G, h),  lb <= x <= ub

One leading batch dimension, float64, every block present. What differs from element to element is a mask and not a
shape: a row with h = +inf is not `live`, an infinite bound is absent, and a variable with lb = ub is fixed: its column
is zero, P has a one on its diagonal and the other blocks bear what its value contributes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kkt.algebra import NONZERO, dot, mv, tmv
from ..kkt.program import Program
from ..problem import HUGE
from ..status import Status

CONVEXITY = 3e-5  # of max |P|: below it a negative eigenvalue is a rounded datum (VALUES, ICULS0), above it a fact


class Standard(NamedTuple):
    """The problem (shapes in the module docstring). offset (B,) is the objective of the fixed variables alone."""

    P: Tensor  # (B, n, n) symmetric
    q: Tensor  # (B, n)
    C: Tensor  # (B, p + m, n)
    d: Tensor  # (B, p + m), zero where not live
    lb: Tensor  # (B, n), -inf where absent
    ub: Tensor  # (B, n), +inf where absent
    live: Tensor  # (B, p + m) bool
    fixed: Tensor  # (B, n) bool
    value: Tensor  # (B, n), of the fixed variables, else zero
    offset: Tensor  # (B,)


def judge(P: Tensor, q: Tensor, C: Tensor, d: Tensor, p: int, lb: Tensor, ub: Tensor) -> Tensor:
    """Status (B,) of the data: INVALID_DATA, PRIMAL_INFEASIBLE for crossed bounds, else UNSOLVED.

    Neither NaN nor inf may stand in P, q, A, b, G; h may be +inf, lb -inf and ub +inf.
    """
    bad = (~(P.isfinite().all(-1) & q.isfinite())).any(-1) | (~C.isfinite()).flatten(1).any(-1)
    bad = bad | (d.isnan() | (d == -torch.inf)).any(-1) | (d[:, :p] == torch.inf).any(-1)
    bad = bad | (lb.isnan() | ub.isnan() | (lb == torch.inf) | (ub == -torch.inf)).any(-1)
    status = torch.full(bad.shape, int(Status.UNSOLVED), device=q.device)
    status = torch.where((lb > ub).any(-1), int(Status.PRIMAL_INFEASIBLE), status)
    return torch.where(bad, int(Status.INVALID_DATA), status)


def standardise(P: Tensor, q: Tensor, C: Tensor, d: Tensor, lb: Tensor, ub: Tensor) -> Standard:
    """Masks for valid data."""
    live = d < torch.inf
    fixed = lb == ub
    d = torch.where(live, d, 0.0)
    value, offset = torch.zeros_like(q), q.new_zeros(q.shape[0])
    if not live.all():
        C = C * live.unsqueeze(-1)
    if fixed.any():
        value = torch.where(fixed, lb, 0.0)
        Pv = mv(P, value)
        offset = dot(q, value) + 0.5 * dot(value, Pv)
        free = (~fixed).to(q.dtype)
        q, d = (q + Pv) * free, (d - mv(C, value)) * live
        P = P * free.unsqueeze(-1) * free.unsqueeze(-2) + torch.diag_embed(1 - free)
        C = C * free.unsqueeze(-2)
        lb, ub = torch.where(fixed, -torch.inf, lb), torch.where(fixed, torch.inf, ub)
    return Standard(P, q, C, d, lb, ub, live, fixed, value, offset)


def unlimited(program: Program, p: int) -> Program:
    """The same program with infinities where h, lb and ub reach the size that stands for none."""
    b, h = program.d[:, :p], program.d[:, p:]

    def opened(t: Tensor) -> Tensor:
        return torch.where(t.abs() >= HUGE, t * torch.inf, t)

    return program._replace(d=torch.cat([b, opened(h)], 1), lb=opened(program.lb), ub=opened(program.ub))


def convex(P: Tensor) -> Tensor:
    """Whether P + 3e-5 max|P| I has a Cholesky factor, for each element."""
    P = P.clone()
    P.diagonal(dim1=-2, dim2=-1).add_(CONVEXITY * P.abs().amax((-2, -1)).unsqueeze(-1) + NONZERO)
    info: Tensor = torch.linalg.cholesky_ex(P).info
    return info == 0


def restored(
    problem: Standard, P: Tensor, q: Tensor, C: Tensor, x: Tensor, v: Tensor, z_box: Tensor
) -> tuple[Tensor, Tensor]:
    """x and z_box with the fixed variables put back, whose multiplier is what stationarity leaves; P, q, C unmasked."""
    if not problem.fixed.any():
        return x, z_box
    x = torch.where(problem.fixed, problem.value, x)
    return x, torch.where(problem.fixed, -(mv(P, x) + q + tmv(C, v)), z_box)
