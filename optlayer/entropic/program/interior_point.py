# SPDX-License-Identifier: Apache-2.0
"""A primal-dual interior point method for entropic programs that does not care how large the costs are.

The entropy keeps x positive by itself.  Yet x >= 0 keeps a multiplier v of its own, whose true value is zero, like any
other bound; the iteration is then Mehrotra's predictor and corrector for linear and quadratic programs at every scale
of the costs.  Where they are large the entropy is a small smooth term and v takes x_i to zero as in a linear program;
where they are small the entropy rules and v dies at once.  Without v an iteration could lower x_i by a constant factor
only, while exp(-q / tau) may ask for hundreds of digits.

    stationarity        Px + q + tau (log x + 1) + A'y + G'z + z_upper - z_lower - v = 0
    rows and bounds     Ax = b,   Gx + s = h,   x + s_upper = ub,   x - s_lower = lb
    complementarity     x v = 0,  s z = 0,  s_upper z_upper = 0,  s_lower z_lower = 0     (followed as = sigma mu)

Bounds and v go to the diagonal of the KKT matrix: W = 1 / ((tau + v) / x + z_upper / s_upper + z_lower / s_lower + P_ii
of a diagonal P).  One element of the batch is computed as if it were alone and stays as it is once it is done.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kkt.algebra import NONZERO, dot, highest, mv, norm, take, tmv
from ...status import Status
from .kkt import EPS, KKT
from .standard import Standard

STEP = 0.995  # of the way to the nearest bound
SHORTEST = 1e-6  # the smallest fall of mu in the predictor that is believed
LEAST = 1e-150  # no slack or multiplier falls below it, so that products do not underflow
GAP = 1e4  # gaps count this many times: x is off by the square root of the gap where a constraint is weakly active
FLOOR = 1e-6  # rounding may excuse no larger residual
PROOF = 1e-8  # a certificate is believed that excludes every feasible x up to 1e8 times the size of the iterate
PROOF_OF_ROUNDING = 1e-5  # and up to 1e5 times where r < 0 is no more than the rounding of r = 0
NEAR, PATIENCE = 1e-4, 12  # so near the solution, so many iterations without a smaller error are rounding at work
DOUBTFUL = 1e-6  # an iterate nearer to the solution than this is none of an infeasible problem


class Point(NamedTuple):
    """An iterate: x (B, n); rows (B, k), the multipliers y and z; slack and dual (B, N) of x, s, s_upper, s_lower.

    The parts of slack and dual: x and v, s and z, then of upper and of lower bounds, absent where the batch has none.
    """

    rows: Tensor
    slack: Tensor
    dual: Tensor


class Rules(NamedTuple):
    """When to stop: eps, the accuracy at which the closing takes over; `proof`, what contradicts at all."""

    eps: float
    max_iter: int
    proof: float


class Outcome(NamedTuple):
    """How the iteration ended: the last point, status (B,), iterations (B,), and certificates (rows, bounds)."""

    point: Point
    status: Tensor
    iterations: Tensor
    ray: Tensor


class Layout(NamedTuple):
    """Where the parts of slack and dual are, and which of their entries take part (B, N)."""

    n: int
    p: int
    m: int
    has_upper: bool
    has_lower: bool
    on: Tensor

    @property
    def sides(self) -> list[int]:
        """The bounds that the batch has at all: 1 for upper ones, -1 for lower ones."""
        return [1] * self.has_upper + [-1] * self.has_lower

    def split(self, t: Tensor) -> list[Tensor]:
        """The parts: those of x and s, then one for each side."""
        return list(t.split([self.n, self.m, *(self.n for _ in self.sides)], 1))


class Residuals(NamedTuple):
    """What a point leaves undone: stationarity with v, rows (Ax - b, Gx + s - h), bounds (side (x - bound) + slack).

    `error` is relative to the largest x, `size`, and to tau; rounding alone may leave `floor`; all three are (B,).
    """

    stationarity: Tensor
    rows: Tensor
    bounds: Tensor
    error: Tensor
    floor: Tensor
    size: Tensor


def layout(problem: Standard, p: int) -> Layout:
    """The parts that this batch needs."""
    n, m = problem.q.shape[1], problem.d.shape[1] - p
    has_upper, has_lower = bool(problem.upper.any()), bool(problem.lower.any())
    parts = [problem.free, torch.ones_like(problem.d[:, p:])]
    parts += [problem.upper] if has_upper else []
    parts += [problem.lower] if has_lower else []
    return Layout(n, p, m, has_upper, has_lower, torch.cat(parts, 1) > 0)


def iterate(problem: Standard, p: int, rules: Rules) -> Outcome:
    """Run the method on every element."""
    parts = layout(problem, p)
    point = start(problem, parts)
    status = torch.full_like(problem.q[:, 0], int(Status.MAX_ITERATIONS), dtype=torch.int64)
    whole = Outcome(point, status, torch.zeros_like(status), torch.zeros_like(point.rows))
    index = torch.arange(len(status), device=status.device)
    least = point.slack[:, : parts.n].amax(-1) * 1e-10  # without equalities x may vanish
    # before there is a step, what equality rows say against each other may be a certificate
    step = torch.zeros_like(point.rows), torch.zeros_like(point.dual)
    step[0][:, :p] = -problem.contradiction
    broken = torch.zeros_like(index, dtype=torch.bool)
    best, since = torch.full_like(least, torch.inf), torch.zeros_like(index)
    for iteration in range(rules.max_iter + 1):
        if index.numel() == 0:
            break
        r = residuals(problem, parts, point, least)
        solved = r.error <= rules.eps + r.floor
        broken = broken | ~r.error.isfinite()
        certified, ray = _certificate(problem, parts, point, step, r.size, rules.proof)
        certified = certified & ((r.error > DOUBTFUL) | (iteration == 0)) & ~solved
        better = r.error < best
        best, since = torch.where(better, r.error, best), torch.where(better, 0, since + 1)
        stuck = (best < NEAR) & (since >= PATIENCE)
        done = solved | broken | certified | stuck
        if bool(done.any()):
            verdict = torch.where(solved, int(Status.SOLVED), int(Status.NUMERICAL_ERROR))
            verdict = torch.where(certified, int(Status.PRIMAL_INFEASIBLE), verdict)
            verdict = torch.where(stuck & ~solved, int(Status.INSUFFICIENT_PROGRESS), verdict)
            which = index[done]
            whole.status[which] = verdict[done]
            whole.ray[which] = torch.where(certified.unsqueeze(-1), ray, 0.0)[done]
            ends = done & (solved | (best >= NEAR))  # others have left their best point
            _write(whole.point, index[ends], take(point, ends))
            left = (~done).nonzero().squeeze(-1)
            index, problem, parts = take(index, left), take(problem, left), take(parts, left)
            point, least, r = take(point, left), take(least, left), take(r, left)
            best, since, better = best[left], since[left], better[left]
        near = better & (best < NEAR)
        if bool(near.any()):
            _write(whole.point, index[near], take(point, near))
        if iteration == rules.max_iter or index.numel() == 0:
            break
        whole.iterations[index] += 1
        point, step, broken = _step(problem, parts, point, r, _is_centring(iteration))
    far = best >= NEAR
    _write(whole.point, index[far], take(point, far))
    return whole


def _write(whole: Point, which: Tensor, part: Point) -> None:
    for a, b in zip(whole, part, strict=True):
        a[which] = b


def _is_centring(iteration: int) -> bool:
    """Every eighth iteration, and every third from the sixtieth on, centres more.

    Without them one random problem in twenty thousand runs in a circle of predictors and correctors.
    """
    return iteration % 8 == 7 if iteration < 60 else iteration % 3 == 0


# ---- the start -------------------------------------------------------------------------------------------------------


def start(problem: Standard, parts: Layout) -> Point:
    """x of the size that the equalities ask for, or else the entropy's own; multipliers as large as the residual."""
    P, curvature, q, tau, C, d, lb, ub, lower, upper, free, *_ = problem
    p, m = parts.p, parts.m
    alone = (-q / tau - 1).clamp(-700, 700).exp()  # without constraints and P
    slope = curvature if P is None else P.diagonal(dim1=-2, dim2=-1)
    alone = torch.where(slope > 0, torch.minimum(alone, (q.abs() + tau) / slope.clamp(min=NONZERO)), alone)
    x, asked = alone, torch.zeros_like(q[:, :1])
    A, b = C[:, :p], d[:, :p]
    least_norm = KKT(None, A, free, torch.full_like(b, torch.inf)) if p else None
    if least_norm is not None:
        xh = least_norm.solve(torch.zeros_like(q).unsqueeze(-1), b.unsqueeze(-1))[0].squeeze(-1).abs()
        asked = xh.sum(-1, keepdim=True) / free.sum(-1, keepdim=True).clamp(min=1)
        x = torch.where((C != 0).any(1) & (asked > 0), torch.maximum(xh, asked), torch.maximum(alone, 0.01 * asked))
    else:  # each variable alone under its cap and budgets
        top = torch.where(upper > 0, ub / 2, torch.inf)
        if m:
            room = torch.where((C > 0) & (d > 0).unsqueeze(-1), 2 * d.unsqueeze(-1) / C.clamp(min=NONZERO), torch.inf)
            top = torch.minimum(top, room.amin(1))
        x = torch.minimum(x, top)
        x = torch.where(top.isfinite(), torch.maximum(x, 1e-3 * top), x)
        if m:  # the least squares that a row asks for
            push = (-C).clamp(min=0)
            need = (-d).clamp(min=0) / push.square().sum(-1).clamp(min=NONZERO)
            x = torch.maximum(x, (push * need.unsqueeze(-1)).amax(1))
    x = torch.where(upper > 0, torch.minimum(x, ub / 2), x)
    x = torch.where(lower > 0, torch.maximum(x, 1.5 * lb), x)
    if P is not None or p + m > 0:
        coupled = torch.ones_like(asked, dtype=torch.bool)
    else:
        coupled = (torch.cat([upper, lower, curvature], 1) > 0).any(-1, keepdim=True)
    x = torch.where(coupled & (asked == 0), torch.maximum(x, 0.01 * x.amax(-1, keepdim=True)), x)
    x = torch.where(free > 0, x, 1.0)

    gradient = free * (q + tau * (x.log() + 1) + problem.times_P(free * x))
    rows = torch.zeros_like(d)
    if least_norm is not None:
        rows[:, :p] = least_norm.solve(-gradient.unsqueeze(-1), torch.zeros_like(b).unsqueeze(-1))[1].squeeze(-1)
    size = torch.maximum(norm(gradient + tmv(C, rows)), tau.amax(-1)).unsqueeze(-1)
    rows[:, p:] = size
    inside = mv(C[:, p:], free * x)
    s = torch.maximum(d[:, p:] - inside, 0.1 * mv(C[:, p:].abs(), free * x) + 1e-3 * d[:, p:].abs())
    slack = [x, s.clamp(min=LEAST)]
    slack += [torch.where(upper > 0, torch.maximum(ub - x, x / 10), 1.0)] if parts.has_upper else []
    slack += [torch.where(lower > 0, torch.maximum(x - lb, x / 10), 1.0)] if parts.has_lower else []
    return Point(rows, torch.cat(slack, 1), torch.where(parts.on, size, 0.0))


# ---- one iteration ---------------------------------------------------------------------------------------------------


def residuals(problem: Standard, parts: Layout, point: Point, least: Tensor) -> Residuals:
    """What the point leaves undone; `error` is relative to the largest x and to tau, `least` (B,) bounds that x."""
    P, _, q, tau, C, d, lb, ub, lower, upper, free, *_ = problem
    p = parts.p
    (x, s, *slacks), (v, _, *duals) = parts.split(point.slack), parts.split(point.dual)
    inner = free * x
    Px, Ay, Gz = problem.times_P(inner), tmv(C[:, :p], point.rows[:, :p]), tmv(C[:, p:], point.rows[:, p:])
    force = Px + q + Ay + Gz
    terms = q.abs() + Ay.abs() + Gz.abs() + (Px.abs() if P is None else mv(P.abs(), inner) + Px.abs())
    products = point.slack * point.dual
    gap = products[:, parts.n :].sum(-1)
    largest = inner.amax(-1)
    if p == 0:
        largest = torch.maximum(largest, least)
    largest = torch.where((free > 0).any(-1), largest, 1.0)
    unit = largest.unsqueeze(-1)
    rows = mv(C, inner) - d
    rows[:, p:] += s
    errors = [norm(rows[:, :p]) / torch.maximum(norm(d[:, :p]), largest), norm(rows[:, p:]) / largest]
    bounds = []
    for side, slack, dual in zip(parts.sides, slacks, duals, strict=True):
        mask, bound = (upper, ub) if side > 0 else (lower, lb)
        force, terms = force + side * dual, terms + dual
        # x + slack first: where the slack is below the rounding of x, nothing is left of it, nor of the violation
        bounds.append(mask * side * ((x + side * slack) - bound))
    violation = torch.cat(bounds, 1) if bounds else x[:, :0]
    errors.append(norm(violation) / largest)
    true = free * (force + tau * (x.log() + 1))
    errors.append(norm(x * true / tau) / largest)
    weight = torch.maximum((tau * inner).sum(-1), tau.amin(-1) * largest)
    errors.append(GAP * gap / weight)
    floor = (8 * EPS * norm(free * terms * (x / unit) / tau)).clamp(max=FLOOR)
    return Residuals(true - v, rows, violation, torch.stack(errors).amax(0), floor, largest)


def _step(
    problem: Standard, parts: Layout, point: Point, r: Residuals, centring: bool
) -> tuple[Point, tuple[Tensor, Tensor], Tensor]:
    """Predictor, corrector, one common step; also the step of the multipliers at full length (rows, bounds).

    The last result is where (B,) no finite step was found; the point stays as it is there.
    Steps are relative: a stands for dx / x and ds / s, b for dv / v and dz / z.  Complementarity reads a + b = kappa,
    with kappa = -1 in the predictor and, with its a and b, kappa = sigma mu / product - 1 - a b in the corrector.
    """
    P, curvature, _, tau, C, _, _, _, _, _, free, *_ = problem
    p, on = parts.p, parts.on
    (x, s, *slacks), (v, z, *duals) = parts.split(point.slack), parts.split(point.dual)
    violations = r.bounds.split([parts.n] * len(slacks), 1) if slacks else ()
    bounds = list(zip(parts.sides, slacks, duals, violations, strict=True))
    stiffness = tau + v + x * curvature
    for _, slack, dual, _ in bounds:
        stiffness = stiffness + x * (dual / slack)
    w = torch.cat([torch.full_like(point.rows[:, :p], torch.inf), z / s], 1)
    kkt = KKT(P, C, free * x / stiffness, w)

    def direction(kappa: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k_x, k_s, *k_bounds = parts.split(kappa)
        r1 = k_x * v - r.stationarity
        for (side, slack, dual, violation), k in zip(bounds, k_bounds, strict=True):
            r1 = r1 - side * dual * (violation / slack + k)
        r2 = torch.cat([-r.rows[:, :p], -r.rows[:, p:] - k_s * s], 1)
        dx, rows = (t.squeeze(-1) for t in kkt.solve(r1.unsqueeze(-1), r2.unsqueeze(-1)))
        a = [dx / x, -(r.rows[:, p:] + mv(C[:, p:], dx)) / s]
        a += [-(violation + side * dx) / slack for side, slack, _, violation in bounds]
        steps = torch.where(on, torch.cat(a, 1), 0.0)
        duals = kappa - steps
        duals[:, parts.n : parts.n + parts.m] = rows[:, p:] / z  # not from ds, which cancels where a row is active
        return steps, duals, rows

    products = point.slack * point.dual
    count = on.sum(-1)
    mu = products.sum(-1) / count
    a, b, _ = direction(torch.where(on, -1.0, 0.0))
    length = _length(a, b)
    ahead = (products * (1 + length * a) * (1 + length * b)).sum(-1) / count
    sigma = (ahead / mu).clamp(SHORTEST, 1) ** (0.5 if centring else 2.0)
    kappa = (sigma * mu).unsqueeze(-1) / products.clamp(min=NONZERO) - 1 - a * b
    a, b, rows = direction(torch.where(on, kappa, 0.0))
    length = STEP * _length(a, b)
    moved = Point(
        point.rows + length * rows,
        torch.where(on, (point.slack * (1 + length * a)).clamp(min=LEAST), 1.0),
        torch.where(on, (point.dual * (1 + length * b)).clamp(min=LEAST), 0.0),
    )
    moved.rows[:, p:] = parts.split(moved.dual)[1]
    sound = torch.cat(list(moved), 1).isfinite().all(-1, keepdim=True)
    moved = Point(*(torch.where(sound, new, old) for new, old in zip(moved, point, strict=True)))
    return moved, (rows, point.dual * b), ~sound.squeeze(-1)


def _length(a: Tensor, b: Tensor) -> Tensor:
    """(B, 1), the largest step up to 1 that keeps slack (1 + length a) and dual (1 + length b) >= 0."""
    return torch.maximum(highest(-a), highest(-b)).clamp(min=1).reciprocal().unsqueeze(-1)


# ---- infeasibility ---------------------------------------------------------------------------------------------------


def _certificate(
    problem: Standard, parts: Layout, point: Point, step: tuple[Tensor, Tensor], size: Tensor, proof: float
) -> tuple[Tensor, Tensor]:
    """Whether (B,) the iterate or its last step proves that there is no feasible x, and the rows' part of the proof.

    Farkas: y, z, z_upper, z_lower >= 0 with r = A'y + G'z + z_upper - z_lower >= 0 (x >= 0 is a constraint, so that no
    r = 0 is asked for) and t = -(b'y + h'z + ub'z_upper - lb'z_lower) > 0.  When iterates diverge their step is it.
    """
    found, ray = _farkas(problem, parts, point.rows, point.dual, size, proof)
    rows, dual = step
    p = parts.p
    rows = torch.cat([rows[:, :p], rows[:, p:].clamp(min=0)], 1)
    by_step, ray_of_step = _farkas(problem, parts, rows, dual.clamp(min=0), size, proof)
    return found | by_step, torch.where(by_step.unsqueeze(-1) & ~found.unsqueeze(-1), ray_of_step, ray)


def _farkas(
    problem: Standard, parts: Layout, rows: Tensor, dual: Tensor, size: Tensor, proof: float
) -> tuple[Tensor, Tensor]:
    p, d = parts.p, problem.given
    # every feasible x is at least as large as what an equality or a negative budget asks for
    size = torch.stack([size, norm(d[:, :p]), highest(-d[:, p:])]).amax(0)
    r = tmv(problem.C, rows)
    t, terms = -dot(d, rows), dot(problem.size, rows.abs())
    for side, z in zip(parts.sides, parts.split(dual)[2:], strict=True):
        value = dot(problem.ub if side > 0 else problem.lb, z)
        r, t, terms = r + side * z, t - side * value, terms + value
    lack, ulp = highest(-problem.free * r), EPS * norm(rows)
    sure = torch.where(lack <= 4 * ulp, PROOF_OF_ROUNDING, PROOF)
    return (t > proof * terms) & (lack * size * parts.n < sure * t), rows
