# SPDX-License-Identifier: Apache-2.0
"""The batches of QPs that the throughput is measured on: the recipes of other libraries' own benchmarks.

    OptNet                L ~ U(0, 1), P = LL' + 1e-3 I, G, q ~ N(0, 1), h = G z0 + s0, z0 ~ N(0, 1), s0 ~ U(0, 1)
    ... equalities        and p = n/2 rows A ~ N(0, 1), b = A z0
    ... boxes             z0 - s0 <= x <= z0 + s0 instead of the rows of G
    ... singular P        L with n/2 columns, P = LL', q = P w - G'u with u ~ U(0, 1), so that a minimiser exists
    ... float32           the first, in single precision
    qpax                  P = I, n = 32, m = 64, G ~ U(-4, 4), h = G/2 1 + U(0.5, 1.5), q ~ N(0, 1)
    BPQP                  P = U'U + 1e-6 I and q, G, A, b ~ U(0, 1), h = G z0, z0 ~ U(0, 1): P is badly conditioned
    SCQPTH box            P = M'M + 0.01 I, M ~ N(0, 1) with half of its entries zero, bounds of size U(1, 2) / n
    polytope projection   cuPIQP's: P = I, anisotropic polytopes (1e8), half of whose rows are nearly parallel to others
    least squares         cuPIQP's: |Fx - g|^2 with Ax = b, x >= lb; F and A shared by the batch

The first four of OptNet and the backward passes with respect to all data are ours to choose; qpax's, BPQP's and
cuPIQP's differentiate by q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.referee import Array, Problem

MATRICES = ("P", "G", "A")


@dataclass(frozen=True)
class Workload:
    """A batch of QPs of one shape.

    ``blocks`` holds the arguments of solve_qp that are there, in float64; a matrix of two dimensions is shared by the
    batch. ``by`` names the blocks that the backward pass of sum(x) differentiates by. ``eps`` is the absolute and
    ``relative`` the relative accuracy that every solver is asked for.
    """

    family: str
    name: str
    blocks: dict[str, Array]
    by: tuple[str, ...]
    eps: float = 1e-8
    relative: float = 0.0
    dtype: str = "float64"

    @property
    def batch(self) -> int:
        return len(self.blocks["q"])

    @property
    def n(self) -> int:
        return int(self.blocks["q"].shape[1])

    def first(self, batch: int) -> Workload:
        """The first elements of the batch."""
        shared = {k: v for k, v in self.blocks.items() if k in MATRICES and v.ndim == 2}
        return replace(self, blocks={k: v if k in shared else v[:batch] for k, v in self.blocks.items()})

    def repeated(self, batch: int) -> Workload:
        """A batch of this size made of these elements, one after the other and over again."""
        index = np.arange(batch) % self.batch
        shared = {k: v for k, v in self.blocks.items() if k in MATRICES and v.ndim == 2}
        return replace(self, blocks={k: v if k in shared else v[index] for k, v in self.blocks.items()})

    def element(self, name: str, i: int) -> Array | None:
        """One block of one problem, None where there is none."""
        value = self.blocks.get(name)
        return value if value is None or (name in MATRICES and value.ndim == 2) else value[i]

    def problem(self, i: int) -> Problem:
        """One problem as the referee reads it."""
        n = self.n
        absent = {
            "G": np.zeros((0, n)),
            "h": np.zeros(0),
            "A": np.zeros((0, n)),
            "b": np.zeros(0),
            "lb": np.full(n, -np.inf),
            "ub": np.full(n, np.inf),
        }
        given = {k: self.element(k, i) for k in ("P", "q", *absent)}
        return Problem(self.name, **{k: absent[k] if v is None else v for k, v in given.items()})


def optnet(n: int, batch: int, variant: str = "", seed: int = 0) -> Workload:
    """OptNet's recipe with n = m, or one of its variants."""
    rng = np.random.default_rng([seed, n])
    L, G = rng.uniform(size=(batch, n, n)), rng.standard_normal((batch, n, n))
    z0, s0, q = rng.standard_normal((batch, n)), rng.uniform(size=(batch, n)), rng.standard_normal((batch, n))
    rows = {"G": G, "h": (G @ z0[..., None])[..., 0] + s0}
    blocks = {"P": L @ L.transpose(0, 2, 1) + 1e-3 * np.eye(n), "q": q}
    accuracy = {}
    if variant == "boxes":
        blocks |= {"lb": z0 - s0, "ub": z0 + rng.uniform(size=(batch, n))}
    elif variant == "equalities":
        A = rng.standard_normal((batch, n // 2, n))
        blocks |= {**rows, "A": A, "b": (A @ z0[..., None])[..., 0]}
    elif variant == "singular P":
        L = L[..., : n // 2]
        P, u = L @ L.transpose(0, 2, 1), rng.uniform(size=(batch, n))
        blocks = {"P": P, "q": (P @ q[..., None] - G.transpose(0, 2, 1) @ u[..., None])[..., 0], **rows}
    else:
        blocks |= rows
    if variant == "float32":
        blocks = {k: v.astype(np.float32).astype(np.float64) for k, v in blocks.items()}
        accuracy = {"eps": 1e-5, "relative": 1e-5, "dtype": "float32"}
    family = f"OptNet, {variant}" if variant else "OptNet"
    return Workload(family, f"{family}, n = m = {n}", blocks, tuple(blocks), **accuracy)


def qpax(batch: int) -> Workload:
    """qpax's benchmark."""
    n, m, rng = 32, 64, np.random.default_rng(7)
    G = rng.uniform(-4, 4, (batch, m, n))
    h = G.sum(axis=2) / 2 + rng.uniform(0.5, 1.5, (batch, m))
    return Workload(
        "qpax", "qpax, 32 x 64", {"P": np.eye(n), "q": rng.standard_normal((batch, n)), "G": G, "h": h}, ("q",)
    )


def bpqp(n: int, rows: int, batch: int) -> Workload:
    """BPQP's table 1: as many equalities as inequalities."""
    rng = np.random.default_rng(n)
    U, z0 = rng.uniform(size=(batch, n, n)), rng.uniform(size=(batch, n))
    G, A = rng.uniform(size=(batch, rows, n)), rng.uniform(size=(batch, rows, n))
    blocks = {"P": U.transpose(0, 2, 1) @ U + 1e-6 * np.eye(n), "q": rng.uniform(size=(batch, n))}
    blocks |= {"G": G, "h": (G @ z0[..., None])[..., 0], "A": A, "b": rng.uniform(size=(batch, rows))}
    return Workload("BPQP", f"BPQP, {n} x {rows}", blocks, ("q",))


def scqpth(n: int, batch: int = 32) -> Workload:
    """SCQPTH's first experiment."""
    rng = np.random.default_rng(n)
    M = rng.standard_normal((batch, n, n)) * (rng.uniform(size=(batch, n, n)) < 0.5)
    blocks = {"P": M.transpose(0, 2, 1) @ M + 0.01 * np.eye(n), "q": rng.standard_normal((batch, n))}
    blocks |= {"lb": -rng.uniform(1, 2, (batch, n)) / n, "ub": rng.uniform(1, 2, (batch, n)) / n}
    return Workload("SCQPTH", f"SCQPTH box, n = {n}", blocks, ("P", "q"))


def polytope(n: int, m: int, batch: int) -> Workload:
    """cuPIQP's projection: an ellipsoid with semi-axes d, log-uniform over 1e8, lies strictly inside each polytope.

    The last rows repeat others up to 1e-6. Half of the points lie inside, the others mostly outside. Data of size 1e4
    and more make objectives of 1e9: the accuracy is relative too.
    """
    rng = np.random.default_rng([10, n])
    G = rng.standard_normal((batch, m, n))
    copies = min(m // 2, m - n - 1)
    parents = rng.integers(0, m - copies, (batch, copies, 1))
    G[:, m - copies :] = np.take_along_axis(G, parents, axis=1) + 1e-6 * rng.standard_normal((batch, copies, n))
    d = 10.0 ** rng.uniform(-4, 4, (batch, n))
    h = np.linalg.norm(G * d[:, None], axis=2) + rng.uniform(0.05, 0.5, (batch, m))
    direction = rng.standard_normal((batch, n))
    radius = np.where(rng.uniform(size=batch) < 0.5, rng.uniform(0, 0.95, batch), rng.uniform(3, 6, batch))
    point = d * direction * (radius / np.linalg.norm(direction, axis=1))[:, None]
    blocks = {"P": np.eye(n), "q": -point, "G": G, "h": h}
    return Workload("cuPIQP projection", f"polytope, {n} x {m}", blocks, ("q",), relative=1e-8)


def least_squares(batch: int) -> Workload:
    """cuPIQP's constrained least squares."""
    n, rng = 20, np.random.default_rng(42)
    F, A = rng.standard_normal((40, n)), rng.standard_normal((5, n))
    q = -2 * rng.standard_normal((batch, 40)) @ F
    b = A.sum(axis=1) + 0.1 * rng.standard_normal((batch, 5))
    blocks = {"P": 2 * F.T @ F, "q": q, "A": A, "b": b, "lb": rng.standard_normal((batch, n))}
    return Workload("cuPIQP least squares", "least squares, 20 x 5", blocks, ("q",))


SIZES = ((10, 4096), (20, 4096), (50, 512), (100, 128))
VARIANTS = ("", "equalities", "boxes", "singular P", "float32")

CATALOGUE: list[Callable[[], Workload]] = [
    *(partial(optnet, n, batch, variant) for variant in VARIANTS for n, batch in SIZES),
    partial(qpax, 512),
    partial(bpqp, 10, 5, 2048),
    partial(bpqp, 50, 10, 256),
    partial(bpqp, 100, 20, 64),
    partial(bpqp, 500, 100, 2),
    partial(scqpth, 10),
    partial(scqpth, 100),
    partial(scqpth, 500),
    partial(polytope, 5, 25, 2048),
    partial(polytope, 10, 50, 2048),
    partial(polytope, 20, 100, 1024),
    partial(polytope, 40, 200, 256),
    partial(least_squares, 4096),
]
"""All workloads, made when they are called for."""

QUICK: list[Callable[[], Workload]] = [
    *(partial(optnet, n, batch) for n, batch in ((10, 1024), (50, 128))),
    *(partial(optnet, 20, 256, variant) for variant in VARIANTS[1:]),
    partial(qpax, 64),
    partial(bpqp, 50, 10, 64),
    partial(scqpth, 100),
    partial(polytope, 10, 50, 256),
    partial(least_squares, 256),
]
"""A smaller choice."""
