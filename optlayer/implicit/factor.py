# SPDX-License-Identifier: Apache-2.0
"""Dense factorisations of a batch of matrices, with a verdict on each: may a solve with it be trusted?

    lu        any regular square matrix, rows and columns brought to one size first
    cholesky  symmetric positive definite ones, scaled to a unit diagonal
    svd       any matrix: the pseudoinverse, that is the least squares solution of least norm

A factor is a tuple of plain tensors whose last is `ok`, (*batch).  A matrix is singular for `lu` and `cholesky` when a
probe, solved with the scaled factor, comes out 1 / (4 eps) times as large as the matrix permits: no digit of a solution
would be right then.  The probe is fixed and has no structure, so that it meets the nearly singular direction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kkt.algebra import norm

Factor = tuple[Tensor, ...]
PROBES = 3


def lu(A: Tensor) -> Factor:
    """(LU, pivots, rows, columns, ok) with diag(rows) A diag(columns) = P L U."""
    A, finite = _finite(A)
    M, rows, columns = scaled(A)
    LU, pivots, info = torch.linalg.lu_factor_ex(M)
    probe = torch.linalg.lu_solve(LU, pivots, _probe(M))
    return LU, pivots, rows, columns, finite & (info == 0) & _regular(M, probe)


def cholesky(A: Tensor) -> Factor:
    """(L, scale, ok) with diag(scale) A diag(scale) = L L'."""
    A, finite = _finite(A)
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    scale = _inverse(diagonal.clamp(min=0).sqrt())
    M = scale.unsqueeze(-1) * A * scale.unsqueeze(-2)
    L, info = torch.linalg.cholesky_ex(M)
    probe = torch.cholesky_solve(_probe(M), L)
    return L, scale, finite & (info == 0) & _regular(M, probe)


def svd(A: Tensor) -> Factor:
    """(U, S^+, V, ok) with A = U S V'; singular values below max(m, n) eps |A| count as zero."""
    A, finite = _finite(A)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    if S.shape[-1] == 0:
        return U, S, Vh.mT, finite
    cutoff = max(A.shape[-2:]) * torch.finfo(A.dtype).eps * S.amax(-1, keepdim=True)
    return U, torch.where(cutoff < S, S, torch.inf).reciprocal(), Vh.mT, finite


def scaled(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """diag(rows) A diag(columns), whose rows and then columns have a largest entry of 1, with the two scales."""
    rows = _inverse(norm(A))
    M = rows.unsqueeze(-1) * A
    columns = _inverse(norm(M.mT))
    return M * columns.unsqueeze(-2), rows, columns


def lu_solve(factor: Factor, b: Tensor, transposed: bool) -> Tensor:
    """A^-1 b or A^-T b; b (*leading, *batch, n)."""
    LU, pivots, rows, columns, _ = factor
    LU = LU.contiguous()  # torch 2.13 solves wrongly with a column-major LU[:, None], without a word
    before, after = (columns, rows) if transposed else (rows, columns)
    return after * _columns(lambda B: torch.linalg.lu_solve(LU, pivots, B, adjoint=transposed), before * b, LU)


def cholesky_solve(factor: Factor, b: Tensor, transposed: bool) -> Tensor:
    """A^-1 b."""
    L, scale, _ = factor
    return scale * _columns(lambda B: torch.cholesky_solve(B, L), scale * b, L)


def svd_solve(factor: Factor, b: Tensor, transposed: bool) -> Tensor:
    """A^+ b or (A^+)'b."""
    U, S, V, _ = factor
    left, right = (V, U) if transposed else (U, V)
    return _columns(lambda B: right @ (S.unsqueeze(-1) * (left.mT @ B)), b, U)


FACTORISE: dict[str, Callable[[Tensor], Factor]] = {"lu": lu, "cholesky": cholesky, "svd": svd}
SOLVE: dict[str, Callable[[Factor, Tensor, bool], Tensor]] = {
    "lu": lu_solve,
    "cholesky": cholesky_solve,
    "svd": svd_solve,
}

# Trailing dimensions of the tensors of a factor that are not batch.
CORES = {"lu": (2, 1, 1, 1, 0), "cholesky": (2, 1, 0), "svd": (2, 1, 2, 0)}


def factorise(A: Tensor, method: str) -> Factor:
    """The factor of A (*batch, m, n) by one of the three methods."""
    return FACTORISE[method](A)


def solve(factor: Factor, b: Tensor, method: str, transposed: bool) -> Tensor:
    """The solution for right-hand sides b (*leading, *batch, m); whether it can be trusted says the factor's `ok`."""
    return SOLVE[method](factor, b, transposed)


def _columns(product: Callable[[Tensor], Tensor], b: Tensor, M: Tensor) -> Tensor:
    """A product with b as columns: dimensions that b has beyond the batch of M become columns of one matrix."""
    extra = b.dim() + 1 - M.dim()
    if extra <= 0:
        return product(b.unsqueeze(-1)).squeeze(-1)
    lead, rest = b.shape[:extra], b.shape[extra:]
    out = product(b.reshape(-1, *rest).movedim(0, -1)).movedim(-1, 0)
    return out.reshape(*lead, *out.shape[1:])


def _finite(A: Tensor) -> tuple[Tensor, Tensor]:
    """A with the identity, as far as it goes, in place of matrices that hold NaN or inf; and where there were none."""
    finite = norm(A).isfinite().all(-1)
    unit = torch.eye(A.shape[-2], A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.where(finite[..., None, None], A, unit), finite


def _inverse(size: Tensor) -> Tensor:
    """1 / size, and 1 where that would be infinite."""
    return torch.where(size > 0, size, 1).reciprocal().clamp(max=torch.finfo(size.dtype).max)


def _probe(M: Tensor) -> Tensor:
    """A few fixed columns without structure, of entries between -1 and 1."""
    n = M.shape[-1]
    k = torch.arange(1, n * PROBES + 1, dtype=M.dtype, device=M.device)
    return torch.cos(0.7548776662466927 * k * k).reshape(PROBES, n).mT.expand(*M.shape[:-2], n, PROBES)


def _regular(M: Tensor, probe: Tensor) -> Tensor:
    """Whether the solution of the probe is as small as that of a matrix that eps cannot make singular."""
    growth = norm(M.abs().sum(-1)) * norm(norm(probe))
    return growth * 4 * torch.finfo(M.dtype).eps < 1
