# SPDX-License-Identifier: Apache-2.0
"""How near whole solves come to the multiply-adds of one core, and what the rest of their time is.

    python -m benchmarks.limits

Flops are counted as a method on the multipliers alone needs them, without scaling, polish or verdict: for n variables,
m rows and I iterations, n^3/3 + n^2 m + n m^2 for P = LL', V = L^-1 G' and V'V, and (I + 1) m^3/3 + 6 I m^2 for the
steps. These are mostly in float32, of which a register holds twice as many numbers: the count could pass the peak.
Where Linux' ``perf`` is installed, its samples name the functions that the time is spent in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.clock import one_thread
from benchmarks.kernels import compiled
from benchmarks.workloads import optnet
from optlayer import solve_qp

SIZES = {10: 1024, 20: 512, 50: 128, 100: 64}
SECONDS = 3.0
GROUPS = {
    "float32 steps: Cholesky": r"cholesky.*Pack<float",
    "float32 steps: triangular solves": r"lower_solve.*Pack<float",
    "float32 steps: vectors, to and from float32": r"Approach|Pack<float",
    "the caller's arrays to lanes and back": r"\b(load|store)(_\w+)?(<|$)|memcpy|memset",
    "scaling and validity": r"prepare|open$|maxima|unsound|equilibrate|scale_",
    "V = L^-1 G' and V'V": r"solve_rows|row_products|weighted_gram",
    "float64 Cholesky: P, and the active rows": r"cholesky",
    "float64 products and triangular solves": r"product|lower_solve",
    "polish: weights, gathers, signs, verdict": r"Polisher|System|Split|contract_merit|attempt",
    "interior point in float64": r"Interior|Newton",
}


def solves(n: int, seconds: float) -> tuple[float, float]:
    """Seconds a problem, the best of many batches, and iterations."""
    blocks = {name: torch.tensor(block) for name, block in optnet(n, SIZES[n]).blocks.items()}
    best, end = float("inf"), time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end:
            start = time.perf_counter()
            solution = solve_qp(**blocks, eps_abs=1e-8, eps_rel=0.0)
            best = min(best, time.perf_counter() - start)
    return best / SIZES[n], solution.iterations.double().mean().item()


def flops(n: int, iterations: float) -> float:
    """Of a solve with m = n rows."""
    return n**3 * (1 / 3 + 2 + (iterations + 1) / 3) + 6 * iterations * n**2


def group(function: str) -> str:
    """The part of a solve that a function of the engine belongs to."""
    name = re.sub(r"optlayer::\w+::", "", function)
    return next((title for title, pattern in GROUPS.items() if re.search(pattern, name)), "the rest")


def profile(n: int) -> Counter[str]:
    """Percentages of the engine's time by part."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        child = [sys.executable, "-m", "benchmarks.limits", str(n)]
        subprocess.run(["perf", "record", "-q", "-F", "2000", "-o", samples, *child], check=True, capture_output=True)
        show = ["perf", "report", "--stdio", "-i", samples, "--no-children", "-s", "symbol"]
        only = ["--percentage", "relative", "--dso", "_native.abi3.so"]
        text = subprocess.run([*show, *only], check=True, capture_output=True, text=True).stdout
    parts: Counter[str] = Counter()
    for percent, function in re.findall(r"^\s+([\d.]+)%\s+\[.\]\s+(.*?)\s*$", text, re.MULTILINE):
        parts[group(function)] += float(percent)
    return parts


def main() -> None:
    """Run from the command line; with a size, only solve."""
    one_thread()
    if len(sys.argv) > 1:
        solves(int(sys.argv[1]), SECONDS)
        return
    with compiled() as program:
        peak = float(re.search(r"registers: ([\d.]+)", subprocess.check_output([program, "peak"], text=True))[1])
    rows = []
    for n in SIZES:
        seconds, iterations = solves(n, SECONDS)
        rate = flops(n, iterations) / seconds / 1e9
        rows.append([n, SIZES[n], seconds * 1e6, iterations, flops(n, iterations) / 1e3, rate, rate / peak])
    header = ["n = m", "batch", "us a problem", "iterations", "kflop", "GFLOP/s", "of the peak"]
    parts: dict[str, object] = {f"Whole solves; the peak is {peak:.1f} GFLOP/s in float64": (header, rows)}
    if shutil.which("perf"):
        shares = {n: profile(n) for n in SIZES}
        titles = [title for title in (*GROUPS, "the rest") if any(share[title] for share in shares.values())]
        table = [[title, *(share[title] for share in shares.values())] for title in titles]
        parts["Percentages of the engine's time"] = (["part", *(f"n = {n}" for n in SIZES)], table)
    report.write("limits", "python -m benchmarks.limits", "float64, eps_abs 1e-8, one thread", (), parts)


if __name__ == "__main__":
    main()
