# SPDX-License-Identifier: Apache-2.0
"""From the interior point to the solution: v = 0, and an active set that is verified and not guessed.

Rows and bounds with more multiplier than slack are taken to be active.  Given them the optimality conditions

    log x = -(Px + q + A'y + G'z) / tau - 1  of the free variables,   Cx = d  in the active rows,   x = bound  elsewhere

are smooth, and two or three Newton steps from the interior point reach the limits of rounding, without a trace of mu.
The force Px + q + A'y + G'z is formed once; from then on increments are added, so that it is rounded to the size of
what matters.  If a multiplier comes out negative or an inactive constraint violated, exactly these change sides.
An x so small that no row feels it has no say in that: it is the exponential of its formula, whatever that is.

A constraint that is active with a multiplier of zero, to rounding, is weakly active: x is not differentiable there, and
the constraint gets the central weight z / s of the interior point.  Where active constraints depend on each other the
weakest is released, and all of them get the central weight.  So they do where no active set can be verified; the Newton
steps keep the products s z then.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kkt.algebra import mv, norm, take, tmv
from .interior_point import Layout, Point
from .kkt import EPS, KKT, shift
from .standard import Standard

ROUNDS = 8
NEWTON_STEPS = 16
QUADRATIC = 1e-8  # a relative Newton step below this leaves nothing but rounding
TRACE = 1e-3  # of tau: a multiplier v below it is left to the Newton steps
TINY = 1e-290  # an x below this is the exponential of its logarithm, and its logarithm not that of x
Z_SIGN, S_SIGN = 1e-11, 1e-12  # of the largest force; of the largest variable or right-hand side
WEAK, AMBIGUOUS = 1e-3, 1e6  # a weak constraint has s, z below 1e-3 of these sizes and s/z between 1e-6 and 1e6


class Closed(NamedTuple):
    """The solution in standard form, and the weights of the KKT system there.

    Attributes:
        x, log_x: (B, n); those of fixed variables are placeholders.
        rows: (B, k), y and z.
        z_box: (B, n).
        w: (B, k), infinity for an active row, 0 for an inactive one, z / s for a weakly active one.
        w_box: (B, n), the same for the bounds.
        lower_share: (B, n), how much of a move of the bounds is the lower one's.
        weak: (B,), the number of weakly active rows and bounds.
        sure: (B,), whether the active set is verified.
        released: (B,), how many active constraints were taken out because the others already held them.
    """

    x: Tensor
    log_x: Tensor
    rows: Tensor
    z_box: Tensor
    w: Tensor
    w_box: Tensor
    lower_share: Tensor
    weak: Tensor
    sure: Tensor
    released: Tensor


class Trial(NamedTuple):
    """A guess at the active set: rows (B, k), lower and upper (B, n), all bool; sizes (B, 1) of forces and slacks.

    `released` (B,) counts the constraints that were taken out because the others already held them.
    """

    rows: Tensor
    lower: Tensor
    upper: Tensor
    force_size: Tensor
    slack_size: Tensor
    released: Tensor


class Interior(NamedTuple):
    """The interior point with a part for every row and bound; absent ones have multiplier 0 and slack 1."""

    x: Tensor
    v: Tensor
    rows: Tensor
    s: Tensor
    z: Tensor
    s_upper: Tensor
    z_upper: Tensor
    s_lower: Tensor
    z_lower: Tensor


def close(problem: Standard, parts: Layout, point: Point) -> Closed:
    """The closing of every element of the batch."""
    inside = interior(parts, point)
    trial = _guess(problem, parts.p, inside)
    attempt, flips = _attempt(problem, parts.p, inside, trial)
    out = attempt._replace(released=trial.released.clone())
    todo = torch.arange(out.x.shape[0], device=out.x.device)
    for _ in range(ROUNDS):
        again = (flips[0].any(-1) | flips[1].any(-1) | flips[2].any(-1)).nonzero().squeeze(-1)
        if again.numel() == 0:
            break
        todo, trial = todo[again], take(trial, again)
        rows, lower, upper = (a ^ b[again] for a, b in zip(trial[:3], flips, strict=True))
        trial = trial._replace(rows=rows, lower=lower, upper=upper & ~lower, released=attempt.released[again])
        attempt, flips = _attempt(take(problem, todo), parts.p, take(inside, todo), trial)
        for whole, piece in zip(out, attempt, strict=True):
            whole[todo[attempt.sure]] = piece[attempt.sure]
    central = (~out.sure | (out.released > 0)).nonzero().squeeze(-1)
    if central.numel():
        middle = _central(take(problem, central), parts.p, take(inside, central))
        sure = out.sure[central]
        for name in ("w", "w_box", "lower_share"):
            getattr(out, name)[central] = getattr(middle, name)
        for whole, piece in zip(out, middle, strict=True):
            whole[central[~sure]] = piece[~sure]
    return out._replace(weak=out.weak + out.released)


def interior(parts: Layout, point: Point) -> Interior:
    """The parts of a point, by name."""
    (x, s, *slacks), (v, z, *duals) = parts.split(point.slack), parts.split(point.dual)
    absent = torch.ones_like(x), torch.zeros_like(x)
    given = dict(zip(parts.sides, zip(slacks, duals, strict=True), strict=True))
    upper, lower = given.get(1, absent), given.get(-1, absent)
    return Interior(x, v, point.rows, s, z, *upper, *lower)


def _released(x: Tensor, v: Tensor, force: Tensor, tau: Tensor) -> Tensor:
    """x without v: where v was more than a trace, the exponential that stationarity asks for."""
    return torch.where(v > TRACE * tau, (-force / tau - 1).exp(), x)


def _guess(problem: Standard, p: int, interior: Interior) -> Trial:
    """Rows and bounds whose multiplier exceeds their slack, each in its own units; equalities always."""
    x, force = problem.free * interior.x, tmv(problem.C, interior.rows).abs() + problem.q.abs()
    bounds = problem.upper * interior.z_upper + problem.lower * interior.z_lower
    force_size = norm(problem.free * (force + bounds + problem.tau)).unsqueeze(-1)
    slack_size = torch.maximum(norm(x), norm(problem.d)).unsqueeze(-1)
    units = force_size / slack_size
    equality = torch.ones_like(problem.d[:, :p], dtype=torch.bool)
    rows = torch.cat([equality, interior.z > units * interior.s], 1)
    lower = (problem.lower > 0) & (interior.z_lower > units * interior.s_lower)
    upper = (problem.upper > 0) & (interior.z_upper > units * interior.s_upper) & ~lower
    return Trial(rows, lower, upper, force_size, slack_size, torch.zeros_like(rows[:, :1].sum(-1)))


def _attempt(
    problem: Standard, p: int, interior: Interior, trial: Trial
) -> tuple[Closed, tuple[Tensor, Tensor, Tensor]]:
    """Solve on the guessed active set; the result, and which rows, lower and upper bounds have the wrong sign."""
    P, curvature, q, tau, C, d, lb, ub, has_lower, has_upper, free, *_ = problem
    rows, lower, upper, force_size, slack_size, _ = trial
    held = lower | upper | (free == 0)
    multipliers = interior.rows * rows
    base = q + tmv(C, multipliers)
    x = torch.where(lower, lb, torch.where(upper, ub, interior.x))
    x = torch.where(held, x, _released(x, interior.v, problem.times_P(free * x) + base, tau))
    delta = torch.zeros_like(multipliers)
    w = torch.zeros_like(d).masked_fill(rows, torch.inf)
    least = _least(problem, rows, x)
    settled = small = torch.zeros_like(held[:, 0])
    for _ in range(NEWTON_STEPS):
        force = problem.times_P(free * x) + base + tmv(C, delta)
        x, log_x = _tail(x, -force / tau - 1, held, least)
        r1, r2 = -(force + tau * (log_x + 1)), d - mv(C, free * x)
        # a large step of multipliers, where a row was released, leaves rounding in the rows that the next one takes out
        settled = settled | small & (norm(rows * r2) <= S_SIGN * slack_size.squeeze(-1))
        kkt = KKT(P, C, torch.where(held, 0.0, x / (tau + x * curvature)), w)
        if bool(settled.all()):
            break
        dx, dv = (t.squeeze(-1) for t in kkt.solve(r1.unsqueeze(-1), r2.unsqueeze(-1)))
        moving = ~held & (x > TINY)
        relative = torch.where(moving, dx / torch.where(moving, x, 1.0), 0.0)
        felt = x * torch.expm1(relative).abs() >= least
        going = ~settled.unsqueeze(-1)
        x = torch.where(going, x * (1 + relative.clamp(-0.9, 10)), x)
        delta = delta + torch.where(rows & going, dv, 0.0)
        small = norm(relative * felt) <= _rounding(problem, base, x).clamp(min=QUADRATIC)
    force = problem.times_P(free * x) + base + tmv(C, delta)
    x, log_x = _tail(x, -force / tau - 1, held, least)
    sound = settled & kkt.ok & x.isfinite().all(-1) & log_x.isfinite().all(-1)
    v = multipliers + delta
    z_box = torch.where(lower | upper, -(force + tau * (log_x + 1)), 0.0)
    slack = d - mv(C, free * x)
    tz, ts = Z_SIGN * force_size, S_SIGN * slack_size
    inequality = torch.arange(d.shape[1], device=d.device) >= p
    idle = ~held
    flips = (
        (rows & (v < -tz) | ~rows & (slack < -ts)) & inequality,
        lower & (z_box > tz) | idle & (has_lower > 0) & (x < lb - ts),
        upper & (z_box < -tz) | idle & (has_upper > 0) & (x > ub + ts),
    )
    right = sound & ~(flips[0].any(-1) | flips[1].any(-1) | flips[2].any(-1))
    surplus = _surplus(problem, p, x, kkt, held)
    weakest = _weakest(trial, p, interior)
    astray = (surplus | ~sound).unsqueeze(-1)  # no signs to go by
    flips = tuple(torch.where(astray, one, t) for t, one in zip(flips, weakest, strict=True))  # type: ignore[assignment]

    s, z = interior.s, interior.z
    sizes = force_size, slack_size
    weak_rows = torch.zeros_like(rows)
    weak_rows[:, p:] = _weak(rows[:, p:], v[:, p:], slack[:, p:], z, s, *sizes)
    weak_lower = _weak(lower, -z_box, x - lb, interior.z_lower, interior.s_lower, *sizes) & (has_lower > 0) & ~upper
    weak_upper = _weak(upper, z_box, ub - x, interior.z_upper, interior.s_upper, *sizes) & (has_upper > 0) & ~lower
    w[:, p:] = torch.where(weak_rows[:, p:], z / s, w[:, p:])
    w_box = torch.zeros_like(x).masked_fill(held, torch.inf)
    w_lower = torch.where(weak_lower, interior.z_lower / interior.s_lower, 0.0)
    w_upper = torch.where(weak_upper, interior.z_upper / interior.s_upper, 0.0)
    w_box = torch.where(weak_lower | weak_upper, w_lower + w_upper, w_box)
    closed = Closed(
        x,
        log_x,
        torch.where(inequality, v.clamp(min=0), v),
        torch.where(lower, z_box.clamp(max=0), z_box.clamp(min=0)),
        w,
        w_box,
        torch.where(weak_lower | weak_upper, w_lower / (w_lower + w_upper), lower.to(x.dtype)),
        weak_rows.sum(-1) + weak_lower.sum(-1) + weak_upper.sum(-1),
        right & ~surplus,
        trial.released + surplus,
    )
    return closed, flips


def _weakest(trial: Trial, p: int, interior: Interior) -> tuple[Tensor, Tensor, Tensor]:
    """The active inequality or bound with the least multiplier beside its slack: at most one for each element."""
    ratios = [torch.where(trial.rows[:, p:], interior.z / interior.s, torch.inf)]
    ratios.append(torch.where(trial.lower, interior.z_lower / interior.s_lower, torch.inf))
    ratios.append(torch.where(trial.upper, interior.z_upper / interior.s_upper, torch.inf))
    ratio = torch.cat(ratios, 1)
    value, index = ratio.min(-1, keepdim=True)
    one = torch.zeros_like(ratio, dtype=torch.bool).scatter(1, index, value.isfinite())
    rows, lower, upper = one.split([t.shape[1] for t in ratios], 1)
    return torch.cat([torch.zeros_like(trial.rows[:, :p]), rows], 1), lower, upper


def _consistent(x: Tensor, force: Tensor, tau: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """x and its logarithm, which is the optimality condition's where x is too small for one of its own."""
    small = ~held & (x <= TINY)
    formula = -force / tau - 1
    x = torch.where(small, formula.clamp(max=0).exp().clamp(max=2 * TINY), x)
    return x, torch.where(small & (x <= TINY), formula, x.clamp(min=TINY).log())


def _least(problem: Standard, rows: Tensor, x: Tensor) -> Tensor:
    """(B, n): the change of a variable that is lost in the rounding of these rows (B, k), of the forces and of sum x.

    Where only changes of this size say what a multiplier is, it is left undetermined, as between the blocks of a
    transport plan that is nearly a permutation: any that keeps these x so small will do.
    """
    terms = mv(problem.C.abs(), problem.free * x) + problem.d.abs()
    force = (problem.q.abs() + problem.tau).amax(-1, keepdim=True)
    felt = torch.maximum(1 / (problem.free * x).sum(-1, keepdim=True).clamp(min=TINY), problem.curvature / force)
    if problem.P is not None:
        felt = torch.maximum(felt, problem.P.abs().amax(-1) / force)
    if terms.shape[1]:
        felt = torch.maximum(felt, (problem.C.abs() * (rows / terms.clamp(min=TINY)).unsqueeze(-1)).amax(1))
    return (shift(terms.shape[1]) / felt).clamp(min=2 * TINY)


def _tail(x: Tensor, formula: Tensor, held: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """x and its logarithm: where no row can tell the difference, log x is the formula's and x its exponential.

    An x below `least` that the formula wants above it is raised to `least`, from where Newton steps take it.
    """
    exact = formula.exp()
    tail = ~held & ((exact - x).abs() < least) & (least > QUADRATIC * x)
    x = torch.where(tail, exact, torch.where(held, x, torch.maximum(x, least)))
    return x, torch.where(tail, formula, x.clamp(min=TINY).log())


def _rounding(problem: Standard, force: Tensor, x: Tensor) -> Tensor:
    """(B,): what rounding of the force does to the relative size of the x that matter."""
    return 64 * EPS * norm(problem.free * (force.abs() + problem.times_P(problem.free * x).abs()) / problem.tau)


def _surplus(problem: Standard, p: int, x: Tensor, kkt: KKT, held: Tensor) -> Tensor:
    """Whether (B,) active inequalities and bounds depend on each other and on the equalities."""
    if not p and not problem.d.shape[1]:
        return torch.zeros_like(held[:, 0])
    among = kkt.dependent.sum(-1)
    if p:
        W = problem.free * x / (problem.tau + x * problem.curvature)
        rows = KKT(problem.P, problem.C[:, :p], W, torch.full_like(problem.d[:, :p], torch.inf))
        among = among - rows.dependent.sum(-1)
    return among > 0


def _weak(active: Tensor, z: Tensor, s: Tensor, z0: Tensor, s0: Tensor, z_size: Tensor, s_size: Tensor) -> Tensor:
    """Constraints whose multiplier (active) or slack (inactive) vanishes, and whose z0, s0 decide for neither."""
    ratio = (s0 / s_size) / (z0 / z_size)
    as_active = active & (z <= Z_SIGN * z_size) & (s0 < WEAK * s_size) & (ratio > 1 / AMBIGUOUS)
    as_inactive = ~active & (s <= S_SIGN * s_size) & (z0 < WEAK * z_size) & (ratio < AMBIGUOUS)
    return as_active | as_inactive


def _central(problem: Standard, p: int, interior: Interior) -> Closed:
    """v dropped, and Newton steps in which all products s z are kept, as long as they help; weights are z / s."""
    free, tau = problem.free, problem.tau
    fixed = free == 0
    bounds = problem.upper * interior.z_upper - problem.lower * interior.z_lower
    base = problem.q + tmv(problem.C, interior.rows) + bounds
    x = _released(interior.x, interior.v, problem.times_P(free * interior.x) + base, tau)
    center = Center(interior._replace(x=x), torch.zeros_like(interior.rows), torch.zeros_like(x))
    error = _error(problem, p, center, base, fixed)
    for _ in range(2):
        moved = _central_step(problem, p, center, base, fixed)
        error_moved = _error(problem, p, moved, base, fixed)
        better = (error_moved < error).unsqueeze(-1)
        chosen = zip((*moved.at, *moved[1:]), (*center.at, *center[1:]), strict=True)
        *parts, delta, box = (torch.where(better, new, old) for new, old in chosen)
        center = Center(Interior(*parts), delta, box)
        error = torch.where(better.squeeze(-1), error_moved, error)
    at = center.at
    least = _least(problem, torch.ones_like(problem.d, dtype=torch.bool), at.x)
    x, log_x = _tail(at.x, -center.force(problem, base) / tau - 1, fixed, least)
    w, w_box = _central_weights(problem, p, at)
    share = problem.lower * at.z_lower / at.s_lower
    return Closed(
        x,
        log_x,
        interior.rows + center.delta,
        problem.upper * at.z_upper - problem.lower * at.z_lower,
        w,
        w_box.masked_fill(fixed, torch.inf),
        torch.where(share > 0, share / w_box, 0.0),
        torch.zeros(x.shape[0], dtype=torch.int64, device=x.device),
        torch.zeros(x.shape[0], dtype=torch.bool, device=x.device),
        torch.zeros(x.shape[0], dtype=torch.int64, device=x.device),
    )


class Center(NamedTuple):
    """A point near the central path, and what the multipliers of rows and bounds have moved by since the start."""

    at: Interior
    delta: Tensor
    box: Tensor

    def force(self, problem: Standard, base: Tensor) -> Tensor:
        """Px + q + A'y + G'z and the bounds' multipliers."""
        return problem.times_P(problem.free * self.at.x) + base + self.box + tmv(problem.C, self.delta)


def _central_weights(problem: Standard, p: int, at: Interior) -> tuple[Tensor, Tensor]:
    """z / s of rows and bounds."""
    w = torch.cat([torch.full_like(problem.d[:, :p], torch.inf), at.z / at.s], 1)
    return w, problem.upper * at.z_upper / at.s_upper + problem.lower * at.z_lower / at.s_lower


def _error(problem: Standard, p: int, center: Center, base: Tensor, fixed: Tensor) -> Tensor:
    """(B,): the largest residual, relative to tau and to the largest x; NaN counts as infinite."""
    at = center.at
    force = center.force(problem, base)
    x, log_x = _consistent(at.x, force, problem.tau, fixed)
    unit = norm(problem.free * x)
    rows = mv(problem.C, problem.free * x) - problem.d
    rows[:, p:] += at.s
    dual = norm(problem.free * x * (force / problem.tau + log_x + 1))
    bounds = problem.upper * (x + at.s_upper - problem.ub), problem.lower * (x - at.s_lower - problem.lb)
    error = torch.stack([dual, norm(rows), *map(norm, bounds)]).amax(0) / unit
    return torch.where(error.isnan(), torch.inf, error)


def _central_step(problem: Standard, p: int, center: Center, base: Tensor, fixed: Tensor) -> Center:
    P, curvature, _, tau, C, d, lb, ub, lower, upper, free, *_ = problem
    x, v, rows, s, z, s_upper, z_upper, s_lower, z_lower = center.at
    force = center.force(problem, base)
    x, log_x = _consistent(x, force, tau, fixed)
    w, w_box = _central_weights(problem, p, center.at)
    kkt = KKT(P, C, free * x / (tau + x * (curvature + w_box)), w)
    r_rows = mv(C, free * x) - d
    r_rows[:, p:] += s
    r_upper, r_lower = upper * (x + s_upper - ub), lower * (x - s_lower - lb)
    r1 = -(force + tau * (log_x + 1)) - z_upper * r_upper / s_upper - z_lower * r_lower / s_lower
    dx, dv = (t.squeeze(-1) for t in kkt.solve(r1.unsqueeze(-1), -r_rows.unsqueeze(-1)))

    def kept(t: Tensor, dt: Tensor) -> Tensor:
        return torch.maximum(t + dt, 0.1 * t)

    ds, ds_upper, ds_lower = -r_rows[:, p:] - mv(C[:, p:], dx), upper * (-r_upper - dx), lower * (dx + r_lower)
    z_new = kept(z, dv[:, p:])
    upper_new, lower_new = kept(z_upper, -z_upper * ds_upper / s_upper), kept(z_lower, -z_lower * ds_lower / s_lower)
    x = torch.where(fixed, x, x * (1 + (dx / x.clamp(min=TINY)).clamp(-0.9, 10)))
    slacks = kept(s, ds), kept(s_upper, ds_upper), kept(s_lower, ds_lower)
    return Center(
        Interior(x, v, rows, slacks[0], z_new, slacks[1], upper_new, slacks[2], lower_new),
        center.delta + torch.cat([dv[:, :p], z_new - z], 1),
        center.box + upper * (upper_new - z_upper) - lower * (lower_new - z_lower),
    )
