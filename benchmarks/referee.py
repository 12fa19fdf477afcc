# SPDX-License-Identifier: Apache-2.0
"""The referee: problems read from files and answers judged, in numpy alone, by no code of the library.

The collections are .npz files, one a problem, in the form

    minimise 1/2 x'Px + q'x + r   subject to   l <= Ax <= u,   lb <= x <= ub

with P and A as triplets. Their folder is named by the environment variable OPTLAYER_TEST_DATA. A `Problem` is the
standard form Gx <= h, Ax = b, lb <= x <= ub: each two-sided row becomes up to two rows of G, a row with l = u one of A.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ABSENT = "OPTLAYER_TEST_DATA-is-not-set"
"""The folder that stands for none."""

HUGE = 1e20
"""A bound of this size or more is infinite, by the convention that all QP solvers share."""


def data_root() -> Path:
    """The folder of the collections; it may be absent, as ABSENT is."""
    return Path(os.environ.get("OPTLAYER_TEST_DATA") or ABSENT)


@dataclass(frozen=True)
class Problem:
    """One QP in standard form, dense numpy arrays; absent rows have shape (0, n), absent bounds are infinite."""

    name: str
    P: Array
    q: Array
    G: Array
    h: Array
    A: Array
    b: Array
    lb: Array
    ub: Array
    r: float = 0.0
    optimum: float = float("nan")
    """The reference objective, r included; NaN where none is known."""

    @property
    def blocks(self) -> dict[str, Array | None]:
        """The arguments of solve_qp by name, None for what the problem does not have (P too: an LP)."""
        bounded = bool((self.lb > -HUGE).any() or (self.ub < HUGE).any())
        return {
            "P": self.P if self.P.any() else None,
            "q": self.q,
            "G": self.G if len(self.h) else None,
            "h": self.h if len(self.h) else None,
            "A": self.A if len(self.b) else None,
            "b": self.b if len(self.b) else None,
            "lb": self.lb if bounded else None,
            "ub": self.ub if bounded else None,
        }


def from_rows(
    name: str, P: Array, q: Array, rows: Array, l: Array, u: Array, lb: Array, ub: Array, r: float, optimum: float
) -> Problem:
    """The standard form of a problem with two-sided rows l <= rows x <= u."""
    equal = np.abs(u - l) < 1e-12
    upper, lower = ~equal & (u < HUGE), ~equal & (l > -HUGE)
    G, h = np.vstack([rows[upper], -rows[lower]]), np.concatenate([u[upper], -l[lower]])
    return Problem(name, P, q, G, h, rows[equal], u[equal], lb, ub, r, optimum)


def load(collection: str, name: str) -> Problem:
    """The problem ``name`` of one of the collections mm, netlib, infeas, mpc, ffa, piqpdata."""
    with np.load(data_root() / collection / f"{name}.npz", allow_pickle=False) as file:
        z = {key: file[key] for key in file.files}
    n, m = int(z["n"]), int(z["m"])
    P, rows = np.zeros((n, n)), np.zeros((m, n))
    np.add.at(P, (z["P_row"], z["P_col"]), z["P_val"])
    np.add.at(rows, (z["A_row"], z["A_col"]), z["A_val"])
    q, l, u, lb, ub = (np.asarray(z[key], float) for key in ("q", "l", "u", "lb", "ub"))
    return from_rows(name, P, q, rows, l, u, lb, ub, float(z["r"]), float(z["f_opt"]))


def names(collection: str, split: str | None = None) -> list[str]:
    """The names of the problems of a collection that are there, of the split "small" or "medium", or of both."""
    root = data_root() / collection
    index: list[dict[str, Any]] = json.loads((root / "index.json").read_text())
    return [e["name"] for e in index if split in (None, e["split"]) and (root / f"{e['name']}.npz").exists()]


def problems(collection: str, split: str | None = None) -> Iterator[Problem]:
    """The problems of a collection, one after the other."""
    return (load(collection, name) for name in names(collection, split))


def largest(*vectors: Array) -> float:
    """The largest absolute entry of all vectors, 0 when they are empty, inf when one is not a number."""
    tops = [float(np.max(np.abs(v), initial=0.0)) for v in vectors]
    return float("inf") if np.isnan(tops).any() else max(tops, default=0.0)


class Verdict(NamedTuple):
    """The residuals of an answer on the original data, by the definitions of qpbenchmark, and what they compare with.

    primal = max(|Ax - b|, (Gx - h)+, (lb - x)+, (x - ub)+),  dual = |Px + q + A'y + G'z + z_box|,
    gap = |x'Px + q'x + b'y + h'z + lb'z_box- + ub'z_box+|;  sign is the largest multiplier of the wrong sign.
    """

    primal: float
    dual: float
    gap: float
    sign: float
    objective: float
    primal_scale: float
    dual_scale: float
    gap_scale: float

    def meets(self, absolute: float, relative: float) -> bool:
        """Whether every residual, a wrong sign counted as a dual one, is at most absolute + relative * its scale."""
        return (
            self.primal <= absolute + relative * self.primal_scale
            and max(self.dual, self.sign) <= absolute + relative * self.dual_scale
            and self.gap <= absolute + relative * self.gap_scale
        )


def judge(problem: Problem, x: Array, y: Array, z: Array, z_box: Array) -> Verdict:
    """The verdict on a point and its multipliers. An entry that is no number makes every residual infinite."""
    if not all(np.isfinite(v).all() for v in (x, y, z, z_box)):
        return Verdict(*[float("inf")] * 4, float("nan"), 1.0, 1.0, 1.0)
    P, q, G, h, A, b = (problem.P + problem.P.T) / 2, problem.q, problem.G, problem.h, problem.A, problem.b
    rows, low, high = h < HUGE, problem.lb > -HUGE, problem.ub < HUGE
    lb, ub = np.where(low, problem.lb, 0.0), np.where(high, problem.ub, 0.0)
    Px, Gx, Ax = P @ x, G @ x, A @ x
    below, above = np.minimum(z_box, 0.0), np.maximum(z_box, 0.0)
    primal = largest(Ax - b, np.maximum(Gx - h, 0.0)[rows], np.maximum(lb - x, 0.0)[low], np.maximum(x - ub, 0.0)[high])
    dual = largest(Px + q + A.T @ y + G.T @ z + z_box)
    offset = float(b @ y + h[rows] @ z[rows] + lb @ below + ub @ above)
    curvature, linear = float(x @ Px), float(q @ x)
    sign = largest(np.minimum(z, 0.0), z[~rows], below[~low], above[~high])
    value, bound = curvature / 2 + linear, -curvature / 2 - offset
    boxed = [x] if low.any() or high.any() else []
    return Verdict(
        primal=primal,
        dual=dual,
        gap=abs(curvature + linear + offset),
        sign=sign,
        objective=value + problem.r,
        primal_scale=largest(Ax, b, Gx[rows], h[rows], *boxed),
        dual_scale=largest(Px, q, A.T @ y, G.T @ z, z_box),
        gap_scale=min(abs(value), abs(bound)),
    )


def farkas(problem: Problem, y: Array, z: Array, z_box: Array) -> float:
    """How exactly multipliers prove that no point is feasible: |A'y + G'z + z_box| when b'y + h'z + bounds'z_box = -1.

    Infinite when they prove nothing: a value that is not negative, a z < 0, weight on a bound or row that is infinite.
    Crossed bounds lb > ub prove themselves: 0.
    """
    if (problem.lb > problem.ub).any():
        return 0.0
    if not all(np.isfinite(v).all() for v in (y, z, z_box)):
        return float("inf")
    rows, low, high = problem.h < HUGE, problem.lb > -HUGE, problem.ub < HUGE
    below, above = np.minimum(z_box, 0.0), np.maximum(z_box, 0.0)
    value = -float(
        problem.b @ y + problem.h[rows] @ z[rows] + problem.lb[low] @ below[low] + problem.ub[high] @ above[high]
    )
    wrong = largest(np.minimum(z, 0.0), z[~rows], below[~low], above[~high])
    if value <= 0.0 or wrong > 0.0:
        return float("inf")
    return largest(problem.A.T @ y + problem.G.T @ z + z_box) / value


def ray(problem: Problem, d: Array) -> float:
    """How exactly a direction proves that the objective has no bound: |Pd|, |Ad|, (Gd)+ and bounds, when q'd = -1.

    Infinite when it proves nothing because q'd >= 0. That a feasible point exists is not part of this proof.
    """
    if not np.isfinite(d).all():
        return float("inf")
    value = -float(problem.q @ d)
    if value <= 0.0:
        return float("inf")
    rows, low, high = problem.h < HUGE, problem.lb > -HUGE, problem.ub < HUGE
    return (
        largest(
            (problem.P + problem.P.T) @ d / 2,
            problem.A @ d,
            np.maximum(problem.G @ d, 0.0)[rows],
            np.maximum(-d, 0.0)[low],
            np.maximum(d, 0.0)[high],
        )
        / value
    )
