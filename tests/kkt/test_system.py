# SPDX-License-Identifier: Apache-2.0
"""K u = r at a solution, for active, inactive and weakly active rows and bounds, against a dense solve."""

import pytest
import torch
from torch import Tensor

from optlayer.kkt.scaling import Scaling, equilibrate
from optlayer.kkt.system import CAP, State, System

f64 = torch.float64
inf = torch.inf


def example(unit: float = 1.0) -> tuple[Tensor, Tensor, State]:
    """n = 5: one equality; rows active, inactive, weak; bounds active, weak, and three free. Two elements."""
    B, n = 2, 5
    L = torch.randn(B, n, n, dtype=f64)
    P, C = unit * (L @ L.mT + torch.eye(n, dtype=f64)), torch.randn(B, 4, n, dtype=f64)
    scaling = equilibrate(P, torch.ones(B, n, dtype=f64), C)
    w = torch.tensor([inf, inf, 0, 0.7], dtype=f64).expand(B, 4)
    w_box = torch.tensor([inf, 0.3, 0, 0, 0], dtype=f64).expand(B, n)
    return P, C, State(scaling, w, w_box, torch.ones(B, 1, dtype=torch.bool))


def dense(P: Tensor, C: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """K in the caller's units over (x, v, z_box) and the mask of the rows that are there."""
    (D, E, c), w, w_box = state[:3]
    B, n, r = len(P), P.shape[-1], C.shape[-2]
    w, w_box = w * E.square() / c, w_box / (c * D.square())
    K = torch.zeros(B, 2 * n + r, 2 * n + r, dtype=f64)
    K[:, :n, :n], K[:, n : n + r, :n], K[:, :n, n : n + r] = P, C, C.mT
    K[:, :n, n + r :], K[:, n + r :, :n] = torch.eye(n, dtype=f64), torch.eye(n, dtype=f64)
    K[:, n:, n:] -= torch.diag_embed(1 / torch.cat([w, w_box], 1).clamp(min=1e-300))
    return K, torch.cat([torch.ones(B, n, dtype=torch.bool), w > 0, w_box > 0], 1)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("columns", [1, 4])
def test_solves_against_the_dense_matrix(unit: float, columns: int) -> None:
    P, C, state = example(unit)
    K, there = dense(P, C, state)
    r = torch.randn(2, 14, columns, dtype=f64)
    u = torch.cat(System(P, C, state).solve(r[:, :5], r[:, 5:9], r[:, 9:]), 1)
    for e in range(2):
        rows = there[e].nonzero().squeeze(-1)
        expected = torch.zeros(14, columns, dtype=f64)
        expected[rows] = torch.linalg.solve(K[e][rows][:, rows], r[e][rows])
        # condition of the equilibrated K about 1e3
        torch.testing.assert_close(u[e], expected, rtol=1e-9, atol=1e-10 * float(expected.abs().amax()))


def test_inactive_rows_and_bounds_ignore_their_right_hand_side() -> None:
    P, C, state = example()
    system = System(P, C, state)
    rx, rv, rb = torch.randn(2, 5, 1, dtype=f64), torch.randn(2, 4, 1, dtype=f64), torch.randn(2, 5, 1, dtype=f64)
    one = system.solve(rx, rv, rb)
    rv[:, 2], rb[:, 2:] = 1e9, -1e9
    two = system.solve(rx, rv, rb)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert (one[1][:, 2] == 0).all()
    assert (one[2][:, 2:] == 0).all()
    assert torch.equal(one[0][:, 0], rb[:, 0]), "an active bound moves its variable exactly"


def test_state_and_factors_can_be_packed_and_make_the_same_system() -> None:
    P, C, state = example()
    system = System(P, C, state)
    packed = state.pack()
    assert packed.shape == (2, State.size(5, 4))
    again = State.unpack(packed, 5, 4)
    r = torch.randn(2, 5, 1, dtype=f64), torch.randn(2, 4, 1, dtype=f64), torch.randn(2, 5, 1, dtype=f64)
    rebuilt = System(P, C, again)
    kept = System(P, C, again, system.kernel.heavy, system.kernel.factors())
    for a, b, c in zip(system.solve(*r), rebuilt.solve(*r), kept.solve(*r), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)


def test_one_element_in_range_space_form_makes_no_difference() -> None:
    P, C, state = example()
    mixed = state._replace(w_box=torch.zeros(2, 5, dtype=f64), cap=torch.tensor([[CAP], [0.0]], dtype=f64))
    packed = mixed.pack()
    assert packed[:, -1].tolist() == [1, 2]
    again = State.unpack(packed, 5, 4)
    r = torch.randn(2, 5, 1, dtype=f64), torch.randn(2, 4, 1, dtype=f64), torch.randn(2, 5, 1, dtype=f64)
    system = System(P, C, again)
    D, _, c = state.scaling
    L = system.kernel.L @ system.kernel.L.mT / (c * D).unsqueeze(-1) / D.unsqueeze(-2)
    torch.testing.assert_close(L[1], P[1], rtol=1e-9, atol=1e-9)  # H = P but for rho = 1e-12
    assert not torch.allclose(L[0], P[0])
    kept = System(P, C, again, system.kernel.heavy, system.kernel.factors())
    split = System(P, C, mixed._replace(cap=None))
    for a, b, whole in zip(system.solve(*r), kept.solve(*r), split.solve(*r), strict=True):
        torch.testing.assert_close(a, whole, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(b, whole, rtol=1e-11, atol=1e-11)


def test_redundant_active_rows_leave_x_determined() -> None:
    """Three copies of one equality: K is singular, x is not."""
    P, C = torch.eye(3, dtype=f64).expand(1, 3, 3), torch.ones(1, 3, 3, dtype=f64)
    scaling = equilibrate(P, torch.zeros(1, 3, dtype=f64), C)
    w, w_box = torch.full((1, 3), inf, dtype=f64), torch.zeros(1, 3, dtype=f64)
    state = State(scaling, w, w_box, torch.ones(1, 1, dtype=torch.bool))
    zero, one = torch.zeros(1, 3, 1, dtype=f64), torch.ones(1, 3, 1, dtype=f64)
    ux, uv, _ = System(P, C, state).solve(zero, one, zero)
    torch.testing.assert_close(ux, one / 3, rtol=1e-12, atol=0)
    torch.testing.assert_close(uv.sum(1), torch.full((1, 1), -1 / 3, dtype=f64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("rank", [2, 5])
def test_a_singular_matrix_gives_the_least_squares_solution_of_least_norm(rank: int, consistent: bool) -> None:
    """Minimisers that are not unique (P of rank 2) or multipliers that are not (rows that depend on each other)."""
    B, n = 4, 5
    L = torch.randn(B, n, rank, dtype=f64)
    P, C = L @ L.mT, torch.randn(B, 3, n, dtype=f64)
    w, w_box = torch.tensor([inf, inf, 0], dtype=f64).expand(B, 3), torch.zeros(B, n, dtype=f64)
    if rank == n:
        C[:, 1] = -0.7 * C[:, 0]
    else:
        C[:, :2] = torch.randn(B, 2, rank, dtype=f64) @ L.mT  # within the range of P
    ones = torch.ones(B, 1, dtype=f64)
    state = State(Scaling(ones.expand(B, n), ones.expand(B, 3), ones), w, w_box, ones > 0)
    K = torch.zeros(B, n + 2, n + 2, dtype=f64)
    K[:, :n, :n], K[:, n:, :n], K[:, :n, n:] = P, C[:, :2], C[:, :2].mT
    r = torch.randn(B, n + 2, 3, dtype=f64)
    r = K @ r if consistent else r
    zero = torch.zeros(B, n, 3, dtype=f64)
    ux, uv, _ = System(P, C, state).solve(r[:, :n], torch.cat([r[:, n:], zero[:, :1]], 1), zero)
    u = torch.cat([ux, uv[:, :2]], 1)
    expected = torch.linalg.pinv(K, rtol=1e-11, hermitian=True) @ r
    # rounding over rho = 1e-12 leaves 1e-4 at first
    torch.testing.assert_close(u, expected, rtol=0, atol=1e-7 * float(expected.abs().amax()))
