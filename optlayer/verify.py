# SPDX-License-Identifier: Apache-2.0
"""Derivatives held against values that were obtained in another way: what ``python -m optlayer verify`` runs.

Softmax is solved as an optimisation problem, differentiated through its KKT system and compared with closed forms,
which take no part in either.  With p = softmax(theta / tau),

    dp/dtheta = (diag p - p p') / tau,        dp/dtau = -(dp/dtheta) theta / tau,

and with caps (Martins and Kreutzer, 2017), S the sum of the active caps and A the variables below theirs,

    x_A = (1 - S) softmax(theta_A / tau),   dx_A/dtheta_A = (diag x_A - x_A x_A' / (1 - S)) / tau,
    dx_A/du_j = -x_A / (1 - S),             dx_j/du_j = 1        for active caps j.

Programs with an entropy for which there is a closed form, solved by :func:`optlayer.solve_qp`, are the same with caps,

    without constraints                        x = exp(-q / tau - 1)
    transport, 2 x 2, uniform marginals        X = 1/2 [p, 1-p; 1-p, p],  p = sigmoid((C12 + C21 - C11 - C22) / (2 tau))

The gradients of quadratic and entropic programs are compared with central finite differences, entry by entry, in every
argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .console import table
from .entropic import SoftmaxSolution, softmax, solve_softmax
from .problem import Problem
from .qp import solve_qp
from .solution import Solution
from .testing import random_qp

SIZES = (2, 10, 100, 1000)
TEMPERATURES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
SCALES = (1.0, 5.0, 20.0, 100.0)
BAR = 1e-9
FD_BAR = 1e-6  # for finite differences with steps of STEP
STEP = 1e-5
ARGUMENTS = ("P", "q", "G", "h", "A", "b", "lb", "ub", "entropy")


class Row(NamedTuple):
    """One comparison.

    Attributes:
        check: what is compared.
        problem: of what size, at which temperature.
        error: the largest error that was met: of x absolute, of derivatives as in :func:`relative`.
        bar: what it may be.
    """

    check: str
    problem: str
    error: float
    bar: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its bar; a NaN is not."""
        return self.error <= self.bar


def run() -> list[Row]:
    """All comparisons, in float64 on the CPU; a few seconds."""
    return [*softmax_rows(), *capped_rows(), *program_rows(), *entropic_rows(), *program_rows(_entropic_program())]


def text(report: Sequence[Row]) -> str:
    """The report as a table, with a verdict below it.

    Example:
        >>> from optlayer.verify import Row, text
        >>> print(text([Row("softmax: x", "n=2", 2e-16, 1e-9), Row("softmax: dx/dtheta", "n=2", 3e-7, 1e-9)]))
        check               problem    error    bar
        ---------------------------------------------------
        softmax: x          n=2      2.0e-16  1e-09  ok
        softmax: dx/dtheta  n=2      3.0e-07  1e-09  FAILED
        1 of 2 checks FAILED
    """
    cells = [
        (row.check, row.problem, f"{row.error:.1e}", f"{row.bar:.0e}", "ok" if row.passed else "FAILED")
        for row in report
    ]
    failed = sum(not row.passed for row in report)
    verdict = f"{failed} of {len(report)} checks FAILED" if failed else f"all {len(report)} checks passed"
    return f"{table(['check', 'problem', 'error', 'bar', ''], cells)}\n{verdict}"


# ---- softmax ---------------------------------------------------------------------------------------------------------


def softmax_rows(sizes: Sequence[int] = SIZES, temperatures: Sequence[float] = TEMPERATURES) -> Iterator[Row]:
    """The softmax problem without caps against its closed forms, the worst over the scales of theta."""
    for n in sizes:
        theta = torch.cat([_thetas(n, scale) for scale in SCALES])
        by_temperature, values = [], []
        for tau in temperatures:
            solution = solve_softmax(theta, tau)
            p = torch.softmax(theta / tau, -1)
            J = _jacobian(p) / tau
            yield Row("softmax: dx/dtheta", f"n={n}, temperature={tau:g}", _worst(solution, "theta", J, tau), BAR)
            lower = theta - theta.amax(-1, keepdim=True)  # J 1 = 0, and what cancels had better be small
            slope = -(J @ lower.unsqueeze(-1)).squeeze(-1) / tau
            by_temperature.append(_worst(solution, "temperature", slope, tau))
            values.append(float((solution.x - p).abs().amax()))
        yield Row("softmax: dx/dtemperature", f"n={n}", max(by_temperature), BAR)
        yield Row("softmax: x", f"n={n}", max(values), BAR)
    zero = torch.zeros(1, 5, dtype=torch.float64)
    for name, theta in (("theta = 0", zero), ("logsumexp(theta) = 1", zero + 1 - torch.tensor(5.0).double().log())):
        J = _jacobian(torch.softmax(theta, -1))
        yield Row("softmax: dx/dtheta", f"n=5, {name}", _worst(solve_softmax(theta), "theta", J, 1.0), BAR)
    theta, w = _thetas(10, 1.0), torch.linspace(-1, 1, 10, dtype=torch.float64)
    ours, theirs = (torch.func.hessian(lambda t, f=f: (f(t) ** 2 @ w).sum())(theta) for f in (softmax, _closed_softmax))
    yield Row("softmax: second derivative", "n=10", relative(ours, theirs), BAR)


def capped_rows(sizes: Sequence[int] = (2, 10, 100), tau: float = 0.5) -> Iterator[Row]:
    """The softmax problem with caps against the closed forms of Martins and Kreutzer."""
    for n in sizes:
        theta = _thetas(n, 1.0)
        upper = 1.5 / n + torch.rand(theta.shape, generator=_generator(n), dtype=torch.float64) / n
        solution = solve_softmax(theta, tau, upper)
        x, active = _closed_capped(theta / tau, upper)
        below = torch.where(active, 0, x)
        room = below.sum(-1)[:, None, None]
        toward_theta = (torch.diag_embed(below) - below[:, :, None] * below[:, None, :] / room) / tau
        toward_upper = torch.diag_embed(active.double()) - below[:, :, None] * active[:, None, :] / room
        problem = f"n={n}, {int(active.sum())} of {active.numel()} caps active"
        yield Row("capped softmax: x", problem, float((solution.x - x).abs().amax()), BAR)
        yield Row("capped softmax: dx/dtheta", problem, _worst(solution, "theta", toward_theta, tau), BAR)
        yield Row("capped softmax: dx/dupper", problem, _worst(solution, "upper", toward_upper, tau), BAR)


def relative(found: Tensor, expected: Tensor, floor: float = 1e-4) -> float:
    """The largest |found - expected| / (|expected| + floor) over a batch of arrays, in the Frobenius norm.

    The floor is where an expected value of zero, as of a saturated softmax, leaves nothing to be relative to.
    """
    error, size = ((t.flatten(1) if t.dim() > 1 else t.unsqueeze(0)).norm(dim=1) for t in (found - expected, expected))
    return float((error / (size + floor)).amax())


def _worst(solution: SoftmaxSolution, parameter: str, expected: Tensor, tau: float) -> float:
    return relative(solution.jacobian(parameter), expected, floor=1e-4 / tau)


def _thetas(n: int, scale: float) -> Tensor:
    count = 1 if n >= 1000 else 8
    return scale * torch.randn(count, n, generator=_generator(n), dtype=torch.float64)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _jacobian(p: Tensor) -> Tensor:
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def _closed_softmax(theta: Tensor) -> Tensor:
    return torch.softmax(theta, -1)


def _closed_capped(a: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """x and which caps are active: caps that the softmax of the rest exceeds are added until there is none."""
    active = torch.zeros_like(a, dtype=torch.bool)
    for _ in range(a.shape[-1] + 1):
        room = 1 - torch.where(active, upper, 0).sum(-1, keepdim=True)
        x = torch.where(active, upper, room * torch.softmax(a.masked_fill(active, -torch.inf), -1))
        active = active | (x > upper)
    return x, active


# ---- entropic programs -----------------------------------------------------------------------------------------------


def entropic_rows(n: int = 10, temperatures: Sequence[float] = TEMPERATURES) -> Iterator[Row]:
    """Programs with an entropy against their closed forms, the worst over temperatures and scales of the costs."""
    names = ("x", "dx/dq", "dx/dentropy")
    for problem, closed in (
        (f"softmax with caps, n={n}", _caps),
        (f"no constraints, n={n}", _exponentials),
        ("transport, 2 x 2", _transport),
    ):
        errors = []
        for tau in temperatures:
            solution, x, by_q, by_tau = closed(n, torch.full((1,), tau, dtype=torch.float64))
            derivatives = [
                relative(solution.jacobian("x", name), expected, floor=1e-4 / tau)
                for name, expected in (("q", by_q), ("entropy", by_tau))
            ]
            errors.append((float((solution.x - x).abs().amax()), *derivatives))
        for name, worst in zip(names, zip(*errors, strict=True), strict=True):
            yield Row(f"entropic program: {name}", problem, max(worst, key=lambda e: (e != e, e)), BAR)


def _caps(n: int, tau: Tensor) -> tuple[Solution, Tensor, Tensor, Tensor]:
    """A program with a sum and caps; x, dx/dq and dx/dtau of its closed form."""
    q = -torch.cat([_thetas(n, scale) for scale in SCALES[:-1]])  # tau dx/dtau bears the rounding of q / tau
    upper = 1.5 / n + torch.rand(q.shape, generator=_generator(n), dtype=torch.float64) / n
    one = torch.ones(1, n, dtype=torch.float64)
    x, active = _closed_capped(-q / tau, upper)
    below = torch.where(active, 0, x)
    room = below.sum(-1)[:, None, None]
    J = (below[:, :, None] * below[:, None, :] / room - torch.diag_embed(below)) / tau
    slope = -(J @ (q - q.amin(-1, keepdim=True)).unsqueeze(-1)) / tau  # J 1 = 0
    return solve_qp(None, q, A=one, b=one[0, :1], ub=upper, entropy=tau), x, J, slope


def _exponentials(n: int, tau: Tensor) -> tuple[Solution, Tensor, Tensor, Tensor]:
    """A program without constraints, in which -q / tau is at most 10."""
    q = torch.cat([_thetas(n, scale).clamp(min=-10) for scale in SCALES]) * tau
    x = torch.exp(-q / tau - 1)
    return solve_qp(None, q, entropy=tau), x, -torch.diag_embed(x / tau), (x * q / tau**2).unsqueeze(-1)


def _transport(_: int, tau: Tensor) -> tuple[Solution, Tensor, Tensor, Tensor]:
    """Optimal transport between two points each, with uniform marginals; one of the rows is redundant."""
    C = torch.cat([_thetas(4, scale) for scale in SCALES])
    A = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    gap = -(C @ sign).unsqueeze(-1) / (2 * tau)
    p = torch.sigmoid(gap)
    slope = p * torch.sigmoid(-gap)
    x = torch.where(sign > 0, p, torch.sigmoid(-gap)) / 2
    J = -slope.unsqueeze(-1) / (4 * tau) * sign.outer(sign)
    b = torch.full((4,), 0.5, dtype=torch.float64)
    return solve_qp(None, C, A=A, b=b, entropy=tau), x, J, (-slope * gap * sign / (2 * tau)).unsqueeze(-1)


def _entropic_program(n: int = 10, m: int = 3, p: int = 2, batch: int = 3) -> Problem:
    """A feasible program with an entropy for each variable; some rows and caps are active at its solution."""
    source = _generator(n + m + p)
    P, G, A = (torch.randn(rows, n, generator=source, dtype=torch.float64) for rows in (n, m, p))
    q, x = (torch.randn(batch, n, generator=source, dtype=torch.float64) for _ in range(2))
    inside = torch.softmax(x, -1)
    room = 0.02 + 0.1 * torch.rand(batch, m, generator=source, dtype=torch.float64)
    tau = 0.2 + torch.rand(batch, n, generator=source, dtype=torch.float64)
    return Problem(P @ P.mT / n, 3 * q, G, inside @ G.mT + room, A, inside @ A.mT, 0.5 * inside, 1.6 * inside, tau)


# ---- the gradients of every argument ---------------------------------------------------------------------------------


def program_rows(problem: Problem | None = None) -> Iterator[Row]:
    """The gradient of every argument of a batch of programs, of which P, G and A are shared, against differences."""
    if problem is None:
        problem = random_qp(6, 5, 2, batch=(3,), bounds=True, shared=("P", "G", "A"), seed=5)
    kind = "quadratic" if problem.entropy is None else "entropic"
    tensors = [t for t in (*problem.tensors, problem.entropy) if t is not None]
    n, m, p, (batch,) = problem.n, problem.m, problem.p, problem.batch
    weights = [torch.randn(batch, size, generator=_generator(size), dtype=torch.float64) for size in (n, p, m, n, m)]

    def value(*blocks: Tensor) -> Tensor:
        """One number for each batch of programs, in which every output takes part."""
        solution = solve_qp(*blocks[:8], entropy=blocks[8] if kind == "entropic" else None)
        outputs = (solution.x, solution.y, solution.z, solution.z_box, solution.s)
        return torch.stack([(w * t).sum((-2, -1)) for w, t in zip(weights, outputs, strict=True)]).sum(0)

    variables = [t.clone().requires_grad_() for t in tensors]
    gradients = torch.autograd.grad(value(*variables), variables)
    for i, (name, t, gradient) in enumerate(zip(ARGUMENTS, tensors, gradients, strict=False)):
        # One program a step, for each entry; a shared argument is given a batch dimension to broadcast along.
        steps = STEP * torch.eye(t.numel(), dtype=t.dtype).reshape(t.numel(), *t.shape)
        lead = (t.numel(), 1) if name in ("P", "G", "A") else (t.numel(),)
        moved = [(t + sign * steps).reshape(*lead, *t.shape) for sign in (1, -1)]
        above, below = (value(*tensors[:i], u, *tensors[i + 1 :]) for u in moved)
        difference = ((above - below) / (2 * STEP)).reshape(t.shape)
        error = relative(gradient.flatten(), difference.flatten(), floor=1.0)
        yield Row(f"{kind} program: gradient of {name}", f"n={n}, m={m}, p={p}, {batch} elements", error, FD_BAR)
