# SPDX-License-Identifier: Apache-2.0
"""QPs whose solution, active set and gradients are known to 30 digits.

A problem is built backwards: choose x, the active rows and bounds I, their multipliers and the slack of the rest; then

    q = -(Px + A'y + G'z + z_box),   h = Gx + s,   b = Ax,   lb_i = x_i or x_i - slack,   ub_i alike.

Rounding to the working precision moves the solution a little but not its active set (slack and multipliers stay
positive; `Known.solve` checks it). On that set the rounded problem has equalities only: its solution and gradients are

    K (x, v_I) = (-q, r_I),    K u = g,      K = [P C_I'; C_I 0],   C = [A; G; I],  r = (b, h, bounds)

linear systems with one symmetric K. They are solved in float64 and refined with residuals of 40 digits until the
correction is below 1e-30: every figure here is exact for the numbers the solver was given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import mpmath
import numpy as np

from benchmarks.referee import Array, Problem

DIGITS = 40
BLOCKS = ("P", "q", "G", "h", "A", "b", "lb", "ub")


def precise(values: Array) -> Array:
    """The same numbers as mpmath floats, in an array of objects that numpy adds and multiplies exactly to DIGITS."""
    return np.vectorize(mpmath.mpf, otypes=[object])(values)


def solve_precisely(K: Array, *sides: Array) -> list[Array]:
    """K^-1 times each side to 30 digits: LU of the equilibrated K in float64, refined with residuals of 40 digits."""
    with mpmath.workdps(DIGITS):
        d = np.ones(len(K))
        for _ in range(20):
            d /= np.sqrt(np.maximum(np.abs(K * np.outer(d, d)).max(axis=1), 1e-300))
        d = 2.0 ** np.round(np.log2(d))
        inverse = np.linalg.inv(K * np.outer(d, d))
        exact, scale = precise(K), precise(d)
        found = []
        for side in sides:
            u = np.zeros(len(K), dtype=object)
            for _ in range(200):
                residual = scale * (side - exact @ u)
                size = max((abs(r) for r in residual), default=mpmath.mpf(0))
                if size == 0:
                    break
                step = scale * precise(inverse @ (residual / size).astype(float)) * size
                u = u + step
                if max(abs(s / f) for s, f in zip(step, scale, strict=True)) <= 1e-30 * max(
                    abs(v / f) for v, f in zip(u, scale, strict=True)
                ):
                    break
            else:
                raise ArithmeticError("the KKT matrix on the active set is singular to working precision")
            found.append(u)
        return found


@dataclass(frozen=True)
class Known:
    """A problem with its active set: ``rows`` of G, variables at their ``lower`` and at their ``upper`` bound."""

    problem: Problem
    rows: tuple[int, ...]
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    exact: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    def _matrix(self) -> Array:
        p = self.problem
        unit = np.eye(len(p.q))
        C = np.vstack([p.A, p.G[list(self.rows)], unit[list(self.lower)], unit[list(self.upper)]])
        return np.block([[(p.P + p.P.T) / 2, C.T], [C, np.zeros((len(C), len(C)))]])

    def _split(self, u: Array) -> tuple[Array, Array, Array, Array]:
        """(x, y, z, z_box) parts of a vector of the KKT system, zeros off the active set."""
        p = self.problem
        n, k = len(p.q), len(p.b)
        x, y = u[:n], u[n : n + k]
        z, box = (np.array([mpmath.mpf(0)] * size, dtype=object) for size in (len(p.h), n))
        z[list(self.rows)] = u[n + k : n + k + len(self.rows)]
        box[list(self.lower + self.upper)] = u[n + k + len(self.rows) :]
        return x, y, z, box

    def solve(self) -> dict[str, Array]:
        """x, y, z, z_box, s to 30 digits, as arrays of mpmath floats."""
        if not self.exact:
            with mpmath.workdps(DIGITS):
                p = self.problem
                side = np.concatenate([-p.q, p.b, p.h[list(self.rows)], p.lb[list(self.lower)], p.ub[list(self.upper)]])
                (u,) = solve_precisely(self._matrix(), precise(side))
                x, y, z, box = self._split(u)
                s = precise(p.h) - precise(p.G) @ x if len(p.h) else np.zeros(0, dtype=object)
                s[list(self.rows)] = mpmath.mpf(0)
                right = all(z[i] > 0 for i in self.rows) and all(s[i] > 0 for i in set(range(len(s))) - set(self.rows))
                right &= all(box[i] < 0 for i in self.lower) and all(box[i] > 0 for i in self.upper)
                right &= all(x[i] > p.lb[i] for i in set(range(len(x))) - set(self.lower))
                right &= all(x[i] < p.ub[i] for i in set(range(len(x))) - set(self.upper))
                if not right:
                    raise ArithmeticError("rounding changed the active set: the construction is too thin")
                self.exact.update(x=x, y=y, z=z, z_box=box, s=s)
        return self.exact

    def gradients(self, **cotangents: Array) -> dict[str, Array]:
        """The gradients of g_x'x + g_y'y + g_z'z + g_box'z_box + g_s's by all blocks, in float64; cotangents by name.

        The slack is s = h - Gx, so g_s adds g_s to h, -g_s x' to G and -G'g_s to g_x. The multiplier of a row that is
        not active is locally zero. Only the bound that is active has a gradient.
        """
        with mpmath.workdps(DIGITS):
            p, w = self.problem, self.solve()
            x, y, z = w["x"], w["y"], w["z"]
            size = {"x": len(x), "y": len(y), "z": len(z), "z_box": len(x), "s": len(z)}
            g = {k: precise(np.asarray(cotangents.get(k, np.zeros(n)), float)) for k, n in size.items()}
            passive = np.array([i not in self.rows for i in range(len(z))], dtype=bool)
            g_s = np.where(passive, g["s"], mpmath.mpf(0)) if len(z) else g["s"]
            g_x = g["x"] - precise(p.G).T @ g_s if len(z) else g["x"]
            bounds = list(self.lower + self.upper)
            side = np.concatenate([g_x, g["y"], g["z"][list(self.rows)], g["z_box"][bounds]])
            (u,) = solve_precisely(self._matrix(), side)
            u_x, u_y, u_z, u_box = self._split(u)
            lower, upper = np.zeros(len(x), dtype=object), np.zeros(len(x), dtype=object)
            lower[list(self.lower)], upper[list(self.upper)] = u_box[list(self.lower)], u_box[list(self.upper)]
            gradient = {
                "P": -(np.outer(u_x, x) + np.outer(x, u_x)) / 2,
                "q": -u_x,
                "G": -(np.outer(z, u_x) + np.outer(u_z, x) + np.outer(g_s, x)),
                "h": u_z + g_s,
                "A": -(np.outer(y, u_x) + np.outer(u_y, x)),
                "b": u_y,
                "lb": lower,
                "ub": upper,
            }
            return {k: v.astype(float) for k, v in gradient.items()}

    def scaled(self, objective: float = 1.0, rows: float = 1.0, variables: float = 1.0) -> Known:
        """The problem with its objective, its rows (A, b, G, h) and its variables multiplied; the active set stays."""
        p, c, r, v = self.problem, objective, rows, variables
        P, q, G, A = c * p.P / v**2, c * p.q / v, r * p.G / v, r * p.A / v
        changed = replace(p, P=P, q=q, G=G, h=r * p.h, A=A, b=r * p.b, lb=v * p.lb, ub=v * p.ub)
        return Known(changed, self.rows, self.lower, self.upper)

    def rounded(self, dtype: type) -> Known:
        """The problem with its data rounded to a dtype (float32): what a solver in that precision is really given."""
        p = self.problem
        data = {k: getattr(p, k).astype(dtype).astype(float) for k in BLOCKS}
        return Known(replace(p, **data), self.rows, self.lower, self.upper)


def spectrum(rng: np.random.Generator, eigenvalues: Array) -> Array:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    Q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))
    M = Q * eigenvalues @ Q.T
    return (M + M.T) / 2


def known(
    seed: int,
    n: int = 10,
    m: int = 10,
    p: int = 2,
    active: int = 3,
    bounded: int = 5,
    at_bound: int = 2,
    eigenvalues: Array | None = None,
    multiplier: float | None = None,
    structure: int | None = None,
) -> Known:
    """A random problem with ``active`` of m rows of G and ``at_bound`` of ``bounded`` variables at a bound.

    Slack and multipliers lie in (0.5, 1.5); ``multiplier`` sets that of the first active row (and of the first active
    bound) instead. P has the given eigenvalues, by default between 1 and 10. Half of the active bounds are upper ones.
    Problems with one ``structure`` share P, G, A and the set of bounded variables.
    """
    rng = np.random.default_rng(seed if structure is None else structure)
    G, A = rng.standard_normal((m, n)), rng.standard_normal((p, n))
    P = spectrum(rng, np.linspace(1, 10, n) if eigenvalues is None else eigenvalues)
    bounds = rng.permutation(n)[:bounded]
    rng = np.random.default_rng([seed, 1])
    x, y = rng.standard_normal(n), rng.standard_normal(p)
    rows, boxed = rng.permutation(m)[:active], rng.permutation(bounds)
    lower, upper = boxed[: at_bound - at_bound // 2], boxed[at_bound - at_bound // 2 : at_bound]
    s, z, box = rng.uniform(0.5, 1.5, m), np.zeros(m), np.zeros(n)
    s[rows], z[rows] = 0.0, rng.uniform(0.5, 1.5, active)
    lb, ub = np.full(n, -np.inf), np.full(n, np.inf)
    lb[boxed], ub[boxed] = x[boxed] - rng.uniform(0.5, 1.5, bounded), x[boxed] + rng.uniform(0.5, 1.5, bounded)
    lb[lower], ub[upper] = x[lower], x[upper]
    box[lower], box[upper] = -rng.uniform(0.5, 1.5, len(lower)), rng.uniform(0.5, 1.5, len(upper))
    if multiplier is not None:
        z[rows[:1]], box[lower[:1]] = multiplier, -multiplier
    q = -(P @ x + A.T @ y + G.T @ z + box)
    problem = Problem(f"known {seed}", P, q, G, G @ x + s, A, A @ x, lb, ub)
    return Known(problem, *(tuple(int(i) for i in sorted(index)) for index in (rows, lower, upper)))
