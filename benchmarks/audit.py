# SPDX-License-Identifier: Apache-2.0
"""The answers of a batch verified before they count, by numpy and an independent solver.

The truth of each problem is PIQP's solution at 1e-10, accepted only if the referee finds its residuals below a tenth of
the accuracy that the workload asks for. A solver's x counts when it is feasible and its objective is the optimum,
both to ten times the accuracy, relative to 1 and the size of their terms: a decade for the differences between the
solvers' own criteria. This asks nothing about multipliers, which not all of them return. Ours have to pass the referee
at the accuracy itself, multipliers included.

A gradient of sum(x) by q counts when it lies within 1e-3 of -K^-1 (1, 0), K being the KKT matrix on the true active
set. A problem whose active set is in doubt is left out: one with a row whose slack and multiplier are both below 1000
times the accuracy, or within a factor of 1000 of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import optlayer
from benchmarks.peers import piqp
from benchmarks.referee import Array, Problem, judge
from benchmarks.workloads import Workload

GRADIENT = 1e-3
"""How far a gradient may lie from the truth, relative to it."""
DOUBT = 1000
"""A row is active or not when its slack or its multiplier is this many times larger than the accuracy and the other."""


@dataclass(frozen=True)
class Truth:
    """The optimum (B) and the gradient of sum(x) by q (B, n) with its size (B); NaN where not known."""

    optimum: Array
    gradient: Array
    size: Array

    def take(self, index: Any) -> Truth:
        """That of some elements of the batch."""
        return Truth(self.optimum[index], self.gradient[index], self.size[index])


def sensitivity(problem: Problem, x: Array, z: Array, z_box: Array, eps: float) -> Array:
    """d sum(x) / dq on the active set of a solution to this accuracy, NaN where that set is in doubt."""
    n = len(x)
    gaps = np.concatenate([problem.h - problem.G @ x, x - problem.lb, problem.ub - x])
    forces = np.concatenate([z, np.maximum(-z_box, 0.0), np.maximum(z_box, 0.0)])
    rows = np.vstack([problem.G, -np.eye(n), np.eye(n)])
    C = np.vstack([problem.A, rows[forces > gaps]])
    less, more = np.sort([gaps, forces], axis=0)
    if (more < DOUBT * np.maximum(less, eps)).any() or len(C) > n:
        return np.full(n, np.nan)
    K = np.block([[problem.P, C.T], [C, np.zeros((len(C), len(C)))]])
    return np.linalg.solve(K, np.r_[-np.ones(n), np.zeros(len(C))])[:n]


def truth(w: Workload) -> Truth:
    """The truth of every problem of the batch."""
    eps = 0.1 * w.eps
    found = Truth(*(np.full(shape, np.nan) for shape in (w.batch, (w.batch, w.n), w.batch)))
    for i in range(w.batch):
        problem = w.problem(i)
        answer = piqp(problem, 1e-10, 1e-12)
        verdict = answer.verdict(problem)
        if verdict.meets(eps, eps):
            found.optimum[i] = verdict.objective
            found.gradient[i] = sensitivity(problem, answer.x, answer.z, answer.z_box, w.eps)
            # A vertex does not move with q: the gradient of the unconstrained problem is the measure then.
            least = w.n**0.5 / np.linalg.norm(problem.P)
            found.size[i] = max(np.linalg.norm(found.gradient[i]), least)
    return found


def blocks(w: Workload) -> dict[str, Array]:
    """All blocks with a batch dimension that may be 1, absent rows empty."""
    n = w.n
    absent = {"G": np.zeros((0, n)), "h": np.zeros((1, 0)), "A": np.zeros((0, n)), "b": np.zeros((1, 0))}
    absent |= {"lb": np.full((1, n), -np.inf), "ub": np.full((1, n), np.inf)}
    return absent | w.blocks


def product(M: Array, x: Array) -> Array:
    """Mx for a batch of x and a batch of matrices or one."""
    return (M @ x[..., None])[..., 0]


def right(w: Workload, x: Array, known: Truth) -> Array:
    """(B) bool: whether each x is feasible and optimal."""
    P, q, G, h, A, b, lb, ub = (blocks(w)[k] for k in ("P", "q", "G", "h", "A", "b", "lb", "ub"))
    Gx, Ax, tolerance = product(G, x), product(A, x), 10 * w.eps

    scale = 1 + np.max(np.abs(np.concatenate([Gx, Ax, x], axis=1)), axis=1, initial=0.0)
    residuals = np.concatenate([Gx - h, np.abs(Ax - b), lb - x, x - ub], axis=1)
    curvature, linear = (x * product(P, x)).sum(axis=1) / 2, (q * x).sum(axis=1)
    feasible = np.max(residuals, axis=1, initial=0.0) <= tolerance * scale
    size = 1 + np.abs(curvature) + np.abs(linear)
    return feasible & (np.abs(curvature + linear - known.optimum) <= tolerance * size)


def errors(gradient: Array, known: Truth) -> Array:
    """(B): the error of each gradient relative to the truth, NaN where that is not known, inf for what is no number."""
    error = np.linalg.norm(gradient - known.gradient, axis=1) / known.size
    return np.where(np.isnan(error) & ~np.isnan(known.size), np.inf, error)


def ours(w: Workload, device: str = "cpu", **settings: Any) -> Array:
    """(B) bool: whether our point with its multipliers meets the accuracy itself by the referee."""
    tensors = {k: torch.tensor(v, dtype=getattr(torch, w.dtype), device=device) for k, v in w.blocks.items()}
    found = optlayer.solve_qp(**tensors, eps_abs=w.eps, eps_rel=w.relative, on_failure="ignore", **settings)
    points = [v.double().cpu().numpy() for v in (found.x, found.y, found.z, found.z_box)]
    verdicts = [judge(w.problem(i), *(v[i] for v in points)) for i in range(w.batch)]
    return found.solved.cpu().numpy() & np.array([v.meets(1.001 * w.eps, 1.001 * w.relative) for v in verdicts])
