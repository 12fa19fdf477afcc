# SPDX-License-Identifier: Apache-2.0
"""The conditions of the implicit function theorem, measured at a point.

the equation holds      distance    max|J^-1 F| / max(1, |z|), how far Newton's method puts the root
F is smooth             smoothness  the gap between the derivative of F and its one-sided slopes, of order 1 at a kink
the Jacobian is regular condition   the condition number of J = dF/dz, in the Euclidean norm, whatever the units
(and, for a batch)      coupling    what of dF/dz lies outside the blocks of the elements
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..derivative.tracing import bare, eager
from ..kkt.algebra import norm
from .factor import factorise, scaled, solve
from .iteration import size
from .jacobian import adjoint_product, jacobian, push, transpose
from .krylov import divide
from .mapping import Mapping, check_point, flat, vector

DISTANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
SMOOTHNESS = {torch.float64: 1e-3, torch.float32: 5e-2}
COUPLING = {torch.float64: 1e-8, torch.float32: 1e-3}
DIRECTIONS = 3
LONGEST = 0.125  # step relative to an entry
COORDINATES = 32  # entries that are also moved one by one


@dataclass(frozen=True, eq=False, repr=False)
class Conditions:
    """What :func:`conditions` found, (*batch) each.

    Attributes:
        residual: max|F(z)|.
        distance: max|J^-1 F| / max(1, max|z|), the estimated relative error of z; that of the derivative is of its
            order.
        smoothness: the largest relative gap between the derivative of a component of F and its slopes to both sides,
            along a few directions in z and theta and, where they are short, along each of their entries: of order 1 at
            a kink, inf where F is not finite on one side, however near.  Steps are relative to each entry, and to the
            largest beside it if it is zero: from 1/8 to what rounding permits.
        component: int64, the component of F, flattened, that has this smoothness; -1 if there is none.
        condition: the condition number of dF/dz with rows and columns brought to one size, so that the units of F and z
            do not matter; inf where it is singular.
        coupling: the relative part of dF/dz that acts between elements of the batch, zero if they are independent.
    """

    residual: Tensor
    distance: Tensor
    smoothness: Tensor
    component: Tensor
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
    gap = _smoothness(F, z, tensors, r)
    none = torch.full(r.shape[:-1], -1, device=r.device)
    return Conditions(
        size(r).squeeze(-1),
        torch.where(factor[-1], error.squeeze(-1), torch.inf),
        size(gap).squeeze(-1),
        gap.argmax(-1) if z.shape[-1] else none,
        _condition(J) if z.shape[-1] else torch.ones_like(r.sum(-1)),
        _coupling(F, z, tensors, J).squeeze(-1),
    )


def _condition(J: Tensor) -> Tensor:
    """The largest singular value over the least, with rows and columns brought to one size as the solvers do."""
    finite = J.isfinite().all(-1).all(-1)
    M = scaled(torch.where(finite[..., None, None], J, 0))[0]
    values = torch.linalg.svdvals(M)
    condition = values[..., 0] / values[..., -1]
    return torch.where(finite & condition.isfinite(), condition, torch.inf)


def _smoothness(F: Callable[..., Tensor], z: Tensor, tensors: Sequence[Tensor], r: Tensor) -> Tensor:
    """For each component of F the relative gap between its derivative and its one-sided slopes, the worst direction."""
    point = [z, *tensors]
    others = (_unit(t, norm(t.reshape(-1))) if t.is_floating_point() else None for t in tensors)
    units = [_unit(z, size(z)), *others]

    def change(direction: Sequence[Tensor | None], side: int, t: float) -> Tensor:
        return F(*(x if d is None else x + side * t * d for x, d in zip(point, direction, strict=True))) - r

    def terms(sizes: Sequence[Tensor | None], t: float) -> Tensor:
        """The sum over the tensors of the change of F when that one moves by t of its size."""
        total = torch.zeros_like(r)
        for i, u in enumerate(sizes):
            if u is not None:
                moves = [[v if j == i else None for j in range(len(sizes))] for v in _mixed(u, i)]
                total = total + torch.stack([change(v, 1, t).abs().nan_to_num(0, 0, 0) for v in moves]).amax(0)
        return total

    own = [None if u is None else torch.where(x == 0, 0, u) for x, u in zip(point, units, strict=True)]
    noise, span = terms(own, 4 * torch.finfo(z.dtype).eps), terms(units, LONGEST)
    mixed = zip(*([None] * DIRECTIONS if u is None else _mixed(u, i) for i, u in enumerate(units)), strict=True)
    worst = torch.zeros_like(r)
    for direction in (*mixed, *_entries(units)):
        slope = push(lambda _, *p: F(*p), z, point, direction)
        for side in (1, -1):
            gap = _gap(partial(change, direction, side), side * slope, noise, span)
            worst = torch.maximum(worst, gap)
    return worst


def _gap(change: Callable[[float], Tensor], slope: Tensor, noise: Tensor, span: Tensor) -> Tensor:
    """How far the slope of a function ahead of 0 is from what it should be, relative to the larger of both.

    The differences D(t) = change(t) / t at steps t, t / 4, t / 16 ... give slopes R = (4 D(t / 4) - D(t)) / 3
    (Richardson).  One counts where it agrees with the one before, and `noise`, the change of F when all entries change
    by their rounding, is too small to matter.  Of those the best is taken, so that steps too long for a
    curved function and too short for rounding do no harm.  Where none counts, a change that stays as the steps shrink
    is a jump, if it is larger than rounding of `span`, the change of F at long steps; else nothing is held against F.
    """
    eps, accuracy = torch.finfo(slope.dtype).eps, SMOOTHNESS[slope.dtype] / 4
    gap, counted = torch.full_like(slope, torch.inf), torch.zeros_like(slope, dtype=torch.bool)
    finite, stayed = counted, torch.zeros_like(slope, dtype=torch.int64)
    t, D, R = LONGEST, change(LONGEST) / LONGEST, torch.full_like(slope, torch.nan)
    while t > eps**1.5:
        t, D_before, R_before = t / 4, D, R
        D = change(t) / t
        R = (4 * D - D_before) / 3
        scale = torch.maximum(R.abs(), slope.abs())
        counts = ((R - R_before).abs() <= accuracy * R.abs() + noise / t) & (noise / t <= accuracy * scale)
        gap = torch.where(counts, torch.minimum(gap, divide((R - slope).abs(), scale)), gap)
        counted, finite = counted | counts, finite | D.isfinite()
        if t > eps**0.75:  # shorter steps fall into the rounding of entries that are not zero
            same = (D - 4 * D_before).abs() <= accuracy * D.abs()
            stayed = torch.where(same & (t * D.abs() > eps**0.5 * span), stayed + 1, 0)
    gap = torch.where(counted, gap, torch.where(stayed >= 2, 1.0, 0.0))
    return torch.where(finite & slope.isfinite(), gap, torch.inf)


def _unit(t: Tensor, largest: Tensor) -> Tensor:
    """What a step is measured by: each entry itself; for those that are zero the largest beside them, else 1."""
    info = torch.finfo(t.dtype)
    least = info.tiny / info.eps
    return torch.where(t.abs() > least, t.abs(), torch.where(largest > least, largest, 1))


def _mixed(unit: Tensor, i: int) -> list[Tensor]:
    """Directions without structure that change all entries of tensor i, and no two tensors in the same way."""
    return [_signs(unit, k + i * DIRECTIONS) * unit for k in range(DIRECTIONS)]


def _entries(units: Sequence[Tensor | None]) -> Iterator[Sequence[Tensor | None]]:
    """Directions that change one entry of z, in every element, or of another tensor, if there are not many."""
    for i, u in enumerate(units):
        shape = () if u is None else u.shape[-1:] if i == 0 else u.shape
        if u is not None and 0 < math.prod(shape) <= COORDINATES:
            for e in torch.eye(math.prod(shape), dtype=u.dtype, device=u.device):
                yield [e.reshape(shape) * u if j == i else None for j in range(len(units))]


def _signs(t: Tensor, k: int) -> Tensor:
    """Numbers without structure, between 1/2 and 1 in size."""
    i = torch.arange(1, t.numel() + 1, dtype=t.dtype, device=t.device).reshape(t.shape)
    c = torch.cos((0.5 + 0.6180339887 * k + 0.7548776662 * i) * i)
    return torch.where(c < 0, c - 1, c + 1) / 2


def _coupling(F: Callable[..., Tensor], z: Tensor, tensors: Sequence[Tensor], J: Tensor) -> Tensor:
    """What dF/dz does to a direction beyond what the blocks of J do to it."""
    v = _signs(z, 0) * size(z).clamp(min=1)
    block = (J @ v.unsqueeze(-1)).squeeze(-1)
    whole = transpose(adjoint_product(F, z, tensors), z)(v)
    return divide(size(whole - block), torch.maximum(size(whole), size(block)))
