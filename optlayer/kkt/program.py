# SPDX-License-Identifier: Apache-2.0
"""The data of a batch of quadratic programs, rows stacked."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Program(NamedTuple):
    """min 1/2 x'Px + q'x s.t. Cx = d in the first p rows, Cx <= d in the others, lb <= x <= ub; float64, no block
    missing.

    P (B, n, n) symmetric, q (B, n), C = [A; G] (B, p + m, n), d = [b; h] (B, p + m), lb and ub (B, n). h, lb and ub may
    hold infinities."""

    P: Tensor
    q: Tensor
    C: Tensor
    d: Tensor
    lb: Tensor
    ub: Tensor
