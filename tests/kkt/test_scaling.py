# SPDX-License-Identifier: Apache-2.0
"""Equilibrated data are of order one, in any units, and unscaling is exact."""

import pytest
import torch

from optlayer.kkt.scaling import equilibrate

f64 = torch.float64


def rows_and_columns(B: int = 4, n: int = 5, r: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    P = torch.randn(B, n, n, dtype=f64)
    return P @ P.mT, torch.randn(B, n, dtype=f64), torch.randn(B, r, n, dtype=f64)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_rows_and_columns_come_near_one(unit: float) -> None:
    P, q, C = rows_and_columns()
    u = torch.tensor([unit, 1, 1 / unit, 1, unit], dtype=f64)
    P, q, C = P * u * u.unsqueeze(-1), q * u, C * u * torch.tensor([[unit], [1.0], [1.0]], dtype=f64)
    D, E, c = equilibrate(P, q, C)
    P, q, C = c.unsqueeze(-1) * P * D.unsqueeze(-1) * D.unsqueeze(-2), c * D * q, C * E.unsqueeze(-1) * D.unsqueeze(-2)
    # four sweeps bring 12 orders of magnitude within a factor of thirty of one; the cost factor divides P besides
    assert (C.abs().amax(-1) > 1 / 30).all()
    assert (C.abs().amax(-1) < 10).all()
    assert (torch.maximum(P.abs().amax((-2, -1)), q.abs().amax(-1)) < 10).all()


def test_zero_rows_columns_and_objectives_keep_their_units() -> None:
    P, q, C = torch.zeros(1, 3, 3, dtype=f64), torch.zeros(1, 3, dtype=f64), torch.zeros(1, 2, 3, dtype=f64)
    D, E, c = equilibrate(P, q, C)
    assert torch.equal(D, torch.ones(1, 3, dtype=f64))
    assert torch.equal(E, torch.ones(1, 2, dtype=f64))
    assert torch.equal(c, torch.ones(1, 1, dtype=f64))


def test_each_element_is_scaled_as_if_alone() -> None:
    P, q, C = rows_and_columns()
    whole = equilibrate(P, q, C)
    wild = equilibrate(torch.cat([P[:1], 1e12 * P[1:]]), q, C)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, wild, strict=True))
