# SPDX-License-Identifier: Apache-2.0
"""The Jacobian of the softmax problem, solved as an optimisation problem, beside its closed form and cvxpylayers.

    python -m benchmarks.softmax [--sizes 2,10,100,1000] [--peer-seconds 300]

    x = argmax theta'x - tau sum x_i log x_i  subject to  sum x = 1,  x >= 0,      J = dx/dtheta = (diag(x) - xx') / tau

for theta ~ N(0, s^2), three seeds a cell. The error |J - J_closed|_F may be 1e-9 |J_closed|_F + 1e-13 / tau; the second
term is the rounding of 1 - x_j where one item takes all. The closed form is evaluated in numpy, its diagonal as
x_i sum_(j != i) x_j / tau, so that it has no cancellation. J comes from one backward pass with n cotangents.
cvxpylayers (DIFFCP with Clarabel, float64, n <= 100, one seed) solves the same problem as a conic one; the last column
is its |J - J_closed|_F, "nan" where it raises, a dash where it was not run within the seconds granted. For it a bar of
1e-3 |J_closed|_F + 1e-6 / tau is counted.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.referee import Array
from optlayer import Status
from optlayer.entropic import solve_softmax

SIZES = (2, 10, 100, 1000)
TEMPERATURES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
SCALES = (1.0, 5.0, 20.0, 100.0)
SEEDS = 3


def data(n: int, scale: float, seed: int) -> Array:
    """theta of one seed; the same for all temperatures."""
    return scale * np.random.default_rng([seed, n]).standard_normal(n)


def closed_form(theta: Array, tau: float) -> tuple[Array, Array]:
    """x and J without cancellation."""
    x = np.exp((theta - theta.max()) / tau)
    x /= x.sum()
    J = -np.outer(x, x) / tau
    np.fill_diagonal(J, x * ((1 - np.eye(len(x))) @ x) / tau)
    return x, J


def jacobian(x: torch.Tensor, theta: torch.Tensor) -> Array:
    """dx_i/dtheta_j of each element of a batch (B, n), as (B, n, n), by one backward pass with n cotangents."""
    batch, n = x.shape
    cotangents = torch.eye(n, dtype=x.dtype).unsqueeze(1).expand(n, batch, n)
    (rows,) = torch.autograd.grad(x, theta, cotangents, is_grads_batched=True)
    return rows.transpose(0, 1).numpy()


def ours(n: int, tau: float, scale: float) -> dict[str, Any]:
    """The worst error over the seeds, with its bar, and the iterations."""
    thetas = np.stack([data(n, scale, seed) for seed in range(SEEDS)])
    theta = torch.tensor(thetas, requires_grad=True)
    found = solve_softmax(theta, tau)
    J = jacobian(found.x, theta)
    worst: dict[str, Any] = {"ratio": -1.0}
    for i in range(SEEDS):
        x, exact = closed_form(thetas[i], tau)
        error, size = float(np.linalg.norm(J[i] - exact)), float(np.linalg.norm(exact))
        ratio = error / (1e-9 * size + 1e-13 / tau)
        ratio = ratio if ratio == ratio and int(found.status[i]) == Status.SOLVED else float("inf")
        distance = float(np.abs(found.x[i].detach().numpy() - x).max())
        if ratio > worst["ratio"]:
            worst = {"ratio": ratio, "size": size, "error": error, "x": distance}
    return {**worst, "iterations": int(found.iterations.max())}


def cvxpylayers(n: int, tau: float, scale: float) -> float:
    """The error of the Jacobian by cvxpylayers, one seed."""
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer

    theta, x, parameter = data(n, scale, 0), cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Maximize(parameter @ x + tau * cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    layer = CvxpyLayer(problem, parameters=[parameter], variables=[x])
    tensor = torch.tensor(theta, requires_grad=True)
    exact = closed_form(theta, tau)[1]
    try:
        (p,) = layer(tensor, solver_args={"solve_method": "Clarabel"})
        J = np.stack([torch.autograd.grad(p[i], tensor, retain_graph=True)[0].numpy() for i in range(n)])
    except Exception:  # whatever a peer raises is its answer
        return float("nan")
    return float(np.linalg.norm(J - exact))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--peer-seconds", type=float, default=300.0, help="time granted to cvxpylayers, in all")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="cvxpylayers|cvxpy|diffcp")
    rows: list[list[Any]] = []
    granted = options.peer_seconds
    for n in (int(v) for v in options.sizes.split(",")):
        for tau in TEMPERATURES:
            for scale in SCALES:
                mine, peer = ours(n, tau, scale), None
                if n <= 100 and granted > 0:
                    start = time.perf_counter()
                    peer = cvxpylayers(n, tau, scale)
                    granted -= time.perf_counter() - start
                rows.append([n, tau, scale, mine["size"], mine["error"], mine["ratio"], mine["ratio"] <= 1])
                rows[-1] += [mine["x"], mine["iterations"], peer]
                print(*map(report.cell, rows[-1]), sep="  ", flush=True)
    peers = [(row[-1], 1e-3 * row[3] + 1e-6 / row[1]) for row in rows if row[-1] is not None]
    summary = (
        f"{sum(row[6] for row in rows)} of {len(rows)} cells within the bar, the worst at "
        f"{max(row[5] for row in rows):.1e} of it; at most {max(row[8] for row in rows)} iterations. cvxpylayers: "
        f"{sum(error <= bar for error, bar in peers)} of {len(peers)} cells within 1e-3 |J| + 1e-6 / tau."
    )
    header = [
        "n",
        "tau",
        "s",
        "|J|",
        "|J - J_closed|",
        "of the bar",
        "ok",
        "|x - x_closed|",
        "it",
        "cvxpylayers",
    ]
    parts = {"summary": summary, "Jacobian, the worst of three seeds": (header, rows)}
    command = "python -m benchmarks.softmax"
    report.write("softmax", command, "float64", ["cvxpylayers", "diffcp", "clarabel"], parts)


if __name__ == "__main__":
    main()
