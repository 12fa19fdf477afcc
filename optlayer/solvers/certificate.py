# SPDX-License-Identifier: Apache-2.0
"""Certificates that a problem has no solution, in the caller's units.

Farkas: y, z >= 0 and z_box with A'y + G'z + z_box = 0 and b'y + h'z + lb'z_box^- + ub'z_box^+ < 0 prove that no x
satisfies the constraints. Ray: d with Pd = 0, Ad = 0, Gd <= 0, d in the recession cone of the bounds and q'd < 0 proves
that a feasible objective falls without end.

Iterates give neither exactly. A finite bound can absorb any residual of its sign, so z_box is chosen to do so; what is
left is compared with the gap v that the certificate proves, and v must rise above both the rounding of its own terms
and the tolerance to which feasibility means anything. A residual must also be small in equilibrated
units: otherwise a problem stated in small units would pass for one without a solution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kkt.algebra import dot, highest, norm

ROUNDING = 1e-10  # v against the sum of the absolute values of its terms
SMALL = 1e-6  # a residual against the multipliers or the direction, in equilibrated units


def farkas(
    Cv: Tensor, d: Tensor, v: Tensor, lb: Tensor | None, ub: Tensor | None, gap: float, unit: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(ratio, v, z_box): the residual |C'v + z_box| of the certificate normalised to a proven gap of 1, inf where none.

    Cv = C'v (B, n), d = [b; h] (B, p + m) with zeros where h is infinite, v = [y; z] (B, p + m) with z >= 0. `unit`
    (B, n) brings the residual to equilibrated units, in which v has the norm `size` (B,).
    """
    w = -Cv
    if lb is None or ub is None:
        z_box = bound = torch.zeros_like(w)
    else:
        finite = torch.where(w > 0, ub.isfinite(), lb.isfinite())
        z_box = torch.where(finite, w, 0.0)
        bound = torch.where(finite & (w != 0), torch.where(w > 0, ub, lb), 0.0)
    value = -(dot(d, v) + dot(bound, z_box))
    terms = dot(d.abs(), v.abs()) + dot(bound.abs(), z_box.abs())
    mass = v.abs().sum(-1) + z_box.abs().sum(-1)
    data = torch.maximum(norm(d), norm(bound)).clamp(max=1)
    proven = (value > ROUNDING * terms) & (value > gap * data * mass)
    proven = proven & (norm((z_box - w) * unit) <= SMALL * size)
    worth = torch.where(proven, value, 1.0)
    ratio = torch.where(proven, norm(z_box - w) / worth, torch.inf)
    return ratio, v / worth.unsqueeze(-1), z_box / worth.unsqueeze(-1)


def ray(
    q: Tensor,
    x: Tensor,
    Px: Tensor,
    Cx: Tensor,
    p: int,
    lb: Tensor | None,
    ub: Tensor | None,
    descent: float,
    units: Tensor,
    size: Tensor,
) -> tuple[Tensor, Tensor]:
    """(violation, d) for the direction d = x / -q'x; inf where the objective falls by no more than descent |q| |x|.

    `units` (B, n + p + m) brings Px and Cx to equilibrated units in which every row of P and C has the norm 1 and x the
    norm `size` (B,).
    """
    fall = -dot(q, x)
    left = torch.cat([Px.abs(), Cx[:, :p].abs(), Cx[:, p:].clamp(min=0)], 1)
    falls = (fall > descent * norm(q) * x.abs().sum(-1)) & (norm(left * units) <= SMALL * size)
    worth = torch.where(falls, fall, 1.0).unsqueeze(-1)
    d = x / worth
    violation = norm(left / worth)
    if lb is not None and ub is not None:
        violation = torch.maximum(violation, highest(torch.where(lb.isfinite(), -d, 0.0)))
        violation = torch.maximum(violation, highest(torch.where(ub.isfinite(), d, 0.0)))
    return torch.where(falls, violation, torch.inf), d
