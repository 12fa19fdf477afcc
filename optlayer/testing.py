# SPDX-License-Identifier: Apache-2.0
"""Help for tests, ours and yours: random problems, and assertions about solutions and gradients.

The random problems are planted: a solution is drawn first, with a clear gap between active and inactive constraints,
and the data are made to fit it.  So the optimum is known, unique and differentiable unless the kind says otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .problem import HUGE, Problem
from .residuals import dot, matvec, norm
from .solution import Point, Solution
from .status import Status

Kind = Literal["regular", "psd", "lp", "weak", "redundant", "infeasible", "unbounded"]
PLANTED = ("regular", "psd", "lp", "weak", "redundant")


def random_qp(
    n: int,
    m: int = 0,
    p: int = 0,
    *,
    batch: Sequence[int] = (),
    kind: Kind = "regular",
    bounds: bool = False,
    shared: Sequence[str] = (),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Problem:
    """A random problem, the same for every dtype and device; the global random state is untouched.

    Args:
        n, m, p: number of variables, rows of G and rows of A; blocks without rows are ``None``.
        batch: the batch shape.
        kind: "regular" (P positive definite), "psd" (P singular), "lp" (no P, a vertex), "weak" (one active row has the
            multiplier 0), "redundant" (the last row of A repeats the first), "infeasible" (the last two rows of G
            contradict each other) or "unbounded".
        bounds: whether there are bounds; some of them are infinite.
        shared: names of the matrices P, G, A that the batch shares.
        seed, dtype, device: of the tensors.

    Raises:
        ValueError: the kind needs more rows than there are.

    Example:
        >>> from optlayer import solve_qp
        >>> from optlayer.testing import assert_optimal, random_qp
        >>> problem = random_qp(8, m=5, p=2, batch=(3,))
        >>> problem
        Problem(P=(3, 8, 8), q=(3, 8), G=(3, 5, 8), h=(3, 5), A=(3, 2, 8), b=(3, 2), dtype=torch.float64, device=cpu)
        >>> assert_optimal(solve_qp(*problem.tensors))
    """
    if kind == "infeasible" and m < 2:
        raise ValueError(f"kind='infeasible' needs m >= 2, found {m}")
    plant = kind if kind in PLANTED else "regular"
    problem, point = planted_qp(n, m, p, batch=batch, kind=plant, bounds=bounds, shared=shared, seed=seed)  # type: ignore[arg-type]
    P, q, G, h, A, b, lb, ub = problem.tensors
    if kind == "infeasible" and G is not None and h is not None:
        G, h = G.clone(), h.clone()
        G[..., -1, :] = -G[..., -2, :]
        h[..., -1] = -h[..., -2] - 1
    if kind == "unbounded" and P is not None:
        d = _Numbers(seed + 1).draw((n,))
        d = d / d.norm()
        away = torch.eye(n, dtype=torch.float64) - torch.outer(d, d)
        P = away @ P @ away
        q = q - (dot(q, d) + 1).unsqueeze(-1) * d
        if A is not None:
            A = A @ away
            b = matvec(A, point.x)
        if G is not None and h is not None:
            G = G - matvec(G, d).clamp(min=0).unsqueeze(-1) * d
            h = matvec(G, point.x) + 1
        lb = None if lb is None else torch.where(d < 0, -torch.inf, lb)
        ub = None if ub is None else torch.where(d > 0, torch.inf, ub)
    return Problem(P, q, G, h, A, b, lb, ub).to(dtype, device)


def planted_qp(
    n: int,
    m: int = 0,
    p: int = 0,
    *,
    batch: Sequence[int] = (),
    kind: Literal["regular", "psd", "lp", "weak", "redundant"] = "regular",
    bounds: bool = False,
    shared: Sequence[str] = (),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Problem, Point]:
    """A random problem, as :func:`random_qp`, and its solution (x, y, z, z_box).

    x is unique for every kind; the multipliers are too, but for "redundant".  Half of the degrees of freedom that the
    equalities leave are taken by active constraints, all of them if kind is "lp".
    """
    batch = tuple(batch)
    if kind == "redundant" and p < 2:
        raise ValueError(f"kind='redundant' needs p >= 2, found {p}")
    if p >= n + (kind == "redundant"):
        raise ValueError(f"p is {p}, expected fewer equalities than the {n} variables")
    if kind == "weak" and m < 1:
        raise ValueError("kind='weak' needs m >= 1, found 0")
    freedom = n - p + (kind == "redundant")
    active = freedom if kind == "lp" else freedom // 2
    rows = min(m, (active + 1) // 2 if bounds and kind != "lp" else active)
    boxes = min(n, active - rows) if bounds else 0
    if kind == "lp" and rows + boxes < active:
        raise ValueError(f"kind='lp' needs m >= n - p = {active} or bounds, found m = {m}")
    if kind == "weak":
        rows = max(rows, 1)
    numbers = _Numbers(seed)

    def lead(name: str) -> tuple[int, ...]:
        return () if name in shared else batch

    x, y = numbers.draw((*batch, n)), numbers.draw((*batch, p))
    G, A = numbers.draw((*lead("G"), m, n)), numbers.draw((*lead("A"), p, n))
    if kind == "redundant":
        A[..., -1, :] = A[..., 0, :]
    on = numbers.choose((*batch, m), rows)
    z, s = torch.where(on, numbers.gap((*batch, m)), 0.0), torch.where(on, 0.0, numbers.gap((*batch, m)))
    if kind == "weak":
        z = torch.where(on & (on.long().cumsum(-1) == 1), 0.0, z)
    P = None
    if kind != "lp":
        rank = max(n // 2, freedom - rows - boxes) if kind == "psd" else n
        M = numbers.draw((*lead("P"), n, rank))
        P = M @ M.mT / n + (0 if kind == "psd" else 1) * torch.eye(n, dtype=torch.float64)
    z_box, lb, ub = torch.zeros(*batch, n, dtype=torch.float64), None, None
    if bounds:
        at = numbers.choose((*batch, n), boxes)
        lower = numbers.draw((*batch, n)) < 0
        z_box = torch.where(at, torch.where(lower, -1, 1) * numbers.gap((*batch, n)), 0.0)
        lb = torch.where(at & lower, x, x - numbers.gap((*batch, n)))
        ub = torch.where(at & ~lower, x, x + numbers.gap((*batch, n)))
        lb = torch.where(~at & (numbers.draw((*batch, n)) < -0.5), -torch.inf, lb)
        ub = torch.where(~at & (numbers.draw((*batch, n)) > 0.5), torch.inf, ub)
    q = -(0 if P is None else matvec(P, x)) - matvec(A.mT, y) - matvec(G.mT, z) - z_box
    h, b = (matvec(G, x) + s if m else None), (matvec(A, x) if p else None)
    problem = Problem(P, q, G if m else None, h, A if p else None, b, lb, ub)
    return problem.to(dtype, device), Point(*(t.to(device, dtype) for t in (x, y, z, z_box)))


class _Numbers:
    """A stream of float64 numbers on the CPU, whatever the global random state."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Normal numbers."""
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)

    def gap(self, shape: Sequence[int]) -> Tensor:
        """Numbers between 0.5 and 1.5: clearly positive."""
        return 0.5 + torch.rand(tuple(shape), generator=self.generator, dtype=torch.float64)

    def choose(self, shape: Sequence[int], k: int) -> Tensor:
        """A mask with k entries set in each row."""
        order = torch.rand(tuple(shape), generator=self.generator).argsort(-1)
        return order < k


def assert_optimal(solution: Solution, eps_abs: float | None = None, eps_rel: float | None = None) -> None:
    """Assert that every element is solved, by its status and by the optimality conditions recomputed from the problem.

    Primal and dual residual and gap are compared with eps_abs + eps_rel * scale, by default the settings of the
    solution; so are the signs of s and z, complementarity of rows and bounds, and s = h - Gx.

    Raises:
        AssertionError: naming the first element at fault, the condition, and by how much it fails.
    """
    failed = solution.status != Status.SOLVED
    if failed.any():
        where = failed.nonzero()[0].tolist()
        status = Status(int(solution.status[tuple(where)]))
        raise AssertionError(f"element {where} is {status.name}: {status.diagnosis} {status.advice}")
    eps_abs, eps_rel = solution.tolerances(eps_abs, eps_rel)
    r = solution.residuals()
    primal, dual, gap = (eps_abs + eps_rel * scale for scale in (r.primal_scale, r.dual_scale, r.gap_scale))
    _at_most("primal residual", r.primal, primal)
    _at_most("dual residual", r.dual, dual)
    _at_most("duality gap", r.gap, gap)
    for name, product in _complementarity(solution).items():
        _at_most(name, product, gap + primal * r.dual_scale + dual * r.primal_scale)
    s = solution.s.double()
    _at_most("negative part of s", norm(s.clamp(max=0)), primal)
    problem = solution.problem.to(torch.float64)
    if problem.G is not None and problem.h is not None:
        left = problem.h - matvec(problem.G, solution.x.double()) - s
        _at_most("h - Gx - s", norm(torch.where(problem.h >= HUGE, 0.0, left)), primal)


def _complementarity(solution: Solution) -> dict[str, Tensor]:
    """The largest product of a multiplier and its slack, for rows and bounds."""
    _, _, G, h, _, _, lb, ub = solution.problem.to(torch.float64).tensors
    x, z, z_box = solution.x.double(), solution.z.double(), solution.z_box.double()
    products = {}
    if G is not None and h is not None:
        products["complementarity of G"] = norm(torch.where(h >= HUGE, z, z * (h - matvec(G, x))))
    if lb is not None:
        products["complementarity of lb"] = norm(torch.where(lb <= -HUGE, 0.0, z_box.clamp(max=0) * (x - lb)))
    if ub is not None:
        open_ = (ub >= HUGE) | (z_box == torch.inf) & (x == 0)  # an entropy pulls without limit at what holds x at zero
        products["complementarity of ub"] = norm(torch.where(open_, 0.0, z_box.clamp(min=0) * (ub - x)))
    return products


def assert_certified(solution: Solution, tol: float = 1e-6) -> None:
    """Assert that the certificate of every infeasible or unbounded element proves its status.

    Each condition may be violated by ``tol``, times the largest entry of the certificate where that is more than one.
    Elements of other statuses are passed over; bounds that cross prove themselves.

    Raises:
        AssertionError: naming the first element at fault, the condition, and by how much it fails.
    """
    problem = solution.problem.to(torch.float64)
    x, y, z, z_box = (t.double() for t in solution.certificate)
    size = torch.stack([norm(t) for t in (x, y, z, z_box)]).amax(0).clamp(min=1)
    for status, conditions in (
        (Status.PRIMAL_INFEASIBLE, _farkas(problem, y, z, z_box)),
        (Status.DUAL_INFEASIBLE, _ray(problem, x)),
    ):
        for name, violation in conditions.items():
            _at_most(
                f"certificate of {status.name}, {name}",
                torch.where(solution.status == status, violation, 0.0),
                tol * size,
            )


def _farkas(problem: Problem, y: Tensor, z: Tensor, z_box: Tensor) -> dict[str, Tensor]:
    """By how much (y, z, z_box) fails to prove that the constraints contradict each other."""
    _, _, G, h, A, b, lb, ub = problem.tensors
    if problem.entropy is not None:  # x >= 0 is implied
        lb = torch.zeros_like(z_box) if lb is None else lb.clamp(min=0)
    combination, support = z_box, torch.zeros_like(z_box[..., 0])
    lower, upper, wrong = z_box.clamp(max=0), z_box.clamp(min=0), torch.zeros_like(support)
    if A is not None and b is not None:
        combination, support = combination + matvec(A.mT, y), support + dot(b, y)
    if G is not None and h is not None:
        free = h >= HUGE
        combination, support = combination + matvec(G.mT, z), support + dot(torch.where(free, 0.0, h), z)
        wrong = norm(torch.where(free, z, z.clamp(max=0)))
    if lb is not None:
        support = support + dot(torch.where(lb <= -HUGE, 0.0, lb), lower)
        lower = torch.where(lb <= -HUGE, lower, 0.0)
    if ub is not None:
        support = support + dot(torch.where(ub >= HUGE, 0.0, ub), upper)
        upper = torch.where(ub >= HUGE, upper, 0.0)
    crossed = torch.zeros_like(support, dtype=torch.bool) if lb is None or ub is None else (lb > ub).any(-1)
    return {
        "A'y + G'z + z_box": norm(combination),
        "z of a wrong sign": wrong,
        "z_box where there is no bound": norm(lower) + norm(upper),
        "b'y + h'z + lb'z_box^- + ub'z_box^+ + 1": torch.where(crossed, 0.0, (support + 1).abs()),
    }


def _ray(problem: Problem, x: Tensor) -> dict[str, Tensor]:
    """By how much x fails to be a direction of endless descent."""
    P, q, G, h, A, _, lb, ub = problem.tensors
    zero = torch.zeros_like(x[..., 0])
    return {
        "Px": zero if P is None else norm(matvec(P, x) + matvec(P.mT, x)) / 2,
        "Ax": zero if A is None else norm(matvec(A, x)),
        "Gx": zero if G is None or h is None else norm(torch.where(h >= HUGE, 0.0, matvec(G, x)).clamp(min=0)),
        "x at lb": zero if lb is None else norm(torch.where(lb <= -HUGE, 0.0, x).clamp(max=0)),
        "x at ub": zero if ub is None else norm(torch.where(ub >= HUGE, 0.0, x).clamp(min=0)),
        "q'x + 1": (dot(q, x) + 1).abs(),
    }


def _at_most(name: str, value: Tensor, limit: Tensor) -> None:
    value, limit = torch.broadcast_tensors(value.detach(), limit.detach())
    wrong = ~(value <= limit)
    if wrong.any():
        where = wrong.nonzero()[0].tolist()
        found, allowed = float(value[tuple(where)]), float(limit[tuple(where)])
        raise AssertionError(f"element {where}: {name} is {found:.3e}, expected at most {allowed:.3e}")


def assert_gradients(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    *,
    directions: int = 3,
    step: float = 1e-6,
    tol: float = 1e-6,
    forward: bool = True,
    seed: int = 0,
) -> None:
    """Assert that reverse and forward mode agree with central finite differences.

    For random unit directions v in each input by itself, and random cotangents w of all finite outputs,
    compares w'(f(x + step v) - f(x - step v)) / (2 step) with the inner product of v and the gradient, and with w'Jv
    of forward mode.  The error may be ``tol`` times the norm of the gradient, or ``tol`` where that is less than one.

    Args:
        function: takes the inputs, returns a tensor or any nest of tensors, such as a Solution.
        inputs: float64 tensors; gradients are checked for all of them.
        directions: number of directions for each input.
        step: of the finite differences; the solutions must be accurate to much less than tol * step.
        forward: whether forward mode is checked too.
        seed: of directions and cotangents.

    Raises:
        AssertionError: naming input, mode, the two values and their difference.

    Example:
        >>> from optlayer import solve_qp
        >>> from optlayer.testing import assert_gradients, random_qp
        >>> assert_gradients(lambda P, q: solve_qp(P, q).x, random_qp(4).tensors[:2])
    """
    numbers = _Numbers(seed)
    inputs = [t.detach() for t in inputs]
    for i, t in enumerate(inputs):
        if t.dtype is not torch.float64:
            raise ValueError(f"input {i} has dtype {t.dtype}, expected torch.float64: differences need its digits")

    def outputs(*given: Tensor) -> list[Tensor]:
        return [t for t in pytree.tree_leaves(function(*given)) if isinstance(t, Tensor) and t.is_floating_point()]

    variables = [t.clone().requires_grad_() for t in inputs]
    differentiable = [i for i, t in enumerate(outputs(*variables)) if t.requires_grad]

    def value(*given: Tensor) -> Tensor:
        out = outputs(*given)
        terms = [
            torch.where(out[i].isinf(), 0.0, w * out[i]).sum() for i, w in zip(differentiable, weights, strict=True)
        ]
        return torch.stack(terms).sum()

    weights = [numbers.draw(outputs(*inputs)[i].shape).to(inputs[0].device) for i in differentiable]
    gradients = torch.autograd.grad(value(*variables), variables, allow_unused=True)
    for i, (t, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        g = torch.zeros_like(t) if gradient is None else gradient
        for _ in range(directions):
            v = numbers.draw(t.shape).to(t.device)
            v = v / v.norm().clamp(min=1e-300)
            moved = [[*inputs[:i], t + sign * step * v, *inputs[i + 1 :]] for sign in (1, -1)]
            with torch.no_grad():
                expected = float(value(*moved[0]) - value(*moved[1])) / (2 * step)
            found = {"reverse mode": float((g * v).sum())}
            if forward:
                tangents = tuple(v if k == i else torch.zeros_like(u) for k, u in enumerate(inputs))
                found["forward mode"] = float(torch.func.jvp(value, tuple(inputs), tangents)[1])
            for mode, slope in found.items():
                if not abs(slope - expected) <= tol * max(1.0, float(g.norm())):
                    raise AssertionError(
                        f"input {i}, {mode}: slope {slope:.9e}, finite differences {expected:.9e}, "
                        f"difference {abs(slope - expected):.1e}"
                    )
