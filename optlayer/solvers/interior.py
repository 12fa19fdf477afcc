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
from ..kkt.rangespace import RangeSpace
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
STALL, AFTER_CONTRACT = 12, 6  # iterations without progress; iterations granted once the contract is met
START_FLOOR = 1e-2


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
    """What is measured at a point; vectors in scaled units, `contract` and `key` in the caller's."""

    rd: Tensor
    ry: Tensor
    rz: Tensor
    mu: Tensor
    hp: Tensor
    hd: Tensor
    hg: Tensor
    contract: Tensor  # largest residual in units of its tolerance: met at 1
    Px: Tensor
    Cx: Tensor


class Outcome(NamedTuple):
    """Where the method ended. rays in unscaled units: v (B, p + m) of a Farkas certificate, x (B, n) of an unbounded one."""

    point: Point
    status: Tensor
    iterations: Tensor
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
        Q, p = self.problem, self.p
        self.A, self.G = Q.C[:, :p], Q.C[:, p:]
        self.e = torch.cat([Q.d[:, p:], -Q.lo, Q.hi], 1) if self.boxes else Q.d[:, p:]
        self.dual_unit = 1 / (Q.c * Q.D)
        self.row_unit = 1 / Q.E
        self.unit = torch.cat([self.row_unit[:, p:], Q.D, Q.D], 1) if self.boxes else self.row_unit[:, p:]
        self.cost = Q.c.squeeze(-1)
        self.norm_q, self.norm_d = norm(Q.q), norm(Q.d)
        self.norm_q_unscaled, self.norm_d_unscaled = norm(Q.q * self.dual_unit), norm(Q.d * self.row_unit)
        bounded = (Q.live[:, self.m :].sum(-1) > 0) if self.boxes else torch.zeros_like(Q.count, dtype=torch.bool)
        self.bounded = bounded.to(Q.q.dtype)
        self.elastic = self.rules.elastic * (torch.arange(Q.live.shape[1], device=Q.q.device) < self.m)

    def _shrink(self, keep: Tensor) -> None:
        self.problem = self.problem.take(keep)
        self.space = None if self.space is None else self.space.take(keep)
        self._prepare()

    # ---- the operators E x, E'z and the Newton system -----------------------------------------------------------

    def _E(self, x: Tensor, Cx: Tensor) -> Tensor:
        return torch.cat([Cx[:, self.p :], -x, x], 1) if self.boxes else Cx[:, self.p :]

    def _box(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, self.m : self.m + self.n], z[:, self.m + self.n :]

    def _factor(self, w: Tensor, rho: Tensor, delta: Tensor) -> SplitFactor | object:
        equality = (1 / (delta + self.rules.elastic)).expand(-1, self.p)
        rows = torch.cat([equality, w[:, : self.m]], 1)
        if self.space is not None:
            return self.space.factor(rows)
        diagonal = rho.expand(-1, self.n)
        if self.boxes:
            lower, upper = self._box(w)
            diagonal = diagonal + lower + upper
        return SplitFactor(self.problem.P, self.problem.C, rows, diagonal)

    def _solve(self, kernel: object, w: Tensor, a: Tensor, cy: Tensor, cz: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dx, dy, dz and E dx with (P + rho) dx + A'dy + E'dz = a, A dx - delta dy = cy, E dx - dz/w = cz."""
        if self.boxes:
            (cl, cu), (wl, wu) = self._box(cz), self._box(w)
            a = a - wl * cl + wu * cu
        dx, dv = kernel.solve(a.unsqueeze(-1), torch.cat([cy, cz[:, : self.m]], 1).unsqueeze(-1))  # type: ignore[attr-defined]
        dx, dv = dx.squeeze(-1), dv.squeeze(-1)
        dz = dv[:, self.p :]
        if self.boxes:
            dz = torch.cat([dz, -wl * (dx + cl), wu * (dx - cu)], 1)
        return dx, dv[:, : self.p], dz, self._E(dx, mv(self.problem.C, dx))

    # ---- start, measure, step -------------------------------------------------------------------------------------

    def start(self, warm: Point | None = None) -> Point:
        """Mehrotra's starting point from the system with all weights one; a finite warm point instead where there is one."""
        Q = self.problem
        one = torch.full_like(Q.c, DELTA)
        w = Q.live / (1 + self.elastic + DELTA)
        zero = torch.zeros_like(Q.q)
        x, y, z, _ = self._solve(
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
        Q, p, rules = self.problem, self.p, self.rules
        x, y, z, s = at
        z = z * Q.live
        Px, Cx = mv(Q.P, x), mv(Q.C, x)
        Ay, Gz = tmv(self.A, y), tmv(self.G, z[:, : self.m])
        Ez, zb = Gz, None
        if self.boxes:
            lower, upper = self._box(z)
            zb = upper - lower
            Ez = Gz + zb
        rd = Px + Q.q + Ay + Ez
        ry = Cx[:, :p] - Q.d[:, :p]
        excess = (self._E(x, Cx) - self.e) * Q.live
        rz = excess + s * Q.live
        if rules.elastic:
            ry, rz = ry - rules.elastic * y, rz - self.elastic * z
        complementarity = dot(s, z)
        mu = complementarity / Q.count.clamp(min=1)
        xPx, qx = dot(x, Px), dot(Q.q, x)
        objective = 0.5 * xPx + qx

        primal = torch.maximum(norm(ry), norm(rz))
        size_p = torch.stack([self.norm_d, norm(Cx), self.bounded * norm(x)]).amax(0).clamp(min=1.0)
        size_d = torch.stack([self.norm_q, norm(Px), norm(Ay), norm(Ez)]).amax(0).clamp(min=1e-8)
        size_g = torch.maximum(objective.abs(), 1e-2 * dot(Q.q.abs(), x.abs())).clamp(min=1e-4)
        hp, hd, hg = primal / size_p, norm(rd) / size_d, complementarity / size_g

        if rules.elastic:
            contract = torch.stack([primal, norm(rd), complementarity]).amax(0) / max(rules.eps_abs, rules.eps_rel)
            return Residuals(rd, ry, rz, mu, hp, hd, hg, contract, Px, Cx)
        support = dot(Q.d[:, :p], y) + dot(self.e, z)
        rp = torch.maximum(norm(ry * self.row_unit[:, :p]), highest(excess * self.unit))
        gap = (xPx + qx + support).abs() / self.cost
        values = torch.stack([Q.offset + objective / self.cost, Q.offset - (0.5 * xPx + support) / self.cost])
        sp = torch.stack([self.norm_d_unscaled, norm(Cx * self.row_unit), self.bounded * norm(x * Q.D)]).amax(0)
        parts = [Px, Ay, Gz] if zb is None else [Px, Ay, Gz, zb]
        sd = torch.maximum(self.norm_q_unscaled, norm(torch.cat([t * self.dual_unit for t in parts], 1)))
        residuals = torch.stack([rp, norm(rd * self.dual_unit), gap])
        scales = torch.stack([sp, sd, values.abs().amin(0)])
        contract = (residuals / (rules.eps_rel * scales).clamp(min=rules.eps_abs).clamp(min=1e-300)).amax(0)
        return Residuals(rd, ry, rz, mu, hp, hd, hg, contract, Px, Cx)

    def advance(self, at: Point, r: Residuals, rho: Tensor, delta: Tensor) -> tuple[Point, Tensor]:
        """One predictor-corrector step, and where the factorisation succeeded."""
        Q = self.problem
        x, y, z, s = at

        def weights() -> Tensor:
            return Q.live * z / (s + (delta + self.elastic) * z)

        w = weights()
        kernel = self._factor(w, rho, delta)
        if not kernel.ok.all():  # type: ignore[attr-defined]
            rho = torch.where(kernel.ok.unsqueeze(-1), rho, RESCUE)  # type: ignore[attr-defined]
            delta = torch.where(kernel.ok.unsqueeze(-1), delta, RESCUE)  # type: ignore[attr-defined]
            w = weights()
            kernel = self._factor(w, rho, delta)

        def direction(rc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Newton on s z = s z - rc; E dx + ds - delta dz = -rz and z ds + s dz = -rc."""
            dx, dy, dz, _ = self._solve(kernel, w, -r.rd, -r.ry, -r.rz + rc / z)
            return dx, dy, dz * Q.live, -(rc + s * dz) / z * Q.live

        def lengths(dz: Tensor, ds: Tensor) -> tuple[Tensor, Tensor]:
            """The largest primal and dual steps up to 1 that keep s and z positive."""
            if z.shape[1] == 0:
                full = torch.ones_like(Q.c)
                return full, full
            primal = (-ds / s).amax(-1, keepdim=True).clamp(min=1).reciprocal()
            dual = (-dz / z).amax(-1, keepdim=True).clamp(min=1).reciprocal()
            if self.rules.elastic:
                primal = dual = torch.minimum(primal, dual)
            return primal, dual

        sz = s * z
        dx, dy, dz, ds = direction(sz)
        primal, dual = lengths(dz, ds)
        mu = r.mu.unsqueeze(-1)
        affine = dot((s + primal * ds) * Q.live, z + dual * dz).unsqueeze(-1) / Q.count.clamp(min=1).unsqueeze(-1)
        sigma = (affine.clamp(min=0) / mu.clamp(min=1e-300)).pow(3).clamp(max=1)
        if z.shape[1]:
            dx, dy, dz, ds = direction(sz + ds * dz - sigma * mu)
            primal, dual = lengths(dz, ds)
        alone = (Q.count == 0).unsqueeze(-1)
        primal, dual = (torch.where(alone, 1.0, a * torch.where(a > LONG, LONG_STEP, STEP)) for a in (primal, dual))
        s, z = (s + primal * ds).clamp(min=TINY), (z + dual * dz).clamp(min=TINY)
        return Point(x + primal * dx, y + dual * dy, z, s), kernel.ok  # type: ignore[attr-defined]

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
            torch.zeros_like(Q.q),
            torch.zeros_like(Q.d),
        )
        ids = torch.arange(B, device=device)
        running = torch.ones(B, dtype=torch.bool, device=device)
        best, best_key = at, Q.q.new_full((B,), torch.inf)
        record = Q.q.new_full((3, B), torch.inf)  # the least hp, hd, hg so far
        idle, met = torch.zeros_like(ids), torch.zeros_like(ids)
        rho, delta = torch.full_like(Q.c, RHO), torch.full_like(Q.c, DELTA)
        reference = before = None
        ok = running
        for k in range(rules.max_iter + 1):
            r = self.measure(at)
            worst = torch.stack([r.hp, r.hd, r.hg])
            big = worst.amax(0)
            key = torch.maximum(r.contract, (big / rules.relative).clamp(max=1))
            contract = r.contract <= 1
            met = torch.where(contract | (met > 0), met + 1, 0)
            progress = (worst.clamp(min=0.1 * rules.relative) < 0.9 * record).any(0)
            idle = torch.where(progress, 0, idle + 1)
            record = torch.minimum(record, worst.clamp(min=0.1 * rules.relative))
            better = key < best_key
            best, best_key = at.where(better, best), torch.where(better, key, best_key)

            verdict = torch.where((idle >= STALL) | (met > AFTER_CONTRACT), int(Status.INSUFFICIENT_PROGRESS), 0)
            verdict = torch.where(~r.contract.isfinite() | ~ok, int(Status.NUMERICAL_ERROR), verdict)
            verdict = torch.where(contract & (big <= rules.relative), int(Status.SOLVED), verdict)
            if rules.infeasible:
                verdict = self._certify(k, at, r, before, running & (verdict != Status.SOLVED), verdict, ids, out)
            if k == rules.max_iter:
                verdict = torch.where(verdict == 0, int(Status.MAX_ITERATIONS), verdict)
            ended = (running & (verdict != 0)).nonzero().squeeze(-1)
            if ended.numel():
                where, last = ids[ended], at.where(verdict == Status.SOLVED, best).take(ended)
                for store, value in zip(out.point, last, strict=True):
                    store[where] = value
                out.status[where], out.iterations[where] = verdict[ended], k
                running = running & (verdict == 0)
                left = int(running.sum())
                if left == 0:
                    break
                if left <= running.shape[0] // 2:
                    keep = running.nonzero().squeeze(-1)
                    self._shrink(keep)
                    Q = self.problem
                    ids, running, met, idle, best_key = (t[keep] for t in (ids, running, met, idle, best_key))
                    record, rho, delta, at, best = record[:, keep], rho[keep], delta[keep], at.take(keep), best.take(keep)
                    r = Residuals(*(t[keep] for t in r))
                    reference = None if reference is None else reference[keep]

            measure = torch.where(Q.count == 0, torch.maximum(r.hp, r.hd), r.mu).unsqueeze(-1)
            reference = measure.clamp(min=1e-300) if reference is None else reference
            fall = (measure / reference).clamp(max=1)
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
            primal = late & (r.hp > 1e-12) & (r.hp > 0.5 * before[1].hp)
            dual = late & (r.hd > 1e-12) & (r.hd > 0.5 * before[1].hd) & (norm(at.x) > 1e3)
        if self.rules.elastic:
            primal, dual = candidates & (k >= 2), torch.zeros_like(candidates)
        lb, ub = torch.where(Q.live[:, self.m : self.m + self.n] > 0, Q.lo * Q.D, -torch.inf) if self.boxes else None, None
        if self.boxes:
            ub = torch.where(Q.live[:, self.m + self.n :] > 0, Q.hi * Q.D, torch.inf)
        if self.m + p + self.n * self.boxes and primal.any():
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
