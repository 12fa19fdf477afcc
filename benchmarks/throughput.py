# SPDX-License-Identifier: Apache-2.0
"""Problems per second of this library and its peers on the workloads of the field, forward and forward + backward.

    python -m benchmarks.throughput [--quick] [--only REGEX] [--solvers optlayer,qpth] [--seconds 0.6] [--backend auto]

One process, one thread, all solvers in turn, the best of several calls on the same data, every solver asked for the
same accuracy: 1e-8, absolute (float32: 1e-5, absolute and relative). Only right answers count: a rate is right answers
per second, by audit.py, and for forward + backward a right answer has a right gradient too. A solver that would take
too long for a whole batch gets its first elements. --quick takes less than two minutes, the whole less than fifteen.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import statistics
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import audit, plots, report
from benchmarks.clock import fit, one_thread, race
from benchmarks.solvers import SOLVERS, Result, Solver, optlayer
from benchmarks.workloads import CATALOGUE, QUICK, Workload

FLOORS = {
    ("forward", "qpth"): (70, 65, 40, 25),
    ("forward + backward", "qpth"): (50, 45, 35, 20),
    ("forward", "PIQP loop"): (28, 15, 7, 4),
}
"""The least ratio of our rate to a peer's that we aim at, on OptNet's problems with n = m = 10, 20, 50, 100."""
WEIGHT = {"OptNet": 4}
"""The workloads of these figures get a multiple of the time."""
PASSES = {"forward": False, "forward + backward": True}
PACKAGES = ("qpth", "piqp", "proxsuite", "moreau", "cvxpylayers", "diffcp", "clarabel")


@dataclass(frozen=True)
class Measure:
    """What one solver did on one workload: right answers per second, and why there is none where it is zero."""

    workload: str
    what: str
    solver: str
    batch: int = 0
    rate: float = 0.0
    right: float = 0.0
    """The share of the answers that are right."""
    seconds: float | None = None
    """The best of the calls."""
    median: float | None = None
    error: float | None = None
    """The median relative error of the gradient by q."""
    worst: float | None = None
    note: str = ""


Facts = tuple[audit.Truth, Any]
"""The truth of a batch, and whether our points with their multipliers pass the referee."""


@dataclass(frozen=True)
class Bench:
    """The solvers, what each may spend on one measure in seconds, and how many calls the best is chosen from."""

    solvers: list[Solver]
    limit: float
    rounds: int
    backend: str = "auto"

    def facts(self, w: Workload, batch: int | None = None) -> Facts:
        """What the answers to a workload, repeated to a batch, are compared with."""
        index = np.arange(batch or w.batch) % w.batch
        return audit.truth(w).take(index), audit.ours(w, backend=self.backend)[index]

    def measure(self, w: Workload, facts: Facts, passes: Iterable[str] = PASSES) -> list[Measure]:
        """All solvers on one workload, one pass after the other."""
        known, mine = facts
        found: list[Measure] = []
        for what in passes:
            calls, measures = {}, {}
            for solver in self.solvers:
                blank = Measure(w.name, what, solver.name)
                if note := solver.refuses(w, PASSES[what]):
                    measures[solver.name] = replace(blank, note=note)
                    continue
                try:
                    part, call, result = fit(solver, w, PASSES[what], self.limit / 3)
                    right = mine[: part.batch] if solver.name == "optlayer" else True
                    measures[solver.name] = verified(replace(blank, batch=part.batch), part, result, known, right)
                    calls[solver.name] = call
                except Exception as reason:  # whatever a peer raises is its answer
                    message = f"{type(reason).__name__}: {reason}".splitlines()[0][:100]
                    measures[solver.name] = replace(blank, note=message)
            for name, times in race(calls, self.limit, self.rounds).items():
                one = measures[name]
                best, median = min(times), statistics.median(times)
                measures[name] = replace(one, rate=one.batch * one.right / best, seconds=best, median=median)
            found += measures.values()
        return found


def verified(blank: Measure, part: Workload, result: Result, known: audit.Truth, right: Any) -> Measure:
    """The measure with the share of answers that are right, a gradient included where there is one, and its errors."""
    x, gradient = (None if v is None else np.asarray(v, dtype=float) for v in result)
    known = known.take(slice(part.batch))
    right = right & audit.right(part, x, known)
    if gradient is None:
        return replace(blank, right=float(right.mean()))
    error = audit.errors(gradient, known)
    right, error = right & ~(error > audit.GRADIENT), error[~np.isnan(error)]
    if not len(error):
        return replace(blank, right=float(right.mean()))
    return replace(blank, right=float(right.mean()), error=float(np.median(error)), worst=float(error.max()))


Index = dict[tuple[str, str, str], Measure]
"""By workload, pass and solver."""


def figure(rate: float) -> str:
    """A rate in three digits: 1.23M, 45.6k, 789."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if rate >= 0.9995 * size:
            return f"{rate / size:.3g}{unit}"
    return f"{rate:.3g}"


def rates(sizes: dict[str, int], found: Index, names: list[str], what: str) -> Any:
    """A table of rates: the batch where it is smaller in brackets, the share of right answers where it is not all."""
    rows = []
    for workload, batch in sizes.items():
        rows.append([workload, batch])
        for name in names:
            one = found[workload, what, name]
            part = f" [{one.batch}]" if one.batch < batch else ""
            share = f" ({100 * one.right:.3g} %)" if one.batch and one.right < 1 else ""
            rows[-1].append(f"{figure(one.rate)}{share}{part}" if one.batch else None)
    return ["workload", "B", *names], rows


def ratios(sizes: dict[str, int], found: Index, names: list[str], what: str) -> Any:
    """A table of our rate over each peer's, infinite where a peer has no right answer, and over that of the fastest."""
    rows: list[list[Any]] = []
    for workload in sizes:
        rows.append([workload])
        for name in names[1:]:
            one, mine = found[workload, what, name], found[workload, what, names[0]]
            rows[-1].append((mine.rate / one.rate if one.rate else float("inf")) if one.batch else None)
        rows[-1].append(min((v for v in rows[-1][1:] if v is not None), default=None))
    return ["workload", *names[1:], "the fastest"], rows


def accuracies(sizes: dict[str, int], found: Index, names: list[str]) -> Any:
    """A table of gradient errors, median and worst of the batch."""
    rows = []
    for workload in sizes:
        ones = [found[workload, "forward + backward", name] for name in names]
        rows.append([workload, *(None if v.error is None else f"{v.error:.0e} .. {v.worst:.0e}" for v in ones)])
    return ["workload", *names], rows


def floors(found: Index) -> Any:
    """What was aimed at and what is reached, on OptNet's problems."""
    rows = []
    for (what, peer), values in FLOORS.items():
        for n, floor in zip((10, 20, 50, 100), values, strict=True):
            mine, theirs = (found.get((f"OptNet, n = m = {n}", what, name)) for name in ("optlayer", peer))
            if mine and theirs and theirs.rate:
                ratio = mine.rate / theirs.rate
                rows.append([what, n, figure(mine.rate), peer, figure(theirs.rate), ratio, floor, ratio >= floor])
    return ["pass", "n = m", "optlayer", "peer", "its rate", "ratio", "floor", "reached"], rows


def parts(sizes: dict[str, int], found: list[Measure], names: list[str]) -> dict[str, Any]:
    """The report."""
    index = {(v.workload, v.what, v.solver): v for v in found}
    key = (
        "Right answers per second. (93 %): the share of the answers that is right, where not all are. [64]: the batch, "
        "where it is smaller than B. A dash: the solver does not take such problems or has no derivative."
    )
    content: dict[str, Any] = {"how to read": key, "OptNet": floors(index)}
    for what in PASSES:
        has = [n for n in names if any(index[w, what, n].batch for w in sizes)]
        content[what] = rates(sizes, index, has, what)
        if names[0] == "optlayer" and len(has) > 1:
            content[f"{what}, optlayer's rate over the peer's"] = ratios(sizes, index, has, what)
    has = [n for n in names if any(index[w, "forward + backward", n].batch for w in sizes)]
    content["relative error of the gradient by q, median .. worst"] = accuracies(sizes, index, has)
    silent = ("no derivative", "float64 only")
    notes = [f"- {v.workload}, {v.what}, {v.solver}: {v.note}" for v in found if v.note and v.note not in silent]
    return {**content, "notes": "\n".join(notes) or "none"}


def chosen(names: Iterable[str], backend: str) -> list[Solver]:
    """The solvers of these names that are installed, ours on an engine of this name."""
    ours = functools.partial(optlayer, backend=backend)
    found = [s for s in SOLVERS if s.name in names and s.installed]
    return [replace(s, prepare=ours) if s.name == "optlayer" else s for s in found]


def main() -> None:
    """Run from the command line."""
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few workloads, less time for each")
    parser.add_argument("--only", default="", help="workloads whose name matches this regular expression")
    parser.add_argument("--solvers", default="", help="by name, separated by commas (default: all that are installed)")
    parser.add_argument(
        "--seconds", type=float, help="what a solver may spend on one measure (default: 0.6, quick 0.2)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="calls of which the best counts, within --seconds")
    parser.add_argument("--backend", default="auto", help="the engine of optlayer")
    parser.add_argument("--name", default="throughput", help="the name of the result files; --quick writes to out/")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="qpth|moreau|cvxpy|cvxpylayers|diffcp")
    limit = options.seconds or (0.2 if options.quick else 0.6)
    wanted = options.solvers.split(",") if options.solvers else [s.name for s in SOLVERS]
    solvers = chosen(wanted, options.backend)
    start = time.perf_counter()
    sizes: dict[str, int] = {}
    found: list[Measure] = []
    for make in QUICK if options.quick else CATALOGUE:
        w = make()
        if not re.search(options.only, w.name):
            continue
        sizes[w.name] = w.batch
        bench = Bench(solvers, limit * WEIGHT.get(w.family, 1), options.rounds, options.backend)
        found += bench.measure(w, bench.facts(w))
        for what in PASSES:
            line = [f"{v.solver} {figure(v.rate)}" for v in found if (v.workload, v.what) == (w.name, what) and v.batch]
            print(
                f"{time.perf_counter() - start:5.0f} s  {w.name}, B = {w.batch}, {what}:", ", ".join(line), flush=True
            )
    names = [s.name for s in solvers]
    folder, name = (Path("out"), "throughput") if options.quick else (report.RESULTS, options.name)
    content = parts(sizes, found, names)
    load = ", ".join(f"{v:.2f}" for v in os.getloadavg())
    content["run"] = f"{time.perf_counter() - start:.0f} s; load averages at the end: {load}"
    content["plot"] = f"![right answers per second]({name}.png)"
    precision = f"float64 unless said otherwise, one thread, engine {options.backend!r}"
    command = f"python -m benchmarks.throughput{' --quick' * options.quick}"
    report.write(name, command, precision, PACKAGES, content, {"measures": [asdict(v) for v in found]}, folder)
    index = {(v.workload, v.what, v.solver): v.rate for v in found}
    panels = {what: {n: [index[w, what, n] for w in sizes] for n in names} for what in PASSES}
    plots.dots(folder / f"{name}.png", list(sizes), panels, "right answers per second")


if __name__ == "__main__":
    main()
