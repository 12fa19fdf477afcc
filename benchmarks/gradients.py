# SPDX-License-Identifier: Apache-2.0
"""The gradient of every kind of hard case, beside its exact value, with five seeds each.

    python -m benchmarks.gradients [--no-peers]

The loss is c'x with random c, the error that of the worst of all parameters (P, q, G, h, A, b, lb, ub): |g - g*| / |g*|
in the Frobenius norm, g* exact for the numbers given (benchmarks/exact.py). Where g* vanishes (an LP's vertex does not
move with q) it is |g| |parameter| / sum |c_i x_i|. Every case is repeated with objective, rows and variables times 1e6
and 1e-6. "all outputs" has random cotangents on x, y, z, z_box and s. An element that is not solved counts as inf; nan
stands where rounding the data to float32 changes the active set, so that no exact value is known.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import optlayer
from benchmarks import report
from benchmarks.exact import BLOCKS, Known, known
from benchmarks.referee import Array, judge

SEEDS = range(5)
SCALINGS = [{k: v} for k in ("objective", "rows", "variables") for v in (1e6, 1e-6)]
SHARED = ("P", "G", "A")


def one(**options: Any) -> Callable[[int], list[Known]]:
    """A case with a single problem a seed."""
    return lambda seed: [known(seed, **options)]


def six(seed: int) -> list[Known]:
    """Six problems with the same P, G, A."""
    return [known(100 * seed + i, structure=seed) for i in range(6)]


CASES: dict[str, Callable[[int], list[Known]]] = {
    "regular n = 10": one(),
    "regular n = 30": one(n=30, m=30, p=5, active=8, bounded=10, at_bound=5),
    "regular n = 50": one(n=50, m=50, p=10, active=12, bounded=20, at_bound=6),
    "an active multiplier of 1e-6": one(multiplier=1e-6),
    "P of rank 5/10, unique x": one(eigenvalues=np.array([0.0] * 5 + [1.0, 2, 4, 6, 10])),
    "LP vertex": one(eigenvalues=np.zeros(10), active=5, at_bound=3),
    "cond(P) = 1e12": one(eigenvalues=np.logspace(0, -12, 10)),
    "one infeasible of 6, the healthy 5": six,
    "shared P, G, A over the batch": six,
    "equality only": one(m=0, active=0, bounded=0, at_bound=0),
    "unconstrained": one(m=0, p=0, active=0, bounded=0, at_bound=0),
}
REGULAR = ("regular n = 10", "regular n = 30", "regular n = 50")


class Batch:
    """The elements of a case as tensors: those of SHARED unbatched where ``shared``, an infeasible one in between."""

    def __init__(self, elements: Sequence[Known], dtype: torch.dtype, shared: bool = False, infeasible: bool = False):
        self.elements = list(elements)
        stacked = {}
        for name in BLOCKS:
            blocks = [k.problem.blocks[name] for k in elements]
            if blocks[0] is None:
                continue
            same = len(blocks) == 1 or (shared and name in SHARED)
            stacked[name] = blocks[0] if same else np.stack(blocks)  # type: ignore[arg-type]
        if infeasible:  # row 1 demands -g'x <= -h - 1 where row 0 demands g'x <= h
            stacked["G"][2, 1], stacked["h"][2, 1] = -stacked["G"][2, 0], -stacked["h"][2, 0] - 1
        self.healthy = [i for i in range(len(elements)) if not (infeasible and i == 2)]
        self.tensors = {k: torch.tensor(v, dtype=dtype, requires_grad=True) for k, v in stacked.items()}
        self.single = len(elements) == 1

    def error(self, outputs: dict[str, torch.Tensor], cotangents: dict[str, Array]) -> float:
        """The worst relative error over the parameters, for cotangents (elements, size) on the named outputs."""
        if not self.tensors:
            return float("nan")
        dtype = self.tensors["q"].dtype
        loss = torch.zeros((), dtype=dtype)
        for name, c in cotangents.items():
            out = outputs[name].reshape(len(self.elements), -1)[self.healthy]
            loss = loss + (torch.tensor(c[self.healthy], dtype=dtype) * out).sum()
        names = [k for k, v in self.tensors.items() if v.requires_grad]
        grads = torch.autograd.grad(loss, [self.tensors[k] for k in names], allow_unused=True)
        exact = [self.elements[i].gradients(**{k: c[i] for k, c in cotangents.items()}) for i in self.healthy]
        sizes = [self._size(i, cotangents) for i in self.healthy]
        worst = 0.0
        for name, grad in zip(names, grads, strict=True):
            if grad is None:
                return float("inf")
            found, value = grad.double().numpy(), self.tensors[name].detach().double().numpy()
            truth = [e[name] for e in exact]
            if self.single or found.ndim == truth[0].ndim:
                pairs = [(found, sum(truth), value, sum(sizes))]
            else:
                pairs = [(found[i], t, value[i], size) for i, t, size in zip(self.healthy, truth, sizes, strict=True)]
            worst = max([worst, *(relative(*pair) for pair in pairs)])
        return worst

    def _size(self, i: int, cotangents: dict[str, Array]) -> float:
        w = self.elements[i].solve()
        return sum(float(np.abs(c[i] * w[k].astype(float)).sum()) for k, c in cotangents.items())


def relative(found: Array, truth: Array, value: Array, size: float) -> float:
    """|found - truth| / |truth|, or |found| |value| / size where the truth vanishes; inf where found is no number."""
    if not np.isfinite(found).all():
        return float("inf")
    norm = float(np.linalg.norm(np.where(np.isfinite(value), value, 0.0)))
    top = float(np.linalg.norm(truth))
    if top * norm <= 1e-12 * size:
        return float(np.linalg.norm(found)) * norm / size
    return float(np.linalg.norm(found - truth)) / top


def ours(batch: Batch) -> dict[str, torch.Tensor] | None:
    """The outputs of the library, None where a healthy element is not solved; each float64 answer is judged first."""
    tensors = {k: batch.tensors.get(k) for k in BLOCKS}
    found = optlayer.solve_qp(tensors.pop("P"), tensors.pop("q"), **tensors)
    if not bool(found.solved.reshape(-1)[batch.healthy].all()):
        return None
    outputs = {"x": found.x, "y": found.y, "z": found.z, "z_box": found.z_box, "s": found.s}
    eps = 1e-9 if found.x.dtype == torch.float64 else 1e-4  # float32: 1e-5 asked, recomputed in float64
    for i in batch.healthy:
        point = [v.detach().double().reshape(len(batch.elements), -1)[i].numpy() for v in outputs.values()]
        if not judge(batch.elements[i].problem, *point[:4]).meets(eps, eps):
            return None
    return outputs


def folded(batch: Batch) -> tuple[torch.Tensor, ...]:
    """(G, h) with the finite bounds as rows, for peers that have none; differentiable."""
    t = batch.tensors
    q = t["q"]
    identity = torch.eye(q.shape[-1], dtype=q.dtype)
    G, h = [t["G"]] if "G" in t else [], [t["h"]] if "h" in t else []
    for name, sign in (("ub", 1), ("lb", -1)):
        if name in t:
            finite = torch.isfinite(t[name].reshape(-1, t[name].shape[-1])[0])
            G.append(sign * identity[finite].expand(*G[0].shape[:-2], -1, -1))
            h.append(sign * t[name][..., finite])
    return (torch.cat(G, -2), torch.cat(h, -1)) if G else ()


def qpth(batch: Batch) -> dict[str, torch.Tensor] | None:
    """The x of qpth at its defaults."""
    from qpth.qp import QPFunction

    t, none = batch.tensors, torch.empty(0, dtype=torch.float64)
    if "P" not in t:
        return None
    G, h = folded(batch) or (none, none)
    return {"x": QPFunction(verbose=-1)(t["P"], t["q"], G, h, t.get("A", none), t.get("b", none))}


def cvxpylayers(batch: Batch) -> dict[str, torch.Tensor] | None:
    """The x of cvxpylayers with Clarabel at its defaults; the square root of P is a parameter without a gradient."""
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer

    t = dict(batch.tensors)
    n = t["q"].shape[-1]
    x, q = cp.Variable(n), cp.Parameter(n)
    values, parameters, rows, cost = [t["q"]], [q], [], q @ x
    if "P" in t:
        eigenvalues, vectors = torch.linalg.eigh(batch.tensors.pop("P").detach())
        root = vectors * eigenvalues.clamp(min=0).sqrt().unsqueeze(-2) @ vectors.mT
        parameters.append(cp.Parameter((n, n)))
        values.append(root)
        cost = cost + cp.sum_squares(parameters[-1] @ x) / 2
    pairs = [(folded(batch), True), ((t["A"], t["b"]) if "A" in t else (), False)]
    for pair, inequality in pairs:
        if pair:
            M, v = (cp.Parameter(tuple(value.shape[-k:])) for value, k in zip(pair, (2, 1), strict=True))
            rows.append(v >= M @ x if inequality else M @ x == v)
            parameters += [M, v]
            values += list(pair)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cost), rows), parameters=parameters, variables=[x])
    return {"x": layer(*values, solver_args={"solve_method": "Clarabel"})[0]}


def attempt(
    solver: Callable[[Batch], dict[str, torch.Tensor] | None], batch: Batch, everything: bool, seed: int
) -> float:
    """The error of one solver on one batch; inf where it solves nothing or raises."""
    rng = np.random.default_rng([seed, 7])
    sizes = {"x": batch.elements[0].problem.q, "y": batch.elements[0].problem.b, "z": batch.elements[0].problem.h}
    sizes |= {"z_box": sizes["x"], "s": sizes["z"]}
    cotangents = {k: rng.standard_normal((len(batch.elements), len(v))) for k, v in sizes.items()}
    if not everything:
        cotangents = {"x": cotangents["x"]}
    if solver is ours:
        outputs = solver(batch)
        return batch.error(outputs, cotangents) if outputs is not None else float("inf")
    try:
        outputs = solver(batch)
        return batch.error(outputs, cotangents) if outputs is not None else float("nan")
    except Exception:  # whatever a peer raises is its answer
        return float("nan")


def errors(
    case: str, dtype: torch.dtype = torch.float64, everything: bool = False, solver: Any = ours, **scaling: float
) -> list[float]:
    """The error of each seed of a case."""
    found = []
    for seed in SEEDS:
        elements = [k.scaled(**scaling) for k in CASES[case](seed)]
        if dtype == torch.float32:
            elements = [k.rounded(np.float32) for k in elements]
            try:
                for k in elements:
                    k.solve()
            except ArithmeticError:  # in float32 a multiplier of 1e-6 may round to a negative one
                found.append(float("nan"))
                continue
        batch = Batch(elements, dtype, shared="shared" in case, infeasible="infeasible" in case)
        found.append(attempt(solver, batch, everything, seed))
    return found


def infeasible() -> list[list[Any]]:
    """What an infeasible problem returns: its status, the gradient of a zero cotangent and that of another."""
    rows = []
    for seed in SEEDS:
        k = known(seed)
        G, h = k.problem.G.copy(), k.problem.h.copy()
        G[1], h[1] = -G[0], -h[0] - 1
        q = torch.tensor(k.problem.q, requires_grad=True)
        found = optlayer.solve_qp(torch.tensor(k.problem.P), q, torch.tensor(G), torch.tensor(h))
        zero, one = (torch.autograd.grad(c * found.x.sum(), q, retain_graph=True)[0] for c in (0.0, 1.0))
        status = optlayer.Status(int(found.status)).name
        rows.append([seed, status, bool((zero == 0).all()), bool(torch.isnan(one).all())])
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="cvxpylayers|cvxpy|diffcp|qpth")
    parts: dict[str, Any] = {}
    header = ["case", "median", "worst", *(f"{k} x {v:.0e}" for s in SCALINGS for k, v in s.items()), "all outputs"]
    for dtype in (torch.float64, torch.float32):
        rows: list[list[Any]] = []
        for case in CASES:
            plain = errors(case, dtype)
            scaled = [errors(case, dtype, **s) for s in SCALINGS]
            worst = [float(np.max(e)) for e in (plain, *scaled, errors(case, dtype, everything=True))]
            rows.append([case, float(np.median(plain)), *worst])
            print(dtype, *(report.cell(v) for v in rows[-1]), flush=True)
        parts[f"{dtype}, the worst of five seeds unless said".replace("torch.", "")] = (header, rows)
    parts["infeasible problems"] = (["seed", "status", "zero cotangent: zero", "other cotangent: NaN"], infeasible())
    if not options.no_peers:
        rows = []
        for case in CASES:
            mine = errors(case)
            row: list[Any] = [case, float(np.median(mine)), float(np.max(mine))]
            for solver in (qpth, cvxpylayers):
                theirs = errors(case, solver=solver)
                row += [float(np.median(theirs)), float(np.max(theirs))]
            rows.append(row)
            print(*(report.cell(v) for v in row), flush=True)
        names = [f"{n} {k}" for n in ("optlayer", "qpth", "cvxpylayers") for k in ("median", "worst")]
        parts["beside peers, float64, median and worst of five seeds (nan: raises or refuses)"] = (
            ["case", *names],
            rows,
        )
    command = "python -m benchmarks.gradients"
    report.write("gradients", command, "float64 and float32, the default engine", ["qpth", "cvxpylayers"], parts)


if __name__ == "__main__":
    main()
