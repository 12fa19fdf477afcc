# SPDX-License-Identifier: Apache-2.0
"""Solve a batch of quadratic programs, with or without an entropy."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import derivative
from . import solvers as solvers  # importing it registers the engines
from .entropic import program as entropic
from .errors import ProblemError, SettingsError
from .problem import FULL, Problem, fill, kind, validate, working_dtype
from .settings import Settings
from .solution import Factorisation, Point, Rule, Solution

PARTS = ("x", "y", "z", "z_box")


def solve_qp(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lb: Tensor | float | None = None,
    ub: Tensor | float | None = None,
    *,
    entropy: Tensor | float | None = None,
    warm_start: Solution | Sequence[Tensor | None] | None = None,
    settings: Settings | None = None,
    **overrides: Any,
) -> Solution:
    """Solve a batch of convex quadratic programs; the solution is differentiable in all of their data.

        minimise  1/2 x'Px + q'x    subject to   Gx <= h,   Ax = b,   lb <= x <= ub

    With ``entropy=tau`` the objective has sum_i tau_i x_i log x_i besides, and x > 0: softmax with constraints,
    entropic optimal transport, maximum entropy under moments.  The solve then uses the structure of what is given:
    without P, or with a diagonal one, k rows cost O(n k^2) operations, so that n may be 100,000.

    Each element of the batch is solved as if it were alone and has its own status.  P counts through its symmetric part
    and may be singular or absent (a linear program).  Leading batch dimensions broadcast as in ``torch.linalg``; an
    argument without them is shared by the batch, and its gradient is the sum over the batch.

    Args:
        P: (*batch, n, n), positive semidefinite; ``None`` stands for zero.  With an entropy also (*batch, 1, n), the
            diagonal of a diagonal P.
        q: (*batch, n), float64 or float32.  It fixes n, the dtype and the device of all arguments.
        G, h: (*batch, m, n) and (*batch, m), both or neither; a row with h = +inf is no constraint.
        A, b: (*batch, p, n) and (*batch, p), both or neither; rows may be redundant.
        lb, ub: (*batch, n), or one number for all variables; -inf and +inf are no bounds.  One may come without the
            other.  Magnitudes of 1e20 and more count as infinite here and in h.
        entropy: tau > 0: (*batch, n), or (*batch, 1) or one number for all variables; ``None`` for a program without.
            A tensor that is not positive and finite is INVALID_DATA of its element.  Every x is positive then, but
            where a cap or a row forces it to zero, and a lower bound counts where it is positive.
        warm_start: a guess: the :class:`Solution` of a similar problem, or (x, y, z, z_box) of which each may be
            ``None``.  The solution and its derivative do not depend on it beyond the accuracy that was asked for.
            The multipliers matter: x alone may take more iterations than no guess at all.  With an entropy it is not
            used.
        settings: how to solve, see :class:`optlayer.Settings`.
        **overrides: fields of ``settings``, such as ``eps_abs=1e-6`` or ``on_failure="raise"``.

    Returns:
        A :class:`Solution`: x (*batch, n), y (*batch, p), z (*batch, m), z_box (*batch, n), s (*batch, m), status
        (*batch) and what else is known of it.  Under autocast half precision arguments are solved in float32.

        Elements that are infeasible, unbounded, non-convex or hold invalid values are no exception: they have a status,
        and by default NaN for a solution.  A cotangent of exactly zero there gives a gradient of exactly zero, so that
        ``loss[solution.solved].sum()`` trains on the others.

        Entropic problems are solved in float64 whatever the dtype, and rounded.

    Raises:
        ProblemError: a wrong type, dtype, device or shape, a number for the entropy that is not positive, or numbers
            for the bounds with lb > ub, before any work.
        SettingsError: an unknown setting or one out of its range.
        SolverError: an element failed and ``on_failure="raise"``.

    Example:
        The point of the unit simplex that is nearest to (1, 2, 3) / 4, and its derivative.

        >>> import torch
        >>> from optlayer import solve_qp
        >>> target = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, requires_grad=True)
        >>> one = torch.ones(1, 3, dtype=torch.float64)
        >>> solution = solve_qp(torch.eye(3, dtype=torch.float64), -target, A=one, b=one[:, 0], lb=0)
        >>> solution.x.round(decimals=4).tolist()
        [0.0833, 0.3333, 0.5833]
        >>> solution.x[0].backward()
        >>> target.grad.round(decimals=4).tolist()
        [0.6667, -0.3333, -0.3333]

        Softmax is the same with an entropy in place of P, and a constraint more is one row more.

        >>> theta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> solve_qp(None, -theta, A=one, b=one[:, 0], entropy=1.0).x.round(decimals=4).tolist()
        [0.09, 0.2447, 0.6652]
        >>> solve_qp(None, -theta, A=one, b=one[:, 0], ub=0.5, entropy=1.0).x.round(decimals=4).tolist()
        [0.1345, 0.3655, 0.5]
    """
    if entropy is None and warm_start is None and isinstance(q, Tensor) and q.dtype in FULL:
        how = _how(settings, overrides, q.dtype)
        raw = derivative.solve_at_once((P, q, G, h, A, b, lb, ub), how.options)
        if raw is not None:
            given = {"P": P, "q": q, "G": G, "h": h, "A": A, "b": b, "lb": lb, "ub": ub}
            return fill(Solution, _fields(raw, fill(Problem, given), how.settings))
    problem = validate(P, q, G, h, A, b, lb, ub, entropy)
    dtype = working_dtype(q)
    how = _how(settings, overrides, dtype)
    warm = None if warm_start is None else _warm(warm_start, problem, dtype)
    if entropy is not None:
        return _solve_entropic(problem, how.settings)
    return Solution(**_fields(derivative.solve(*problem.tensors, warm, how.options), problem, how.settings))


def _fields(raw: Sequence[Tensor], problem: Problem, settings: Settings) -> dict[str, Any]:
    x, y, z, z_box, s, status, iterations, weakly_active, lower_share, ray, state, factor, index = raw
    return {
        "x": x,
        "y": y,
        "z": z,
        "z_box": z_box,
        "s": s,
        "status": status,
        "iterations": iterations,
        "weakly_active": weakly_active,
        "ray": ray,
        "problem": problem,
        "settings": settings,
        "factorisation": Factorisation(lower_share, state, factor, index),
        "rule": RULE,
    }


def _solve_entropic(problem: Problem, settings: Settings) -> Solution:
    options = entropic.Options(
        settings.eps_abs,  # type: ignore[arg-type]  # resolved: not None
        settings.eps_rel,  # type: ignore[arg-type]
        settings.max_iter,
        settings.backend,
        settings.on_failure,
        settings.factorisation == "keep",
    )
    raw = entropic.solve(*problem.tensors, problem.entropy, *options)
    return Solution(
        x=raw.x,
        y=raw.y,
        z=raw.z,
        z_box=raw.z_box,
        s=raw.s,
        status=raw.status,
        iterations=raw.iterations,
        weakly_active=raw.weakly_active,
        ray=torch.cat([torch.zeros_like(raw.ray_box), raw.ray_y, raw.ray_z, raw.ray_box], -1),
        problem=problem,
        settings=settings,
        factorisation=Factorisation(raw.lower_share, raw.state, raw.factor, torch.empty_like(raw.status)),
        rule=ENTROPIC_RULE,
        log_x=raw.log_x,
    )


class How(NamedTuple):
    """How to solve: settings without ``None``, and the same as the operator takes them."""

    settings: Settings
    options: derivative.Options


def _how(settings: Settings | None, overrides: dict[str, Any], dtype: torch.dtype) -> How:
    """The settings of a call. What the overrides of recent calls came to is kept: a small problem is solved sooner."""
    if settings is None:
        if not overrides:
            return DEFAULTS[dtype]
        if not torch.compiler.is_compiling():
            try:
                return _recent(dtype, **overrides)
            except TypeError:  # something in them cannot be looked up
                pass
        return _resolved(Settings(**overrides), dtype)
    if not isinstance(settings, Settings):
        raise SettingsError(f"settings is {settings!r}, expected an optlayer.Settings")
    return _resolved(settings.override(**overrides) if overrides else settings, dtype)


def _resolved(settings: Settings, dtype: torch.dtype) -> How:
    settings = settings.resolve(dtype)
    options = derivative.Options(
        settings.eps_abs,  # type: ignore[arg-type]  # resolved: not None
        settings.eps_rel,  # type: ignore[arg-type]
        settings.max_iter,
        settings.backend,
        settings.formulation,
        settings.on_failure,
        settings.factorisation == "keep",
    )
    return How(settings, options)


@functools.lru_cache(maxsize=64, typed=True)
def _recent(dtype: torch.dtype, **overrides: Any) -> How:
    return _resolved(Settings(**overrides), dtype)


DEFAULTS = {dtype: _resolved(Settings(), dtype) for dtype in FULL}


def _warm(
    warm_start: Solution | Sequence[Tensor | None], problem: Problem, dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """The four parts of a warm start, checked against the problem."""
    if isinstance(warm_start, Solution):
        warm_start = (warm_start.x, warm_start.y, warm_start.z, warm_start.z_box)
    if not isinstance(warm_start, (tuple, list)) or len(warm_start) != 4:
        found = kind(warm_start) + (f" of {len(warm_start)}" if isinstance(warm_start, (tuple, list)) else "")
        raise ProblemError(f"warm_start is {found}, expected a Solution or (x, y, z, z_box), of which each may be None")
    batch, device = problem.batch, problem.q.device
    sizes = (problem.n, problem.p, problem.m, problem.n)
    for name, size, t in zip(PARTS, sizes, warm_start, strict=True):
        if t is None:
            continue
        if not isinstance(t, Tensor) or t.dtype is not dtype or t.device != device:
            found = f"{t.dtype} on {t.device}" if isinstance(t, Tensor) else kind(t)
            raise ProblemError(f"{name} of warm_start is {found}, expected a tensor of {dtype} on {device}")
        shape = t.shape
        lead = shape[:-1]
        short = len(batch) - len(lead)
        if (
            not shape
            or shape[-1] != size
            or short < 0
            or any(a not in (1, b) for a, b in zip(lead, batch[short:], strict=True))
        ):
            raise ProblemError(
                f"{name} of warm_start has shape {tuple(shape)}, expected one that broadcasts to {(*batch, size)}"
            )
    return tuple(None if t is None else t.detach() for t in warm_start)


def _linear(solution: Solution, r: Point) -> Point:
    P, _, G, _, A, *_ = solution.problem.to(solution.x.dtype).tensors  # they differ under autocast only
    _, state, factor, index = solution.factorisation
    return Point(*derivative.linear(P, G, A, state, factor, index, solution.status, *r, solution.settings.backend))


def _adjoint(solution: Solution, output: str, cotangent: Tensor, parameter: str) -> Tensor:
    lower_share, state, factor, index = solution.factorisation
    raw = derivative.Raw(
        *(solution.x, solution.y, solution.z, solution.z_box, solution.s),
        *(solution.status, solution.iterations, solution.weakly_active, lower_share, solution.ray),
        *(state, factor, index),
    )
    cotangents: dict[str, Any] = {"g_box" if output == "z_box" else f"g_{output}": cotangent}
    gradients = derivative.adjoint(
        *solution.problem.to(solution.x.dtype).tensors,
        raw,
        **cotangents,
        wanted=(parameter,),
        backend=solution.settings.backend,
    )
    return gradients[parameter]


def _entropic_linear(solution: Solution, r: Point) -> Point:
    problem = solution.problem.to(solution.x.dtype)
    P, _, G, _, A, *_ = problem.tensors
    _, state, factor, _ = solution.factorisation
    log_e = entropic.log_e(problem.entropy, solution.log_x, solution.status)
    backend = solution.settings.backend
    return Point(*entropic.linear(P, G, A, log_e, state, factor, solution.status, *r, backend)[:4])


def _entropic_adjoint(solution: Solution, output: str, cotangent: Tensor, parameter: str) -> Tensor:
    lower_share, state, factor, _ = solution.factorisation
    problem = solution.problem.to(solution.x.dtype)
    given: Any = (solution.x, solution.y, solution.z, solution.s, solution.log_x, lower_share)
    cotangents = [cotangent if output == name else None for name in ("x", "y", "z", "z_box", "s", "log_x")]
    kept = (state, factor, solution.status)
    tensors, backend = (*problem.tensors, problem.entropy), solution.settings.backend
    return entropic.adjoint(tensors, given, kept, cotangents, (parameter,), backend)[parameter]


RULE = Rule(_linear, _adjoint)
ENTROPIC_RULE = Rule(_entropic_linear, _entropic_adjoint)
