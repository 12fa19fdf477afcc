# SPDX-License-Identifier: Apache-2.0
"""The conditions of the implicit function theorem, measured at a point.

the equation holds      distance    max|J^-1 F| / max(1, |z|), how far Newton's method puts the root
F is smooth             smoothness  what finite differences of F miss of its derivative, and a kink at the point
the Jacobian is regular condition   the condition number of J = dF/dz, in the Euclidean norm
(and, for a batch)      coupling    what of dF/dz lies outside the blocks of the elements
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..derivative.tracing import bare, eager
from .factor import factorise, solve
from .iteration import size
from .jacobian import adjoint_product, jacobian, push, transpose
from .krylov import divide
from .mapping import Mapping, check_point, flat, vector

DISTANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
SMOOTHNESS = {torch.float64: 1e-3, torch.float32: 5e-2}
COUPLING = {torch.float64: 1e-8, torch.float32: 1e-3}
DIRECTIONS = 3


@dataclass(frozen=True, eq=False, repr=False)
class Conditions:
    """What :func:`conditions` found, (*batch) each.

    Attributes:
        residual: max|F(z)|.
        distance: max|J^-1 F| / max(1, max|z|), the estimated relative error of z; that of the derivative is of its
            order.
        smoothness: the largest relative difference between central differences of F and its derivative, or between its
            one-sided differences, along a few directions in z and theta; of order 1 at a kink.
        condition: the condition number of dF/dz; inf where it is singular.
        coupling: the relative part of dF/dz that acts between elements of the batch, zero if they are independent.
    """

    residual: Tensor
    distance: Tensor
    smoothness: Tensor
    condition: Tensor
    coupling: Tensor

    @property
    def hold(self) -> Tensor:
        """(*batch) bool: whether all conditions hold.

        distance <= 1e-6, smoothness <= 1e-3, condition < 1 / (4 eps), coupling <= 1e-8; in float32 1e-3, 5e-2,
        1 / (4 eps), 1e-3.
        """
        dtype = self.residual.dtype
        return (
            (self.distance <= DISTANCE[dtype])
            & (self.smoothness <= SMOOTHNESS[dtype])
            & (self.condition * 4 * torch.finfo(dtype).eps < 1)
            & (self.coupling <= COUPLING[dtype])
        )

    def __repr__(self) -> str:
        worst = ", ".join(
            f"{name} {float(getattr(self, name).amax()):.1e}"
            for name in ("residual", "distance", "smoothness", "condition", "coupling")
            if self.residual.numel()
        )
        return f"Conditions(hold for {int(self.hold.sum())} of {self.hold.numel()} elements; worst: {worst})"


@eager
def conditions(F: Any, z: Tensor, *theta: Any, batch_dims: int = 0) -> Conditions:
    """Check whether z is a root of F(z, *theta) at which the implicit function theorem applies.

    The theorem asks that F(z, theta) = 0, that F is continuously differentiable near (z, theta), and that dF/dz is
    regular there; then, near theta, there is one differentiable z(theta).  A diagnosis for development: it forms the
    Jacobian, whatever its size, and its results are constants.

    Args:
        F, z, theta, batch_dims: as given to :func:`implicit`.

    Returns:
        :class:`Conditions`, whose ``hold`` says for each element whether all is well, and whose numbers say what is
        not.

    Raises:
        ProblemError: as :func:`implicit`.

    Example:
        |z| = theta has a kink at 0 and two roots elsewhere.

        >>> import torch
        >>> from optlayer.implicit import conditions
        >>> z = torch.tensor([2.0, 0.0], dtype=torch.float64)
        >>> found = conditions(lambda z, theta: z.abs() - theta, z, z.abs(), batch_dims=1)
        >>> found.hold.tolist(), found.condition.tolist()
        ([True, False], [1.0, inf])
    """
    check_point("z", z, batch_dims)
    mapping = Mapping(F, theta)
    mapping.check(z, bare(z).shape)
    batch, event = z.shape[:batch_dims], z.shape[batch_dims:]
    with torch.no_grad():
        return _measure(flat(mapping, batch, event), vector(z.detach(), batch, event), mapping.tensors)


def _measure(F: Callable[..., Tensor], z: Tensor, tensors: Sequence[Tensor]) -> Conditions:
    r = F(z, *tensors)
    J = jacobian(F, z, tensors)
    factor = factorise(J, "lu")
    error = size(solve(factor, r, "lu", False)) / size(z).clamp(min=1)
    condition = _condition(J) if z.shape[-1] else torch.ones_like(r.sum(-1))
    return Conditions(
        size(r).squeeze(-1),
        torch.where(factor[-1], error.squeeze(-1), torch.inf),
        _smoothness(F, z, tensors, r).squeeze(-1),
        condition,
        _coupling(F, z, tensors, J).squeeze(-1),
    )


def _condition(J: Tensor) -> Tensor:
    """The largest singular value over the least."""
    finite = J.isfinite().all(-1).all(-1)
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], J, 0))
    condition = values[..., 0] / values[..., -1]
    return torch.where(finite & condition.isfinite(), condition, torch.inf)


def _smoothness(F: Callable[..., Tensor], z: Tensor, tensors: Sequence[Tensor], r: Tensor) -> Tensor:
    """Differences along directions that change z and all tensors at once, beside the derivative."""
    h = torch.finfo(z.dtype).eps ** (1 / 3)
    point = [z, *tensors]
    worst = torch.zeros_like(size(r))
    for k in range(DIRECTIONS):
        steps = [_direction(t, k) if t.is_floating_point() else None for t in point]
        slope = push(lambda _, *p: F(*p), z, point, steps)
        ahead, behind = (
            F(*(t if d is None else t + sign * h * d for t, d in zip(point, steps, strict=True))) for sign in (1, -1)
        )
        missed = torch.maximum(size((ahead - behind) / (2 * h) - slope), size(ahead - 2 * r + behind) / h)
        scale = torch.maximum(size(slope), size((ahead - behind) / (2 * h)))
        relative = torch.where(missed == 0, 0, missed / torch.maximum(scale, missed))
        worst = torch.maximum(worst, torch.where(relative.isfinite(), relative, torch.inf))
    return worst


def _direction(t: Tensor, k: int) -> Tensor:
    """A direction without structure, as long as t or 1, whichever is longer."""
    i = torch.arange(1, t.numel() + 1, dtype=t.dtype, device=t.device).reshape(t.shape)
    largest = t.abs().amax() if t.numel() else t.sum()
    return torch.cos((0.5 + 0.6180339887 * k + 0.7548776662 * i) * i) * largest.clamp(min=1)


def _coupling(F: Callable[..., Tensor], z: Tensor, tensors: Sequence[Tensor], J: Tensor) -> Tensor:
    """What dF/dz does to a direction beyond what the blocks of J do to it."""
    v = _direction(z, 0)
    block = (J @ v.unsqueeze(-1)).squeeze(-1)
    whole = transpose(adjoint_product(F, z, tensors), z)(v)
    return divide(size(whole - block), torch.maximum(size(whole), size(block)))
