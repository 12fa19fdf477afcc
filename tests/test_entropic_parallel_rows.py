# SPDX-License-Identifier: Apache-2.0
"""Equality rows that are nearly parallel: no feasible problem is called infeasible, and no contradiction is missed."""

from __future__ import annotations

import pytest
import torch
from entropic_cases import F64
from torch import Tensor

from optlayer import Status, solve_qp
from optlayer.testing import assert_certified

pytestmark = pytest.mark.usefixtures("engine")

KINDS = ("any", "positive", "sum", "apart", "cancelling")


def rows(kind: str, n: int, p: int, delta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A (16, p + 1, n) in this dtype, whose last row is the first one and delta times another, and x > 0 (16, n).

    The rows are of both signs, positive, a sum, or such that Ax is zero in the first row; or the other is positive.
    """
    random = torch.Generator().manual_seed(0)
    A, other, x = (torch.randn(16, size, n, generator=random, dtype=F64) for size in (p, 1, 1))
    x = torch.softmax(x, -1)
    if kind == "positive":
        A = A.abs()
    if kind == "sum":
        A[:, 0] = 1.0
    if kind == "apart":
        other = other.abs()
    if kind == "cancelling":
        A[:, :1] -= (A[:, :1] * x).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True) * x
    return torch.cat([A, A[:, :1] + delta * other], 1).to(dtype), x.squeeze(1)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_feasible_problem_is_never_called_infeasible(kind: str, dtype: torch.dtype) -> None:
    """b is Ax of the rows as they are, so that x is feasible but for the rounding of b."""
    for exponent in range(-10, -2):
        for n, p in ((4, 1), (16, 3)):
            A, x = rows(kind, n, p, 10.0**exponent, dtype)
            b = (A.double() @ x.unsqueeze(-1)).squeeze(-1).to(dtype)
            q = torch.randn(16, n, generator=torch.Generator().manual_seed(1)).to(dtype)
            solution = solve_qp(None, q, A=A, b=b, entropy=1.0, max_iter=60)
            assert (solution.status != Status.PRIMAL_INFEASIBLE).all(), f"{exponent}, {n} variables"


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apart", [1e-4, 1.0])
def test_parallel_rows_that_contradict_each_other_are_infeasible(apart: float, kind: str, dtype: torch.dtype) -> None:
    for n, p in ((4, 1), (16, 3)):
        A, x = rows(kind, n, p, 0.0, dtype)
        b = (A.double() @ x.unsqueeze(-1)).squeeze(-1)
        b[:, -1] += apart * (1 + b[:, -1].abs())
        solution = solve_qp(None, torch.zeros(16, n, dtype=dtype), A=A, b=b.to(dtype), entropy=1.0)
        assert (solution.status == Status.PRIMAL_INFEASIBLE).all()
        assert_certified(solution)
