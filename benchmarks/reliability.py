# SPDX-License-Identifier: Apache-2.0
"""The problem collections: which are solved, to what residuals, in how many iterations, beside PIQP's.

    python -m benchmarks.reliability [--sets mm,mpc] [--split small] [--quick]

Runs: "1e-6 absolute" (eps_abs = 1e-6, eps_rel = 0), "1e-9" (the default, absolute or relative), and for the LPs "1e-6"
(absolute or relative). An answer counts when the solver says SOLVED *and* the referee finds every residual within the
tolerance on the original data; a certificate counts when the referee finds it exact to 1e-8 in the original units.
PIQP (dense) gets the same standard form and the same tolerances, its gap check included.
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
HEADER = ["problem", "n", "m", "p", "status", "it", "primal", "dual", "gap", "counts", "f - f* rel.", "s"]
PEER = ["PIQP it", "PIQP counts"]


def run(sets: list[str], split: str | None, quick: bool) -> dict[str, Any]:
    """All runs of the plan, as parts of a report."""
    parts: dict[str, Any] = {}
    summary: list[list[Any]] = []
    for collection, part, tolerances in PLAN:
        if collection not in sets or (split and part and part != split):
            continue
        for tolerance in tolerances:
            absolute, relative = RUNS[tolerance]
            failing = collection == "infeas"
            rows, pairs, counts, peer_counts, certified, solved = [], [], 0, 0, 0, []
            chosen = [p for p in referee.problems(collection, part) if not quick or len(p.q) <= 120]
            for problem in chosen:
                mine, peer = solve(problem, eps_abs=absolute, eps_rel=relative), piqp(problem, absolute, relative)
                peer_counts_now = peer.solved and peer.verdict(problem).meets(absolute, relative)
                v, proof = mine.verdict(problem), mine.proof(problem)
                right = mine.status == Status.SOLVED and v.meets(absolute, relative)
                peer_right = "INFEASIBLE" in peer.status if failing else peer_counts_now
                counts, certified, peer_counts = (
                    counts + right,
                    certified + (proof <= CERTIFICATE),
                    peer_counts + peer_right,
                )
                if mine.status == Status.SOLVED:
                    solved.append(problem.name)
                if right and peer_counts_now:
                    pairs.append((mine.iterations, peer.iterations))
                rows.append(
                    [problem.name, len(problem.q), len(problem.h), len(problem.b), mine.status.name, mine.iterations]
                    + ([proof, None, None] if failing else [v.primal, v.dual, v.gap])
                    + [proof <= CERTIFICATE if failing else right]
                    + [None if failing else (v.objective - problem.optimum) / max(1.0, abs(problem.optimum))]
                    + [mine.seconds, peer.iterations, peer_right]
                )
                print(f"{collection:9s} {tolerance:14s} " + "  ".join(report.cell(v) for v in rows[-1]), flush=True)
            title = f"{collection} {part or 'all'}, {tolerance}"
            header = [*HEADER[:6], "certificate", *HEADER[7:]] if failing else HEADER
            parts[title] = (header + PEER, rows)
            mean = [float(np.mean(column)) for column in zip(*pairs, strict=True)] or [None, None]
            done = f"{certified} certified; solved: {', '.join(solved) or 'none'}" if collection == "infeas" else counts
            bar = BARS.get((collection, part, tolerance), "-")
            summary.append([title, len(chosen), done, bar, peer_counts, mean[0], mean[1]])
    header = ["set", "problems", "count", "bar", "PIQP counts", "mean it (both count)", "PIQP"]
    return {"summary": (header, summary), **parts}


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
    report.write(options.name, command, "float64, reference engine", ["piqp"], parts)


if __name__ == "__main__":
    main()
