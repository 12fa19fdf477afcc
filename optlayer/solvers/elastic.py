# SPDX-License-Identifier: Apache-2.0
"""Two projections that decide whether a stalled problem has a solution at all.

    nearest feasible:   min 1/2 |e|^2   s.t.  Gx - e_G <= h,  Ax - e_A = b,  lb <= x <= ub
    steepest ray:       min 1/2 |d|^2 + q'd / |q|   s.t.  Pd = 0,  Ad = 0,  Gd <= 0,  d = 0 or of the sign bounds permit

Both always have a solution. The multipliers of the first are the residuals e themselves, and a Farkas certificate where
e is not zero; a solution d of the second that is not zero is a ray of descent. The same interior point method solves
them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kkt.algebra import NONZERO, mv, norm, tmv
from ..kkt.scaling import equilibrate
from .certificate import farkas, ray
from .interior import iterate
from .newton import Rules, scale
from .standard import Standard

ACCURACY, RELATIVE = 1e-10, 1e-12


def infeasibility(problem: Standard, p: int, rules: Rules) -> tuple[Tensor, Tensor]:
    """(ratio, v) of the Farkas certificate that the nearest feasible point gives; see certificate.farkas."""
    zero = {name: torch.zeros_like(getattr(problem, name)) for name in ("P", "q", "offset")}
    bare = problem._replace(**zero)
    rules = rules._replace(eps_abs=ACCURACY, eps_rel=ACCURACY, relative=RELATIVE, elastic=1.0)
    scaling = equilibrate(bare.P, bare.q, bare.C)
    scaled = scale(bare, scaling, p)
    outcome = iterate(scaled, p, rules)
    point, m = outcome.point, problem.C.shape[1] - p
    at_end = torch.cat([point.y, (point.z * scaled.live)[:, :m]], 1) * scaling.E / scaling.c
    candidates = []
    for v in (at_end, outcome.ray_v):
        unit, size = scaling.c * scaling.D, norm(v * scaling.c / scaling.E)
        ratio, v, _ = farkas(tmv(problem.C, v), problem.d, v, problem.lb, problem.ub, rules.proof, unit, size)
        candidates.append((ratio, v))
    (ratio, v), (early, w) = candidates
    return torch.minimum(ratio, early), torch.where((early < ratio).unsqueeze(-1), w, v)


def unboundedness(problem: Standard, p: int, rules: Rules) -> tuple[Tensor, Tensor]:
    """(violation, d) of the steepest direction of descent that no constraint ends; see certificate.ray."""
    P, q, C, _, lb, ub, *_ = problem
    n = q.shape[-1]
    has_lo, has_hi = lb.isfinite(), ub.isfinite()
    rows = torch.cat([C[:, :p], P, C[:, p:]], 1)
    rows = rows / rows.abs().amax(-1, keepdim=True).clamp(min=NONZERO)
    cone = Standard(
        P=torch.eye(n, dtype=q.dtype, device=q.device).expand_as(P),
        q=q / norm(q).clamp(min=NONZERO).unsqueeze(-1),
        C=rows,
        d=torch.zeros_like(rows[..., 0]),
        lb=torch.full_like(lb, -torch.inf).masked_fill(has_lo, 0.0),
        ub=torch.full_like(ub, torch.inf).masked_fill(has_hi, 0.0),
        live=torch.cat([problem.live[:, :p], torch.ones_like(has_lo), problem.live[:, p:]], 1),
        fixed=torch.zeros_like(problem.fixed),
        value=torch.zeros_like(q),
        offset=torch.zeros_like(problem.offset),
    )
    rules = rules._replace(eps_abs=RELATIVE, eps_rel=RELATIVE, relative=RELATIVE, infeasible=0.0)
    scaling = equilibrate(cone.P, cone.q, cone.C)
    d = iterate(scale(cone, scaling, p + n), p + n, rules).point.x * scaling.D
    d = d.masked_fill(has_lo & (d < 0) | has_hi & (d > 0) | has_lo & has_hi, 0.0)
    D, E, _ = equilibrate(P, q, C)
    rows = norm(P * D.unsqueeze(-1) * D.unsqueeze(-2)).clamp(min=NONZERO)
    units = torch.cat([D / rows, E], 1)
    return ray(q, d, mv(P, d), mv(C, d), p, lb, ub, rules.proof, units, norm(d / D))
