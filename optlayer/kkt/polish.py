# SPDX-License-Identifier: Apache-2.0
"""From an interior point to the vertex, edge or face it points at, with the active set verified and not guessed.

At a solution the rows with z > 0 and those with s > 0 exclude each other, so z > s (scaled) is a good guess at the
active ones. Given the active set the KKT conditions are linear:

    K (x, v, z_box) = (-q, d, bounds)          with the K of system.py

Solved and refined, their solution carries no trace of mu. If a multiplier comes out negative or an inactive row
violated, exactly these rows change sides and K is factorised again (the primal-dual active-set method; Hintermueller,
Ito, Kunisch 2003); one round is nearly always enough. When no sign is wrong the active set is proven right.

Rows with both z and s at rounding level are weakly active: the solution is not differentiable there. They get the
central value z/s of the interior point, which is one element of the generalised Jacobian and the same for identical
rows. The last K is the one that derivatives use. Where no active set can be verified, K is the central one, z/s in
every row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .algebra import mv, norm
from .program import Program
from .scaling import Scaling
from .split import SplitFactor
from .system import State, System

ROUNDS = 4
REFINEMENTS = 10
Z_SIGN, S_SIGN = 1e-11, 1e-12  # of the largest term of stationarity; of the largest bound, right-hand side or variable
WEAK, AMBIGUOUS = 1e-3, 1e6  # a weak row has s, z below 1e-3 of these sizes and s/z between 1e-6 and 1e6


class Interior(NamedTuple):
    """An interior point in scaled units: x (B, n), v and s (B, r) of all rows, z and s of the bounds (B, n)."""

    x: Tensor
    v: Tensor
    s: Tensor
    z_lower: Tensor
    s_lower: Tensor
    z_upper: Tensor
    s_upper: Tensor

    def take(self, index: Tensor) -> Interior:
        """Some elements of the batch."""
        return Interior(*(t[index] for t in self))


class Face(NamedTuple):
    """A point in the caller's units, and the system there.

    x (B, n), v (B, r), z_box (B, n); `sure` (B,) where the active set is verified, `weak` (B,) the number of weakly
    active rows and bounds; state, and heavy rows and factors of the kernel (None where they were not wanted)."""

    x: Tensor
    v: Tensor
    z_box: Tensor
    sure: Tensor
    weak: Tensor
    state: State
    heavy: Tensor | None
    factors: Tensor | None


def polish(problem: Program, p: int, live: Tensor, scaling: Scaling, interior: Interior, keep: bool) -> Face:
    """Polish every element of a batch; live (B, r) masks the rows, `keep` asks for the factors."""
    P, q, C, d, lb, ub = problem
    D, E, c = scaling
    B, device = q.shape[0], q.device
    n, r = C.shape[-1], C.shape[-2]
    equality = torch.arange(r, device=device) < p
    fixed = lb == ub
    x, v = D * interior.x, E * interior.v / c
    forces = [c * D * q, c * D * mv(P, x), interior.v[:, p:] * live[:, p:], interior.z_lower, interior.z_upper]
    z_size = norm(torch.cat(forces, 1)).clamp(min=1e-300).unsqueeze(-1)
    finite = [torch.where(t.isfinite(), t, 0.0) for t in (E * d, lb / D, ub / D)]
    s_size = norm(torch.cat([finite[0][:, p:], finite[1], finite[2], interior.x], 1)).clamp(min=1.0).unsqueeze(-1)
    tz, ts = Z_SIGN * z_size, S_SIGN * s_size

    rows = equality | (live & (interior.v > interior.s))
    lower, upper = interior.z_lower > interior.s_lower, interior.z_upper > interior.s_upper
    upper = upper & ~(lower & (interior.z_lower > interior.z_upper))
    lower = lower & ~upper & ~fixed
    upper = upper & ~fixed
    w, w_box = _central(interior, equality, live, fixed)
    x, v, z_box = x.clone(), v.clone(), interior.z_upper / (c * D) - interior.z_lower / (c * D)
    sure, weak = torch.zeros(B, dtype=torch.bool, device=device), torch.zeros(B, dtype=torch.int64, device=device)
    k, size = SplitFactor.sizes(n, r)
    heavy = torch.zeros(B, k, dtype=torch.int64, device=device) if keep else None
    factors = q.new_zeros(B, size) if keep else None
    stale = torch.ones_like(sure)  # elements whose factors are not those of (w, w_box)
    todo = torch.arange(B, device=device)
    for _ in range(ROUNDS):
        a, lo, up = rows[todo], lower[todo], upper[todo]
        fix = fixed[todo]
        bound = torch.where(lo | fix, lb[todo], torch.where(up, ub[todo], 0.0))
        state = State(
            Scaling(D[todo], E[todo], c[todo]),
            torch.zeros_like(E[todo]).masked_fill(a, torch.inf),
            torch.zeros_like(D[todo]).masked_fill(lo | up | fix, torch.inf),
            torch.ones_like(c[todo], dtype=torch.bool),
        )
        system = System(P[todo], C[todo], state)
        rx, rv, r_box, ux, uv = (t.unsqueeze(-1) for t in (-q[todo], d[todo], bound, x[todo], v[todo]))
        solution = system.solve(rx, rv, r_box, start=(ux, uv), refinements=REFINEMENTS)
        ux, uv, ub_ = (t.squeeze(-1) for t in solution)
        Dt, Et, ct = state.scaling
        z, zb = uv * ct / Et, ub_ * ct * Dt
        s = Et * (d[todo] - mv(C[todo], ux))
        s_lo, s_up = (ux - lb[todo]) / Dt, (ub[todo] - ux) / Dt
        tz_, ts_ = tz[todo], ts[todo]
        idle = ~lo & ~up & ~fix
        wrong_rows = (a & (z < -tz_) | ~a & (s < -ts_)) & live[todo] & ~equality
        wrong_lo = lo & (zb > tz_) | idle & (s_lo < -ts_)
        wrong_up = up & (zb < -tz_) | idle & (s_up < -ts_)
        wrong = (wrong_rows.any(-1) | wrong_lo.any(-1)) | wrong_up.any(-1)
        usable = system.ok & ux.isfinite().all(-1) & uv.isfinite().all(-1)
        good = (usable & ~wrong).nonzero().squeeze(-1)
        at = todo[good]
        if at.numel():
            i, zs, ss = interior.take(at), z_size[at], s_size[at]
            doubtful = _weak(a[good], z[good], s[good], i.v, i.s, zs, ss) & live[at] & ~equality
            doubtful_lo = _weak(lo[good], -zb[good], s_lo[good], i.z_lower, i.s_lower, zs, ss)
            doubtful_up = _weak(up[good], zb[good], s_up[good], i.z_upper, i.s_upper, zs, ss)
            doubtful_box = (doubtful_lo & ~up[good] | doubtful_up & ~lo[good]) & ~fix[good]
            signed = torch.where(lo, ub_.clamp(max=0), torch.where(up, ub_.clamp(min=0), ub_))
            x[at], z_box[at], sure[at] = ux[good], signed[good], True
            v[at] = torch.where(equality, uv, uv.clamp(min=0))[good]
            w[at] = torch.where(doubtful, w[at], state.w[good])
            w_box[at] = torch.where(doubtful_box, w_box[at], state.w_box[good])
            weak[at] = doubtful.sum(-1) + doubtful_box.sum(-1)
            stale[at] = weak[at] > 0
            if heavy is not None and factors is not None:
                heavy[at], factors[at] = system.kernel.heavy[good], system.kernel.factors()[good]
        again = (usable & wrong).nonzero().squeeze(-1)
        todo = todo[again]
        if todo.numel() == 0:
            break
        flips = (wrong_rows[again], wrong_lo[again], wrong_up[again])
        rows[todo], lower[todo], upper[todo] = rows[todo] ^ flips[0], lower[todo] ^ flips[1], upper[todo] ^ flips[2]
    state = State(scaling, w, w_box, torch.ones_like(c, dtype=torch.bool))
    face = Face(x, v, z_box, sure, weak, state, heavy, factors)
    return refactor(problem, face, stale.nonzero().squeeze(-1)) if keep else face


def refactor(problem: Program, face: Face, which: Tensor) -> Face:
    """Make the factors of some elements anew from their state; elements without a factorisation lose their `ok`."""
    if which.numel() == 0 or face.heavy is None or face.factors is None:
        return face
    scaling = Scaling(*(t[which] for t in face.state.scaling))
    state = State(scaling, face.state.w[which], face.state.w_box[which], face.state.ok[which])
    system = System(problem.P[which], problem.C[which], state)
    face.heavy[which], face.factors[which] = system.kernel.heavy, system.kernel.factors()
    face.state.ok[which] = system.ok.unsqueeze(-1)
    return face


def centralised(problem: Program, p: int, live: Tensor, interior: Interior, face: Face, which: Tensor) -> Face:
    """The face with the central weights z/s in all rows of some elements: their verified set made the point worse."""
    if which.numel() == 0:
        return face
    equality = torch.arange(problem.C.shape[-2], device=live.device) < p
    fixed = (problem.lb == problem.ub)[which]
    w, w_box = _central(interior.take(which), equality, live[which], fixed)
    face.state.w[which], face.state.w_box[which] = w, w_box
    face.sure[which], face.weak[which] = False, 0
    return refactor(problem, face, which)


def _central(interior: Interior, equality: Tensor, live: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """The weights z/s of all rows and bounds, infinite for equalities and fixed variables."""
    w = torch.where(live, interior.v / interior.s, 0.0).masked_fill(equality, torch.inf)
    w_box = interior.z_lower / interior.s_lower + interior.z_upper / interior.s_upper
    return w, w_box.masked_fill(fixed, torch.inf)


def _weak(active: Tensor, z: Tensor, s: Tensor, z0: Tensor, s0: Tensor, z_size: Tensor, s_size: Tensor) -> Tensor:
    """Rows whose multiplier (active) or slack (inactive) vanishes and whose interior z0, s0 decide for neither."""
    ratio = s0 / z0
    as_active = active & (z <= Z_SIGN * z_size) & (s0 < WEAK * s_size) & (ratio > 1 / AMBIGUOUS)
    as_inactive = ~active & (s <= S_SIGN * s_size) & (z0 < WEAK * z_size) & (ratio < AMBIGUOUS)
    return as_active | as_inactive
