# SPDX-License-Identifier: Apache-2.0
"""The primal-dual interior point method on equilibrated data, for a whole batch at once.

With E = [G; -I; I], e = [h; -lb; ub] (rows that are absent are masked), slacks s and multipliers z of all N inequalities,

    P x + q + A'y + E'z = 0,      A x = b,      E x + s = e,      s_i z_i = 0,      s, z >= 0

is followed along s_i z_i = mu -> 0 by Mehrotra's predictor-corrector (SIAM J. Optim. 2, 1992), with the proximal terms
rho I and delta I of the proximal method of multipliers (Schwan et al., PIQP, CDC 2023) in the matrix only: the residuals are
those of the problem itself, so the terms shift no solution. One factorisation and two solves an iteration:

    [ P + rho + E_box' W E_box   A'      G'          ] [dx]
    [ A                         -delta               ] [dy] = r,      W = w = z / (s + delta z)
    [ G                                  -1/w        ] [dz]

Each element has its own regularisation, step and verdict. One that has come to its verdict is stored and takes no further
part; the arrays shrink when half of them have.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kkt.algebra import dot, highest, mv, norm, tmv
from ..kkt.rangespace import RangeFactor, RangeSpace
from ..kkt.scaling import Scaling
from ..kkt.split import SplitFactor
from ..status import Status
from .certificate import farkas, ray
from .standard import Standard

RHO, DELTA = 1e-6, 1e-6  # at the start; both fall with mu
RHO_MIN, DELTA_MIN = 1e-14, 1e-12  # rho 1e-12 already stalls LPs whose costs are 1e-9 after scaling
RESCUE = 1e-7  # rho and delta where a factorisation breaks down
STEP, LONG_STEP, LONG = 0.95, 0.9999, 0.9  # fraction to the boundary; the long one once the step passes 0.9. 0.99 cycles.
TINY = 1e-40  # floor of s and z
WORTH_SHRINKING = 1 << 15  # entries of [P; C] from which on leaving finished elements behind pays for the copies
STALL, AFTER_CONTRACT = 12, 6  # iterations without progress; iterations granted once the contract is met
START_FLOOR = 1e-2


Kernel = SplitFactor | RangeFactor


class Rules(NamedTuple):
    """Plain values that steer the method. elastic > 0 solves min 1/2 x'Px + q'x + |e|^2/2, Gx - e <= h, Ax - e = b."""

    eps_abs: float
    eps_rel: float
    max_iter: int
    relative: float  # bound on the scaled, purely relative residuals
    farkas: float  # least gap, relative to the data, that a certificate must prove
    infeasible: float = 1e-9  # accuracy of certificates; 0 does not look for any
    elastic: float = 0.0


class Scaled(NamedTuple):
    """The equilibrated problem. live (B, N) masks the inequalities, p counts the equality rows."""

    P: Tensor
    q: Tensor
    C: Tensor
    d: Tensor
    lo: Tensor  # (B, n) zero where absent
    hi: Tensor
    live: Tensor  # (B, N) float
    count: Tensor  # (B,) live inequalities
    D: Tensor
    E: Tensor
    c: Tensor
    offset: Tensor

    def take(self, index: Tensor) -> Scaled:
        """Some elements of the batch."""
        return Scaled(*(t[index] for t in self))


class Point(NamedTuple):
    """x (B, n), y (B, p), z and s (B, N), in scaled units."""

    x: Tensor
    y: Tensor
    z: Tensor
    s: Tensor

    def take(self, index: Tensor) -> Point:
        """Some elements of the batch."""
        return Point(*(t[index] for t in self))

    def where(self, mask: Tensor, other: Point) -> Point:
        """These elements where the mask holds, the other's elsewhere."""
        return Point(*(torch.where(mask.unsqueeze(-1), a, b) for a, b in zip(self, other, strict=True)))


class Residuals(NamedTuple):
    """What is measured at a point, in scaled units but for the contract."""

    rd: Tensor
    ry: Tensor
    rz: Tensor
    mu: Tensor
    worst: Tensor  # (3, B) primal, dual and gap, purely relative
    contract: Tensor  # the largest unscaled residual in units of its tolerance: met at 1
    Px: Tensor
    Cx: Tensor

    def take(self, index: Tensor) -> Residuals:
        """Some elements of the batch."""
        return Residuals(*(t[:, index] if t is self.worst else t[index] for t in self))


class Outcome(NamedTuple):
    """Where the method ended and the contract there. rays in unscaled units: v (B, p + m) of a Farkas certificate, x (B, n) of an unbounded one."""

    point: Point
    status: Tensor
    iterations: Tensor
    contract: Tensor
    ray_x: Tensor
    ray_v: Tensor


def scale(problem: Standard, scaling: Scaling, p: int, boxes: bool) -> Scaled:
    """The problem in the units of the scaling."""
    D, E, c = scaling
    has_lo, has_hi = problem.lb.isfinite(), problem.ub.isfinite()
    live = problem.live[:, p:]
    if boxes:
        live = torch.cat([live, has_lo, has_hi], 1)
    return Scaled(
        problem.P * (c * D).unsqueeze(-1) * D.unsqueeze(-2),
        c * D * problem.q,
        problem.C * E.unsqueeze(-1) * D.unsqueeze(-2),
        E * problem.d,
        torch.where(has_lo, problem.lb, 0.0) / D,
        torch.where(has_hi, problem.ub, 0.0) / D,
        live.to(D.dtype),
        live.sum(-1),
        D,
        E,
        c,
        problem.offset,
    )


class InteriorPoint:
    """The method on one batch of scaled problems; see the module docstring."""

    def __init__(self, problem: Scaled, p: int, rules: Rules, space: RangeSpace | None = None):
        self.problem, self.p, self.rules, self.space = problem, p, rules, space
        self.n = problem.q.shape[-1]
        self.m = problem.C.shape[1] - p
        self.boxes = problem.live.shape[1] > self.m
        self._prepare()

    def _prepare(self) -> None:
        """What is needed at every iteration and does not change."""
        Q, p, m, n = self.problem, self.p, self.m, self.n
        self.PC = torch.cat([Q.P, Q.C], 1)
        self.At, self.Gt = Q.C[:, :p].mT.contiguous(), Q.C[:, p:].mT.contiguous()
        self.e = torch.cat([Q.d[:, p:], -Q.lo, Q.hi], 1) if self.boxes else Q.d[:, p:]
        self.dual_unit, self.row_unit = 1 / (Q.c * Q.D), 1 / Q.E
        self.unit = torch.cat([self.row_unit[:, p:], Q.D, Q.D], 1) if self.boxes else self.row_unit[:, p:]
        self.cost = Q.c.squeeze(-1)
        self.count = Q.count.clamp(min=1).unsqueeze(-1)
        self.alone = (Q.count == 0).unsqueeze(-1)
        bounded = (Q.live[:, m:].sum(-1) > 0) if self.boxes else self.alone.squeeze(-1) & False
        self.bounded = bounded.to(Q.q.dtype)
        self.size_d = torch.stack([norm(Q.q).clamp(min=1e-8), norm(Q.q * self.dual_unit)])
        self.size_p = torch.stack([norm(Q.d).clamp(min=1), norm(Q.d * self.row_unit)])
        self.full = bool(Q.live.all())
        self.elastic = self.rules.elastic * (torch.arange(Q.live.shape[1], device=Q.q.device) < m)

    def _on(self, t: Tensor) -> Tensor:
        """A vector over the inequalities with zeros in those that are absent."""
        return t if self.full else t * self.problem.live

    def _shrink(self, keep: Tensor) -> None:
        self.problem = self.problem.take(keep)
        self.space = None if self.space is None else self.space.take(keep)
        self._prepare()

    # ---- the operators E x, E'z and the Newton system -----------------------------------------------------------

    def _E(self, x: Tensor, Cx: Tensor) -> Tensor:
        return torch.cat([Cx[:, self.p :], -x, x], 1) if self.boxes else Cx[:, self.p :]

    def _box(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, self.m : self.m + self.n], z[:, self.m + self.n :]

    def _factor(self, w: Tensor, rho: Tensor, delta: Tensor) -> Kernel:
        equality = (1 / (delta + self.rules.elastic)).expand(-1, self.p)
        rows = torch.cat([equality, w[:, : self.m]], 1)
        if self.space is not None:
            return self.space.factor(rows)
        diagonal = rho.expand(-1, self.n)
        if self.boxes:
            lower, upper = self._box(w)
            diagonal = diagonal + lower + upper
        return SplitFactor(self.problem.P, self.problem.C, rows, diagonal)

    def _solve(self, kernel: Kernel, w: Tensor, a: Tensor, cy: Tensor, cz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dx, dy, dz with (P + rho) dx + A'dy + E'dz = a, A dx - delta dy = cy, E dx - dz/w = cz."""
        if self.boxes:
            (cl, cu), (wl, wu) = self._box(cz), self._box(w)
            a = a - wl * cl + wu * cu
        dx, dv = kernel.solve(a.unsqueeze(-1), torch.cat([cy, cz[:, : self.m]], 1).unsqueeze(-1))
        dx, dv = dx.squeeze(-1), dv.squeeze(-1)
        dz = dv[:, self.p :]
        if self.boxes:
            dz = torch.cat([dz, -wl * (dx + cl), wu * (dx - cu)], 1)
        return dx, dv[:, : self.p], dz

    # ---- start, measure, step -------------------------------------------------------------------------------------

    def start(self, warm: Point | None = None) -> Point:
        """Mehrotra's starting point from the system with all weights one; a finite warm point instead where there is one."""
        Q = self.problem
        one = torch.full_like(Q.c, DELTA)
        w = Q.live / (1 + self.elastic + DELTA)
        zero = torch.zeros_like(Q.q)
        x, y, z = self._solve(
            self._factor(w, torch.full_like(Q.c, RHO), one), w, -Q.q, Q.d[:, : self.p], self.e - self._E(zero, torch.zeros_like(Q.d))
        )
        s = -z
        low = (-1.5 * torch.where(Q.live > 0, torch.stack([s, z]), torch.inf)).amax(-1, keepdim=True) if s.shape[1] else None
        if low is not None:
            s, z = s + low[0].clamp(min=0), z + low[1].clamp(min=0)
            t = dot(s * Q.live, z).unsqueeze(-1)
            flat = t <= 1e-12
            s, z = torch.where(flat, s + 1, s), torch.where(flat, z + 1, z)
            s, z = s * Q.live, z * Q.live
            t = dot(s, z).unsqueeze(-1)
            ds = 0.5 * t / z.sum(-1, keepdim=True).clamp(min=1e-300)
            dz = 0.5 * t / s.sum(-1, keepdim=True).clamp(min=1e-300)
            s, z = (s + ds).clamp(min=START_FLOOR), (z + dz).clamp(min=START_FLOOR)
        s, z = torch.where(Q.live > 0, s, 1.0), torch.where(Q.live > 0, z, TINY)
        cold = Point(x, y, z, s)
        if warm is None:
            return cold
        s = torch.where(Q.live > 0, (self.e - self._E(warm.x, mv(Q.C, warm.x))).clamp(min=START_FLOOR), 1.0)
        z = torch.where(Q.live > 0, warm.z.clamp(min=START_FLOOR), TINY)
        finite = warm.x.isfinite().all(-1) & warm.y.isfinite().all(-1) & s.isfinite().all(-1) & z.isfinite().all(-1)
        return Point(warm.x, warm.y, z, s).where(finite, cold)

    def measure(self, at: Point) -> Residuals:
        """Residuals of the problem at a point, scaled for the method and unscaled for the contract."""
        Q, p, n, rules = self.problem, self.p, self.n, self.rules
        x, y, z, s = at
        z = self._on(z)
        Px, Cx = mv(self.PC, x).split([n, Q.d.shape[1]], 1)
        Gz = mv(self.Gt, z[:, : self.m])
        Ez, parts = Gz, [Px, Gz]
        if self.boxes:
            lower, upper = self._box(z)
            Ez = Gz + upper - lower
            parts += [upper - lower]
        rd = Px + Q.q + Ez
        if p:
            Ay = mv(self.At, y)
            rd, parts = rd + Ay, [*parts, Ay]
        ry = Cx[:, :p] - Q.d[:, :p]
        excess = self._on(self._E(x, Cx) - self.e)
        rz = excess + self._on(s)
        if rules.elastic:
            ry, rz = ry - rules.elastic * y, rz - self.elastic * z
        complementarity = dot(s, z)
        xPx, qx = dot(x, Px), dot(Q.q, x)
        objective = 0.5 * xPx + qx

        columns = torch.stack([rd, Ez, *parts], 1).abs()
        scaled, unscaled = columns.amax(-1), (columns * self.dual_unit.unsqueeze(1)).amax(-1)
        rows = torch.stack([Cx, Cx * self.row_unit]).abs().amax(-1) if Cx.shape[1] else self.size_p
        reach = torch.stack([x, x * Q.D]).abs().amax(-1) * self.bounded
        size_p, sp = torch.maximum(torch.maximum(rows, reach), self.size_p)
        size_d = torch.maximum(scaled[:, 1:].amax(-1), self.size_d[0])
        size_g = torch.maximum(objective.abs(), 1e-2 * (Q.q * x).abs().sum(-1)).clamp(min=1e-4)
        primal = torch.maximum(norm(ry), norm(rz)) if p else norm(rz)
        worst = torch.stack([primal / size_p, scaled[:, 0] / size_d, complementarity / size_g])

        if rules.elastic:
            contract = torch.stack([primal, scaled[:, 0], complementarity]).amax(0) / max(rules.eps_abs, rules.eps_rel)
            return Residuals(rd, ry, rz, complementarity / self.count.squeeze(-1), worst, contract, Px, Cx)
        support = dot(self.e, z)
        rp = highest(excess * self.unit)
        if p:
            support, rp = support + dot(Q.d[:, :p], y), torch.maximum(rp, norm(ry * self.row_unit[:, :p]))
        half = 0.5 * xPx
        values = torch.stack([objective, -half - support]) / self.cost + Q.offset
        residuals = torch.stack([rp, unscaled[:, 0], (xPx + qx + support).abs() / self.cost])
        sd = torch.maximum(unscaled[:, 2:].amax(-1), self.size_d[1])
        scales = torch.stack([sp, sd, values.abs().amin(0)])
        contract = (residuals / (rules.eps_rel * scales).clamp(min=max(rules.eps_abs, 1e-300))).amax(0)
        return Residuals(rd, ry, rz, complementarity / self.count.squeeze(-1), worst, contract, Px, Cx)

    def advance(self, at: Point, r: Residuals, rho: Tensor, delta: Tensor) -> tuple[Point, Tensor]:
        """One predictor-corrector step, and where the factorisation succeeded."""
        x, y, z, s = at
        w = self._on(z / (s + (delta + self.elastic) * z))
        kernel = self._factor(w, rho, delta)
        if not kernel.ok.all():
            rho, delta = (torch.where(kernel.ok.unsqueeze(-1), t, RESCUE) for t in (rho, delta))
            w = self._on(z / (s + (delta + self.elastic) * z))
            kernel = self._factor(w, rho, delta)

        def direction(rc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Newton on s z = s z - rc; E dx + ds - delta dz = -rz and z ds + s dz = -rc."""
            dx, dy, dz = self._solve(kernel, w, -r.rd, -r.ry, rc / z - r.rz)
            return dx, dy, self._on(dz), self._on((rc + s * dz) / -z)

        if z.shape[1] == 0:
            dx, dy, _, _ = direction(s)
            return Point(x + dx, y + dy, z, s), kernel.ok

        def lengths(dz: Tensor, ds: Tensor) -> tuple[Tensor, Tensor]:
            """The largest primal and dual steps up to 1 that keep s and z positive."""
            primal = (ds / s).amin(-1, keepdim=True).clamp(max=-1).reciprocal().neg()
            dual = (dz / z).amin(-1, keepdim=True).clamp(max=-1).reciprocal().neg()
            if self.rules.elastic:
                primal = dual = torch.minimum(primal, dual)
            return primal, dual

        sz = s * z
        dx, dy, dz, ds = direction(sz)
        primal, dual = lengths(dz, ds)
        mu = r.mu.unsqueeze(-1)
        affine = self._on((s + primal * ds) * (z + dual * dz)).sum(-1, keepdim=True) / self.count
        sigma = (affine.clamp(min=0) / mu.clamp(min=1e-300)).pow(3).clamp(max=1)
        dx, dy, dz, ds = direction(sz + ds * dz - sigma * mu)
        lengths_ = torch.cat(lengths(dz, ds), 1)
        lengths_ = lengths_ * (STEP + (LONG_STEP - STEP) * (lengths_ > LONG))
        primal, dual = lengths_.masked_fill(self.alone, 1.0).split(1, 1)
        s, z = (s + primal * ds).clamp(min=TINY), (z + dual * dz).clamp(min=TINY)
        return Point(x + primal * dx, y + dual * dy, z, s), kernel.ok

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self, warm: Point | None = None) -> Outcome:
        """Iterate until every element has its verdict."""
        Q, rules = self.problem, self.rules
        B, device = Q.q.shape[0], Q.q.device
        at = self.start(warm)
        out = Outcome(
            Point(*(t.clone() for t in at)),
            torch.full((B,), int(Status.MAX_ITERATIONS), device=device),
            torch.zeros(B, dtype=torch.int64, device=device),
            Q.q.new_full((B,), torch.inf),
            torch.zeros_like(Q.q),
            torch.zeros_like(Q.d),
        )
        ids = torch.arange(B, device=device)
        running = torch.ones(B, dtype=torch.bool, device=device)
        best, best_key, best_contract = at, out.contract.clone(), out.contract.clone()
        record = Q.q.new_full((3, B), torch.inf)  # the least primal, dual and gap so far
        idle, met = torch.zeros_like(ids), torch.zeros_like(ids)
        rho, delta = torch.full_like(Q.c, RHO), torch.full_like(Q.c, DELTA)
        reference: Tensor | None = None
        before: tuple[Point, Residuals] | None = None
        ok = running
        for k in range(rules.max_iter + 1):
            r = self.measure(at)
            big = r.worst.amax(0)
            floored = r.worst.clamp(min=0.1 * rules.relative)
            idle = (idle + 1) * ~(floored < 0.9 * record).any(0)
            record = torch.minimum(record, floored)
            met = met + ((r.contract <= 1) | (met > 0))
            key = torch.maximum(r.contract, (big / rules.relative).clamp(max=1))
            better = key < best_key
            best = at if better.all() else at.where(better, best)
            best_key = torch.where(better, key, best_key)
            best_contract = torch.where(better, r.contract, best_contract)

            solved = (r.contract <= 1) & (big <= rules.relative)
            stalled = (idle >= STALL) | (met > AFTER_CONTRACT)
            broken = ~(r.contract.isfinite() & ok)
            verdict = torch.zeros_like(ids)
            if rules.infeasible:
                verdict = self._certify(k, at, r, before, running & ~solved, verdict, ids, out)
            ends = solved | stalled | broken | (verdict > 0) | (k == rules.max_iter)
            ended = (running & ends).nonzero().squeeze(-1)
            if ended.numel():
                verdict = torch.where((verdict == 0) & stalled, int(Status.INSUFFICIENT_PROGRESS), verdict)
                verdict = torch.where((verdict == 0) & broken, int(Status.NUMERICAL_ERROR), verdict)
                verdict = torch.where(solved, int(Status.SOLVED), verdict)
                verdict = torch.where(verdict == 0, int(Status.MAX_ITERATIONS), verdict)
                where, last = ids[ended], at.where(solved, best).take(ended)
                for store, value in zip(out.point, last, strict=True):
                    store[where] = value
                out.status[where], out.iterations[where] = verdict[ended], k
                out.contract[where] = torch.where(solved, r.contract, best_contract)[ended]
                running = running & ~ends
                left = int(running.sum())
                if left == 0:
                    break
                if left <= running.shape[0] // 2 and self.PC.numel() > WORTH_SHRINKING:
                    keep = running.nonzero().squeeze(-1)
                    self._shrink(keep)
                    Q = self.problem
                    ids, running, met, idle = ids[keep], running[keep], met[keep], idle[keep]
                    best_key, best_contract, record = best_key[keep], best_contract[keep], record[:, keep]
                    rho, delta, at, best, r = rho[keep], delta[keep], at.take(keep), best.take(keep), r.take(keep)
                    reference = None if reference is None else reference[keep]

            measure = torch.where(self.alone, r.worst[:2].amax(0).unsqueeze(-1), r.mu.unsqueeze(-1))
            reference = measure.clamp(min=1e-300) if reference is None else reference
            fall = measure / reference
            rho = torch.minimum(rho, RHO * fall).clamp(min=RHO_MIN)
            delta = torch.minimum(delta, DELTA * fall).clamp(min=DELTA_MIN)
            before = (at, r)
            at, ok = self.advance(at, r, rho, delta)
        return out

    def _certify(
        self,
        k: int,
        at: Point,
        r: Residuals,
        before: tuple[Point, Residuals] | None,
        candidates: Tensor,
        verdict: Tensor,
        ids: Tensor,
        out: Outcome,
    ) -> Tensor:
        """Look for a Farkas certificate or a ray of descent in the iterate and in its last step.

        When iterates diverge the step is the ray itself. Only elements whose residual has not halved are looked at: the
        primal residual of an infeasible problem, and the dual one of an unbounded problem, cannot tend to zero.
        """
        Q, p, tol = self.problem, self.p, self.rules.infeasible
        if before is None:
            primal = dual = candidates & (Q.count == 0)
        else:
            late = candidates & ((Q.count == 0) | (k >= 2))
            stuck = late & (r.worst[:2] > 1e-12) & (r.worst[:2] > 0.5 * before[1].worst[:2])
            primal, dual = stuck[0], stuck[1] & (norm(at.x) > 1e3)
        if self.rules.elastic:
            primal, dual = candidates & (k >= 2), torch.zeros_like(candidates)
        lb, ub = torch.where(Q.live[:, self.m : self.m + self.n] > 0, Q.lo * Q.D, -torch.inf) if self.boxes else None, None
        if self.boxes:
            ub = torch.where(Q.live[:, self.m + self.n :] > 0, Q.hi * Q.D, torch.inf)
        if at.z.shape[1] + p and primal.any():
            v = torch.cat([at.y, (at.z * Q.live)[:, : self.m]], 1)
            trials = [v]
            if before is not None:
                last = before[0]
                trials.append(torch.cat([at.y - last.y, ((at.z - last.z) * Q.live)[:, : self.m].clamp(min=0)], 1))
            for trial in trials:
                trial = trial * Q.E / Q.c
                ratio, scaled, _ = farkas(
                    tmv(Q.C, trial / Q.E) / Q.D, Q.d * self.row_unit, trial, lb, ub, self.rules.farkas
                )
                found = (primal & (verdict != Status.PRIMAL_INFEASIBLE) & (ratio < tol)).nonzero().squeeze(-1)
                out.ray_v[ids[found]] = scaled[found]
                verdict = verdict.index_fill(0, found, int(Status.PRIMAL_INFEASIBLE))
        if dual.any():
            steps = [(at.x, r.Px, r.Cx)]
            if before is not None:
                last, seen = before
                steps.append((at.x - last.x, r.Px - seen.Px, r.Cx - seen.Cx))
            for x, Px, Cx in steps:
                violation, direction = ray(
                    Q.q * self.dual_unit, x * Q.D, Px * self.dual_unit, Cx * self.row_unit, p, lb, ub
                )
                open_ = (verdict != Status.PRIMAL_INFEASIBLE) & (verdict != Status.DUAL_INFEASIBLE)
                found = (dual & open_ & (violation < tol)).nonzero().squeeze(-1)
                out.ray_x[ids[found]] = direction[found]
                verdict = verdict.index_fill(0, found, int(Status.DUAL_INFEASIBLE))
        return verdict
