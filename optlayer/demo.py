# SPDX-License-Identifier: Apache-2.0
"""The whole layer on real input: its derivative verified, a batch of real problems solved, a model trained through it.

1. the Jacobian of the softmax problem, through the KKT system, against its closed form;
2. control problems of walking and balancing robots in one call per shape, or Hock and Schittkowski's classics where
   the folder of control problems is absent, mpc in that of the environment variable OPTLAYER_TEST_DATA;
3. the penalty of a lasso on the diabetes data of Efron et al. (2004), learned by descending the validation loss.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import verify
from .console import progress, table
from .hock_schittkowski import problems
from .instance import Instance, stack, unstack
from .io import read
from .qp import solve_qp
from .status import Status

STEPS = 60
START = 0.3  # at lam = 1 no feature is active, and the loss is flat
TRAINING = 300  # of the 442 patients; the others validate


def run(output: Path) -> int:
    """Run the demo, write its plot into a folder; returns 0 when every check held, else 1.

    Part 3 needs scikit-learn; without it the demo says so and returns 1.
    """
    start = time.perf_counter()
    parts = [derivatives(), batch_of_problems()]
    try:
        parts.append(learn_the_penalty(output))
    except ImportError:
        print("part 3 needs its data: install scikit-learn: pip install 'optlayer[examples]'")
        return 1
    seconds = time.perf_counter() - start
    failed = [what for what, held in parts if not held]
    if failed:
        print(f"NOT verified: {'; '.join(failed)} ({seconds:.0f} s)")
        return 1
    print(f"Verified: {'; '.join(what for what, _ in parts)} ({seconds:.0f} s).")
    return 0


def derivatives() -> tuple[str, bool]:
    """Part 1."""
    print("1. Softmax as an optimisation problem, and a QP, differentiated through their KKT systems\n")
    report = verify.run()
    print(verify.text(report), end="\n\n")
    what = f"{sum(row.passed for row in report)} of {len(report)} derivatives of softmax and QP right"
    return what, all(row.passed for row in report)


def batch_of_problems() -> tuple[str, bool]:
    """Part 2."""
    calls, what = control_problems()
    count = sum(map(len, calls))
    print(f"2. {count} {what} in {len(calls)} call{'s' if len(calls) > 1 else ''}\n")
    rows, right, seconds = [], 0, 0.0
    for call in calls:
        start = time.perf_counter()
        batch = solve_qp(**stack(call))
        seconds += time.perf_counter() - start
        for instance, solution in zip(call, unstack(batch, call), strict=True):
            r = solution.residuals()
            objective = instance.objective(float(r.objective))
            error = abs(objective - instance.optimum) / (1 + abs(instance.optimum))
            right += bool(solution.is_optimal()) and error <= 1e-6
            numbers = [f"{float(v):.1e}" for v in (r.primal, r.dual, r.gap)]
            status = Status(int(solution.status)).name
            rows.append([instance.name, *instance.shape, status, int(solution.iterations), *numbers])
            rows[-1] += [f"{objective:.8g}", f"{error:.1e}"]
    header = ["problem", "n", "m", "p", "status", "iterations", "primal", "dual", "gap", "objective f"]
    print(table([*header, "|f - f*| / (1 + |f*|)"], rows))
    print(f"\n{count} problems in {seconds:.2f} s; f* is the known optimum\n")
    return f"{right} of {count} {what} optimal and at their known optima", right == count


def control_problems() -> tuple[list[list[Instance]], str]:
    """The control problems of the data folder, a batch for each shape, or else the classics filled up to one batch."""
    root = os.environ.get("OPTLAYER_TEST_DATA")
    shapes: dict[tuple[int, int, int], list[Instance]] = {}
    for file in sorted((Path(root) / "mpc").glob("*.npz")) if root else ():
        instance = read(file)
        shapes.setdefault(instance.shape, []).append(instance)
    if shapes:
        return list(shapes.values()), "control problems of walking and balancing robots"
    return [problems()], "problems of Hock and Schittkowski, padded to one shape,"


@dataclass(frozen=True)
class Lasso:
    """min over w of |Zw - t|^2 / (2N) + lam |w|_1 as a QP in u, v >= 0 with w = u - v:

        min 1/2 [u; v]' [G, -G; -G, G] [u; v] + [lam - c; lam + c]' [u; v],     G = Z'Z/N,  c = Z't/N

    Features and target are standardised by the mean and the standard deviation of the training patients.
    """

    Z: Tensor
    t: Tensor
    Z_valid: Tensor
    t_valid: Tensor

    @classmethod
    def diabetes(cls) -> "Lasso":
        """The first 300 patients train, the last 142 validate."""
        from sklearn.datasets import load_diabetes

        X, y = (torch.tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True, scaled=False))
        data = torch.cat([X, y[:, None]], 1)
        train = data[:TRAINING]
        data = (data - train.mean(0)) / train.std(0, correction=0)
        return cls(data[:TRAINING, :-1], data[:TRAINING, -1], data[TRAINING:, :-1], data[TRAINING:, -1])

    def weights(self, lam: Tensor) -> Tensor:
        """w (*batch, features) for penalties lam (*batch), differentiable."""
        G, c = self.Z.T @ self.Z / len(self.Z), self.Z.T @ self.t / len(self.Z)
        P = torch.cat([torch.cat([G, -G], 1), torch.cat([-G, G], 1)])
        q = torch.cat([lam[..., None] - c, lam[..., None] + c], -1)
        u, v = solve_qp(P, q, lb=0.0, on_failure="raise").x.chunk(2, -1)
        return u - v

    def validation_loss(self, w: Tensor) -> Tensor:
        """|Zw - t|^2 / (2N) over the validation patients, (*batch)."""
        return (w @ self.Z_valid.T - self.t_valid).square().mean(-1) / 2

    def hypergradient(self, w: Tensor) -> float:
        """d validation_loss / d lam in closed form: dw_S / dlam = -(Z_S'Z_S / N)^-1 sign(w_S) on the support S of w."""
        S = w.abs() > 1e-9
        Z = self.Z[:, S]
        dw = -torch.linalg.solve(Z.T @ Z / len(Z), w[S].sign())
        residual = self.Z_valid @ w - self.t_valid
        return float(residual @ (self.Z_valid[:, S] @ dw) / len(residual))


def learn_the_penalty(output: Path) -> tuple[str, bool]:
    """Part 3."""
    print("3. Learning the penalty of a lasso by gradient descent on the validation loss, through the QP\n")
    lasso = Lasso.diabetes()
    lam = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    w = lasso.weights(lam)
    (through,) = torch.autograd.grad(lasso.validation_loss(w), lam)
    closed = lasso.hypergradient(w.detach())
    step = 1e-5
    ends = lasso.validation_loss(lasso.weights(torch.tensor([0.1 + step, 0.1 - step], dtype=torch.float64)))
    difference = float(ends[0] - ends[1]) / (2 * step)
    error = abs(float(through) - closed) / abs(closed)
    active = int((w.abs() > 1e-9).sum())
    derivatives = {
        "through the QP": float(through),
        "closed form on the support": closed,
        "central difference": difference,
    }
    header = [f"d loss / d lam at lam = 0.1, {active} features active", ""]
    print(table(header, [[k, f"{v:.12f}"] for k, v in derivatives.items()]))

    log_lam = torch.tensor(START, dtype=torch.float64).log().requires_grad_()
    optimiser = torch.optim.Adam([log_lam], lr=0.2)
    trace = []
    for _ in progress(range(STEPS), STEPS, "descent"):
        optimiser.zero_grad()
        loss = lasso.validation_loss(lasso.weights(log_lam.exp()))
        trace.append((float(log_lam.detach().exp()), float(loss.detach())))
        loss.backward()
        optimiser.step()
    learned = min(trace, key=lambda point: point[1])
    grid = torch.logspace(-3, 0, 301, dtype=torch.float64)
    weights = lasso.weights(grid)
    losses = lasso.validation_loss(weights)
    best = int(losses.argmin())
    ends_of_search = {
        "start": trace[0],
        f"best of {STEPS} steps": learned,
        "best of a grid of 301, one call": (float(grid[best]), float(losses[best])),
    }
    print()
    print(table(["", "lam", "validation loss"], [[k, f"{a:.5f}", f"{b:.6f}"] for k, (a, b) in ends_of_search.items()]))
    print(f"\n{plot(output, grid, losses, weights, trace)}\n")
    # Both derivatives are exact up to the solver's 1e-9, the difference up to step^2; neighbours of the grid differ by
    # 2 % in lam, hence by less than 1e-5 in the loss.
    held = error <= 1e-6 and abs(difference - closed) <= 1e-6 * abs(closed) and learned[1] <= float(losses[best]) + 1e-5
    return f"the lasso hypergradient to {error:.0e} of its closed form, its descent as good as a grid search", held


def plot(output: Path, grid: Tensor, losses: Tensor, weights: Tensor, trace: list[tuple[float, float]]) -> str:
    """Draw the validation loss with the descent on it, and the weights; returns where, or why not."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return "no plot: pip install 'optlayer[examples]' brings matplotlib"
    figure: Any
    with plt.rc_context({"backend": "agg", "font.size": 10}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(grid, losses, color="0.6", label="grid of 301, one call")
    left.plot(*zip(*trace, strict=True), "o-", markersize=3, linewidth=0.8, label="descent through the QP")
    learned = min(trace, key=lambda point: point[1])
    left.plot(*learned, "*", markersize=12, label=f"learned: lam = {learned[0]:.4f}")
    left.set(xscale="log", xlabel="penalty lam", ylabel="validation loss", title="Validation loss")
    left.set_ylim(top=1.5 * trace[0][1] - 0.5 * float(losses.min()))
    left.legend()
    right.plot(grid, weights)
    right.axvline(learned[0], color="0.6", linestyle="--")
    right.set(xscale="log", xlabel="penalty lam", ylabel="weight", title="Weights of the ten features")
    output.mkdir(parents=True, exist_ok=True)
    path = (output / "lasso.png").resolve()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"plot: {path}"
