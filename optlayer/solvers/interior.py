# SPDX-License-Identifier: Apache-2.0
"""The primal-dual interior point method for a whole batch: Newton steps until every element has its verdict.

Each element has its own regularisation, steps and stopping test. One that has come to its verdict is stored and takes
no further part; the arrays shrink when half of them have. An element is

    solved      when the contract (unscaled residuals) and the scaled, purely relative residuals hold,
    infeasible, or unbounded, when an iterate or its last step certifies it (every second iteration looks),
    stalled     when in 12 iterations neither a residual nor, while the gap is open, mu has fallen by 10 %,
                or 6 iterations after the contract was met,

and whatever the verdict but solved, what is returned is its best iterate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kkt.algebra import NONZERO, norm, take, tmv
from ..kkt.rangespace import RangeSpace
from ..status import Status
from .certificate import farkas, ray
from .newton import PROXIMAL, Newton, Point, Residuals, Rules, Scaled

RHO_MIN = 1e-14  # floor of rho; 1e-12 stalls LPs whose scaled costs are 1e-9
STALL, AFTER_CONTRACT = 12, 6  # iterations without progress, and iterations granted once the contract is met
PROGRESS = 0.9  # a residual that falls below this part of its record makes progress
STUCK = 0.8  # a residual that keeps more than this part of itself over a step may belong to a problem without solution
DIVERGED = 1e3  # scaled variables of this size may be on a ray
WORTH_SHRINKING = 1 << 15  # entries of [P; C] from which on leaving finished elements behind pays for the copies


class Outcome(NamedTuple):
    """Where the method ended, and the contract there.

    Rays are in unscaled units: v (B, p + m) of a Farkas certificate, x (B, n) of an unbounded problem.
    """

    point: Point
    status: Tensor
    iterations: Tensor
    contract: Tensor
    ray_x: Tensor
    ray_v: Tensor

    @classmethod
    def none(cls, problem: Scaled, at: Point) -> Outcome:
        """Nothing has ended yet."""
        status = torch.zeros(at.x.shape[0], dtype=torch.int64, device=at.x.device)
        contract = at.x.new_full(status.shape, torch.inf)
        return cls(at, status, status, contract, torch.zeros_like(at.x), torch.zeros_like(problem.d))

    def store(self, where: Tensor, part: Outcome) -> None:
        """Overwrite some elements, in place."""
        for whole, piece in zip((*self.point, *self[1:]), (*part.point, *part[1:]), strict=True):
            whole[where] = piece


class Best(NamedTuple):
    """The best iterate so far and what makes it so."""

    point: Point
    key: Tensor
    contract: Tensor

    def or_(self, at: Point, key: Tensor, contract: Tensor, running: Tensor) -> Best:
        """The better of this iterate and the new one, for each running element."""
        better = (key < self.key) | ~running
        if better.all():
            return Best(at, key, contract)
        point = at.where(better, self.point)
        return Best(point, torch.where(better, key, self.key), torch.where(better, contract, self.contract))


class Rays(NamedTuple):
    """Which running elements have been certified, and by what: status (B,), 0 where none."""

    status: Tensor
    x: Tensor
    v: Tensor


def iterate(
    problem: Scaled, p: int, rules: Rules, space: RangeSpace | None = None, warm: Point | None = None
) -> Outcome:
    """Run the method on a batch; `space` takes the range-space form of the Newton system."""
    newton = Newton(problem, p, rules, space)
    at = newton.start(warm)
    B, device = problem.q.shape[0], problem.q.device
    infinite = problem.q.new_full((B,), torch.inf)
    out: Outcome | None = None  # of the whole batch, once the arrays have shrunk; here: of those still in the arrays
    here = Outcome.none(problem, at)
    ids = torch.arange(B, device=device)
    running = torch.ones(B, dtype=torch.bool, device=device)
    best, met = Best(at, infinite, infinite), torch.zeros_like(ids)
    history: list[Tensor] = []  # residuals and mu of the last STALL iterations; record: the least before them
    record: Tensor | None = None
    proximal = torch.full_like(problem.c, PROXIMAL)
    reference: Tensor | None = None
    before: tuple[Point, Residuals] | None = None
    ok = running
    for k in range(rules.max_iter + 1):
        r = newton.measure(at)
        big = r.worst.amax(0)
        open_mu = torch.where(r.worst[2] > rules.relative, r.mu, 0.0)
        history.append(torch.cat([r.worst.clamp(min=0.1 * rules.relative), open_mu.unsqueeze(0)]))
        contract_met = r.contract <= 1
        met = met + (contract_met | (met > 0))
        best = best.or_(at, torch.maximum(r.contract, (big / rules.relative).clamp(max=1)), r.contract, running)

        solved = contract_met & (big <= rules.relative)
        stalled = met > AFTER_CONTRACT
        if k >= STALL:
            oldest = history.pop(0)
            record = oldest if record is None else torch.minimum(record, oldest)
            stalled = stalled | ~(torch.stack(history).amin(0) < PROGRESS * record).any(0)
        broken = ~((r.contract < torch.inf) & ok)
        rays = _certify(newton, k, at, r, before, running & ~contract_met) if rules.infeasible and k % 2 == 0 else None
        ends = solved | stalled | broken | (k == rules.max_iter)
        if rays is not None:
            ends = ends | (rays.status > 0)
        ended = running & ends
        if ended.any():
            verdict = torch.full_like(ids, int(Status.MAX_ITERATIONS))
            verdict = verdict.masked_fill(broken, int(Status.NUMERICAL_ERROR))
            verdict = verdict.masked_fill(stalled, int(Status.INSUFFICIENT_PROGRESS))
            if rays is not None:
                verdict = torch.where(rays.status > 0, rays.status, verdict)
                certified = (ended & (rays.status > 0)).unsqueeze(-1)
                here = here._replace(
                    ray_x=torch.where(certified, rays.x, here.ray_x), ray_v=torch.where(certified, rays.v, here.ray_v)
                )
            verdict = verdict.masked_fill(solved, int(Status.SOLVED))
            last = at if (solved | ~ended).all() else at.where(solved, best.point)
            here = here._replace(
                point=last.where(ended, here.point),
                status=torch.where(ended, verdict, here.status),
                iterations=here.iterations.masked_fill(ended, k),
                contract=torch.where(ended, torch.where(solved, r.contract, best.contract), here.contract),
            )
            running = running & ~ends
            left = int(running.sum())
            if left == 0:
                break
            if left <= running.shape[0] // 2 and newton.PC.numel() > WORTH_SHRINKING:
                keep = running.nonzero().squeeze(-1)
                if out is None:
                    out = here
                else:
                    out.store(ids, here)
                here = take(here, keep)
                newton, best, at, r = newton.take(keep), take(best, keep), take(at, keep), r.take(keep)
                ids, running, met, proximal = ids[keep], running[keep], met[keep], proximal[keep]
                history = [t[:, keep] for t in history]
                record = None if record is None else record[:, keep]
                reference = None if reference is None else reference[keep]

        distance = r.mu if newton.alone is None else torch.where(newton.alone, r.worst[:2].amax(0), r.mu)
        reference = distance.clamp(min=NONZERO) if reference is None else reference
        proximal = torch.minimum(proximal, PROXIMAL * (distance / reference).unsqueeze(-1))
        before = (at, r)
        at, ok = newton.advance(at, r, proximal.clamp(min=RHO_MIN), proximal.clamp(min=rules.delta))
    if out is None:
        return here
    out.store(ids, here)
    return out


def _certify(
    newton: Newton, k: int, at: Point, r: Residuals, before: tuple[Point, Residuals] | None, candidates: Tensor
) -> Rays | None:
    """Look for a Farkas certificate or a ray of descent in the iterate and in its last step.

    When iterates diverge the step is the ray itself. Only elements whose residual is stuck are looked at: the primal
    one of an infeasible problem, and the dual one of an unbounded problem, cannot tend to zero. None: nobody was.
    """
    Q, p, rules = newton.problem, newton.p, newton.rules
    late = candidates if k >= 2 else candidates & (newton.live_count == 0)
    primal, dual = late, torch.zeros_like(late)
    if not rules.elastic:
        stuck = r.worst[:2] > 1e-12
        if before is not None:
            stuck = stuck & (r.worst[:2] > STUCK * before[1].worst[:2])
        primal, dual = late & stuck[0], late & stuck[1] & (norm(at.x) > DIVERGED)
    if newton.N + p == 0:
        primal = torch.zeros_like(late)
    if not (primal | dual).any():
        return None
    rays = Rays(torch.zeros_like(late, dtype=torch.int64), torch.zeros_like(Q.q), torch.zeros_like(Q.d))
    lb, ub = (None, None) if newton.bounds is None else newton.bounds
    last, seen = (None, None) if before is None else before
    v = torch.cat([at.y, newton.on(at.z)[:, : newton.m]], 1)
    multipliers = [v]
    if last is not None:
        step = torch.cat([at.y - last.y, newton.on(at.z - last.z)[:, : newton.m].clamp(min=0)], 1)
        multipliers.append(step)
    for trial in multipliers if primal.any() else []:
        Cv = tmv(Q.C, trial) * newton.dual_unit
        v = trial * Q.E / Q.c
        ratio, scaled, _ = farkas(Cv, Q.d * newton.row_unit, v, lb, ub, rules.proof, Q.c * Q.D, norm(trial))
        found = primal & (rays.status == 0) & (ratio < rules.infeasible)
        rays = rays._replace(
            status=rays.status.masked_fill(found, int(Status.PRIMAL_INFEASIBLE)),
            v=torch.where(found.unsqueeze(-1), scaled, rays.v),
        )
    directions = [(at.x, r.Px, r.Cx)]
    if last is not None and seen is not None:
        directions.append((at.x - last.x, r.Px - seen.Px, r.Cx - seen.Cx))
    for x, Px, Cx in directions if dual.any() else []:
        unscaled = (Q.q * newton.dual_unit, x * Q.D, Px * newton.dual_unit, Cx * newton.row_unit)
        units = torch.cat([Q.c * Q.D / norm(Q.P).clamp(min=NONZERO), Q.E], 1)
        violation, direction = ray(*unscaled, p, lb, ub, rules.proof, units, norm(x))
        found = dual & (rays.status == 0) & (violation < rules.infeasible)
        rays = rays._replace(
            status=rays.status.masked_fill(found, int(Status.DUAL_INFEASIBLE)),
            x=torch.where(found.unsqueeze(-1), direction, rays.x),
        )
    return rays
