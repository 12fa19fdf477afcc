# SPDX-License-Identifier: Apache-2.0
"""The two kernels solve the Newton system [H0 C'; C -1/w] as a dense solver does."""

import pytest
import torch
from torch import Tensor

from optlayer.kkt.algebra import cholesky, cholesky_solve, mm, mv, tmv
from optlayer.kkt.rangespace import RangeSpace, admissible
from optlayer.kkt.split import LEVELS, GroupedFactor, SplitFactor

f64 = torch.float64


def system(B: int = 3, n: int = 6, r: int = 5, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """P of a rank (full by default) and C, of order one."""
    M = torch.randn(B, n, n if rank is None else rank, dtype=f64)
    return M @ M.mT / n, torch.randn(B, r, n, dtype=f64)


def dense(P: Tensor, C: Tensor, w: Tensor, diagonal: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    n, r = C.shape[2], C.shape[1]
    K = torch.zeros(len(P), n + r, n + r, dtype=f64)
    K[:, :n, :n] = P + torch.diag_embed(diagonal)
    K[:, n:, :n], K[:, :n, n:] = C, C.mT
    K[:, n:, n:] = -torch.diag_embed(1 / w)
    u = torch.linalg.solve(K, torch.cat([a, c], 1))
    return u[:, :n], u[:, n:]


def test_products_as_rows_are_products() -> None:
    M, x, y = torch.randn(3, 4, 5), torch.randn(3, 5), torch.randn(3, 4)
    # float32 sums of five terms of order one
    torch.testing.assert_close(mv(M, x), torch.einsum("bij,bj->bi", M, x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tmv(M, y), torch.einsum("bij,bi->bj", M, y), atol=1e-5, rtol=1e-5)
    X = torch.randn(3, 5, 2)
    torch.testing.assert_close(mm(M, X), M @ X, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 1e4, 1e10])
@pytest.mark.parametrize("columns", [1, 3])
def test_split_solves_the_newton_system(spread: float, columns: int) -> None:
    P, C = system()
    w = torch.logspace(-0.5, 0.5, 5, dtype=f64).expand(3, 5) * torch.tensor([[1.0], [spread**0.5], [spread]], dtype=f64)
    diagonal = torch.full((3, 6), 0.1, dtype=f64)
    a, c = torch.randn(3, 6, columns, dtype=f64), torch.randn(3, 5, columns, dtype=f64)
    dx, dv = GroupedFactor(P, C, w, diagonal).solve(a, c)
    ex, ev = dense(P, C, w, diagonal, a, c)
    # P + 0.1 has condition about 1e2, C up to 1e2: 1e4 units of rounding, whatever the weights
    torch.testing.assert_close(dx, ex, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(dv, ev, rtol=1e-10, atol=1e-11)


def test_split_bears_a_singular_P_under_heavy_rows() -> None:
    """P of rank 2 in 6 variables and rows of weight 1e12: condensing them would leave no digit of P."""
    P, C = system(rank=2, r=4)
    w = torch.full((3, 4), 1e12, dtype=f64)
    diagonal = torch.full((3, 6), 1e-6, dtype=f64)
    dx, _ = (factor := GroupedFactor(P, C, w, diagonal)).solve(
        torch.zeros(3, 6, 1, dtype=f64), torch.ones(3, 4, 1, dtype=f64)
    )
    assert factor.ok.all()
    # C dx = 1 - dv / w with |dv| of order one
    torch.testing.assert_close(C @ dx, torch.ones(3, 4, 1, dtype=f64), rtol=0, atol=1e-9)


def test_a_restored_factor_solves_alike() -> None:
    P, C = system(r=4)
    w = torch.tensor([1e-3, 1.0, 1e6, 1e12], dtype=f64).expand(3, 4)
    k, size = SplitFactor.sizes(6, 4)
    factor = SplitFactor(P, C, w, torch.ones(3, 6, dtype=f64), k, cap=1.0)
    kept = factor.factors()
    assert kept.shape == (3, size)
    again = SplitFactor.restore(C, w, 1.0, factor.heavy, kept)
    a, c = torch.randn(3, 6, 2, dtype=f64), torch.randn(3, 4, 2, dtype=f64)
    for old, new in zip(factor.solve(a, c), again.solve(a, c), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-9, atol=1e-9)  # V is applied in another order


def test_an_element_is_factorised_as_if_alone() -> None:
    """Bit for bit: the number of heavy rows of a neighbour changes no sum."""
    n, r = 8, 3 * LEVELS[0]
    P, C = system(B=2, n=n, r=r)
    diagonal = torch.ones(2, n, dtype=f64)
    a, c = torch.randn(2, n, 1, dtype=f64), torch.randn(2, r, 1, dtype=f64)
    w = torch.ones(2, r, dtype=f64)
    w[0, :3] = 1e6
    few = [t[0] for t in GroupedFactor(P, C, w, diagonal).solve(a, c)]
    w[1] = 1e6
    many = [t[0] for t in GroupedFactor(P, C, w, diagonal).solve(a, c)]
    assert all(torch.equal(x, y) for x, y in zip(few, many, strict=True))


def test_range_space_equals_the_split() -> None:
    P, C = system(r=7)
    P = P + torch.eye(6, dtype=f64)
    w = torch.logspace(-8, 8, 7, dtype=f64).expand(3, 7)
    a, c = torch.randn(3, 6, 1, dtype=f64), torch.randn(3, 7, 1, dtype=f64)
    ranged = RangeSpace(torch.linalg.cholesky(P), C).factor(w).solve(a, c)
    split = GroupedFactor(P, C, w, torch.zeros(3, 6, dtype=f64)).solve(a, c)
    for x, y in zip(ranged, split, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)  # multipliers of weight 1e8 rows times rounding


def test_range_space_is_refused_where_it_would_be_inaccurate() -> None:
    L = torch.linalg.cholesky(torch.diag_embed(torch.tensor([[1.0, 1.0], [1.0, 1e-5], [1.0, 1e-7]], dtype=f64)))
    yes, no = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    assert admissible(L, yes, 3, no).tolist() == [True, True, False]
    assert not admissible(L, yes, 3, yes).any(), "bounds belong to the split"
    assert not admissible(L, yes, 4, no).any(), "too many rows"
    assert not admissible(L, no, 3, no).any(), "no Cholesky factor"


def test_cholesky_mends_only_what_breaks_down() -> None:
    good = torch.eye(3, dtype=f64)
    singular = torch.ones(3, 3, dtype=f64) - 1e-13 * good
    hopeless = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=f64))
    M = torch.stack([good, singular, hopeless])
    L, ok = cholesky(M)
    assert ok.tolist() == [True, True, False]
    assert torch.equal(L[0], good)
    torch.testing.assert_close(L[1] @ L[1].mT, singular, rtol=0, atol=1e-7)  # the largest enlargement is 1e-8
    x = torch.randn(3, 3, 1, dtype=f64)[:1]
    torch.testing.assert_close(cholesky_solve(L[:1], x), x)


def test_cholesky_does_not_depend_on_units() -> None:
    P, _ = system()
    P = P + torch.eye(6, dtype=f64)
    d = torch.tensor([2.0**k for k in (-40, -10, 0, 5, 20, 60)], dtype=f64)  # powers of two scale without rounding
    L, ok = cholesky(P)
    scaled, ok_scaled = cholesky(P * d * d.unsqueeze(-1))
    assert ok.all()
    assert ok_scaled.all()
    assert torch.equal(scaled, L * d.unsqueeze(-1))
