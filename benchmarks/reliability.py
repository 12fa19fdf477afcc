# SPDX-License-Identifier: Apache-2.0
"""The problem collections: which are solved, to what residuals, in how many iterations, beside PIQP's.

    python -m benchmarks.reliability [--sets mm,mpc] [--split small] [--quick]

Runs: "1e-6 absolute" (eps_abs = 1e-6, eps_rel = 0), "1e-9" (the default, absolute or relative), and for the LPs "1e-6"
(absolute or relative). An answer counts when the solver says SOLVED *and* the referee finds every residual within the
tolerance on the original data; a certificate counts when the referee finds it exact to 1e-8 in the original units.
PIQP (dense) gets the same standard form and the same tolerances, its gap check included; it measures its relative gap
against larger terms than the objectives, so not all that it calls solved counts here.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks import referee, report
from benchmarks.engine import CERTIFICATE, solve
from benchmarks.peers import piqp
from optlayer import Status

RUNS = {"1e-6 absolute": (1e-6, 0.0), "1e-9": (1e-9, 1e-9), "1e-6": (1e-6, 1e-6)}
PLAN = [
    ("mm", "small", ["1e-6 absolute", "1e-9"]),
    ("mm", "medium", ["1e-6 absolute", "1e-9"]),
    ("mpc", None, ["1e-6 absolute", "1e-9"]),
    ("ffa", None, ["1e-6 absolute", "1e-9"]),
    ("piqpdata", None, ["1e-6 absolute", "1e-9"]),
    ("netlib", "small", ["1e-6", "1e-9"]),
    ("netlib", "medium", ["1e-6", "1e-9"]),
    ("infeas", None, ["1e-9"]),
]
BARS = {
    ("mm", "small", "1e-6 absolute"): "all",
    ("mm", "small", "1e-9"): "all",
    ("mm", "medium", "1e-9"): "all",
    ("mpc", None, "1e-9"): "all",
    ("ffa", None, "1e-9"): "all",
    ("netlib", "small", "1e-6"): "all",
    ("netlib", "medium", "1e-6"): "all",
    ("infeas", None, "1e-9"): "none called solved but cplex2, all but one certified",
}
HEADER = ["problem", "n", "m", "p", "status", "it", "primal", "dual", "gap", "counts", "(f - f*)/max(1,|f*|)", "s"]
HEADER_INFEASIBLE = ["problem", "n", "m", "p", "status", "it", "certificate", "counts", "s"]
PEER = ["PIQP it", "PIQP says", "PIQP counts"]
SUMMARY = ["set", "problems", "count", "bar", "PIQP says", "PIQP counts", "it (mean where both count)", "PIQP it"]


def compare(problem: referee.Problem, absolute: float, relative: float, infeasible: bool) -> dict[str, Any]:
    """One problem by both solvers, judged, as a row of the table and what the summary counts."""
    mine, peer = solve(problem, eps_abs=absolute, eps_rel=relative), piqp(problem, absolute, relative)
    size = [problem.name, len(problem.q), len(problem.h), len(problem.b), mine.status.name, mine.iterations]
    if infeasible:
        proof = mine.proof(problem)
        counts, peer_says, peer_counts = proof <= CERTIFICATE, "PRIMAL_INFEASIBLE" in peer.status, None
        judged = [proof, counts]
    else:
        verdict = mine.verdict(problem)
        counts = mine.status == Status.SOLVED and verdict.meets(absolute, relative)
        peer_says, peer_counts = peer.solved, peer.solved and peer.verdict(problem).meets(absolute, relative)
        distance = (verdict.objective - problem.optimum) / max(1.0, abs(problem.optimum))
        judged = [verdict.primal, verdict.dual, verdict.gap, counts, distance]
    return {
        "row": [*size, *judged, mine.seconds, peer.iterations, peer.status.removeprefix("PIQP_"), peer_counts],
        "solved": mine.status == Status.SOLVED,
        "counts": counts,
        "peer says": peer_says,
        "peer counts": bool(peer_counts),
        "iterations": (mine.iterations, peer.iterations),
    }


def run(sets: list[str], split: str | None, quick: bool) -> dict[str, Any]:
    """All runs of the plan, as parts of a report."""
    parts: dict[str, Any] = {}
    summary: list[list[Any]] = []
    for collection, part, tolerances in PLAN:
        if collection not in sets or (split and part and part != split):
            continue
        infeasible = collection == "infeas"
        chosen = [p for p in referee.problems(collection, part) if not quick or len(p.q) <= 120]
        if not chosen:
            continue
        for tolerance in tolerances:
            found = []
            for problem in chosen:
                found.append(compare(problem, *RUNS[tolerance], infeasible))
                print(f"{collection:9s} {tolerance:14s}", *map(report.cell, found[-1]["row"]), sep="  ", flush=True)
            title = f"{collection} {part or 'all'}, {tolerance}"
            parts[title] = ((HEADER_INFEASIBLE if infeasible else HEADER) + PEER, [f["row"] for f in found])
            counts, says, peer_counts = (sum(f[k] for f in found) for k in ("counts", "peer says", "peer counts"))
            done = f"{counts} certified, {sum(f['solved'] for f in found)} called solved" if infeasible else counts
            both = [f["iterations"] for f in found if f["counts"] and f["peer counts"]]
            mean = np.mean(both, axis=0).tolist() if both else [None, None]
            bar = BARS.get((collection, part, tolerance), "-")
            summary.append([title, len(chosen), done, bar, says, None if infeasible else peer_counts, *mean])
    return {"summary": (SUMMARY, summary), **parts}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="mm,mpc,ffa,piqpdata,netlib,infeas")
    parser.add_argument("--split", choices=["small", "medium"])
    parser.add_argument("--quick", action="store_true", help="only problems with n <= 120")
    parser.add_argument("--name", default="reliability", help="the name of the result files")
    options = parser.parse_args()
    if not referee.data_root().exists():
        raise SystemExit(f"no collections at {referee.data_root()}: set OPTLAYER_TEST_DATA to their folder")
    parts = run(options.sets.split(","), options.split, options.quick)
    command = "python -m benchmarks.reliability"
    report.write(options.name, command, "float64, the default engine", ["piqp"], parts)


if __name__ == "__main__":
    main()
