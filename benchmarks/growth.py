# SPDX-License-Identifier: Apache-2.0
"""How the cost of a problem grows with the batch and with its size, what one problem costs, and what a thread brings.

    python -m benchmarks.growth [--quick] [--seconds 1.5] [--solvers optlayer,qpth] [--backend auto]

OptNet's problems, eps 1e-8, verified and timed as in throughput.py, one thread unless said otherwise. Batches of more
than 1,000 hold 1,000 different problems over and over. A solver whose batch would take longer than a third of --seconds
has no point on the growth with the batch; on the growth with the size it gets a smaller batch.
"""

from __future__ import annotations

import argparse
import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import plots, report
from benchmarks.clock import one_thread, race
from benchmarks.solvers import Result, optlayer
from benchmarks.throughput import PACKAGES, Bench, Measure, chosen
from benchmarks.workloads import SIZES, optnet

BATCHES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
VARIABLES = {2: 4096, 5: 4096, 10: 4096, 20: 2048, 50: 512, 100: 128, 200: 32, 500: 8}
"""The batch for each n = m."""
DISTINCT = 1000
PEERS = ("optlayer", "qpth", "PIQP loop", "ProxQP batch", "Moreau")
Point = tuple[int, Measure]


def over_batch(bench: Bench, batches: tuple[int, ...]) -> list[Point]:
    """The cost of problems with n = m = 10 in batches of these sizes."""
    found: list[Point] = []
    base = optnet(10, min(DISTINCT, max(batches)))
    for batch in batches:
        w = base.repeated(batch)
        found += show("B", batch, bench.measure(w, bench.facts(base.first(min(batch, base.batch)), batch)))
    return found


def over_size(bench: Bench, sizes: dict[int, int]) -> list[Point]:
    """The cost of problems of these sizes in the batch that belongs to each."""
    found: list[Point] = []
    for n, batch in sizes.items():
        w = optnet(n, batch)
        found += show("n = m", n, bench.measure(w, bench.facts(w)))
    return found


def show(name: str, size: int, measures: list[Measure]) -> list[Point]:
    """The measures with their abscissa; printed while the benchmark runs."""
    shown = [f"{v.solver} {1e6 / v.rate:.3g}" for v in measures if v.rate]
    print(f"{name} = {size}, microseconds per problem:", ", ".join(shown), flush=True)
    return [(size, v) for v in measures]


def curves(points: list[Point], whole: bool = False) -> dict[str, list[tuple[float, float]]]:
    """Microseconds per right answer by solver and pass; with ``whole``, of batches B as large as the abscissa only."""
    found: dict[str, list[tuple[float, float]]] = {}
    for size, one in points:
        if one.rate and (one.batch == size or not whole):
            name = one.solver + (", forward + backward" if "backward" in one.what else "")
            found.setdefault(name, []).append((size, 1e6 / one.rate))
    return found


def table(name: str, lines: dict[str, list[tuple[float, float]]]) -> Any:
    """The curves as a table."""
    sizes = sorted({x for line in lines.values() for x, _ in line})
    return [name, *lines], [[x, *(dict(line).get(x) for line in lines.values())] for x in sizes]


def latency(bench: Bench) -> Any:
    """Microseconds of a call for one problem, forward, best and median."""
    rows = []
    for n in (10, 100):
        w = optnet(n, 1)
        for one in bench.measure(w, bench.facts(w), ["forward"]):
            if one.seconds and one.median:
                rows.append([n, one.solver, 1e6 * one.seconds, 1e6 * one.median, one.right == 1])
    return ["n = m", "solver", "best", "median", "right"], rows


def threads(limit: float, backend: str, quick: bool) -> Any:
    """Our rates with one and with two threads, in turn."""
    rows: list[list[Any]] = []
    for n, batch in SIZES:
        w = optnet(n, batch // (4 if quick else 1))
        for what, backward in (("forward", False), ("forward + backward", True)):
            call = optlayer(w, backward, backend=backend)

            def counted(count: int, call: Callable[[], Result] = call) -> Result:
                torch.set_num_threads(count)
                return call()

            times = race({str(k): functools.partial(counted, k) for k in (1, 2)}, limit, 15)
            one, two = (w.batch / min(times[k]) for k in ("1", "2"))
            rows.append([n, w.batch, what, one, two, two / one])
    torch.set_num_threads(1)
    return ["n = m", "B", "pass", "1 thread, problems/s", "2 threads", "ratio"], rows


def main() -> None:
    """Run from the command line."""
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer points, less time for each; writes to out/")
    parser.add_argument("--solvers", default=",".join(PEERS), help="by name, separated by commas")
    parser.add_argument("--seconds", type=float, help="what a solver may spend on one point (default: 1.5, quick 0.2)")
    parser.add_argument("--backend", default="auto", help="the engine of optlayer")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="qpth|moreau")
    limit = options.seconds or (0.2 if options.quick else 1.5)
    bench = Bench(chosen(options.solvers.split(","), options.backend), limit, 10, options.backend)
    batches = BATCHES[:7:2] if options.quick else BATCHES
    sizes = {n: b // 16 for n, b in VARIABLES.items() if n <= 100} if options.quick else VARIABLES
    by_batch, by_size = over_batch(bench, batches), over_size(bench, sizes)
    lines = {"n = m = 10": curves(by_batch, whole=True), "batches of at most 4096": curves(by_size)}
    folder = Path("out") if options.quick else report.RESULTS
    content = {
        "microseconds per problem over the batch, n = m = 10": table("B", lines["n = m = 10"]),
        f"microseconds per problem over the size, B = {', '.join(map(str, sizes.values()))} or less": table(
            "n = m", lines["batches of at most 4096"]
        ),
        "microseconds of a call for one problem": latency(bench),
        "threads": threads(limit, options.backend, options.quick),
        "load": f"the 1, 5 and 15 minute load averages at the end: {os.getloadavg()}",
        "plot": "![microseconds per problem](growth.png)",
    }
    command = f"python -m benchmarks.growth{' --quick' * options.quick}"
    raw = {"over the batch": by_batch, "over the size": by_size}
    precision = f"float64, one thread unless said otherwise, engine {options.backend!r}"
    data = {k: [(x, asdict(v)) for x, v in points] for k, points in raw.items()}
    report.write("growth", command, precision, PACKAGES, content, data, folder)
    plots.lines(folder / "growth.png", lines, ["batch B", "n = m"])


if __name__ == "__main__":
    main()
