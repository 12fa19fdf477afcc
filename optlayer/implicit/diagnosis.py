# SPDX-License-Identifier: Apache-2.0
"""What a failed status means for an equation, a fixed point, a minimiser or a linear system, and what may help.

The members of :class:`optlayer.Status` speak of programs with constraints; here is nothing that could be infeasible.
"""

from __future__ import annotations

from ..status import Status

Words = tuple[str, str]  # diagnosis, advice

_LIMIT = "The iteration limit was reached."
_LESS = "ask for less accuracy with eps_abs and eps_rel"

LINEAR: dict[Status, Words] = {
    Status.MAX_ITERATIONS: (_LIMIT, "Raise max_iter or eps_rel, or take a method that factorises the matrix."),
    Status.INSUFFICIENT_PROGRESS: (
        "The iteration stagnated, or broke down, before the residual was as small as eps_rel asks.",
        "Raise eps_rel, or take another method: "
        '"lu" or "gmres" for a regular matrix, "svd" or "lsmr" for a singular one.',
    ),
    Status.NUMERICAL_ERROR: (
        "The matrix is singular but for rounding, not positive definite where the method asks for that, or not finite.",
        'Take "svd", "lsmr" or "normal_cg" for the least squares solution of least norm, or solve in float64.',
    ),
    Status.INVALID_DATA: ("The right-hand side holds a NaN or an infinity.", "Check b, or the cotangent, for NaN."),
}

DERIVATIVE: dict[Status, Words] = {
    **LINEAR,
    Status.NUMERICAL_ERROR: (
        "dF/dz is singular at the solution but for rounding, or not finite: there is no derivative.",
        "optlayer.implicit.conditions measures it; a problem whose solution is unique nearby has a regular one.",
    ),
    Status.INVALID_DATA: (
        "A cotangent or a tangent holds a NaN or an infinity.",
        "Check the loss that is differentiated, and theta, for NaN.",
    ),
}

ROOT: dict[Status, Words] = {
    Status.MAX_ITERATIONS: (_LIMIT, f"Raise max_iter, start from a z0 nearer to a root, or {_LESS}."),
    Status.INSUFFICIENT_PROGRESS: (
        "No step from the last iterate makes |F| smaller, and F is not zero there.",
        f"Check that F has a root, for a least |F| need not be one, start from another z0, or {_LESS}.",
    ),
    Status.INVALID_DATA: (
        "z0 or F(z0) holds a NaN or an infinity.",
        "Check z0 and theta, and start where F is finite.",
    ),
}

FIXED_POINT: dict[Status, Words] = {
    Status.MAX_ITERATIONS: (
        _LIMIT,
        f'Raise max_iter, take the method "anderson" or "newton" if f hardly contracts, or {_LESS}.',
    ),
    Status.INSUFFICIENT_PROGRESS: (
        "The iterates ran away, or no step makes |f(z) - z| smaller.",
        'Check that f has a fixed point, take the method "newton" if f does not contract, or start from another z0.',
    ),
    Status.INVALID_DATA: (
        "z0 or f(z0) holds a NaN or an infinity.",
        "Check z0 and theta, and start where f is finite.",
    ),
}

MINIMISER: dict[Status, Words] = {
    Status.MAX_ITERATIONS: (
        _LIMIT,
        f"Raise max_iter, check that f is bounded below, start from a z0 nearer to a minimiser, or {_LESS}.",
    ),
    Status.INSUFFICIENT_PROGRESS: (
        "No step downhill makes f smaller, and its gradient is not zero there.",
        f"Check that f is differentiable, start from another z0, solve in float64, or {_LESS}.",
    ),
    Status.NON_CONVEX: (
        "The gradient of f is zero, but its Hessian has a negative eigenvalue: the point is no minimiser.",
        "Start from another z0, beside this point rather than on it.",
    ),
    Status.INVALID_DATA: (
        "z0, f(z0) or its gradient holds a NaN or an infinity.",
        "Check z0 and theta, and start where f and its gradient are finite.",
    ),
}

SOLVES = {"root": ROOT, "fixed_point": FIXED_POINT, "argmin": MINIMISER, "linear_solve": LINEAR}


def words(what: str, status: Status) -> Words:
    """Diagnosis and advice for a status other than SOLVED of a solve, or of "the derivative of" one."""
    return SOLVES.get(what, DERIVATIVE)[status]
