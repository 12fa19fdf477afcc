# SPDX-License-Identifier: Apache-2.0
"""A primal-dual interior point method for entropic problems that does not care how large the costs are.

    minimise  -a'x + sum_i x_i log x_i    subject to   c'x = 1  (y),   x <= u  (z >= 0),   x >= 0  (v >= 0)

The entropy keeps x positive by itself, so the true v is zero.  Yet v is kept, like the multiplier of any other bound:

    stationarity        log x + 1 - a + c y + z - v = 0
    row and caps        c'x = 1,   x + s = u
    complementarity     x v = 0,   s z = 0          (followed as x v = s z = sigma mu, with mu to zero)

With v the iteration is Mehrotra's predictor and corrector for linear programs, whatever the size of a.  Where a is
large the entropy is a small smooth term and v takes x_i to zero as in a linear program; where a is small the entropy
rules and v dies at once.  Without v an iteration could lower x_i by a constant factor only, while exp(a) may ask for
hundreds of digits.

In relative steps xi = dx / x the KKT system of an iteration is a diagonal and one row, and is solved in O(n):

    (1 + v + x z / s) xi + c l = r1,        (c x)'xi = r2                                       (class System)

One problem is a column.  Vectors over the variables are (n, B), scalars of a problem (B,), and these broadcast as they
are.  A column is computed as if it were alone: its neighbours' values change no bit of it, though the batch size may
change the rounding of a sum.  It stays as it is once it is done.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STEP = 0.995  # of the way to the nearest bound
SHORTEST = 1e-6  # the smallest fall of mu in the predictor that is believed
CENTRING = 0.5  # sigma of an iteration that only centres
NEWTON_STEPS = 40  # of the closing, where one or two are the rule


class Problem(NamedTuple):
    """The data of B problems in n variables.

    Attributes:
        a: (n, B), finite, with maximum 0 in each column.
        u: (n, B), positive and finite; None where there are no caps.
        c: (n, B), the row of the equality; None for ones.
    """

    a: Tensor
    u: Tensor | None
    c: Tensor | None

    def row(self, x: Tensor) -> Tensor:
        """c'x."""
        return (x if self.c is None else self.c * x).sum(0)

    def column(self, y: Tensor) -> Tensor:
        """c y."""
        return y if self.c is None else self.c * y


class Point(NamedTuple):
    """An iterate: primal = (x; s) and dual = (v; z) are (2n, B), or (n, B) where there are no caps; y is (B,)."""

    primal: Tensor
    dual: Tensor
    y: Tensor


class Residuals(NamedTuple):
    """What a point leaves undone.

    Attributes:
        stationarity: log x + 1 - a + c y + z, without v: the residual of the true problem.
        row: 1 - c'x.
        cap: u - x - s; None where there are no caps.
        primal: (B,), the largest of the row, of the gap s'z, and of the caps relative to the largest x.
        dual: (B,), the largest x times stationarity, relative to the largest x.
        floor: (B,), what rounding alone may do to `dual`.
    """

    stationarity: Tensor
    row: Tensor
    cap: Tensor | None
    primal: Tensor
    dual: Tensor
    floor: Tensor


class Solution(NamedTuple):
    """The solution of every column.

    Attributes:
        x, log_x: (n, B); log_x is finite where x underflows.
        y: (B,).
        z: (n, B), zeros where there are no caps.
        free: (n, B), 1 for a variable below its cap, 0 for one at its cap, and between them the central share
            s / (s + x z) of the interior point at a cap that is active with a multiplier of zero.
        solved: (B,), whether the interior point and the closing met their accuracies.
        residual: (B,), the largest violation of the optimality conditions by what is returned.
        iterations: (B,).
    """

    x: Tensor
    log_x: Tensor
    y: Tensor
    z: Tensor
    free: Tensor
    solved: Tensor
    residual: Tensor
    iterations: Tensor


def solve(problem: Problem, skip: Tensor, eps: float, max_iter: int) -> Solution:
    """Solve every column but those to `skip` (B,), whose results mean nothing.

    `eps` is the accuracy at which the interior point hands over to the closing, and the size below which the multiplier
    of an active cap counts as zero.
    """
    point = _start(problem)
    live, solved = ~skip, torch.zeros_like(skip)
    iterations = torch.zeros_like(skip, dtype=torch.int64)
    for iteration in range(max_iter + 1):
        residuals = _residuals(problem, point)
        reached = (residuals.primal <= eps) & (residuals.dual <= eps + residuals.floor)
        solved = solved | (live & reached)
        live = live & ~reached & residuals.dual.isfinite()
        if iteration == max_iter or not bool(live.any()):
            break
        iterations = iterations + live
        point = _step(problem, point, residuals, live, centring=_is_centring(iteration))
    return close(problem, point, skip, eps, solved, iterations)


def _is_centring(iteration: int) -> bool:
    """Every fifth iteration from the tenth on, and every second one after a hundred.

    Without them one random problem in some hundred thousand runs in a circle of predictors and correctors.
    """
    period = 5 if iteration < 100 else 2
    return iteration > 5 and iteration % period == period - 1


def _eps(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps


# ---- the iteration ---------------------------------------------------------------------------------------------------


def _start(problem: Problem) -> Point:
    """Equal shares under half the caps, y by least squares, multipliers as large as what y leaves of the costs."""
    a, u, _ = problem
    n = a.shape[0]
    x = torch.full_like(a, 1 / n)
    if u is not None:
        x = torch.minimum(x, u / 2)
    gradient = a - x.log() - 1
    y = problem.row(gradient) / n
    scale = (gradient - problem.column(y)).abs().amax(0).clamp(min=1)
    primal = x if u is None else torch.cat([x, torch.maximum(u - x, x / 10)])
    return Point(primal, scale.expand_as(primal), y)


def _residuals(problem: Problem, point: Point) -> Residuals:
    a, u, _ = problem
    n, y = a.shape[0], point.y
    x = point.primal[:n]
    stationarity = x.log() + 1 - a + problem.column(y)
    size = y.abs() - a  # of the terms that cancel in the stationarity; a <= 0
    row = _beyond_rounding(1 - problem.row(x), 1)
    cap = None
    primal = row.abs()
    largest = x.amax(0)
    if u is not None:
        s, z = point.primal[n:], point.dual[n:]
        stationarity, size = stationarity + z, size + z
        cap = _beyond_rounding(u - x - s, u)
        primal = torch.maximum(torch.maximum(primal, cap.abs().amax(0) / largest), (s * z).sum(0))
    dual = (x * stationarity).abs().amax(0) / largest
    return Residuals(stationarity, row, cap, primal, dual, 8 * _eps(x) * (x * size).amax(0) / largest)


def _beyond_rounding(residual: Tensor, size: Tensor | float) -> Tensor:
    """A sum that is met up to its rounding is met: slacks are right to the last digit however small, sums are not."""
    return torch.where(residual.abs() <= 4 * _eps(residual) * size, 0, residual)


class System:
    """The KKT system of an iteration in relative form, solved by eliminating xi = (r1 - c l) / (1 + v + x z / s)."""

    def __init__(self, problem: Problem, point: Point) -> None:
        n = problem.a.shape[0]
        self.problem = problem
        self.x = point.primal[:n]
        diagonal = 1 + point.dual[:n]
        if problem.u is not None:
            diagonal = diagonal + self.x * point.dual[n:] / point.primal[n:]
        self.inverse = diagonal.reciprocal()
        self.weights = problem.column(self.x * self.inverse)  # c x / diagonal
        self.schur = problem.row(self.weights)

    def solve(self, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
        """xi and l.  The second pass repairs the row, which the rounding of a large r1 blurs."""
        l = ((self.weights * r1).sum(0) - r2) / self.schur
        xi = self.inverse * (r1 - self.problem.column(l))
        repair = (self.problem.row(self.x * xi) - r2) / self.schur
        return xi - self.inverse * self.problem.column(repair), l + repair


def _step(problem: Problem, point: Point, residuals: Residuals, live: Tensor, centring: bool) -> Point:
    """Mehrotra's predictor and corrector with one common step length.

    Steps are relative: p stands for dx / x and ds / s, d for dv / v and dz / z.  The complementarity conditions read
    p + d = k, with k = -1 in the predictor and, in the corrector, k = sigma mu / product - 1 - p d with p, d of the
    predictor.  A step that only centres has k = sigma mu / product - 1.
    """
    n, (primal, dual, y) = problem.a.shape[0], point
    system = System(problem, point)

    def direction(k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r1 = dual[:n] * (1 + k[:n]) - residuals.stationarity
        if residuals.cap is None:
            p, l = system.solve(r1, residuals.row)
        else:
            s, z = primal[n:], dual[n:]
            xi, l = system.solve(r1 + z * (residuals.cap / s - k[n:]), residuals.row)
            p = torch.cat([xi, (residuals.cap - primal[:n] * xi) / s])
        return p, k - p, l

    products = primal * dual
    mu = products.mean(0)
    if centring:
        k = CENTRING * mu / products - 1
    else:
        p, d, _ = direction(torch.full_like(products, -1))
        length = _length(p, d)
        ahead = (products * (1 + length * p) * (1 + length * d)).mean(0)
        sigma = (ahead / mu).clamp(SHORTEST, 1) ** 2
        k = sigma * mu / products - 1 - p * d
    p, d, l = direction(k)
    length = STEP * _length(p, d)
    return Point(
        torch.where(live, primal * (1 + length * p), primal),
        torch.where(live, dual * (1 + length * d), dual),
        torch.where(live, y + length * l, y),
    )


def _length(p: Tensor, d: Tensor) -> Tensor:
    """The largest step up to 1 that keeps primal (1 + length p) and dual (1 + length d) >= 0."""
    return torch.maximum(-p.amin(0), -d.amin(0)).clamp(min=1).reciprocal()


# ---- the closing -----------------------------------------------------------------------------------------------------


def close(problem: Problem, point: Point, skip: Tensor, eps: float, solved: Tensor, iterations: Tensor) -> Solution:
    """From the interior point to the solution: v = 0, each cap active or not, and y by Newton.

    Stationarity with v = 0 gives x = min(exp(a - 1 - c y), u), which leaves one equation in y, c'x = 1.  The interior
    point tells where to begin, and one Newton step is the rule; the bracket (low, high), relative to y, is for problems
    in which y hardly matters, such as caps that sum to little more than 1.  a - 1 - c y is not formed anew but goes
    along with y, so that it is rounded to its own size, which is small for the variables that matter.
    """
    a, u, _ = problem
    n = a.shape[0]
    wish = a - 1 - problem.column(point.y)  # log x if there were no caps
    log_u = torch.full_like(a, torch.inf) if u is None else u.log()
    y = point.y
    low, high = torch.full_like(y, -torch.inf), torch.full_like(y, torch.inf)
    for attempt in range(NEWTON_STEPS + 1):
        z = (wish - log_u).clamp(min=0)
        log_x = torch.minimum(wish, log_u)
        x = log_x.exp() if u is None else torch.where(z > 0, u, log_x.exp())
        excess = problem.row(x) - 1
        wrong = (excess.abs() > 4 * _eps(a)) & ~skip
        if attempt == NEWTON_STEPS or not bool(wrong.any()):
            break
        low, high = torch.where(excess > 0, 0, low), torch.where(excess < 0, 0, high)
        step = _newton(problem, x, z, excess, high)
        step = torch.where((step > low) & (step < high), step, (low + high) / 2)
        step = torch.where(wrong, step, 0)
        y, wish, low, high = y + step, wish - problem.column(step), low - step, high - step
    dual = (x * (log_x + 1 - a + problem.column(y) + z)).abs().amax(0)
    floor = 8 * _eps(a) * (x * (y.abs() - a + z)).amax(0)
    solved = solved & (excess.abs() <= eps) & (dual <= eps + floor)
    residual = torch.maximum(excess.abs(), dual)
    free = torch.ones_like(x)
    if u is not None:
        s = point.primal[n:]
        central = s / (s + point.primal[:n] * point.dual[n:])
        free = torch.where((wish - log_u).abs() <= eps, central, (z == 0).to(a.dtype))
        # Caps that sum to 1 leave nothing free, and the multipliers are not unique: again the central ones.
        free = torch.where(problem.row(problem.column(x * free)) > 0, free, central)
    return Solution(x, log_x, y, z, free, solved, residual, iterations)


def _newton(problem: Problem, x: Tensor, z: Tensor, excess: Tensor, high: Tensor) -> Tensor:
    """The Newton step on c'x = 1, of length 2 at most.

    The slope of c'x, which is that of the free variables, grows where a variable leaves its cap.  Newton may overshoot
    there; where it has (high is finite), and where there is no slope, go no farther than to where the next one leaves.
    """
    slope = problem.row(problem.column(torch.where(z > 0, 0, x)))
    next_free = torch.where(z > 0, z, torch.inf).amin(0) * (1 + 4 * _eps(z)) + _eps(z)
    step = torch.where(slope > 0, (excess / slope).clamp(-2, 2), torch.where(excess > 0, torch.inf, -2.0))
    return torch.where((slope > 0) & high.isinf(), step, torch.minimum(step, next_free))
