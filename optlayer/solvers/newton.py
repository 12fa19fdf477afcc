# SPDX-License-Identifier: Apache-2.0
"""The interior point method's view of a batch: scaled data, a point, its residuals, and one Newton step from it.

With E = [G; -I; I], e = [h; -lb; ub] (rows that are absent are masked), slacks s and multipliers z of all N
inequalities,

    P x + q + A'y + E'z = 0,      A x = b,      E x + s = e,      s_i z_i = 0,      s, z >= 0

is followed along s_i z_i = mu -> 0. A step factorises one matrix and solves with it twice:

    [ P + rho + E_box' W E_box   A'      G'   ] [dx]
    [ A                         -delta        ] [dy] = r,        W = w = z / (s + delta z)
    [ G                                 -1/w  ] [dz]

rho and delta are the proximal terms of the proximal method of multipliers (Schwan et al., PIQP, CDC 2023). They stand
in the matrix only: the residuals are those of the problem itself, so they shift no solution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kkt.algebra import NONZERO, dot, highest, mv, norm, take, tmv
from ..kkt.rangespace import RangeFactor, RangeSpace
from ..kkt.scaling import Scaling
from ..kkt.split import GroupedFactor
from .standard import Standard

PROXIMAL = 1e-6  # rho and delta at the start; both fall with mu
RESCUE = 1e-7  # rho and delta where a factorisation breaks down
STEP, LONG_STEP, LONG = 0.95, 0.9999, 0.9  # fraction to the boundary, and beyond a step of 0.9; 0.99 throughout cycles
TINY = 1e-40  # floor of s and z
START_FLOOR = 1e-2  # of s and z in the starting point
FAR = 1e6  # scaled right-hand sides of inequalities beyond this do not shape the starting point; at 1e4 LPs suffer
ABSURD = 1e6  # a warm start so many times larger than the cold one is none


class Rules(NamedTuple):
    """Plain values that steer the method."""

    eps_abs: float
    eps_rel: float
    max_iter: int
    proof: float = 1e-9  # least gap or fall, relative to the data, that a certificate must prove
    dtype: torch.dtype = torch.float64  # of the answer: it is judged as rounded
    delta: float = 1e-12  # floor of delta: equalities that contradict each other by rounding must not drive y away
    relative: float = 1e-9  # bound on the scaled, purely relative residuals
    infeasible: float = 1e-9  # accuracy of certificates; 0 does not look for any
    elastic: float = 0.0  # 1: min 1/2 x'Px + q'x + |e|^2/2 s.t. Gx - e <= h, Ax - e = b


class Scaled(NamedTuple):
    """The equilibrated problem; lo and hi are zero where absent, live (B, N) in {0, 1} masks the N inequalities."""

    P: Tensor
    q: Tensor
    C: Tensor
    d: Tensor
    lo: Tensor
    hi: Tensor
    live: Tensor
    D: Tensor
    E: Tensor
    c: Tensor
    offset: Tensor


class Point(NamedTuple):
    """x (B, n), y (B, p), z and s (B, N), in scaled units."""

    x: Tensor
    y: Tensor
    z: Tensor
    s: Tensor

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
    contract: Tensor  # (B,) the largest unscaled residual in units of its tolerance: met at 1
    Px: Tensor
    Cx: Tensor

    def take(self, index: Tensor) -> Residuals:
        """Some elements of the batch."""
        return Residuals(*(t[:, index] if t is self.worst else t[index] for t in self))


def scale(problem: Standard, scaling: Scaling, p: int) -> Scaled:
    """The problem in the units of the scaling. Bounds take part only if some element has one."""
    D, E, c = scaling
    has_lo, has_hi = problem.lb.isfinite(), problem.ub.isfinite()
    live = problem.live[:, p:]
    if has_lo.any() or has_hi.any():
        live = torch.cat([live, has_lo, has_hi], 1)
    return Scaled(
        problem.P * (c * D).unsqueeze(-1) * D.unsqueeze(-2),
        c * D * problem.q,
        problem.C * E.unsqueeze(-1) * D.unsqueeze(-2),
        E * problem.d,
        torch.where(has_lo, problem.lb / D, 0.0),
        torch.where(has_hi, problem.ub / D, 0.0),
        live.to(D.dtype),
        D,
        E,
        c,
        problem.offset,
    )


class Newton:
    """Residuals and steps on one batch of scaled problems with p equality rows each."""

    def __init__(self, problem: Scaled, p: int, rules: Rules, space: RangeSpace | None = None):
        self.problem, self.p, self.rules, self.space = problem, p, rules, space
        Q, m = problem, problem.C.shape[1] - p
        self.n, self.m, self.N = Q.q.shape[1], m, Q.live.shape[1]
        self.boxes = m < self.N
        self.PC = torch.cat([Q.P, Q.C], 1)
        self.A, self.G = Q.C[:, :p], Q.C[:, p:]
        self.e = torch.cat([Q.d[:, p:], -Q.lo, Q.hi], 1) if self.boxes else Q.d[:, p:]
        self.dual_unit, self.row_unit, self.cost = 1 / (Q.c * Q.D), 1 / Q.E, Q.c.squeeze(-1)
        self.unit = torch.cat([self.row_unit[:, p:], Q.D, Q.D], 1) if self.boxes else self.row_unit[:, p:]
        self.live_count = Q.live.sum(-1)
        self.count, self.full = self.live_count.clamp(min=1), bool(Q.live.all())
        alone = self.live_count == 0
        self.alone = alone if alone.any() else None  # elements with equality rows only take full Newton steps
        self.bounds: tuple[Tensor, Tensor] | None = None
        if self.boxes:
            has_lo, has_hi = (t > 0 for t in self.box(Q.live))
            self.bounds = torch.where(has_lo, Q.lo * Q.D, -torch.inf), torch.where(has_hi, Q.hi * Q.D, torch.inf)
        self.bounded = (Q.live[:, m:] > 0).any(-1).to(Q.q.dtype)
        self.size_p = torch.stack([norm(Q.d).clamp(min=1), norm(Q.d * self.row_unit)])
        self.size_d = torch.stack([norm(Q.q).clamp(min=1e-8), norm(Q.q * self.dual_unit)])
        self.elastic = rules.elastic * (torch.arange(self.N, device=Q.q.device) < m)

    def take(self, index: Tensor) -> Newton:
        """The same for some elements of the batch."""
        space = None if self.space is None else self.space.take(index)
        return Newton(take(self.problem, index), self.p, self.rules, space)

    def on(self, t: Tensor) -> Tensor:
        """A vector over the inequalities with zeros in those that are absent."""
        return t if self.full else t * self.problem.live

    def box(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of a vector over the inequalities that belong to lower and upper bounds."""
        return z[:, self.m : self.m + self.n], z[:, self.m + self.n :]

    def _E(self, x: Tensor, Cx: Tensor) -> Tensor:
        return torch.cat([Cx[:, self.p :], -x, x], 1) if self.boxes else Cx[:, self.p :]

    def _factor(self, w: Tensor, rho: Tensor, delta: Tensor) -> GroupedFactor | RangeFactor:
        rows = w[:, : self.m]
        if self.p:
            rows = torch.cat([(1 / (delta + self.rules.elastic)).expand(-1, self.p), rows], 1)
        if self.space is not None:
            return self.space.factor(rows)
        diagonal = rho.expand(-1, self.n)
        if self.boxes:
            lower, upper = self.box(w)
            diagonal = diagonal + lower + upper
        return GroupedFactor(self.problem.P, self.problem.C, rows, diagonal)

    def _solve(
        self, kernel: GroupedFactor | RangeFactor, w: Tensor, a: Tensor, cy: Tensor, cz: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx, dy, dz with (P + rho) dx + A'dy + E'dz = a, A dx - delta dy = cy, E dx - dz/w = cz."""
        if self.boxes:
            (cl, cu), (wl, wu) = self.box(cz), self.box(w)
            a = a - wl * cl + wu * cu
        dx, dv = kernel.solve(a.unsqueeze(-1), torch.cat([cy, cz[:, : self.m]], 1).unsqueeze(-1))
        dx, dv = dx.squeeze(-1), dv.squeeze(-1)
        dz = dv[:, self.p :]
        if self.boxes:
            dz = torch.cat([dz, -wl * (dx + cl), wu * (dx - cu)], 1)
        return dx, dv[:, : self.p], dz

    def start(self, warm: Point | None = None) -> Point:
        """Mehrotra's starting point, from the system with all weights one; a warm point where that is no worse by far.

        Inequalities far from the origin of the scaled problem tell nothing about where its solution is: they are left
        out of the system and get slacks and multipliers afterwards.
        """
        Q = self.problem
        proximal = torch.full_like(Q.c, PROXIMAL)
        near = Q.live * (self.e <= FAR)
        w = near / (1 + self.elastic + proximal)
        x, y, z = self._solve(self._factor(w, proximal, proximal), w, -Q.q, Q.d[:, : self.p], self.e)
        s = -z
        if self.N:
            apart = near == 0
            s, z = (t + (-1.5 * t.masked_fill(apart, torch.inf)).amax(-1, keepdim=True).clamp(min=0) for t in (s, z))
            flat = (s * z * near).sum(-1, keepdim=True) <= 1e-12
            s, z = near * (s + flat.to(s)), near * (z + flat.to(z))
            half = 0.5 * dot(s, z).unsqueeze(-1)
            ds, dz = (half / t.sum(-1, keepdim=True).clamp(min=NONZERO) for t in (z, s))
            s, z = near * (s + ds).clamp(min=START_FLOOR), near * (z + dz).clamp(min=START_FLOOR)
            mu = dot(s, z).unsqueeze(-1) / near.sum(-1, keepdim=True).clamp(min=1)
            away = (self.e - self._E(x, mv(Q.C, x))).clamp(min=1.0)
            s, z = torch.where(apart, away, s), torch.where(apart, mu.clamp(min=START_FLOOR) / away, z)
            s, z = s.masked_fill(Q.live == 0, 1.0), z.masked_fill(Q.live == 0, TINY)
        cold = Point(x, y, z, s)
        if warm is None:
            return cold
        absent = Q.live == 0
        s = (self.e - self._E(warm.x, mv(Q.C, warm.x))).clamp(min=START_FLOOR).masked_fill(absent, 1.0)
        z = warm.z.clamp(min=START_FLOOR).masked_fill(absent, TINY)
        warm = Point(warm.x, warm.y, z, s)
        usual, offered = (norm(torch.cat(at, 1)) for at in (cold, warm))
        return warm.where(offered < ABSURD * (1 + usual), cold)

    def measure(self, at: Point) -> Residuals:
        """Residuals of the problem at a point, scaled for the method and unscaled for the contract."""
        Q, p, rules = self.problem, self.p, self.rules
        x, y, z, s = at
        z = self.on(z)
        Px, Cx = mv(self.PC, x).split([self.n, p + self.m], 1)
        Gz = tmv(self.G, z[:, : self.m])
        Ez, parts = Gz, [Px, Gz]
        if self.boxes:
            lower, upper = self.box(z)
            Ez = Gz + upper - lower
            parts += [upper - lower]
        rd = Px + Q.q + Ez
        if p:
            Ay = tmv(self.A, y)
            rd, parts = rd + Ay, [*parts, Ay]
        ry = Cx[:, :p] - Q.d[:, :p]
        excess = self.on(self._E(x, Cx) - self.e)
        rz = excess + self.on(s)
        if rules.elastic:
            ry, rz = ry - rules.elastic * y, rz - self.elastic * z
        complementarity = dot(s, z)
        mu = complementarity / self.count
        xPx, qx = dot(x, Px), dot(Q.q, x)
        objective = 0.5 * xPx + qx

        columns = torch.stack([rd, Ez, *parts], 1).abs()
        scaled, unscaled = columns.amax(-1), (columns * self.dual_unit.unsqueeze(1)).amax(-1)
        size_d = torch.maximum(scaled[:, 1:].amax(-1), self.size_d[0])
        sizes = torch.maximum(norm(torch.stack([Cx, Cx * self.row_unit])), self.size_p)
        if self.boxes:
            sizes = torch.maximum(sizes, norm(torch.stack([x, x * Q.D])) * self.bounded)
        size_p, sp = sizes
        size_g = torch.maximum(objective.abs(), 1e-2 * (Q.q * x).abs().sum(-1)).clamp(min=1e-4)
        primal = torch.maximum(norm(ry), norm(rz)) if p else norm(rz)
        worst = torch.stack([primal / size_p, scaled[:, 0] / size_d, complementarity / size_g])
        if rules.elastic:
            contract = torch.stack([primal, scaled[:, 0], complementarity]).amax(0) / rules.eps_abs
            return Residuals(rd, ry, rz, mu, worst, contract, Px, Cx)

        support, rp = dot(self.e, z), highest(excess * self.unit)
        if p:
            support = support + dot(Q.d[:, :p], y)
            rp = torch.maximum(rp, norm(ry * self.row_unit[:, :p]))
        values = torch.stack([objective, -0.5 * xPx - support]) / self.cost + Q.offset
        residuals = torch.stack([rp, unscaled[:, 0], (xPx + qx + support).abs() / self.cost])
        sd = torch.maximum(unscaled[:, 2:].amax(-1), self.size_d[1])
        scales = torch.stack([sp, sd, values.abs().amin(0)])
        contract = (residuals / (rules.eps_rel * scales).clamp(min=max(rules.eps_abs, NONZERO))).amax(0)
        return Residuals(rd, ry, rz, mu, worst, contract, Px, Cx)

    def advance(self, at: Point, r: Residuals, rho: Tensor, delta: Tensor) -> tuple[Point, Tensor]:
        """One predictor-corrector step (Mehrotra, SIAM J. Optim. 2, 1992), and where the factorisation succeeded."""
        x, y, z, s = at
        w = self.on(z / (s + (delta + self.elastic) * z))
        kernel = self._factor(w, rho, delta)
        if not kernel.ok.all():
            rho, delta = (torch.where(kernel.ok.unsqueeze(-1), t, RESCUE) for t in (rho, delta))
            w = self.on(z / (s + (delta + self.elastic) * z))
            kernel = self._factor(w, rho, delta)

        def direction(rc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Newton on s z = s z - rc: E dx + ds - delta dz = -rz and z ds + s dz = -rc."""
            dx, dy, dz = self._solve(kernel, w, -r.rd, -r.ry, rc / z - r.rz)
            return dx, dy, self.on(dz), self.on((rc + s * dz) / -z)

        if self.N == 0:
            dx, dy, _, _ = direction(s)
            return Point(x + dx, y + dy, z, s), kernel.ok

        def lengths(dz: Tensor, ds: Tensor) -> Tensor:
            """The largest primal and dual steps (2, B, 1) up to 1 that keep s and z positive."""
            worst = torch.stack([ds / s, dz / z]).amin(-1, keepdim=True)
            if self.rules.elastic:
                worst = worst.amin(0, keepdim=True).expand_as(worst)
            return -1 / worst.clamp(max=-1)

        sz, mu = s * z, r.mu.unsqueeze(-1)
        dx, dy, dz, ds = direction(sz)
        primal, dual = lengths(dz, ds)
        affine = self.on((s + primal * ds) * (z + dual * dz)).sum(-1, keepdim=True) / self.count.unsqueeze(-1)
        sigma = (affine.clamp(min=0) / mu.clamp(min=NONZERO)).pow(3).clamp(max=1)
        dx, dy, dz, ds = direction(sz + ds * dz - sigma * mu)
        steps = lengths(dz, ds)
        steps = steps * (STEP + (LONG_STEP - STEP) * (steps > LONG))
        if self.alone is not None:
            steps = steps.masked_fill(self.alone.unsqueeze(-1), 1.0)
        primal, dual = steps
        s, z = (s + primal * ds).clamp(min=TINY), (z + dual * dz).clamp(min=TINY)
        return Point(x + primal * dx, y + dual * dy, z, s), kernel.ok
