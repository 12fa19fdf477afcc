# SPDX-License-Identifier: Apache-2.0
"""The solvers of the throughput benchmark, ours and the peers, each asked for the same accuracy in its own words.

A solver takes a workload and gives back a call without arguments: everything that a program would do once (conversion
of the data to the solver's types, compilation of a layer) is done before, everything that it would do for each batch
happens in the call. A call returns x and, after a backward pass of sum(x), the gradient by q.

    optlayer       one call for the batch
    qpth           one call for the batch (eps, its other defaults as they are); bounds are rows of G
    ProxQP batch   its C++ batch of dense problems on one thread, forward only
    ProxQP layer   its torch layer, which makes one such problem an element
    PIQP loop      setup and solve of its dense C++ solver called for each problem, forward only
    cvxpylayers    DIFFCP with Clarabel and its dense derivative; P enters as a factor F with P = F'F
    Moreau         its torch solver, which takes its active set method up to 500 variables; bounds are sparse rows
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.referee import Array
from benchmarks.workloads import MATRICES, Workload

Result = tuple[Any, Any]
"""x and the gradient by q, None without a backward pass; arrays or tensors of the batch."""
Call = Callable[[], Result]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Solver:
    """``prepare(workload, backward)`` makes the call; ``refuses`` says why a workload is not for it, or ""."""

    name: str
    package: str
    prepare: Callable[[Workload, bool], Call]
    refuses: Callable[[Workload, bool], str]

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def layer_call(layer: Callable[[Tensors], Tensor], data: dict[str, Array], by: Iterable[str], w: Workload) -> Call:
    """The call of a torch layer on data whose blocks ``by``, if any, are differentiated by."""
    names = tuple(by)
    tensors = {k: torch.tensor(v, dtype=getattr(torch, w.dtype), requires_grad=k in names) for k, v in data.items()}

    def forward() -> Result:
        with torch.no_grad():
            return layer(tensors), None

    def both() -> Result:
        x = layer(tensors)
        gradients = torch.autograd.grad(x.sum(), [tensors[k] for k in names])
        return x.detach(), gradients[names.index("q")]

    return both if names else forward


def one_sided(w: Workload) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The blocks P, q, G, h, A, b, bounds as rows of G, and what is differentiated by. No workload has both."""
    blocks = dict(w.blocks)
    sides = [(sign, blocks.pop(k)) for sign, k in ((-1, "lb"), (1, "ub")) if k in blocks]
    if sides:
        blocks["G"] = np.vstack([sign * np.eye(w.n) for sign, _ in sides])
        blocks["h"] = np.concatenate([sign * v for sign, v in sides], axis=1)
    by = [k for k in w.by if k in blocks]
    return blocks, (*by, "h") if len(by) < len(w.by) else w.by


def optlayer(w: Workload, backward: bool, **settings: Any) -> Call:
    """This library."""
    from optlayer import solve_qp

    given = {"eps_abs": w.eps, "eps_rel": w.relative, **settings}
    return layer_call(lambda t: solve_qp(**t, **given).x, w.blocks, w.by if backward else (), w)


def qpth(w: Workload, backward: bool) -> Call:
    """OptNet's layer."""
    from qpth.qp import QPFunction

    layer = QPFunction(eps=w.eps, verbose=-1)
    none = torch.empty(0, dtype=getattr(torch, w.dtype))
    blocks, by = one_sided(w)

    def solve(t: Tensors) -> Tensor:
        x: Tensor = layer(t["P"], t["q"], t["G"], t["h"], t.get("A", none), t.get("b", none))
        return x

    return layer_call(solve, blocks, by if backward else (), w)


def proxqp_layer(w: Workload, backward: bool) -> Call:
    """ProxQP's torch layer: rows l <= Gx <= u."""
    from proxsuite.torch.qplayer import QPFunction

    layer = QPFunction(eps=w.eps, eps_backward=w.eps)
    none = torch.empty(0, dtype=torch.float64)
    blocks = {"l": np.full((w.batch, w.n), -1e20), "u": np.full((w.batch, w.n), 1e20), "G": np.eye(w.n)}
    if "G" in w.blocks:
        blocks |= {"l": np.full_like(w.blocks["h"], -1e20)}
    names = {"lb": "l", "ub": "u", "h": "u"}
    blocks |= {names.get(k, k): v for k, v in w.blocks.items()}
    by = tuple(names.get(k, k) for k in w.by) if backward else ()

    def solve(t: Tensors) -> Tensor:
        x: Tensor = layer(t["P"], t["q"], t.get("A", none), t.get("b", none), t["G"], t["l"], t["u"])[0]
        return x

    return layer_call(solve, blocks, by, w)


def proxqp_batch(w: Workload, backward: bool) -> Call:
    """ProxQP's dense problems, with bounds where there are any, solved as one vector on one thread."""
    import proxsuite

    dense = proxsuite.proxqp.dense
    bounded = "lb" in w.blocks
    m, p = (w.blocks[k].shape[1] if k in w.blocks else 0 for k in ("h", "b"))
    free = np.full(m, -1e20)
    problems = []
    for i in range(w.batch):
        P, q, G, h, A, b, lb, ub = (w.element(k, i) for k in ("P", "q", "G", "h", "A", "b", "lb", "ub"))
        bounds = (lb, np.full(w.n, 1e20) if ub is None else ub) if bounded else ()
        problems.append((P, q, A, b, G, free if m else None, h, *bounds))

    def call() -> Result:
        batch = dense.VectorQP()
        for problem in problems:
            one = dense.QP(w.n, p, m, bounded)
            one.settings.eps_abs = one.settings.eps_duality_gap_abs = w.eps
            one.settings.eps_rel = one.settings.eps_duality_gap_rel = w.relative
            one.settings.check_duality_gap = True
            one.init(*problem)
            batch.append(one)
        dense.solve_in_parallel(batch, 1)
        return np.array([one.results.x for one in batch]), None

    return call


def piqp(w: Workload, backward: bool) -> Call:
    """PIQP's dense solver, set up anew for each problem; the matrices lie in its order in memory beforehand."""
    import piqp as package

    solver = package.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_duality_gap_abs = w.eps
    solver.settings.eps_rel = solver.settings.eps_duality_gap_rel = w.relative
    solver.settings.check_duality_gap = True
    problems = []
    for i in range(w.batch):
        given = {k: w.element(k, i) for k in ("P", "q", "A", "b", "G", "h", "lb", "ub")}
        P, q, A, b, G, h, lb, ub = (
            np.asfortranarray(v) if k in MATRICES and v is not None else v for k, v in given.items()
        )
        problems.append((P, q, A, b, G, None, h, lb, ub))

    def call() -> Result:
        x = np.empty((w.batch, w.n))
        for i, problem in enumerate(problems):
            solver.setup(*problem)
            solver.solve()
            x[i] = solver.result.x
        return x, None

    return call


@functools.lru_cache(maxsize=2)
def cvxpy_layer(
    names: tuple[tuple[str, tuple[int, ...]], ...], constants: tuple[tuple[str, bytes], ...], n: int
) -> Any:
    """A compiled layer: parameters by name and shape, constants by name and content. P stands for its factor F."""
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer

    x = cp.Variable(n)
    parameters = {k: cp.Parameter(shape) for k, shape in names}
    given = parameters | {k: np.frombuffer(v).reshape(-1, n) for k, v in constants}
    identity = not isinstance(given["P"], cp.Parameter) and np.array_equal(given["P"], np.eye(n))
    objective = cp.sum_squares(x if identity else given["P"] @ x) / 2 + given["q"] @ x
    constraints = [given["G"] @ x <= given["h"]] if "h" in given else []
    constraints += [given["A"] @ x == given["b"]] if "b" in given else []
    constraints += [x >= given["lb"]] if "lb" in given else []
    constraints += [x <= given["ub"]] if "ub" in given else []
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return CvxpyLayer(problem, parameters=list(parameters.values()), variables=[x])


def factor(P: Array) -> Array:
    """F with P = F'F, for positive semidefinite matrices."""
    try:
        return np.linalg.cholesky(P).swapaxes(-1, -2)
    except np.linalg.LinAlgError:
        value, vectors = np.linalg.eigh(P)
        return np.sqrt(np.maximum(value, 0.0))[..., None] * vectors.swapaxes(-1, -2)


def cvxpylayers(w: Workload, backward: bool) -> Call:
    """The QP in CVXPY's words; what the batch shares is constant."""
    blocks = {**w.blocks, "P": factor(w.blocks["P"])}
    shared = {k for k in MATRICES if k in blocks and blocks[k].ndim == 2}
    constants = tuple((k, np.ascontiguousarray(blocks.pop(k)).tobytes()) for k in sorted(shared))
    layer = cvxpy_layer(tuple((k, v.shape[1:]) for k, v in blocks.items()), constants, w.n)
    arguments = {"solve_method": "Clarabel", "n_jobs_forward": 1}
    arguments |= {"n_jobs_backward": 1, "mode": "dense"} if backward else {}
    arguments |= {"tol_feas": w.eps, "tol_gap_abs": w.eps, "tol_gap_rel": w.eps}
    return layer_call(lambda t: layer(*t.values(), solver_args=arguments)[0], blocks, w.by if backward else (), w)


def moreau(w: Workload, backward: bool) -> Call:
    """Rows Ax + s = b with s = 0, then s >= 0, in compressed sparse rows; the batch shares both matrices or none."""
    import moreau as package
    from moreau.torch import Solver as TorchSolver

    blocks, by = one_sided(w)
    n, (p, m) = w.n, (blocks[k].shape[1] if k in blocks else 0 for k in ("b", "h"))
    matrices = [blocks[k] for k in ("P", "A", "G") if k in blocks]
    if any(v.ndim == 3 for v in matrices):
        matrices = [np.broadcast_to(v, (w.batch, *v.shape[-2:])) for v in matrices]
    P, rows = matrices[0], np.concatenate(matrices[1:], axis=-2)
    pattern = rows.any(axis=0) if rows.ndim == 3 else rows != 0
    data = {
        "P": P.reshape(*P.shape[:-2], n * n),
        "q": blocks["q"],
        "rows": rows[..., pattern],
        "sides": np.concatenate([blocks[k] for k in ("b", "h") if k in blocks], axis=1),
    }
    settings = package.Settings(
        device="cpu",
        batch_size=w.batch,
        enable_grad=backward,
        ipm_settings=package.IPMSettings(tol_gap_abs=w.eps, tol_gap_rel=w.eps, tol_feas=w.eps),
        active_set_settings=package.ActiveSetSettings(primal_tol=w.eps),
    )
    dense = torch.arange(n + 1) * n, torch.arange(n).repeat(n)
    sparse = torch.tensor(np.r_[0, np.cumsum(pattern.sum(axis=1))]), torch.tensor(np.nonzero(pattern)[1])
    cones = package.Cones(num_zero_cones=p, num_nonneg_cones=m)
    solver = TorchSolver(n, m + p, *dense, *sparse, cones, settings)
    names = {"G": "rows", "A": "rows", "h": "sides", "b": "sides"}
    unique = dict.fromkeys(names.get(k, k) for k in by) if backward else {}
    return layer_call(lambda t: solver.solve(t["P"], t["rows"], t["q"], t["sides"]).x, data, unique, w)


def anything(w: Workload, backward: bool) -> str:
    return ""


def double_only(w: Workload, backward: bool) -> str:
    return "" if w.dtype == "float64" else "float64 only"


def forward_only(w: Workload, backward: bool) -> str:
    return "no derivative" if backward else double_only(w, backward)


def positive_definite(w: Workload, backward: bool) -> str:
    return "singular P" if "singular" in w.family else ""


def small(w: Workload, backward: bool) -> str:
    """cvxpylayers: compiling a layer with many parameters takes minutes."""
    count = sum(v[0].size if k not in MATRICES or v.ndim == 3 else 0 for k, v in w.blocks.items())
    return f"{count} parameters" if count > 60000 else double_only(w, backward)


SOLVERS = [
    Solver("optlayer", "optlayer", optlayer, anything),
    Solver("qpth", "qpth", qpth, positive_definite),
    Solver("PIQP loop", "piqp", piqp, forward_only),
    Solver("ProxQP batch", "proxsuite", proxqp_batch, forward_only),
    Solver("ProxQP layer", "proxsuite", proxqp_layer, double_only),
    Solver("Moreau", "moreau", moreau, double_only),
    Solver("cvxpylayers", "cvxpylayers", cvxpylayers, small),
]
