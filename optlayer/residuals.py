# SPDX-License-Identifier: Apache-2.0
"""How far a point is from solving a program (problem.py).

With multipliers z >= 0 of Gx <= h, y (free) of Ax = b, and z_box of the bounds, negative at an active lower bound and
positive at an active upper one, a point is optimal when

    Gx <= h, Ax = b, lb <= x <= ub                        primal feasibility
    Px + q + A'y + G'z + z_box = 0, z >= 0                 dual feasibility
    x'Px + q'x + b'y + h'z + lb'z_box^- + ub'z_box^+ = 0   no duality gap

where an entropy adds tau (log x + 1) to q.
"""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import HUGE
from .status import readable


class Residuals(NamedTuple):
    """How far a point is from solving a problem; every field has shape (*batch).  See :func:`residuals`.

    It prints its values, or the largest residuals of a batch and how many elements have none.
    """

    primal: Tensor
    dual: Tensor
    gap: Tensor
    objective: Tensor
    dual_objective: Tensor
    primal_scale: Tensor
    dual_scale: Tensor
    gap_scale: Tensor

    def within(self, eps_abs: float, eps_rel: float) -> Tensor:
        """(*batch) bool: each of the three residuals is at most eps_abs + eps_rel * its scale; NaN never is."""
        return (
            (self.primal <= eps_abs + eps_rel * self.primal_scale)
            & (self.dual <= eps_abs + eps_rel * self.dual_scale)
            & (self.gap <= eps_abs + eps_rel * self.gap_scale)
        )

    def __repr__(self) -> str:
        if not readable(self.primal):
            return f"Residuals(batch={tuple(self.primal.shape)})"
        if self.primal.ndim == 0:
            return f"Residuals({', '.join(f'{k}={float(t.detach()):.3g}' for k, t in self._asdict().items())})"
        if not self.primal.numel():
            return f"Residuals(batch={tuple(self.primal.shape)})"
        worst = torch.stack(self[:3]).detach()
        none = worst.isnan().any(0)
        largest = worst[:, ~none].amax(1) if bool((~none).any()) else worst.new_full((3,), torch.nan)
        found = ", ".join(f"{k}={float(t):.3g}" for k, t in zip(self._fields, largest, strict=False))
        missing = f", {int(none.sum())} of {none.numel()} are NaN" if bool(none.any()) else ""
        return f"Residuals(batch={tuple(none.shape)}, at most {found}{missing})"


def residuals(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    z_box: Tensor,
    entropy: Tensor | None = None,
    least: float | None = None,
) -> Residuals:
    """The residuals of the optimality conditions at any point, their scales, and both objectives.

        primal    max(|Ax - b|, (Gx - h)+, (lb - x)+, (x - ub)+)
        dual      max(|Px + q + A'y + G'z + z_box|, the multipliers of a wrong sign and those of infinite h, lb, ub)
        gap       |x'Px + q'x + b'y + h'z + lb'z_box^- + ub'z_box^+|
        objective, dual_objective    1/2 x'Px + q'x,   -1/2 x'Px - b'y - h'z - lb'z_box^- - ub'z_box^+
        primal_scale    max(|Ax|, |b|, |Gx|, |h|, and |x| if there are finite bounds)
        dual_scale      max(|Px|, |q|, |A'y|, |G'z|, |z_box|)
        gap_scale       min(|objective|, |dual_objective|)

    in infinity norms, with the symmetric part of P.  What is infinite in h, lb and ub contributes nothing else.  The
    formulas are qpsolvers', but the dual residual also sees the signs of the multipliers, so that three small numbers
    prove a point optimal.  Plain differentiable torch code, evaluated in the dtype of the arguments.

    With an entropy tau the objective has sum_i tau_i x_i log x_i besides; stationarity, gap and dual_scale have
    q + tau (log x + 1) in place of q, and dual_objective -sum_i tau_i x_i besides.  An x_i of at most `least` has
    underflowed: there stationarity asks only that it should have.  Where a cap or a row forces x_i to zero,
    and z_box is +inf, it asks nothing.

    Args:
        P, q, G, h, A, b, lb, ub, entropy: the problem, as in :class:`Problem`.
        x, y, z, z_box: the point: (*batch, n), (*batch, p), (*batch, m), (*batch, n).
        least: the smallest normal number of the dtype in which x was found; ``None``: that of x.

    Returns:
        A :class:`Residuals` of tensors (*batch).
    """
    Px = torch.zeros_like(x) if P is None else curvature(P, x)
    xPx = dot(x, Px)
    objective = 0.5 * xPx + dot(q, x)
    dual_scale = [norm(Px), norm(q)]
    least = torch.finfo(x.dtype).tiny if least is None else least
    if entropy is None:
        force, dual_offset = q, torch.zeros_like(objective)
    else:
        shut = (x == 0) & (z_box == torch.inf)
        z_box = torch.where(shut, 0.0, z_box)
        slope = entropy * (x.clamp(min=least).log() + 1)
        objective = objective + (entropy * torch.xlogy(x, x)).sum(-1)
        dual_offset = -(entropy * x).sum(-1)
        force = q + slope
        dual_scale.append(norm(torch.where(x > least, slope, 0.0)))
    stationarity = Px + force + z_box
    support = torch.zeros_like(objective)  # b'y + h'z + lb'z_box^- + ub'z_box^+
    primal, primal_scale = [torch.zeros_like(support)], [torch.zeros_like(support)]
    dual = []
    dual_scale.append(norm(z_box))

    if A is not None and b is not None:
        Ax, Aty = matvec(A, x), matvec(A.mT, y)
        stationarity = stationarity + Aty
        support = support + dot(b, y)
        primal.append(norm(Ax - b))
        primal_scale += [norm(Ax), norm(b)]
        dual_scale.append(norm(Aty))
    if G is not None and h is not None:
        Gx, Gtz = matvec(G, x), matvec(G.mT, z)
        free = h >= HUGE
        finite_h = torch.where(free, 0.0, h)
        stationarity = stationarity + Gtz
        support = support + dot(finite_h, z)
        primal.append(norm(torch.where(free, 0.0, Gx - finite_h).clamp(min=0)))
        primal_scale += [norm(torch.where(free, 0.0, Gx)), norm(finite_h)]
        dual.append(norm(torch.where(free, z, z.clamp(max=0))))
        dual_scale.append(norm(Gtz))
    lower, upper = z_box.clamp(max=0), z_box.clamp(min=0)
    bounded = torch.zeros_like(support, dtype=torch.bool)
    if lb is not None:
        free = lb <= -HUGE
        bounded = bounded | ~free.all(-1)
        finite_lb = torch.where(free, 0.0, lb)
        support = support + dot(finite_lb, lower)
        primal.append(norm(torch.where(free, 0.0, finite_lb - x).clamp(min=0)))
        lower = torch.where(free, lower, 0.0)
    if ub is not None:
        free = ub >= HUGE
        bounded = bounded | ~free.all(-1)
        finite_ub = torch.where(free, 0.0, ub)
        support = support + dot(finite_ub, upper)
        primal.append(norm(torch.where(free, 0.0, x - finite_ub).clamp(min=0)))
        upper = torch.where(free, upper, 0.0)
    if lb is not None or ub is not None:
        primal_scale.append(torch.where(bounded, norm(x), 0.0))
    gap = (xPx + dot(q, x) + support).abs()
    if entropy is not None:
        stationarity = torch.where(x > least, stationarity, torch.where(shut, 0.0, stationarity.clamp(max=0)))
        gap = (xPx + dot(q, x) + (entropy * (torch.xlogy(x, x) + x)).sum(-1) + support).abs()
    dual += [norm(stationarity), norm(lower), norm(upper)]

    dual_objective = dual_offset - 0.5 * xPx - support
    return Residuals(
        largest(primal),
        largest(dual),
        gap,
        objective,
        dual_objective,
        largest(primal_scale),
        largest(dual_scale),
        torch.minimum(objective.abs(), dual_objective.abs()),
    )


def curvature(P: Tensor, x: Tensor) -> Tensor:
    """(P + P')/2 x; a P of shape (*batch, 1, n) is the diagonal of a diagonal matrix."""
    if P.shape[-2] != P.shape[-1]:
        return P.squeeze(-2) * x
    return 0.5 * (matvec(P, x) + matvec(P.mT, x))


def matvec(M: Tensor, v: Tensor) -> Tensor:
    """M v; one matrix product where the batch shares M."""
    return v @ M.mT if M.ndim == 2 else (M @ v.unsqueeze(-1)).squeeze(-1)


def dot(u: Tensor, v: Tensor) -> Tensor:
    """u'v along the last dimension."""
    return (u * v).sum(-1)


def norm(v: Tensor) -> Tensor:
    """The infinity norm along the last dimension; 0 for a vector without entries."""
    return torch.linalg.vector_norm(v, torch.inf, -1) if v.shape[-1] else v.new_zeros(v.shape[:-1])


def largest(values: list[Tensor]) -> Tensor:
    """The elementwise maximum; NaN wins."""
    return reduce(torch.maximum, values)
