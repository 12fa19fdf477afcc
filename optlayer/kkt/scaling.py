# SPDX-License-Identifier: Apache-2.0
"""Ruiz equilibration: units for variables, rows and objective in which the data are of order one.

With D, E diagonal and c > 0 the scaled problem has

    P^ = c D P D,   q^ = c D q,   C^ = E C D,   d^ = E d        (C = [A; G], d = [b; h])
    x = D x^,       v = E v^ / c  (v = [y; z]),   z_box = z_box^ / (c D)

Bounds stay bounds: |x^_i| <= ub_i / D_i. Without the scaling the solver converges all the same, but derivatives of
problems whose rows or variables are stated in units 1e+-6 apart are lost.

D. Ruiz, A scaling algorithm to equilibrate both rows and columns norms in matrices, RAL-TR-2001-034 (2001); the cost
factor as in OSQP (Stellato et al. 2020, section 5.1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .algebra import norm

SWEEPS = 4  # more change neither iteration counts nor accuracy
SMALLEST, LARGEST = 1e-12, 1e12


class Scaling(NamedTuple):
    """D (B, n), E (B, p + m), c (B, 1)."""

    D: Tensor
    E: Tensor
    c: Tensor


def equilibrate(P: Tensor, q: Tensor, C: Tensor) -> Scaling:
    """Scaling for P (B, n, n), q (B, n), C (B, r, n): every row and column of the scaled [P; C] has maximum near 1.

    That is so before a large q shrinks the objective. Were q to take part in the sweeps, the units of variables that no
    row holds would grow with it and q in these units again, until P is lost beside C and the derivative with it.
    """
    n = P.shape[-1]
    M = torch.cat([P, C], -2).abs()
    D, E, c = torch.ones_like(q), C.new_ones(C.shape[:-1]), q.new_ones(q.shape[0], 1)
    for _ in range(SWEEPS):
        d = _clip(M.amax(-2)).rsqrt()
        e = _clip(M[:, n:].amax(-1)).rsqrt()
        M = M * torch.cat([d, e], -1).unsqueeze(-1) * d.unsqueeze(-2)
        D, E = D * d, E * e
        k = 1 / _clip(M[:, :n].amax(-1).mean(-1, keepdim=True))
        M[:, :n] *= k.unsqueeze(-1)
        c = c * k
    size = torch.maximum(M[:, :n].amax(-1).mean(-1), norm(q * D) * c.squeeze(-1))
    return Scaling(D, E, c / _clip(size.unsqueeze(-1)))


def _clip(v: Tensor) -> Tensor:
    """Zero rows and columns keep their unit."""
    return torch.where(v < SMALLEST, 1.0, v).clamp(max=LARGEST)
