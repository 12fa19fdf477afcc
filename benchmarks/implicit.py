# SPDX-License-Identifier: Apache-2.0
"""Roots, fixed points, minimisers and linear systems with their gradients, beside jaxopt, optimistix and TorchOpt.

    python -m benchmarks.implicit [--quick] [--seconds 2]

    root         z + z^3 + tanh(Wz) = x, |W| = 0.95, by Newton's or Broyden's method; gradient in W
    fixed point  z = tanh(Wz + x), |W| = 0.9; gradient in W
    ridge        w = argmin |Xw - y|^2 / 2 + sum_i exp(lam_i) w_i^2 / 2; gradient in lam
    logistic     w = argmin sum_k softplus(-y_k x_k'w) + sum_i exp(lam_i) w_i^2 / 2; gradient in lam
    normal cg    w = argmin |Aw - b|, twice as many rows as columns, by conjugate gradients; gradient in A

of the sum of the solution times a fixed random matrix. Everybody is asked for 1e-9 in the solution and, where they ask,
1e-10 in the linear systems of the gradient, in float64. The truth is numpy's: Newton's method to rounding on formulas
written out here, then one dense linear solve. An answer counts if it is within 1e-6 of the truth, a gradient if it is
within 1e-5, relative to its largest entry: what those tolerances leave to condition and stopping rule.

Times are medians by wall clock, in one process on one core; functions of jax are compiled first, which is not counted.
Peers that are not installed are left out: pip install -c constraints.txt '.[implicit-peers]' brings them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn.functional import softplus

from benchmarks import report
from benchmarks.clock import one_thread, race
from benchmarks.referee import Array
from optlayer.implicit import LinearSettings, argmin, fixed_point, linear_solve, root

SIZES = ((10, 64), (100, 8), (500, 1))
EPS, EPS_LINEAR = 1e-9, 1e-10
VALUE, GRADIENT = 1e-6, 1e-5

# forward() -> z, both() -> (z, gradient); arrays of numpy
Calls = tuple[Callable[[], Any], Callable[[], Any]]


@dataclass(frozen=True)
class Workload:
    """A batch of problems with its truth: z (B, n) and the gradient of sum(v z) in `by`."""

    name: str
    data: dict[str, Array]
    by: str
    v: Array
    z: Array
    gradient: Array


# ---- the problems and their truth --------------------------------------------------------------------------------


def newton(F: Callable[[Array], Array], J: Callable[[Array], Array], z: Array) -> Array:
    """Newton's method on every row until nothing changes, halved where |F| would grow."""
    for _ in range(100):
        r = F(z)
        step, t = -np.linalg.solve(J(z), r[..., None])[..., 0], np.ones((len(z), 1))
        for _ in range(30):
            worse = np.linalg.norm(F(z + t * step), axis=1) > np.linalg.norm(r, axis=1)
            t = np.where(worse[:, None], t / 2, t)
        if np.abs(t * step).max() <= 1e-15 * np.abs(z).max():
            break
        z = z + t * step
    return z


def system(name: str, n: int, batch: int, rng: np.random.Generator) -> Workload:
    """The root and the fixed point: with a = Wz (+ x) and D = tanh'(a) the gradient in W is a sum of u D z'."""
    W = rng.standard_normal((n, n))
    W *= (0.95 if name == "root" else 0.9) / np.linalg.norm(W, 2)
    x, v, eye = rng.standard_normal((batch, n)), rng.standard_normal((batch, n)), np.eye(n)
    rooted = name == "root"
    sign = 1 if rooted else -1

    def slope(z: Array) -> Array:
        return 1 - np.tanh(z @ W.T + (0 if rooted else x)) ** 2

    def F(z: Array) -> Array:
        return z + z**3 + np.tanh(z @ W.T) - x if rooted else z - np.tanh(z @ W.T + x)

    def J(z: Array) -> Array:
        return eye * (1 + 3 * z**2 * rooted)[:, None, :] + sign * slope(z)[:, :, None] * W

    z = newton(F, J, np.zeros_like(x))
    u = np.linalg.solve(J(z).swapaxes(1, 2), v[..., None])[..., 0]
    return Workload(name, {"W": W, "x": x}, "W", v, z, -sign * np.einsum("bi,bj->ij", u * slope(z), z))


def regression(name: str, n: int, batch: int, rng: np.random.Generator) -> Workload:
    """Ridge and logistic regression: the gradient in lam is -exp(lam) w u with the Hessian's u = H^-1 v."""
    X, lam = rng.standard_normal((batch, 2 * n, n)), rng.standard_normal((batch, n))
    y, v = np.sign(rng.standard_normal((batch, 2 * n))), rng.standard_normal((batch, n))
    decay, eye, ridge = np.exp(lam), np.eye(n), name == "ridge"

    def margin(w: Array) -> Array:
        return np.einsum("bkn,bn->bk", X, w)

    def sigmoid(w: Array) -> Array:
        return 1 / (1 + np.exp(y * margin(w)))

    def F(w: Array) -> Array:
        residual = margin(w) - y if ridge else -y * sigmoid(w)
        return np.einsum("bkn,bk->bn", X, residual) + decay * w

    def J(w: Array) -> Array:
        curve = np.ones_like(y) if ridge else sigmoid(w) * (1 - sigmoid(w))
        return X.swapaxes(1, 2) @ (curve[..., None] * X) + decay[:, None, :] * eye

    w = newton(F, J, np.zeros_like(lam))
    u = np.linalg.solve(J(w), v[..., None])[..., 0]
    return Workload(name, {"X": X, "y": y, "lam": lam}, "lam", v, w, -decay * w * u)


def least_squares(name: str, n: int, batch: int, rng: np.random.Generator) -> Workload:
    """Least squares: with u = (A'A)^-1 v the gradient in A is r u' - A u w', r = b - Aw."""
    A, b, v = (rng.standard_normal((batch, *shape)) for shape in ((2 * n, n), (2 * n,), (n,)))
    M = A.swapaxes(1, 2) @ A
    w = np.stack([np.linalg.lstsq(a, c, rcond=None)[0] for a, c in zip(A, b, strict=True)])
    u = np.linalg.solve(M, v[..., None])[..., 0]
    r = b - np.einsum("bkn,bn->bk", A, w)
    gradient = r[:, :, None] * u[:, None, :] - np.einsum("bkn,bn->bk", A, u)[:, :, None] * w[:, None, :]
    return Workload(name, {"A": A, "b": b}, "A", v, w, gradient)


WORKLOADS = {
    "root": system,
    "fixed point": system,
    "ridge": regression,
    "logistic": regression,
    "normal cg": least_squares,
}


# ---- the solvers -------------------------------------------------------------------------------------------------


def of_torch(w: Workload, solve: Callable[..., Any]) -> Calls:
    """The calls of a torch function of the workload's tensors."""
    plain = {name: torch.tensor(value) for name, value in w.data.items()}
    followed = {**plain, w.by: plain[w.by].clone().requires_grad_()}
    v = torch.tensor(w.v)

    def both() -> tuple[Array, Array]:
        z = solve(**followed)
        (g,) = torch.autograd.grad((z * v).sum(), followed[w.by])
        return z.detach().numpy(), g.numpy()

    def forward() -> Array:
        with torch.no_grad():
            z: Array = solve(**plain).numpy()
            return z

    return forward, both


def of_jax(w: Workload, solve: Callable[..., Any]) -> Calls:
    """The calls of a jax function of the workload's arrays."""
    import jax

    rest = {name: jax.numpy.array(value) for name, value in w.data.items() if name != w.by}
    moved = jax.numpy.array(w.data[w.by])

    def loss(moved: Any) -> Any:
        z = solve(**rest, **{w.by: moved})
        return (z * w.v).sum(), z

    def gradient(moved: Any) -> Any:
        g, z = jax.grad(loss, has_aux=True)(moved)
        return z, g

    value, gradient = jax.jit(lambda moved: loss(moved)[1]), jax.jit(gradient)
    return lambda: jax.block_until_ready(value(moved)), lambda: jax.block_until_ready(gradient(moved))


def objective(name: str, norm: Any, softplus: Any, exp: Any) -> Callable[..., Any]:
    """The function that a regression minimises, of vectors w with X (k, n), y and lam."""

    def f(w: Any, X: Any, y: Any, lam: Any) -> Any:
        fit = norm(X @ w - y) / 2 if name == "ridge" else softplus(-y * (X @ w)).sum()
        return fit + (exp(lam) * w**2).sum() / 2

    return f


def ours(w: Workload, method: str) -> Calls:
    """optlayer; gradients by LU, beyond 256 unknowns by GMRES, those of L-BFGS by conjugate gradients."""
    stop: dict[str, Any] = {"eps_abs": EPS, "eps_rel": 0.0, "batch_dims": 1, "method": method}
    start = torch.zeros(w.z.shape, dtype=torch.float64)

    def equation(z: Any, W: Any, x: Any) -> Any:
        return z + z**3 + torch.tanh(z @ W.mT) - x

    def cell(z: Any, W: Any, x: Any) -> Any:
        return torch.tanh(z @ W.mT + x)

    def loss(z: Any, X: Any, y: Any, lam: Any) -> Any:
        a = torch.einsum("bkn,bn->bk", X, z)
        fit = (a - y).square().sum(-1) / 2 if w.name == "ridge" else softplus(-y * a).sum(-1)
        return fit + (lam.exp() * z.square()).sum(-1) / 2

    if w.name == "root":
        return of_torch(w, lambda W, x: root(equation, start, W, x, **stop).value)
    if w.name == "fixed point":
        return of_torch(w, lambda W, x: fixed_point(cell, start, W, x, **stop).value)
    if w.name == "normal cg":
        return of_torch(w, lambda A, b: linear_solve(A, b, method="normal_cg", eps_rel=EPS_LINEAR).value)
    linsolve = LinearSettings("auto" if method == "newton" else "cg", eps_rel=EPS_LINEAR)
    return of_torch(w, lambda X, y, lam: argmin(loss, start, X, y, lam, linsolve=linsolve, **stop).value)


def jaxopt(w: Workload, method: str) -> Calls:
    """jaxopt: Broyden, Anderson, L-BFGS, its conjugate gradients."""
    import jax
    import jaxopt as package

    jax.config.update("jax_enable_x64", True)
    jnp, n = jax.numpy, w.z.shape[1]
    options: dict[str, Any] = {"tol": EPS, "maxiter": 1000}
    gmres = partial(package.linear_solve.solve_gmres, tol=EPS_LINEAR)
    cg = partial(package.linear_solve.solve_cg, tol=EPS_LINEAR, maxiter=10 * n)
    normal = partial(package.linear_solve.solve_normal_cg, tol=EPS_LINEAR, maxiter=10 * n)
    start = jnp.zeros(n)
    if w.name in ("root", "fixed point"):
        if w.name == "root":
            equation = lambda z, W, x: z + z**3 + jnp.tanh(W @ z) - x  # noqa: E731
            solver = package.Broyden(equation, implicit_diff_solve=gmres, **options)
        else:
            cell = lambda z, W, x: jnp.tanh(W @ z + x)  # noqa: E731
            solver = package.AndersonAcceleration(cell, implicit_diff_solve=gmres, **options)
        return of_jax(w, lambda W, x: jax.vmap(lambda x: solver.run(start, W, x).params)(x))
    if w.name == "normal cg":
        one = lambda A, b: normal(lambda u: A @ u, b, init=start)  # noqa: E731
        return of_jax(w, lambda A, b: jax.vmap(one)(A, b))
    f = objective(w.name, lambda r: (r**2).sum(), jax.nn.softplus, jnp.exp)
    lbfgs = package.LBFGS(f, implicit_diff_solve=cg, **options)
    return of_jax(w, lambda X, y, lam: jax.vmap(lambda *data: lbfgs.run(start, *data).params)(X, y, lam))


def optimistix(w: Workload, method: str) -> Calls:
    """optimistix: Newton, fixed point iteration, BFGS, with dense gradients; lineax's conjugate gradients."""
    import jax
    import lineax
    import optimistix as package

    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy
    start, tolerance = jnp.zeros(w.z.shape[1]), {"rtol": EPS, "atol": EPS}
    options: dict[str, Any] = {"max_steps": 1000, "throw": False}
    if w.name == "root":
        F = lambda z, args: z + z**3 + jnp.tanh(args[0] @ z) - args[1]  # noqa: E731
        find = lambda W, x: package.root_find(F, package.Newton(**tolerance), start, (W, x), **options).value  # noqa: E731
        return of_jax(w, lambda W, x: jax.vmap(lambda x: find(W, x))(x))
    if w.name == "fixed point":
        f = lambda z, args: jnp.tanh(args[0] @ z + args[1])  # noqa: E731
        iteration = package.FixedPointIteration(**tolerance)
        go = lambda W, x: package.fixed_point(f, iteration, start, (W, x), **options).value  # noqa: E731
        return of_jax(w, lambda W, x: jax.vmap(lambda x: go(W, x))(x))
    if w.name == "normal cg":
        cg = lineax.Normal(lineax.CG(rtol=EPS_LINEAR, atol=EPS_LINEAR))
        one = lambda A, b: lineax.linear_solve(lineax.MatrixLinearOperator(A), b, cg, throw=False).value  # noqa: E731
        return of_jax(w, lambda A, b: jax.vmap(one)(A, b))
    loss = objective(w.name, lambda r: (r**2).sum(), jax.nn.softplus, jnp.exp)
    bfgs = package.BFGS(**tolerance)
    fit = lambda *data: package.minimise(lambda z, args: loss(z, *args), bfgs, start, data, **options).value  # noqa: E731
    return of_jax(w, lambda X, y, lam: jax.vmap(fit)(X, y, lam))


def torchopt(w: Workload, method: str) -> Calls:
    """TorchOpt's gradient, by conjugate gradients, around torch's L-BFGS, one problem after the other."""
    import torchopt as package

    f = objective(w.name, lambda r: r.square().sum(), softplus, torch.exp)
    solve = package.linear_solve.solve_cg(rtol=EPS_LINEAR, atol=0.0, maxiter=10 * w.z.shape[1])

    def stationarity(z: Any, lam: Any, X: Any, y: Any) -> Any:
        return torch.func.grad(f)(z, X, y, lam)

    @package.diff.implicit.custom_root(stationarity, argnums=1, solve=solve)  # type: ignore[misc]
    def minimiser(z: Any, lam: Any, X: Any, y: Any) -> Any:
        z = z.clone().requires_grad_()
        options = {"max_iter": 1000, "tolerance_grad": EPS, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
        lbfgs = torch.optim.LBFGS([z], **options)

        def closure() -> Any:
            lbfgs.zero_grad()
            value = f(z, X, y, lam.detach())
            value.backward(inputs=[z])
            return value

        with torch.enable_grad():
            lbfgs.step(closure)
        return z.detach()

    start = torch.zeros(w.z.shape[1], dtype=torch.float64)

    def batch(X: Any, y: Any, lam: Any) -> Any:
        return torch.stack([minimiser(start, c, a, b) for a, b, c in zip(X, y, lam, strict=True)])

    return of_torch(w, batch)


ALL, MINIMISERS = tuple(WORKLOADS), ("ridge", "logistic")
# name in the table: (module that must be there, calls, method, workloads)
SOLVERS: dict[str, tuple[str, Callable[[Workload, str], Calls], str, tuple[str, ...]]] = {
    "optlayer newton": ("optlayer", ours, "newton", ("root", "fixed point", *MINIMISERS)),
    "optlayer broyden": ("optlayer", ours, "broyden", ("root",)),
    "optlayer anderson": ("optlayer", ours, "anderson", ("fixed point",)),
    "optlayer lbfgs": ("optlayer", ours, "lbfgs", MINIMISERS),
    "optlayer normal_cg": ("optlayer", ours, "normal_cg", ("normal cg",)),
    "jaxopt": ("jaxopt", jaxopt, "", ALL),
    "optimistix": ("optimistix", optimistix, "", ALL),
    "TorchOpt": ("torchopt", torchopt, "", MINIMISERS),
}


def distance(found: Any, truth: Array) -> float:
    """The largest difference, relative to the largest entry of the truth."""
    return float(np.abs(np.asarray(found) - truth).max() / np.abs(truth).max())


def compare(w: Workload, limit: float) -> list[list[Any]]:
    """A row for each solver that is installed."""
    rows: list[list[Any]] = []
    calls: dict[str, Calls] = {}
    errors: dict[str, tuple[float, float]] = {}
    for name, (module, make, method, takes) in SOLVERS.items():
        if w.name not in takes or find_spec(module) is None:
            continue
        calls[name] = make(w, method)
        z, g = calls[name][1]()
        errors[name] = distance(z, w.z), distance(g, w.gradient)
    times: list[Mapping[str, list[float]]] = [
        race({name: call[i] for name, call in calls.items()}, limit, 5) for i in (0, 1)
    ]
    medians = {name: [1e3 * statistics.median(t[name]) for t in times] for name in calls}
    counts = {name: z <= VALUE and g <= GRADIENT for name, (z, g) in errors.items()}
    best = min(
        (medians[name][1] for name in calls if name.startswith("optlayer") and counts[name]), default=float("nan")
    )
    for name in calls:
        ratio = medians[name][1] / best if counts[name] else None
        rows.append([w.name, w.z.shape[1], len(w.z), name, *errors[name], counts[name], *medians[name], ratio])
        print(*map(report.cell, rows[-1]), sep="  ", flush=True)
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each solver and workload, in each direction")
    options = parser.parse_args()
    one_thread()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # jax takes every core that it sees
    warnings.filterwarnings("ignore")
    rows = []
    for name, make in WORKLOADS.items():
        for n, batch in SIZES[:1] if options.quick else SIZES:
            rows += compare(make(name, n, batch, np.random.default_rng([n, batch])), options.seconds)
    theirs = [row for row in rows if not row[3].startswith("optlayer")]
    mine = [row for row in rows if row[3].startswith("optlayer")]
    summary = (
        f"Ours: {sum(row[6] for row in mine)} of {len(mine)} count. Peers: {sum(row[6] for row in theirs)} of "
        f"{len(theirs)} count; of those {sum(row[9] > 1 for row in theirs if row[6])} take longer than our quicker "
        f"method, forward and backward."
    )
    header = ["problem", "n", "batch", "solver", "error of z", "of the gradient", "counts"]
    header += ["forward, ms", "and backward, ms", "over our quickest"]
    parts = {"summary": summary, "Accuracy and time": (header, rows)}
    packages = ["jax", "jaxopt", "optimistix", "lineax", "torchopt"]
    command = "python -m benchmarks.implicit" + " --quick" * options.quick
    report.write("implicit", command, "float64", packages, parts)


if __name__ == "__main__":
    main()
