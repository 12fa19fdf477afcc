# SPDX-License-Identifier: Apache-2.0
"""From an interior point to the vertex, edge or face it points at, with the active set verified and not guessed.

At a solution the rows with z > 0 and those with s > 0 exclude each other, so z > s (scaled) is a good guess at the
active ones. Given the active set the KKT conditions are linear:

    K (x, v, z_box) = (-q, d, bounds)          with the K of system.py

Solved and refined, their solution carries no trace of mu. If a multiplier comes out negative or an inactive row
violated, exactly these rows change sides and K is factorised again (the primal-dual active-set method; Hintermueller,
Ito, Kunisch 2003); one round is nearly always enough. When no sign is wrong the active set is proven right.

More rows may be active than x needs: they depend on each other and the solution is at a kink, for if one of them moves
another takes over. Then all active inequalities get large finite weights in proportion to z^2, as they have on the
central path: equalities hold exactly, and the derivative is an average of the one-sided ones. The surplus is counted
among the weakly active ones.

Rows with both z and s at rounding level are weakly active: the solution is not differentiable there. They get the
central value z/s of the interior point, which is one element of the generalised Jacobian and the same for identical
rows. The last K is the one that derivatives use. Where no active set can be verified, K is the central one, z/s in
every row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .algebra import NONZERO, mv, norm, take
from .program import Program
from .scaling import Scaling
from .split import SplitFactor
from .system import DOUBLE, Grain, State, System

ROUNDS = 4
REFINEMENTS = 10
Z_SIGN, S_SIGN = 1e-11, 1e-12  # of the largest term of stationarity; of the largest variable or row
WEAK, AMBIGUOUS = 1e-3, 1e6  # a weak row has s, z below 1e-3 of these sizes and s/z between 1e-6 and 1e6
DECIDED = 1e8  # of the central weight of a bound, which is active: w (x - bound) would lose as many digits as 1/w adds
DEPENDENT = 1e-9  # squared distance of an active row from those before it, in the metric of H^-1, that counts as none
SHARED_LEAST, SHARED_MOST = 1e6, 1e8  # weights of active inequalities that depend on each other


class Interior(NamedTuple):
    """An interior point in scaled units: x (B, n), v and s (B, r) of all rows, z and s of the bounds (B, n)."""

    x: Tensor
    v: Tensor
    s: Tensor
    z_lower: Tensor
    s_lower: Tensor
    z_upper: Tensor
    s_upper: Tensor


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


class Trial(NamedTuple):
    """A guess at the active set, and all that is needed to try it.

    rows (B, r), lower and upper (B, n) are active; z_size and s_size (B, 1) the units of multipliers and slacks.
    """

    problem: Program
    scaling: Scaling
    live: Tensor
    interior: Interior
    z_size: Tensor
    s_size: Tensor
    rows: Tensor
    lower: Tensor
    upper: Tensor


class Attempt(NamedTuple):
    """What a trial gave: the face's point and weights, which guesses have the wrong sign, which are in doubt.

    surplus (B,) counts the active inequalities that depend on the other active rows.
    """

    x: Tensor
    v: Tensor
    z_box: Tensor
    w: Tensor
    w_box: Tensor
    wrong_rows: Tensor
    wrong_lower: Tensor
    wrong_upper: Tensor
    doubtful_rows: Tensor
    doubtful_box: Tensor
    surplus: Tensor
    usable: Tensor
    heavy: Tensor
    factors: Tensor | None


def polish(
    problem: Program, p: int, live: Tensor, scaling: Scaling, interior: Interior, keep: bool, grain: Grain = DOUBLE
) -> Face:
    """Polish every element; live (B, r) masks the rows, `keep` asks for the factors, `grain` is that of the data."""
    D, E, c = scaling
    B, n, device = problem.q.shape[0], problem.q.shape[1], problem.q.device
    r = problem.C.shape[1]
    equality = torch.arange(r, device=device) < p
    fixed = problem.lb == problem.ub
    trial = _guess(problem, p, live, scaling, interior)
    w, w_box = _central(interior, equality, live, fixed)
    x, v, z_box = D * interior.x, E * interior.v / c, (interior.z_upper - interior.z_lower) / (c * D)
    sure, weak = torch.zeros(B, dtype=torch.bool, device=device), torch.zeros(B, dtype=torch.int64, device=device)
    k, size = SplitFactor.sizes(n, r)
    heavy = torch.zeros(B, k, dtype=torch.int64, device=device) if keep else None
    factors = problem.q.new_zeros(B, size) if keep else None
    stale = torch.ones_like(sure)  # elements whose factors are not those of (w, w_box)
    todo = torch.arange(B, device=device)
    for _ in range(ROUNDS):
        attempt = _attempt(trial, equality, keep, grain)
        wrong = torch.cat([attempt.wrong_rows, attempt.wrong_lower, attempt.wrong_upper], 1).any(-1)
        good = (attempt.usable & ~wrong).nonzero().squeeze(-1)
        if good.numel():
            at, a = todo[good], take(attempt, good)
            x[at], v[at], z_box[at], sure[at] = a.x, a.v, a.z_box, True
            w[at] = torch.where(a.doubtful_rows, w[at], a.w)
            w_box[at] = torch.where(a.doubtful_box, w_box[at], a.w_box)
            weak[at] = a.doubtful_rows.sum(-1) + a.doubtful_box.sum(-1) + a.surplus
            stale[at] = weak[at] > 0
            if heavy is not None and factors is not None and a.factors is not None:
                heavy[at], factors[at] = a.heavy, a.factors
        again = (attempt.usable & wrong).nonzero().squeeze(-1)
        if again.numel() == 0:
            break
        todo, trial = todo[again], take(trial, again)
        trial = trial._replace(
            rows=trial.rows ^ attempt.wrong_rows[again],
            lower=trial.lower ^ attempt.wrong_lower[again],
            upper=trial.upper ^ attempt.wrong_upper[again],
        )
    state = State(scaling, w, w_box, torch.ones_like(c, dtype=torch.bool), None, grain)
    face = Face(x, v, z_box, sure, weak, state, heavy, factors)
    return refactor(problem, face, stale.nonzero().squeeze(-1)) if keep else face


def _guess(problem: Program, p: int, live: Tensor, scaling: Scaling, interior: Interior) -> Trial:
    """Rows and bounds whose multiplier exceeds their slack; equalities always, fixed variables apart."""
    P, q, C, _, lb, ub = problem
    D, E, c = scaling
    equality = torch.arange(C.shape[1], device=q.device) < p
    forces = [c * D * q, c * D * mv(P, D * interior.x), interior.v[:, p:] * live[:, p:]]
    z_size = norm(torch.cat([*forces, interior.z_lower, interior.z_upper], 1)).clamp(min=NONZERO).unsqueeze(-1)
    s_size = norm(torch.cat([E * mv(C, D * interior.x), interior.x], 1)).clamp(min=1.0).unsqueeze(-1)
    lower, upper = interior.z_lower > interior.s_lower, interior.z_upper > interior.s_upper
    upper = upper & ~(lower & (interior.z_lower > interior.z_upper))
    free = lb != ub
    rows = equality | (live & (interior.v > interior.s))
    return Trial(problem, scaling, live, interior, z_size, s_size, rows, lower & ~upper & free, upper & free)


def _attempt(trial: Trial, equality: Tensor, keep: bool, grain: Grain) -> Attempt:
    """Solve the KKT conditions on the guessed active set and look at the signs they give."""
    (P, q, C, d, lb, ub), (D, E, c), live, interior, z_size, s_size, rows, lower, upper = trial
    fixed = lb == ub
    bound = torch.where(lower | fixed, lb, torch.where(upper, ub, 0.0))
    w = torch.zeros_like(E).masked_fill(rows, torch.inf)
    w_box = torch.zeros_like(D).masked_fill(lower | upper | fixed, torch.inf)
    system = System(P, C, State(trial.scaling, w, w_box, torch.ones_like(c, dtype=torch.bool), None, grain))
    start = (D * interior.x).unsqueeze(-1), (E * interior.v / c).unsqueeze(-1)
    rx, rv, r_box = (t.unsqueeze(-1) for t in (-q, d, bound))
    x, v, z_box = (t.squeeze(-1) for t in system.solve(rx, rv, r_box, start, REFINEMENTS))
    z, zb, s = v * c / E, z_box * c * D, E * (d - mv(C, x))
    s_lower, s_upper = (x - lb) / D, (ub - x) / D
    tz, ts = Z_SIGN * z_size, S_SIGN * s_size
    idle, inequality = ~(lower | upper | fixed), live & ~equality
    doubtful_lower = _weak(lower, -zb, s_lower, interior.z_lower, interior.s_lower, z_size, s_size)
    doubtful_upper = _weak(upper, zb, s_upper, interior.z_upper, interior.s_upper, z_size, s_size)
    surplus = _surplus(system.kernel, rows, equality)
    if surplus.any():
        largest = torch.maximum(norm(z * inequality), norm(zb * (lower | upper))).clamp(min=NONZERO).unsqueeze(-1)
        shared, shared_box = (
            (SHARED_MOST * (t / largest).square()).clamp(min=SHARED_LEAST, max=SHARED_MOST) for t in (z, zb)
        )
        degenerate = (surplus > 0).unsqueeze(-1)
        w = torch.where(degenerate & rows & inequality, shared, w)
        w_box = torch.where(degenerate & (lower | upper), shared_box, w_box)
    return Attempt(
        x=x,
        v=torch.where(equality, v, v.clamp(min=0)),
        z_box=torch.where(lower, z_box.clamp(max=0), torch.where(upper, z_box.clamp(min=0), z_box)),
        w=w,
        w_box=w_box,
        surplus=surplus,
        wrong_rows=(rows & (z < -tz) | ~rows & (s < -ts)) & inequality,
        wrong_lower=lower & (zb > tz) | idle & (s_lower < -ts),
        wrong_upper=upper & (zb < -tz) | idle & (s_upper < -ts),
        doubtful_rows=_weak(rows, z, s, interior.v, interior.s, z_size, s_size) & inequality,
        doubtful_box=(doubtful_lower & ~upper | doubtful_upper & ~lower) & ~fixed,
        usable=system.ok & x.isfinite().all(-1) & v.isfinite().all(-1),
        heavy=system.kernel.heavy,
        factors=system.kernel.factors() if keep else None,
    )


def _surplus(kernel: SplitFactor, rows: Tensor, equality: Tensor) -> Tensor:
    """How many active inequalities depend on the active rows before them; equalities stand first."""
    pivots = kernel.F.diagonal(dim1=-2, dim2=-1).square()
    among = ((pivots < DEPENDENT * kernel.r.square()) & ~equality[kernel.heavy]).sum(-1)
    left_out = rows.scatter(1, kernel.heavy, False) & ~equality
    return among + left_out.sum(-1)


def refactor(problem: Program, face: Face, which: Tensor) -> Face:
    """Make the factors of some elements anew from their state; elements without a factorisation lose their `ok`."""
    if which.numel() == 0 or face.heavy is None or face.factors is None:
        return face
    system = System(problem.P[which], problem.C[which], take(face.state, which))
    face.heavy[which], face.factors[which] = system.kernel.heavy, system.kernel.factors()
    face.state.ok[which] = system.ok.unsqueeze(-1)
    return face


def centralised(problem: Program, p: int, live: Tensor, interior: Interior, face: Face, which: Tensor) -> Face:
    """The face with the central weights z/s in all rows of some elements: their verified set made the point worse."""
    if which.numel() == 0:
        return face
    equality = torch.arange(problem.C.shape[-2], device=live.device) < p
    fixed = (problem.lb == problem.ub)[which]
    w, w_box = _central(take(interior, which), equality, live[which], fixed)
    face.state.w[which], face.state.w_box[which] = w, w_box
    face.sure[which], face.weak[which] = False, 0
    return refactor(problem, face, which)


def _central(interior: Interior, equality: Tensor, live: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """The weights z/s of all rows and bounds, infinite for equalities, fixed variables and bounds that are decided."""
    w = torch.where(live, interior.v / interior.s, 0.0).masked_fill(equality, torch.inf)
    w_box = interior.z_lower / interior.s_lower + interior.z_upper / interior.s_upper
    return w, w_box.masked_fill(fixed | (w_box > DECIDED), torch.inf)


def _weak(active: Tensor, z: Tensor, s: Tensor, z0: Tensor, s0: Tensor, z_size: Tensor, s_size: Tensor) -> Tensor:
    """Rows whose multiplier (active) or slack (inactive) vanishes and whose interior z0, s0 decide for neither."""
    ratio = s0 / z0
    as_active = active & (z <= Z_SIGN * z_size) & (s0 < WEAK * s_size) & (ratio > 1 / AMBIGUOUS)
    as_inactive = ~active & (s <= S_SIGN * s_size) & (z0 < WEAK * z_size.clamp(min=1.0)) & (ratio < AMBIGUOUS)
    return as_active | as_inactive
