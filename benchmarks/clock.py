# SPDX-License-Identifier: Apache-2.0
"""Times of several solvers, in turn, in one process with one thread."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.solvers import Call, Result, Solver
from benchmarks.workloads import Workload

SHORTEST = 2e-3
"""Shorter calls are repeated until they last this many seconds together, so that the clock itself costs nothing."""


def one_thread() -> None:
    """Let every library use one thread. They read that when they are loaded, so the process may start itself again."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    if any(os.environ.get(name) != "1" for name in names):
        os.environ.update(dict.fromkeys(names, "1"))
        os.execv(sys.executable, sys.orig_argv)
    torch.set_num_threads(1)


def seconds(call: Callable[[], Any], number: int = 1) -> float:
    """Seconds of a call, the mean of ``number`` of them."""
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def fit(solver: Solver, w: Workload, backward: bool, limit: float) -> tuple[Workload, Call, Result]:
    """The largest part of a batch that a solver works through within the limit, its call and what that returns.

    The part grows from one problem, eightfold or twofold, as long as the next one takes less than the limit even if the
    time grows in proportion.
    """
    size = 1
    while True:
        part = w.first(size)
        call = solver.prepare(part, backward)
        result = call()
        now = seconds(call)
        factor = next((k for k in (8, 2) if k * now <= limit), 1)
        if size == w.batch or factor == 1:
            return part, call, result
        size = min(w.batch, factor * size)


def race(calls: Mapping[str, Call], limit: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, once in every round until its limit is spent; a second time in any case."""
    numbers = {name: max(1, round(SHORTEST / seconds(call))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if len(times[name]) < 2 or sum(times[name]) * numbers[name] < limit:
                times[name].append(seconds(call, numbers[name]))
    return times
