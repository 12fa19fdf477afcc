# SPDX-License-Identifier: Apache-2.0
"""Programs with an entropy: iterations, errors of solution and Jacobian at every scale, cost, and other libraries.

    python -m benchmarks.entropic [--quick] [--peer-seconds 120]

    minimise  q'x + sum x_i log x_i  subject to rows and bounds,        q ~ N(0, s^2), scales s from 0.1 to 10^4

Errors are those against a reference in extended precision (80 bits), which solves the optimality conditions on the
active set of the solution by Newton's method and checks its signs: |x - x_ref|_inf / max x_ref, and |Jv - J_ref v|_inf
for one direction v ~ N(0, I), with J = dx/dq, whose entries are 1/4 at most.

Other libraries: cvxpylayers (DIFFCP with Clarabel) on softmax with caps and a budget row, POT (Sinkhorn's algorithm) on
entropic optimal transport, entmax on sparsemax, which is a quadratic program here.  Times are medians of five, of one
problem or of a batch as stated, by wall clock, on one thread.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from optlayer import Solution, solve_qp

F64 = torch.float64
SCALES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
SIZES = (2, 10, 100, 1000, 10_000, 100_000)
KINDS = ("softmax", "caps", "tight caps", "moments", "moments and rows")
REPEATS = 5


def data(kind: str, n: int, scale: float, seed: int) -> dict[str, Any]:
    """Arguments of solve_qp for one problem, feasible by construction."""
    source = torch.Generator().manual_seed(1000 * seed + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=F64)

    one = torch.ones(1, n, dtype=F64)
    inside = torch.softmax(normal(n), -1)
    given: dict[str, Any] = {"q": scale * normal(n), "A": one, "b": one[:, 0]}
    if kind == "caps":
        given["ub"] = (2 + 2 * torch.rand(n, generator=source, dtype=F64)) / n
    elif kind == "tight caps":
        caps = 0.5 + torch.rand(n, generator=source, dtype=F64)
        given["ub"] = 1.001 * caps / caps.sum()
    elif kind.startswith("moments"):
        A = torch.cat([one, normal(min(2, n - 2), n)]) if n > 2 else one
        given.update(A=A, b=A @ inside)
    if kind == "moments and rows":
        G = normal(3, n)
        given.update(G=G, h=G @ inside + 0.01 * torch.rand(3, generator=source, dtype=F64))
    return given


# ---- the reference ---------------------------------------------------------------------------------------------------

Array = Any  # of numpy.longdouble


def eliminate(S: Array, r: Array) -> Array:
    """S^-1 r by Gaussian elimination with pivoting, which numpy has in double precision only."""
    S, r = S.copy(), r.copy()
    k = len(S)
    for i in range(k):
        j = i + int(np.argmax(np.abs(S[i:, i])))
        S[[i, j]], r[[i, j]] = S[[j, i]], r[[j, i]]
        for row in range(i + 1, k):
            factor = S[row, i] / S[i, i]
            S[row, i:] -= factor * S[i, i:]
            r[row] -= factor * r[i]
    for i in reversed(range(k)):
        r[i] = (r[i] - S[i, i + 1 :] @ r[i + 1 :]) / S[i, i]
    return r


def reference(given: dict[str, Any], solution: Solution, v: Tensor) -> tuple[Array, Array, float]:
    """x, J v and the worst sign, in extended precision on the active set of a solution."""

    def extended(t: Tensor) -> Array:
        return t.detach().numpy().astype(np.longdouble)

    q, log_x = extended(given["q"]), extended(solution.log_x)
    C, d, l = extended(given["A"]), extended(given["b"]), extended(solution.y)
    if "G" in given:
        active = (solution.z > 0).numpy()
        C = np.concatenate([C, extended(given["G"])[active]])
        d = np.concatenate([d, extended(given["h"])[active]])
        l = np.concatenate([l, extended(solution.z)[active]])
    held = (solution.z_box != 0).numpy()
    ub = extended(given["ub"]) if "ub" in given else np.full(len(q), np.inf, np.longdouble)
    x = np.where(held, ub, np.exp(log_x))
    unit = np.sqrt((C * C).sum(1))
    C, d, l = C / unit[:, None], d / unit, l * unit
    for _ in range(6):
        x = np.where(held, ub, np.exp(-(q + l @ C) - 1))
        W = np.where(held, 0, x)
        S = (C * W) @ C.T
        root = np.sqrt(np.diag(S)) + np.longdouble(1e-4000)
        l = l + eliminate(S / np.outer(root, root), (C @ x - d) / root) / root
    x = np.where(held, ub, np.exp(-(q + l @ C) - 1))
    W = np.where(held, 0, x)
    S = (C * W) @ C.T
    root = np.sqrt(np.diag(S)) + np.longdouble(1e-4000)
    direction = extended(v)
    dl = -eliminate(S / np.outer(root, root), (C @ (W * direction)) / root) / root
    wrong = max(float((x - ub).max()), -float((l[len(given["b"]) :]).min(initial=0)))
    return x, -W * (direction + dl @ C), wrong


def scale_cell(kind: str, n: int, scale: float, seeds: int) -> dict[str, Any]:
    """Iterations and worst errors of some problems."""
    cell: dict[str, Any] = {"it": [], "unsolved": 0, "x": 0.0, "J": 0.0, "unsure": 0}
    for seed in range(seeds):
        given = data(kind, n, scale, seed)
        q = given["q"].clone().requires_grad_()
        v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64)
        solution = solve_qp(None, **{**given, "q": q}, entropy=1.0)
        cell["it"].append(int(solution.iterations))
        if not bool(solution.solved):
            cell["unsolved"] += 1
            continue
        (Jv,) = torch.autograd.grad(solution.x, q, v)  # J is symmetric
        x, exact, wrong = reference(given, solution, v)
        if not np.isfinite(x).all() or wrong > 1e-12 * (1 + scale):
            cell["unsure"] += 1
            continue
        error = float(np.abs(solution.x.detach().numpy() - x).max() / x.max())
        jacobian = float(np.abs(Jv.numpy() - exact).max())
        cell["x"], cell["J"] = max(cell["x"], error), max(cell["J"], jacobian)
    return cell


def scales(quick: bool) -> list[list[Any]]:
    """One row for each kind and size: `median/most iterations  error of x  error of Jv` at each scale."""
    rows = []
    for kind in KINDS:
        for n in SIZES[: 4 if quick else None]:
            if n == 2 and kind == "moments and rows":
                continue
            row: list[Any] = [kind, n]
            for scale in SCALES:
                cell = scale_cell(kind, n, scale, 20 if n <= 100 else 3 if n <= 10_000 else 1)
                text = f"{int(np.median(cell['it']))}/{max(cell['it'])} {cell['x']:.0e} {cell['J']:.0e}"
                text += f" ({cell['unsolved']} unsolved)" if cell["unsolved"] else ""
                row.append(text + (f" ({cell['unsure']} without reference)" if cell["unsure"] else ""))
            rows.append(row)
            print(*row, sep="  ", flush=True)
    return rows


# ---- cost ------------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any]) -> float:
    """The median time of a call, after one that warms up."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def growth(quick: bool) -> list[list[Any]]:
    """Milliseconds of a solve and of a backward pass, and the exponent of n since the row above."""
    rows: list[list[Any]] = []
    for kind in ("softmax", "moments", "moments and rows", "caps"):
        before: tuple[int, float] | None = None
        for n in (100, 1000, 10_000, 100_000)[: 3 if quick else None]:
            given = data(kind, n, 1.0, 0)
            q = given.pop("q").requires_grad_()
            found = solve_qp(None, q, **given, entropy=1.0)
            weight = torch.linspace(-1, 1, n, dtype=F64)
            forward = seconds(lambda q=q, given=given: solve_qp(None, q.detach(), **given, entropy=1.0))
            backward = seconds(
                lambda found=found, q=q, weight=weight: torch.autograd.grad(found.x, q, weight, retain_graph=True)
            )
            exponent = None if before is None else math.log(forward / before[1]) / math.log(n / before[0])
            rows.append([kind, n, int(found.iterations), 1e3 * forward, 1e3 * backward, exponent])
            print(*map(report.cell, rows[-1]), sep="  ", flush=True)
            before = n, forward
    return rows


def throughput(quick: bool) -> list[list[Any]]:
    """Solves per second of whole batches by the compiled engine, also with the gradient, and by the reference."""
    rows: list[list[Any]] = []
    for n in (4, 10, 50, 200):
        for k in (k for k in (1, 3, 10) if k < n):
            for batch in (1, 128, 4096, 100_000)[: 3 if quick or n > 10 else None]:
                source = torch.Generator().manual_seed(n)
                A = torch.cat([torch.ones(1, n, dtype=F64), torch.randn(k - 1, n, generator=source, dtype=F64)])
                inside = torch.softmax(torch.randn(batch, n, generator=source, dtype=F64), -1)
                q = (3 * torch.randn(batch, n, generator=source, dtype=F64)).requires_grad_()

                def solve(backend: str, q: Tensor, A: Tensor = A, b: Tensor = inside @ A.mT) -> Tensor:
                    return solve_qp(None, q, A=A, b=b, entropy=1.0, backend=backend).x

                bare = q.detach()
                runs = (
                    lambda solve=solve, q=bare: solve("native", q),
                    lambda solve=solve, q=q: torch.autograd.grad(solve("native", q).sum(), q),
                    lambda solve=solve, q=bare: solve("reference", q),
                )
                rows.append([n, k, batch, *(batch / seconds(run) for run in runs)])
                print(*map(report.cell, rows[-1]), sep="  ", flush=True)
    return rows


# ---- other libraries -------------------------------------------------------------------------------------------------


def against_cvxpylayers(granted: float) -> list[list[Any]]:
    """Softmax with caps and a budget row: errors of x and of the gradient, and milliseconds for both, one problem."""
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer

    rows: list[list[Any]] = []
    for n in (10, 50, 200):
        for scale in (1.0, 10.0, 100.0):
            if granted <= 0:
                return rows
            begin = time.perf_counter()
            given = data("caps", n, scale, 0)
            G = torch.randn(1, n, generator=torch.Generator().manual_seed(1), dtype=F64).abs()
            free = solve_qp(
                None, given["q"], given["A"][:0], given["b"][:0], given["A"], given["b"], ub=given["ub"], entropy=1.0
            )
            given.update(G=G, h=0.9 * (G @ free.x))
            q = given["q"].clone().requires_grad_()
            v = torch.randn(n, generator=torch.Generator().manual_seed(2), dtype=F64)

            def ours(q: Tensor = q, given: dict[str, Any] = given, v: Tensor = v) -> tuple[Tensor, Tensor, Solution]:
                solution = solve_qp(None, **{**given, "q": q}, entropy=1.0)
                return solution.x.detach(), torch.autograd.grad(solution.x, q, v)[0], solution

            x, parameter = cp.Variable(n), cp.Parameter(n)
            rules = [cp.sum(x) == 1, x <= given["ub"].numpy(), G.numpy() @ x <= given["h"].numpy()]
            layer = CvxpyLayer(cp.Problem(cp.Minimize(parameter @ x - cp.sum(cp.entr(x))), rules), [parameter], [x])

            def theirs(q: Tensor = q, layer: Any = layer, v: Tensor = v) -> tuple[Tensor, Tensor]:
                (x,) = layer(q, solver_args={"solve_method": "Clarabel"})
                return x.detach(), torch.autograd.grad(x, q, v)[0]

            found = ours()
            exact_x, exact_J, _ = reference(given, found[2], v)
            row: list[Any] = [n, scale]
            for run in (ours, theirs):
                try:
                    x_found, gradient = run()[:2]
                except Exception:  # whatever a peer raises is its answer
                    row += [math.nan, math.nan, math.nan]
                    continue
                error = float(np.abs(x_found.numpy() - exact_x).max() / exact_x.max())
                drift = float(np.abs(gradient.numpy() - exact_J).max())
                row += [error, drift, 1e3 * seconds(run)]
            rows.append(row)
            granted -= time.perf_counter() - begin
            print(*map(report.cell, row), sep="  ", flush=True)
    return rows


def against_pot(quick: bool) -> list[list[Any]]:
    """Entropic optimal transport: the violation of the marginals, the distance from ours, and milliseconds."""
    import ot

    rows: list[list[Any]] = []
    for r in (8, 32) if quick else (8, 32, 64):
        for eps in (1.0, 0.1, 0.01, 0.001):
            source = torch.Generator().manual_seed(r)
            points = torch.rand(2, r, 2, generator=source, dtype=F64)
            C = torch.cdist(points[0], points[1]).square()
            a, b = torch.softmax(torch.randn(2, r, generator=source, dtype=F64), -1)
            ones, eye = torch.ones(1, r, dtype=F64), torch.eye(r, dtype=F64)
            A = torch.cat([torch.kron(eye, ones), torch.kron(ones, eye)])

            def ours(A: Tensor = A, C: Tensor = C, a: Tensor = a, b: Tensor = b, eps: float = eps) -> Solution:
                return solve_qp(None, C.flatten(), A=A, b=torch.cat([a, b]), entropy=eps)

            def theirs(C: Tensor = C, a: Tensor = a, b: Tensor = b, eps: float = eps) -> Tensor:
                return ot.sinkhorn(a, b, C, eps, method="sinkhorn_log", numItermax=100_000, stopThr=1e-9)

            solution = ours()
            X = solution.x.reshape(r, r)
            row: list[Any] = [f"{r} x {r}", eps, int(solution.iterations)]
            Y = theirs()
            for plan, run in ((X, ours), (Y, theirs)):
                off = max(float((plan.sum(1) - a).abs().max()), float((plan.sum(0) - b).abs().max()))
                row += [off, 1e3 * seconds(run)]
            row.append(float((X - Y).abs().max() / X.max()))
            rows.append(row)
            print(*map(report.cell, row), sep="  ", flush=True)
    return rows


def against_entmax() -> list[list[Any]]:
    """Sparsemax of 100 vectors at once: the distance between the two, and milliseconds with the gradient."""
    import entmax

    rows: list[list[Any]] = []
    for n in (10, 50):
        theta = torch.randn(100, n, generator=torch.Generator().manual_seed(n), dtype=F64).requires_grad_()
        one, eye = torch.ones(1, n, dtype=F64), torch.eye(n, dtype=F64)
        v = torch.randn(100, n, generator=torch.Generator().manual_seed(1), dtype=F64)

        def ours(theta: Tensor = theta, one: Tensor = one, eye: Tensor = eye) -> Tensor:
            return solve_qp(eye, -theta, A=one, b=one[:, 0], lb=0.0).x

        def theirs(theta: Tensor = theta) -> Tensor:
            x: Tensor = entmax.sparsemax(theta, dim=-1)
            return x

        x, y = ours(), theirs()
        gx, gy = (torch.autograd.grad(t, theta, v)[0] for t in (x, y))
        times = [1e3 * seconds(lambda f=f, t=theta, v=v: torch.autograd.grad(f(), t, v)) for f in (ours, theirs)]
        rows.append([n, float((x - y).abs().max()), float((gx - gy).abs().max()), *times])
        print(*map(report.cell, rows[-1]), sep="  ", flush=True)
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes up to 1000 only")
    parser.add_argument("--peer-seconds", type=float, default=120.0, help="time granted to cvxpylayers")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    parts: dict[str, Any] = {}
    header = ["constraints", "n", *(f"s = {scale:g}" for scale in SCALES)]
    parts["Median / most iterations, error of x, error of Jv"] = (header, scales(options.quick))
    header = ["constraints", "n", "iterations", "solve, ms", "backward, ms", "exponent of n"]
    parts["Cost of one problem"] = (header, growth(options.quick))
    header = ["n", "rows", "batch", "solves/s", "with the gradient", "reference engine: solves/s"]
    parts["Throughput, costs of size 3"] = (header, throughput(options.quick))
    header = ["n", "s", "error of x", "of the gradient", "ms", "cvxpylayers: error of x", "of the gradient", "ms"]
    title = "Softmax with caps and a budget, solve and gradient, beside cvxpylayers"
    parts[title] = (header, against_cvxpylayers(options.peer_seconds))
    header = ["plan", "entropy", "iterations", "marginals off by", "ms", "POT: marginals off by", "ms", "distance"]
    parts["Entropic optimal transport, beside POT (sinkhorn_log, 1e-9)"] = (header, against_pot(options.quick))
    header = ["n", "distance of x", "of the gradient", "ms", "entmax: ms"]
    parts["Sparsemax of a batch of 100, solve and gradient, beside entmax"] = (header, against_entmax())
    packages = ["cvxpylayers", "diffcp", "clarabel", "POT", "entmax"]
    report.write("entropic", "python -m benchmarks.entropic", "float64", packages, parts)


if __name__ == "__main__":
    main()
