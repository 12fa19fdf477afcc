# SPDX-License-Identifier: Apache-2.0
"""The operators' kernels: any batch shape, piece by piece, failures reported as asked."""

import warnings

import pytest
import torch

import optlayer
from optlayer.solvers import choose

f64 = torch.float64


def test_a_large_batch_goes_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    P = torch.diag_embed(0.5 + torch.rand(7, 3, dtype=f64)).requires_grad_()
    q, G, h = torch.randn(7, 3, dtype=f64), torch.randn(4, 3, dtype=f64), torch.ones(4, dtype=f64)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        x = optlayer.solve_qp(P, q, G, h).x
        return x, torch.autograd.grad(x.sum(), P)[0]

    whole = run()
    monkeypatch.setitem(choose.CHUNK, "cpu", 3 * 49)
    pieces = run()
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,), (2, 0, 3)])
def test_any_leading_dimensions(batch: tuple[int, ...]) -> None:
    q = torch.randn(*batch, 3, dtype=f64)
    solution = optlayer.solve_qp(torch.eye(3, dtype=f64), q, lb=-0.5, ub=0.5)
    assert solution.x.shape == (*batch, 3)
    assert solution.status.shape == batch
    torch.testing.assert_close(solution.x, (-q).clamp(-0.5, 0.5), rtol=0, atol=1e-12)


def test_raise_names_element_argument_and_advice() -> None:
    q = torch.zeros(2, 3, 2, dtype=f64)
    q[1, 2, 0] = torch.nan
    with pytest.raises(optlayer.SolverError, match=r"element \(1, 2\): INVALID_DATA in q \(1 of 6 failed\).*NaN"):
        optlayer.solve_qp(torch.eye(2, dtype=f64), q, on_failure="raise")
    with pytest.raises(optlayer.SolverError, match=r"the problem: DUAL_INFEASIBLE\. "):
        optlayer.solve_qp(None, torch.ones(2, dtype=f64), on_failure="raise")


def test_warn_warns_and_ignore_returns_the_best_iterate() -> None:
    P, q = None, torch.randn(3, 30, dtype=f64)  # a linear program: one iteration does not tell its vertex
    G, h = torch.randn(60, 30, dtype=f64), torch.ones(60, dtype=f64)
    with pytest.warns(RuntimeWarning, match=r"element 0: MAX_ITERATIONS \(3 of 3 failed\)"):
        optlayer.solve_qp(P, q, G, h, max_iter=1, eps_abs=1e-12, eps_rel=0, on_failure="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = optlayer.solve_qp(P, q, G, h, max_iter=1, eps_abs=1e-12, eps_rel=0, on_failure="ignore")
        filled = optlayer.solve_qp(P, q, G, h, max_iter=1, eps_abs=1e-12, eps_rel=0)
    assert best.x.isfinite().all()
    assert filled.x.isnan().all()


def test_float32_is_solved_to_its_own_accuracy() -> None:
    L = torch.randn(20, 8, 8)
    P, q, G, h = L @ L.mT + 0.1 * torch.eye(8), torch.randn(20, 8), torch.randn(20, 10, 8), torch.rand(20, 10)
    single, double = optlayer.solve_qp(P, q, G, h), optlayer.solve_qp(P.double(), q.double(), G.double(), h.double())
    assert single.solved.all()
    assert single.x.dtype == torch.float32
    # the solution of the same data, rounded once
    torch.testing.assert_close(single.x, double.x.float(), rtol=2**-22, atol=1e-9)
