# SPDX-License-Identifier: Apache-2.0
"""The reference engine: plain torch on any device, the specification that faster engines are measured against.

One batch of quadratic programs in, solutions and their factorised KKT systems out:

    judge the data -> fix variables, mask rows -> equilibrate -> interior point (interior.py) -> certificates for what
    stalled (elastic.py) -> polish (kkt/polish.py) -> judge the point on the data as given

All arithmetic is float64. float32 data are solved to float32 accuracy but in float64, and rounded at the end: interior
point matrices at float32 would lose the last iterations and the derivative with them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kkt.algebra import NONZERO, take, tmv
from ..kkt.polish import Interior, centralised, polish
from ..kkt.program import Program
from ..kkt.rangespace import RangeSpace, admissible
from ..kkt.scaling import Scaling, equilibrate
from ..kkt.split import SplitFactor
from ..kkt.system import State, grain
from ..residuals import residuals
from ..status import Status
from .certificate import farkas
from .elastic import infeasibility, unboundedness
from .interior import Outcome, iterate
from .newton import Point, Rules, Scaled, scale
from .standard import Standard, convex, judge, restored, standardise, unlimited

EIGENVALUE = 1e-10  # of max |P|: below it a negative eigenvalue of a problem that failed is rounding
ALMOST = 1e3  # a residual within this factor of its tolerance counts as almost solved
NO_WORSE = 1e-4  # of the tolerance: below it residuals are rounding and a polished point need not beat them


class Solved(NamedTuple):
    """What the engine returns for a batch (B,): the operator's outputs, float64; v and ray_v stack y and z."""

    x: Tensor
    v: Tensor
    z_box: Tensor
    status: Tensor
    iterations: Tensor
    weak: Tensor
    lower_share: Tensor
    ray_x: Tensor
    ray_v: Tensor
    ray_box: Tensor
    state: Tensor
    factors: Tensor
    heavy: Tensor


class Start(NamedTuple):
    """A warm start in the caller's units, (B, .) each."""

    x: Tensor
    v: Tensor
    z_box: Tensor


def solve(
    problem: Program, p: int, rules: Rules, formulation: str, start: Start | None = None, keep: bool = True
) -> Solved:
    """Solve a batch of programs with p equality rows each; `keep` hands out the factors."""
    problem = unlimited(problem, p)
    B, n = problem.q.shape
    r = problem.C.shape[1]
    k, size = SplitFactor.sizes(n, r)
    status = judge(*problem[:4], p, *problem[4:])
    zeros = problem.q.new_zeros
    out = Solved(
        x=zeros(B, n),
        v=zeros(B, r),
        z_box=zeros(B, n),
        status=status,
        iterations=torch.zeros_like(status),
        weak=torch.zeros_like(status),
        lower_share=zeros(B, n),
        ray_x=zeros(B, n),
        ray_v=zeros(B, r),
        ray_box=zeros(B, n),
        state=zeros(B, State.size(n, r)),
        factors=zeros(B, size if keep else 0),
        heavy=torch.zeros(B, k, dtype=torch.int64, device=status.device),
    )
    some = (status == Status.UNSOLVED).nonzero().squeeze(-1)
    if some.numel() == 0:
        return out
    if some.numel() == B:
        return _solve_valid(problem, p, rules, formulation, start, keep)
    part = _solve_valid(take(problem, some), p, rules, formulation, take(start, some), keep)
    for whole, piece in zip(out, part, strict=True):
        whole[some] = piece
    return out


def _solve_valid(problem: Program, p: int, rules: Rules, formulation: str, start: Start | None, keep: bool) -> Solved:
    standard = standardise(*problem)
    scaling = equilibrate(standard.P, standard.q, standard.C)
    scaled = scale(standard, scaling, p)
    L, info = torch.linalg.cholesky_ex(scaled.P)
    definite = info == 0
    outcome = _iterate(scaled, standard, p, rules, formulation, start, L, definite)
    stuck = (outcome.status == Status.INSUFFICIENT_PROGRESS) | (outcome.status == Status.NUMERICAL_ERROR)
    stuck = stuck & ~(outcome.contract <= 1)
    doubtful = (~definite).nonzero().squeeze(-1)
    if doubtful.numel():
        wrong = doubtful[~convex(problem.P[doubtful])]
        outcome.status[wrong] = int(Status.NON_CONVEX)
        stuck[wrong] = False
    some = stuck.nonzero().squeeze(-1)
    if some.numel() and rules.infeasible:
        _explain(take(standard, some), p, rules, some, outcome)
    out = _finish(problem, standard, scaled, scaling, p, rules, outcome, keep)
    failed = (out.status == Status.INSUFFICIENT_PROGRESS) | (out.status == Status.NUMERICAL_ERROR)
    failed = (failed & ~definite).nonzero().squeeze(-1)
    if failed.numel():  # a tolerated negative eigenvalue that made the method fail is the reason to give
        P = scaled.P[failed]
        negative = torch.linalg.eigvalsh(P)[:, 0] < -EIGENVALUE * P.abs().amax((-2, -1))
        out.status[failed[negative]] = int(Status.NON_CONVEX)
    return out


def _iterate(
    scaled: Scaled,
    standard: Standard,
    p: int,
    rules: Rules,
    formulation: str,
    start: Start | None,
    L: Tensor,
    definite: Tensor,
) -> Outcome:
    """The interior point method on each element, in the formulation that suits it."""
    bounded = scaled.live[:, scaled.C.shape[1] - p :].sum(-1) > 0
    if formulation == "auto":
        ranged = admissible(L, definite, scaled.C.shape[1], bounded)
    else:
        ranged = definite & ~bounded & (formulation == "range")
    warm = None if start is None else _warm(start, standard, scaled, p)
    if ranged.all():
        return iterate(scaled, p, rules, RangeSpace(L, scaled.C), warm)
    if not ranged.any():
        return iterate(scaled, p, rules, None, warm)
    groups: list[tuple[Tensor, Outcome]] = []
    for index in (ranged.nonzero().squeeze(-1), (~ranged).nonzero().squeeze(-1)):
        part = take(scaled, index)
        space = RangeSpace(L[index], part.C) if not groups else None
        groups.append((index, iterate(part, p, rules, space, take(warm, index))))
    order = torch.cat([index for index, _ in groups]).argsort()
    first, second = (outcome for _, outcome in groups)
    point = Point(*(torch.cat([a, b])[order] for a, b in zip(first.point, second.point, strict=True)))
    return Outcome(point, *(torch.cat([a, b])[order] for a, b in zip(first[1:], second[1:], strict=True)))


def _warm(start: Start, standard: Standard, scaled: Scaled, p: int) -> Point:
    """A warm start in scaled units; slacks and positivity are the method's to mend."""
    x = torch.where(standard.fixed, 0.0, start.x) / scaled.D
    v = start.v * scaled.c / scaled.E
    z = v[:, p:]
    if scaled.live.shape[1] > z.shape[1]:
        z_box = start.z_box * scaled.c * scaled.D
        z = torch.cat([z, (-z_box).clamp(min=0), z_box.clamp(min=0)], 1)
    return Point(x, v[:, :p], z, torch.ones_like(z))


def _explain(standard: Standard, p: int, rules: Rules, stuck: Tensor, outcome: Outcome) -> None:
    """Find out whether elements that stalled have no solution at all, and write verdict and certificate."""
    ratio, v = infeasibility(standard, p, rules)
    found = ratio < 10 * rules.infeasible
    outcome.status[stuck[found]] = int(Status.PRIMAL_INFEASIBLE)
    outcome.ray_v[stuck[found]] = v[found]
    left = (~found).nonzero().squeeze(-1)
    if left.numel() == 0:
        return
    violation, x = unboundedness(take(standard, left), p, rules)
    found = violation < 10 * rules.infeasible
    outcome.status[stuck[left[found]]] = int(Status.DUAL_INFEASIBLE)
    outcome.ray_x[stuck[left[found]]] = x[found]


def _finish(
    problem: Program,
    standard: Standard,
    scaled: Scaled,
    scaling: Scaling,
    p: int,
    rules: Rules,
    outcome: Outcome,
    keep: bool,
) -> Solved:
    """Polish, judge on the data as given, and collect."""
    status = outcome.status
    infeasible = status == Status.PRIMAL_INFEASIBLE
    ray_v, ray_box = torch.zeros_like(outcome.ray_v), torch.zeros_like(problem.q)
    ray_x = outcome.ray_x.masked_fill((status != Status.DUAL_INFEASIBLE).unsqueeze(-1), 0.0)
    if infeasible.any():
        ray_v, ray_box = _normalised(problem, standard, outcome.ray_v, infeasible)
    ended = infeasible | (status == Status.DUAL_INFEASIBLE) | (status == Status.NON_CONVEX)
    interior = _interior(scaled, outcome.point, p)
    x, v = scaling.D * interior.x, scaling.E * interior.v / scaling.c
    z_box = (interior.z_upper - interior.z_lower) / (scaling.c * scaling.D)
    x, z_box = restored(standard, problem.P, problem.q, problem.C, x, v, z_box)
    merit = outcome.contract.clone()

    which = (~ended).nonzero().squeeze(-1)
    everyone = which.numel() == status.shape[0]
    part, live, inner = problem, standard.live, interior
    if not everyone:
        part, live, inner = take(problem, which), live[which], take(interior, which)
        scaling = Scaling(*(t[which] for t in scaling))
    face = polish(part, p, live, scaling, inner, keep, grain(rules.dtype))
    merit_polished = _merit(part, p, rules, face.x, face.v, face.z_box)
    better = face.sure & ~(merit_polished > merit[which].clamp(min=NO_WORSE))
    face = centralised(part, p, live, inner, face, (face.sure & ~better).nonzero().squeeze(-1))

    good, rows = which[better], better.nonzero().squeeze(-1)
    x[good], v[good], z_box[good], merit[good] = face.x[rows], face.v[rows], face.z_box[rows], merit_polished[rows]
    v = torch.where(standard.live, v, 0.0)
    if rules.dtype != x.dtype:  # the answer is judged as it will be read
        x, v, z_box = (t.to(rules.dtype).to(x.dtype) for t in (x, v, z_box))
        rough = which
    else:
        rough = which[~better]
    if rough.numel():
        merit[rough] = _merit(take(problem, rough), p, rules, x[rough], v[rough], z_box[rough])
    met = merit <= 1
    claimed = status == Status.SOLVED
    status = torch.where(~ended & met, int(Status.SOLVED), status)
    almost = ~ended & ~met & ((merit <= ALMOST) | claimed)
    status = torch.where(almost, int(Status.ALMOST_SOLVED), status)

    B, n = x.shape
    weak = torch.zeros_like(status)
    weak[which] = face.weak
    r = v.shape[1]
    k, size = SplitFactor.sizes(n, r)
    state, heavy = x.new_zeros(B, State.size(n, r)), torch.zeros(B, k, dtype=torch.int64, device=x.device)
    factors = x.new_zeros(B, size if keep else 0)
    solved = (status == Status.SOLVED)[which].unsqueeze(-1)
    state[which] = face.state._replace(ok=face.state.ok & solved).pack()
    if face.heavy is not None and face.factors is not None:
        heavy[which], factors[which] = face.heavy, face.factors
    return Solved(
        x,
        v,
        z_box,
        status,
        outcome.iterations,
        weak,
        _lower_share(problem, interior, z_box),
        ray_x,
        ray_v,
        ray_box,
        state,
        factors,
        heavy,
    )


def _interior(scaled: Scaled, point: Point, p: int) -> Interior:
    """The outcome's point with absent rows and bounds given multiplier 0 and slack 1."""
    m, n = scaled.C.shape[1] - p, scaled.q.shape[1]
    z, s = point.z * scaled.live, torch.where(scaled.live > 0, point.s, 1.0)
    v = torch.cat([point.y, z[:, :m]], 1)
    slack = torch.cat([torch.ones_like(point.y), s[:, :m]], 1)
    if scaled.live.shape[1] == m:
        zero, one = torch.zeros_like(point.x), torch.ones_like(point.x)
        return Interior(point.x, v, slack, zero, one, zero, one)
    return Interior(point.x, v, slack, z[:, m : m + n], s[:, m : m + n], z[:, m + n :], s[:, m + n :])


def _lower_share(problem: Program, interior: Interior, z_box: Tensor) -> Tensor:
    """How much of a move of the active bound is the lower one's.

    All of it or nothing, by the sign of the multiplier, also for fixed variables; a weakly active pair shares by its
    weights.
    """
    if not (problem.lb.isfinite() | problem.ub.isfinite()).any():
        return torch.zeros_like(z_box)
    lower, upper = interior.z_lower / interior.s_lower, interior.z_upper / interior.s_upper
    share = torch.where(lower + upper > 0, lower / (lower + upper).clamp(min=NONZERO), 0.0)
    share = torch.where(z_box < 0, 1.0, torch.where(z_box > 0, 0.0, share))
    return torch.where((problem.lb == problem.ub) & (z_box == 0), 0.5, share)


def _merit(problem: Program, p: int, rules: Rules, x: Tensor, v: Tensor, z_box: Tensor) -> Tensor:
    """The largest residual in units of its tolerance max(eps_abs, eps_rel scale), on the data as given."""
    P, q, C, d, lb, ub = problem
    r = residuals(P, q, C[:, p:], d[:, p:], C[:, :p], d[:, :p], lb, ub, x, v[:, :p], v[:, p:], z_box)
    values = torch.stack([r.primal, r.dual, r.gap])
    scales = torch.stack([r.primal_scale, r.dual_scale, r.gap_scale])
    merit = (values / (rules.eps_rel * scales).clamp(min=max(rules.eps_abs, NONZERO))).amax(0)
    return torch.where(merit.isnan(), torch.inf, merit)


def _normalised(problem: Program, standard: Standard, v: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Farkas certificates on the data as given: z_box absorbs what it can, fixed variables included, proven gap 1."""
    v = torch.where(standard.live & which.unsqueeze(-1), v, 0.0)
    d = torch.where(standard.live, problem.d, 0.0)
    known = torch.ones_like(problem.q[:, 0])
    _, v, z_box = farkas(tmv(problem.C, v), d, v, problem.lb, problem.ub, 0.0, 0 * problem.q, known)
    return v, torch.where(which.unsqueeze(-1), z_box, 0.0)
