# SPDX-License-Identifier: Apache-2.0
"""Two projections that decide whether a stalled problem has a solution at all.

    nearest feasible:   min 1/2 |e|^2   s.t.  Gx - e_G <= h,  Ax - e_A = b,  lb <= x <= ub
    steepest ray:       min 1/2 |d|^2 + q'd / |q|   s.t.  Pd = 0,  Ad = 0,  Gd <= 0,  d in the recession cone of the bounds

Both always have a solution. The multipliers of the first are the residuals e themselves, and a Farkas certificate where e is not
zero; a solution d of the second that is not zero is a ray of descent. They run through the same interior point method.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kkt.algebra import mv, norm, tmv
from ..kkt.scaling import equilibrate
from .certificate import farkas, ray
from .interior import InteriorPoint, Rules, scale
from .standard import Standard

ACCURACY = 1e-10


def infeasibility(problem: Standard, p: int, rules: Rules) -> tuple[Tensor, Tensor]:
    """(ratio, v) of the Farkas certificate that the nearest feasible point of the elastic problem gives."""
    bare = problem._replace(P=torch.zeros_like(problem.P), q=torch.zeros_like(problem.q), offset=torch.zeros_like(problem.offset))
    rules = rules._replace(eps_abs=ACCURACY, eps_rel=ACCURACY, relative=1e-12, elastic=1.0)
    scaling = equilibrate(bare.P, bare.q, bare.C)
    boxes = bool((bare.lb.isfinite() | bare.ub.isfinite()).any())
    scaled = scale(bare, scaling, p, boxes)
    outcome = InteriorPoint(scaled, p, rules).run()
    point, m = outcome.point, problem.C.shape[1] - p
    v = torch.cat([point.y, (point.z * scaled.live)[:, :m]], 1) * scaling.E / scaling.c
    ratio, v, _ = farkas(tmv(problem.C, v), problem.d, v, problem.lb, problem.ub, rules.farkas)
    early = outcome.ray_v
    better = farkas(tmv(problem.C, early), problem.d, early, problem.lb, problem.ub, rules.farkas)
    return torch.minimum(ratio, better[0]), torch.where((better[0] < ratio).unsqueeze(-1), better[1], v)


def unboundedness(problem: Standard, p: int, rules: Rules) -> tuple[Tensor, Tensor]:
    """(violation, d) of the steepest direction of descent along which all constraints stay satisfied."""
    P, q, C, _, lb, ub, *_ = problem
    n = q.shape[-1]
    has_lo, has_hi = lb.isfinite(), ub.isfinite()
    unit = norm(q).clamp(min=1e-300).unsqueeze(-1)
    rows = torch.cat([C[:, :p], P, C[:, p:]], 1)
    rows = rows / rows.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    live = torch.cat([problem.live[:, :p], torch.ones_like(has_lo), problem.live[:, p:]], 1)
    cone = Standard(
        torch.eye(n, dtype=q.dtype, device=q.device).expand_as(P).contiguous(),
        q / unit,
        rows,
        torch.zeros_like(rows[..., 0]),
        torch.where(has_lo, 0.0, -torch.inf),
        torch.where(has_hi, 0.0, torch.inf),
        live,
        torch.zeros_like(problem.fixed),
        torch.zeros_like(q),
        torch.zeros_like(problem.offset),
    )
    rules = rules._replace(eps_abs=1e-12, eps_rel=1e-12, relative=1e-12, infeasible=0.0)
    scaling = equilibrate(cone.P, cone.q, cone.C)
    boxes = bool((has_lo | has_hi).any())
    d = InteriorPoint(scale(cone, scaling, p + n, boxes), p + n, rules).run().point.x * scaling.D
    d = torch.where(has_lo & (d < 0) | has_hi & (d > 0) | has_lo & has_hi, 0.0, d)
    violation, direction = ray(q, d, mv(P, d), mv(C, d), p, lb, ub)
    return violation, direction
