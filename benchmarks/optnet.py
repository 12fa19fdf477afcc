# SPDX-License-Identifier: Apache-2.0
"""The time of a batch of OptNet's QPs, forward and forward + backward, beside qpth's.

    python -m benchmarks.optnet [--batch 128] [--sizes 10,50,100] [--threads 1,2] [--repeats 15]

The recipe of OptNet's own benchmark (ICML 2017): L ~ U(0, 1), Q = LL' + 1e-3 I, G ~ N(0, 1), h = G z0 + s0 with z0 ~
N(0, 1), s0 ~ U(0, 1), p ~ N(0, 1), n = m, no equalities, float64; backward of sum(x) by Q, p, G and h. qpth runs at
its defaults (eps 1e-12, at most 20 iterations). Each figure is the best of several runs after a warm-up, both solvers
in turn, in one process. Before it counts, our residuals are recomputed by the referee, and x and dx/dp of every
element are compared with the solution of the KKT system on the active set that PIQP finds at 1e-10.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import optlayer
from benchmarks import report
from benchmarks.peers import piqp
from benchmarks.referee import Array, Problem, judge

Tensors = tuple[torch.Tensor, ...]


def recipe(batch: int, n: int, seed: int = 0) -> list[Array]:
    """Q, p, G, h of a batch, by OptNet's recipe."""
    rng = np.random.default_rng(seed)
    L, G = rng.uniform(size=(batch, n, n)), rng.standard_normal((batch, n, n))
    z0, s0, p = rng.standard_normal((batch, n)), rng.uniform(size=(batch, n)), rng.standard_normal((batch, n))
    return [L @ L.transpose(0, 2, 1) + 1e-3 * np.eye(n), p, G, np.einsum("bij,bj->bi", G, z0) + s0]


def ours(Q: torch.Tensor, p: torch.Tensor, G: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """x by the library at its default tolerance, 1e-9."""
    return optlayer.solve_qp(Q, p, G, h).x


def qpth(Q: torch.Tensor, p: torch.Tensor, G: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """x by qpth at its defaults."""
    from qpth.qp import QPFunction

    none = torch.empty(0, dtype=Q.dtype)
    x: torch.Tensor = QPFunction(verbose=-1)(Q, p, G, h, none, none)
    return x


def forward(layer: Callable[..., torch.Tensor], data: list[Array]) -> float:
    """Seconds of a forward pass that keeps nothing for backward."""
    tensors = [torch.tensor(v) for v in data]
    start = time.perf_counter()
    with torch.no_grad():
        layer(*tensors)
    return time.perf_counter() - start


def both(layer: Callable[..., torch.Tensor], data: list[Array]) -> float:
    """Seconds of a forward and a backward pass, all parameters differentiated."""
    tensors = [torch.tensor(v, requires_grad=True) for v in data]
    start = time.perf_counter()
    layer(*tensors).sum().backward()
    return time.perf_counter() - start


def accuracy(data: list[Array]) -> dict[str, tuple[float, float]]:
    """The worst error of x and of the gradient by p, relative per element, of each solver against the reference."""
    batch, n = data[1].shape
    free = np.full(n, np.inf)
    layers = {"optlayer": ours, "qpth": qpth}
    found = {}
    for name, layer in layers.items():
        tensors = [torch.tensor(v, requires_grad=True) for v in data]
        x = layer(*tensors)
        found[name] = (x.detach().numpy(), torch.autograd.grad(x.sum(), tensors[1])[0].numpy())
    solution = optlayer.solve_qp(*(torch.tensor(v) for v in data))
    errors = {name: [0.0, 0.0] for name in layers}
    for i in range(batch):
        Q, p, G, h = (v[i] for v in data)
        problem = Problem("", Q, p, G, h, np.zeros((0, n)), np.zeros(0), -free, free)
        point = [v[i].numpy() for v in (solution.x, solution.y, solution.z, solution.z_box)]
        if not judge(problem, *point).meets(1e-9, 1e-9):
            raise SystemExit(f"element {i} of n = {n} is not solved to 1e-9: {judge(problem, *point)}")
        reference = piqp(problem, 1e-10, 1e-10)
        active = reference.z > h - G @ reference.x
        K = np.block([[Q, G[active].T], [G[active], np.zeros((active.sum(),) * 2)]])
        sides = np.column_stack([np.r_[-p, h[active]], np.r_[-np.ones(n), np.zeros(active.sum())]])
        x, gradient = np.linalg.solve(K, sides)[:n].T
        for name, (theirs, by_p) in found.items():
            for j, (value, truth) in enumerate(((theirs[i], x), (by_p[i], gradient))):
                error = float(np.linalg.norm(value - truth) / np.linalg.norm(truth))
                errors[name][j] = max(errors[name][j], error if error == error else float("inf"))
    return {name: (e[0], e[1]) for name, e in errors.items()}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sizes", default="10,50,100")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="qpth")
    times: list[list[Any]] = []
    checks: list[list[Any]] = []
    for n in (int(v) for v in options.sizes.split(",")):
        data = recipe(options.batch, n)
        checks += [[n, name, *errors] for name, errors in accuracy(data).items()]
        for threads in (int(v) for v in options.threads.split(",")):
            torch.set_num_threads(threads)
            for what, measure in (("forward", forward), ("forward + backward", both)):
                runs = [[measure(layer, data) for layer in (ours, qpth)] for _ in range(options.repeats + 1)][1:]
                mine, theirs = np.min(runs, axis=0) * 1e3
                times.append([n, threads, what, mine, theirs, theirs / mine])
                print(*(report.cell(v) for v in times[-1]), flush=True)
    header = ["n = m", "threads", "what", "optlayer ms", "qpth ms", "qpth / optlayer"]
    parts = {
        f"time of a batch of {options.batch}, best of {options.repeats}": (header, times),
        "worst relative error in the batch": (["n = m", "solver", "x", "dx/dp"], checks),
        "load": f"the 1, 5 and 15 minute load averages at the end: {os.getloadavg()}",
    }
    report.write("optnet", "python -m benchmarks.optnet", "float64, reference engine, CPU", ["qpth", "piqp"], parts)


if __name__ == "__main__":
    main()
