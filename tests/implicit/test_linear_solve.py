# SPDX-License-Identifier: Apache-2.0
"""Every method solves the same systems; pseudoinverses differentiate by the formula of Golub and Pereyra."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev

from optlayer import Status
from optlayer.implicit import linear_solve

ALL = ("lu", "svd", "gmres", "bicgstab", "lsmr", "normal_cg")
SPD = (*ALL, "cholesky", "cg")
PSEUDO = ("svd", "lsmr", "normal_cg")


def system(*batch, m=6, n=6, dtype=torch.float64):
    A = torch.randn(*batch, m, n, dtype=torch.float64)
    if m == n:
        A = A / n**0.5 + 2 * torch.eye(n, dtype=torch.float64)
    return A.to(dtype), torch.randn(*batch, m, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("method", SPD)
def test_a_batch_equals_the_direct_solve_element_by_element(method):
    A, b = system(3, 2)
    A = A @ A.mT if method in ("cholesky", "cg") else A
    solution = linear_solve(A, b, method=method, eps_rel=1e-12)
    assert solution.converged.all() and (solution.residual < 1e-10).all()
    expected = torch.linalg.solve(A, b)
    assert (solution.value - expected).norm() < 1e-9 * expected.norm()
    alone = linear_solve(A[1, 1], b[1, 1], method=method, eps_rel=1e-12).value
    assert (alone - solution.value[1, 1]).norm() < 1e-13 * alone.norm()


@pytest.mark.parametrize("method", SPD)
def test_single_precision_stays_what_it_is(method):
    A, b = system(4, dtype=torch.float32)
    A = A @ A.mT if method in ("cholesky", "cg") else A
    solution = linear_solve(A, b, method=method)
    assert solution.value.dtype is torch.float32 and solution.converged.all()
    expected = torch.linalg.solve(A.double(), b.double())
    assert (solution.value - expected).norm() < 1e-3 * expected.norm()  # eps 1e-5 times a condition of 30


@pytest.mark.parametrize("method", PSEUDO)
@pytest.mark.parametrize(("m", "n"), [(5, 3), (3, 5), (4, 4)])
def test_least_squares_of_least_norm(method, m, n):
    A, b = system(2, m=m, n=n)
    value = linear_solve(A, b, method=method, eps_rel=1e-13).value
    expected = (torch.linalg.pinv(A) @ b.unsqueeze(-1)).squeeze(-1)
    assert (value - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("method", PSEUDO)
def test_rank_deficient_matrices_have_a_solution_too(method):
    A = system(m=5, n=2)[0] @ system(m=2, n=4)[0]
    b = torch.randn(5, dtype=torch.float64)
    solution = linear_solve(A, b, method=method, eps_rel=1e-13)
    expected = torch.linalg.pinv(A) @ b
    assert solution.converged and (solution.value - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("method", ["svd", "lsmr"])
@pytest.mark.parametrize(("m", "n"), [(4, 2), (2, 4)])
@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_the_derivative_of_a_pseudoinverse(method, m, n):
    A, b = (t.requires_grad_() for t in system(m=m, n=n))

    def f(A, b):
        return linear_solve(A, b, method=method, eps_rel=1e-14).value

    assert gradcheck(f, (A, b), check_forward_ad=True)
    if method == "svd":
        assert gradgradcheck(f, (A, b))


@pytest.mark.parametrize("method", ["svd", "lsmr"])
def test_the_derivative_along_matrices_of_constant_rank(method):
    """A = L R' of rank 2 keeps its rank while L and R move, and so the derivative exists."""
    L, R = (torch.randn(k, 2, dtype=torch.float64, requires_grad=True) for k in (4, 3))
    b = torch.randn(4, dtype=torch.float64)
    assert gradcheck(lambda L, R: linear_solve(L @ R.mT, b, method=method, eps_rel=1e-14).value, (L, R))


def test_the_gradients_are_those_of_the_formula():
    """b_bar = A^-T g and A_bar = -b_bar x'; a shared matrix gets the sum."""
    A, b = system(5)
    A = A[0].clone().requires_grad_()
    b.requires_grad_()
    solution = linear_solve(A, b)
    g = torch.randn_like(solution.value)
    gA, gb = torch.autograd.grad(solution.value, (A, b), g)
    u = torch.linalg.solve(A.detach().mT, g.mT).mT
    assert torch.allclose(gb, u, rtol=1e-12)
    assert torch.allclose(gA, -u.mT @ solution.value.detach(), rtol=1e-12)
    assert solution.report.method == "lu" and solution.report.converged.all()


def test_one_matrix_serves_many_right_hand_sides_at_once():
    A, _ = system()
    J = jacrev(lambda b: linear_solve(A, b).value)(torch.randn(3, 6, dtype=torch.float64))
    inverse = torch.linalg.inv(A)
    for i in range(3):
        for j in range(3):
            expected = inverse if i == j else torch.zeros_like(inverse)
            assert (J[i, :, j] - expected).abs().max() < 1e-13


@pytest.mark.parametrize("method", ["auto", "lu", "svd", "lsmr", "gmres"])
def test_a_function_is_a_matrix(method):
    A, b = system(2)
    A.requires_grad_()
    x = linear_solve(lambda v, A: (A @ v.unsqueeze(-1)).squeeze(-1), b, A, method=method, eps_rel=1e-13).value
    y = linear_solve(A, b).value
    assert (x - y).abs().max() < 1e-10
    (gx,), (gy,) = torch.autograd.grad(x.sum(), A), torch.autograd.grad(y.sum(), A)
    assert (gx - gy).abs().max() < 1e-9


def test_a_module_is_a_matrix_whose_parameters_learn():
    layer = torch.nn.Linear(3, 5, bias=False, dtype=torch.float64)
    b = torch.randn(4, 5, dtype=torch.float64)
    x = linear_solve(layer, b, n=3).value
    (g,) = torch.autograd.grad(x.sum(), layer.weight)
    W = layer.weight.detach().requires_grad_()
    (h,) = torch.autograd.grad(linear_solve(W, b).value.sum(), W)
    assert (g - h).abs().max() < 1e-7 * h.abs().max()


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("size", [1e-250, 1e-13, 1e250])
def test_tiny_and_huge_right_hand_sides_lose_no_digit(method, size):
    A, b = system()
    x = linear_solve(A, size * b, method=method, eps_rel=1e-12)
    assert x.converged
    expected = torch.linalg.solve(A, b)
    assert (x.value / size - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("method", SPD)
def test_a_right_hand_side_of_zero_is_solved_by_zero(method):
    A, b = system(2)
    A = A @ A.mT
    b[0] = 0
    b.requires_grad_()
    solution = linear_solve(A, b, method=method)
    assert solution.converged.all() and (solution.value[0] == 0).all()
    assert torch.autograd.grad(solution.value.sum(), b)[0].isfinite().all()


@pytest.mark.parametrize("method", ["lu", "cholesky", "gmres", "cg", "bicgstab"])
def test_singular_systems_are_told_apart_from_their_neighbours(method):
    A = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
    A[1] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    A.requires_grad_()
    b = torch.tensor([1.0, 0.0], dtype=torch.float64)
    solution = linear_solve(A, b, method=method)
    assert solution.converged.tolist() == [True, False, True]
    assert solution.status[1] in (Status.NUMERICAL_ERROR, Status.INSUFFICIENT_PROGRESS)
    assert solution.value.isnan().all(-1).tolist() == [False, True, False]
    (g,) = torch.autograd.grad(solution.value[solution.converged].sum(), A)
    assert g.isfinite().all() and (g[1] == 0).all() and (g[0] != 0).any()


def test_an_indefinite_matrix_has_no_cholesky_factor():
    A = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert linear_solve(A, torch.ones(2, dtype=torch.float64), method="cholesky").status == Status.NUMERICAL_ERROR
    assert not linear_solve(A, torch.ones(2, dtype=torch.float64), method="cg").converged


def test_data_that_are_not_finite_spoil_only_their_element():
    A, b = system(3)
    A[0, 0, 0], b[1, 0] = torch.nan, torch.inf
    for method in ALL:
        solution = linear_solve(A, b, method=method)
        assert solution.converged.tolist() == [False, False, True], method
        assert solution.status[1] == Status.INVALID_DATA


@pytest.mark.parametrize("method", SPD)
@pytest.mark.parametrize("shape", [(0, 2, 2), (3, 0, 0), (0, 0, 0), (2, 1, 1)])
def test_empty_batches_and_systems_and_single_unknowns(method, shape):
    A = torch.full(shape, 2.0, dtype=torch.float64) if shape[-1] == 1 else torch.zeros(shape, dtype=torch.float64)
    A = A.requires_grad_()
    b = torch.ones(shape[:-1], dtype=torch.float64, requires_grad=True)
    solution = linear_solve(A, b, method=method)
    assert solution.value.shape == b.shape and solution.converged.all()
    assert ((solution.value - 0.5).abs() < 1e-15).all()
    gA, gb = torch.autograd.grad(solution.value.sum(), (A, b))
    assert gA.shape == A.shape and gb.shape == b.shape and gA.isfinite().all()


@pytest.mark.parametrize("method", PSEUDO)
@pytest.mark.parametrize("shape", [(3, 0, 2), (3, 2, 0)])
def test_matrices_without_rows_or_columns(method, shape):
    A = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    value = linear_solve(A, torch.ones(shape[:2], dtype=torch.float64), method=method).value
    assert value.shape == (3, shape[2]) and (value == 0).all()
    assert torch.autograd.grad(value.sum(), A)[0].shape == shape


def test_gmres_restarts():
    """A cyclic shift has no residual that falls before n steps; a perturbed identity restarts and converges."""
    n = 120
    A = torch.randn(n, n, dtype=torch.float64) / (2 * n**0.5) + torch.diag(
        torch.linspace(1, 20, n, dtype=torch.float64)
    )
    b = torch.randn(n, dtype=torch.float64)
    solution = linear_solve(A, b, method="gmres", eps_rel=1e-12)
    assert solution.converged and solution.iterations > 40
    shift = torch.eye(n, dtype=torch.float64).roll(1, 0)
    stalled = linear_solve(shift, torch.eye(n, dtype=torch.float64)[0], method="gmres")
    assert stalled.status == Status.INSUFFICIENT_PROGRESS and stalled.value.isnan().all()
