# SPDX-License-Identifier: Apache-2.0
"""Batched linear algebra in the few forms that the KKT system needs.

Shapes: matrices are (B, rows, cols), vectors (B, k), and a block of R right-hand sides (B, k, R).
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Record = TypeVar("Record")

NONZERO = 1e-300  # the floor of a divisor that may vanish

# Relative enlargements of the diagonal of a matrix whose Cholesky factorisation breaks down by rounding.
BUMPS = (1e-14, 1e-12, 1e-10, 1e-8)


def take(record: Record, index: Tensor) -> Record:
    """Some elements of the batch of every tensor in a record: a tensor, a NamedTuple of records, or None."""

    def chosen(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[index]
        return type(part)(*map(chosen, part)) if isinstance(part, tuple) else part

    return cast(Record, chosen(record))


def mv(M: Tensor, x: Tensor) -> Tensor:
    """M x. As a product of rows: batched gemm with one column is four times slower on a CPU."""
    return torch.bmm(x.unsqueeze(-2), M.mT).squeeze(-2)


def tmv(M: Tensor, y: Tensor) -> Tensor:
    """M' y."""
    return torch.bmm(y.unsqueeze(-2), M).squeeze(-2)


def mm(M: Tensor, X: Tensor) -> Tensor:
    """M X for a few columns X, as a product of rows."""
    return torch.bmm(X.mT, M.mT).mT


def dot(x: Tensor, y: Tensor) -> Tensor:
    """x'y, element by element of the batch."""
    return (x * y).sum(-1)


def norm(x: Tensor) -> Tensor:
    """The infinity norm over the last dimension; zero where it has no entries."""
    if x.shape[-1] == 0:
        return x.new_zeros(x.shape[:-1])
    return x.abs().amax(-1)


def highest(x: Tensor) -> Tensor:
    """The largest entry of each vector or zero, whichever is greater."""
    if x.shape[-1] == 0:
        return x.new_zeros(x.shape[:-1])
    return x.amax(-1).clamp(min=0)


def lower_solve(L: Tensor, R: Tensor) -> Tensor:
    """L^-1 R for a lower triangular L."""
    X: Tensor = torch.linalg.solve_triangular(L, R, upper=False)
    return X


def lower_solve_transposed(L: Tensor, R: Tensor) -> Tensor:
    """L^-T R for a lower triangular L."""
    X: Tensor = torch.linalg.solve_triangular(L.mT, R, upper=True)
    return X


def cholesky_solve(L: Tensor, R: Tensor) -> Tensor:
    """(L L')^-1 R; torch.cholesky_solve copies L at every call."""
    return lower_solve_transposed(L, lower_solve(L, R))


def pack_lower(L: Tensor) -> Tensor:
    """The lower triangle of each matrix (B, k, k) in one row, (B, k (k + 1) / 2), its rows one after the other."""
    rows, columns = torch.tril_indices(L.shape[-1], L.shape[-1], device=L.device)
    return L[:, rows, columns]


def unpack_lower(packed: Tensor, k: int) -> Tensor:
    """The lower triangular matrices (B, k, k) that were packed, column after column in memory as a solve wants them."""
    rows, columns = torch.tril_indices(k, k, device=packed.device)
    transposed = packed.new_zeros(packed.shape[0], k, k)
    transposed[:, columns, rows] = packed
    return transposed.mT


def cholesky(M: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor of each matrix, and which elements have one at all.

    Where rounding breaks a factorisation down, that element alone is tried again with its diagonal enlarged by 1e-14 ..
    1e-8 of itself; refinement takes the perturbation out again. Neither the factorisation nor its breakdown depends on
    units: scaling the rows and columns of M scales the rows of L.
    """
    L, info = torch.linalg.cholesky_ex(M)
    for bump in BUMPS:
        failed = info.nonzero().squeeze(-1)
        if failed.numel() == 0:
            break
        again = M[failed]
        again.diagonal(dim1=-2, dim2=-1).mul_(1 + bump)
        L[failed], info[failed] = torch.linalg.cholesky_ex(again)
    return L, info == 0
