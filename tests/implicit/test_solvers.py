# SPDX-License-Identifier: Apache-2.0
"""The forward solvers: roots, fixed points and minimisers with known answers, at every size and kind of argument."""

import pytest
import torch

from optlayer import Status
from optlayer.implicit import LinearSettings, argmin, fixed_point, implicit, root


def f(z, W, x):
    return torch.tanh(z @ W.mT + x)


def F(z, W, x):
    return z - f(z, W, x)


def model(n, batch, norm, dtype=torch.float64):
    W = torch.randn(n, n, dtype=torch.float64)
    W = W * (norm / torch.linalg.matrix_norm(W, 2))
    return W.to(dtype), torch.randn(batch, n, dtype=torch.float64).to(dtype)


def rosenbrock(z, a):
    return (1 - z[..., 0]).square() + a * (z[..., 1] - z[..., 0].square()).square()


ROOTS = {
    "newton": lambda F, z0, *theta, **kw: root(F, z0, *theta, **kw),
    "newton by gmres": lambda F, z0, *theta, **kw: root(F, z0, *theta, linsolve="gmres", **kw),
    "broyden": lambda F, z0, *theta, **kw: root(F, z0, *theta, method="broyden", **kw),
    "anderson": lambda F, z0, *t, **kw: fixed_point(lambda z, *t: z - F(z, *t), z0, *t, **kw),
    "picard": lambda F, z0, *t, **kw: fixed_point(lambda z, *t: z - F(z, *t), z0, *t, method="picard", **kw),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solve", ROOTS.values(), ids=ROOTS.keys())
@pytest.mark.parametrize("n", [1, 3, 8])  # also fewer unknowns than iterates that Anderson's method remembers
def test_all_methods_find_the_root_of_a_contraction(solve, n, dtype):
    W, x = model(n, 5, 0.9, dtype)
    solution = solve(F, torch.zeros_like(x), W, x, batch_dims=1)
    assert solution.converged.all() and solution.value.dtype is dtype
    residual = F(solution.value.double(), W.double(), x.double()).abs().amax(-1)
    assert (residual < (1e-8 if dtype is torch.float64 else 1e-4)).all()  # ten times what was asked for
    assert torch.allclose(solution.residual.double(), residual, atol=1e-6)


@pytest.mark.parametrize("solve", ROOTS.values(), ids=ROOTS.keys())
def test_a_batch_equals_a_loop(solve):
    W, x = model(8, 5, 0.9)
    together = solve(F, torch.zeros_like(x), W, x, batch_dims=1)
    for i in range(5):
        alone = solve(F, torch.zeros_like(x[i]), W, x[i])
        assert alone.iterations == together.iterations[i]
        assert (alone.value - together.value[i]).abs().max() < 1e-14


def test_newton_leaves_local_minima_of_the_residual():
    """tanh(Wz + x) with |W| = 3 is no contraction, and |F| has minima that are no roots."""
    W, x = model(12, 40, 3.0)
    solution = root(F, torch.zeros_like(x), W, 0.3 * x, batch_dims=1)
    assert solution.converged.float().mean() > 0.9
    assert (solution.residual[solution.converged] < 1e-9).all()


def test_newton_does_not_see_how_F_is_scaled():
    W, x = model(8, 5, 0.9)
    plain = root(F, torch.zeros_like(x), W, x, batch_dims=1)
    for scale in (1e-30, 1e30):
        scaled = root(lambda z, W, x, s=scale: s * F(z, W, x), torch.zeros_like(x), W, x, batch_dims=1)
        assert scaled.converged.all()
        if scale > 1:  # a tiny F is below eps_abs at once
            assert (scaled.value - plain.value).abs().max() < 1e-14


def test_newton_backtracks_from_where_F_is_not_defined():
    solution = root(lambda z: z.log() + 3, torch.tensor([2.0, 50.0], dtype=torch.float64), batch_dims=1)
    assert solution.value.tolist() == pytest.approx([torch.tensor(-3.0).double().exp().item()] * 2, rel=1e-12)


def test_newton_of_two_scalar_equations_of_any_shape():
    """z may have any shape; batch_dims says how much of it is batch."""
    theta = torch.rand(2, 3, 4, 5, dtype=torch.float64) + 1
    for batch_dims in range(5):
        solution = root(lambda z, t: z**3 - t, torch.ones_like(theta), theta, batch_dims=batch_dims)
        assert solution.value.shape == theta.shape and solution.status.shape == theta.shape[:batch_dims]
        assert (solution.value - theta ** (1 / 3)).abs().max() < 1e-14


@pytest.mark.parametrize("method", ["newton", "broyden"])
def test_large_systems_are_solved_without_a_jacobian(method):
    n = 600
    A = torch.randn(n, n, dtype=torch.float64) / n**0.5
    A = A @ A.mT + torch.eye(n, dtype=torch.float64)
    b = torch.randn(n, dtype=torch.float64, requires_grad=True)
    solution = root(lambda z, b: A @ z + z**3 - b, torch.zeros(n, dtype=torch.float64), b, method=method)
    assert solution.converged
    (g,) = torch.autograd.grad(solution.value.sum(), b)
    z = solution.value.detach()
    expected = torch.linalg.solve(A + torch.diag(3 * z.square()), torch.ones(n, dtype=torch.float64))
    assert solution.report.method == "gmres" and solution.report.converged
    assert (g - expected).norm() < 1e-7 * expected.norm()


def test_anderson_needs_fewer_iterations_than_picard_and_works_where_picard_fails():
    W, x = model(12, 10, 0.98)
    quick, slow = (
        fixed_point(f, torch.zeros_like(x), W, 0.1 * x, batch_dims=1, method=m) for m in ("anderson", "picard")
    )
    assert quick.converged.all() and quick.iterations.sum() < slow.iterations.sum()
    line = fixed_point(lambda z, t: t - 2 * z, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert line.value.item() == pytest.approx(1 / 3, abs=1e-9)  # eps_abs


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_minimisers_of_a_curved_valley(method):
    start = 2 * torch.randn(6, 2, dtype=torch.float64)
    a = torch.tensor(100.0, dtype=torch.float64)
    solution = argmin(rosenbrock, start, a, batch_dims=1, method=method)
    assert solution.converged.all()
    assert (solution.value - 1).abs().max() < 1e-6  # eps times a condition of 2500
    for i in range(6):
        alone = argmin(rosenbrock, start[i], a, method=method)
        assert alone.iterations == solution.iterations[i]
        assert (alone.value - solution.value[i]).abs().max() < 1e-13


def test_newton_goes_downhill_from_where_the_function_is_concave():
    """Wells at +-1 in each entry; between +-0.57 the Hessian has negative eigenvalues."""
    start = torch.tensor([[0.1, -0.2, 0.5], [0.9, -1.2, 1.1], [0.01, 1.0, -2.0]], dtype=torch.float64)
    solution = argmin(lambda z: (z.square() - 1).square().sum(-1) + 0.1 * z[..., 0] * z[..., 1], start, batch_dims=1)
    assert solution.converged.all()
    assert ((solution.value.abs() - 1).abs() < 0.05).all()
    alone = argmin(lambda z: (z.square() - 1).square().sum(-1) + 0.1 * z[..., 0] * z[..., 1], start[1:2], batch_dims=1)
    assert torch.equal(alone.value, solution.value[1:2])  # a neighbour's other factorisation changes no bit


def test_newton_leaves_flat_directions_alone():
    """(z1 + z2 - t)^2 has a line of minimisers: the nearest is found, and it has no derivative."""
    t = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[5.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    solution = argmin(lambda z, t: (z.sum(-1) - t).square(), start, t, batch_dims=1)
    assert solution.converged.all() and (solution.iterations <= 2).all()
    nearest = start + (t.detach() - start.sum(-1)).unsqueeze(-1) / 2
    assert (solution.value - nearest).abs().max() < 1e-7  # the flat direction counts as curved by 1e-8
    assert torch.autograd.grad(solution.value.sum(), t)[0].isnan().all()
    constant = argmin(lambda z: 0 * z.sum(-1), start, batch_dims=1)
    assert constant.converged.all() and torch.equal(constant.value, start)


def test_newton_solves_quadratics_in_a_step_in_any_units():
    """Units of 1e-8, 1 and 1e8 for z, a matrix of condition below 3 in units of one size."""
    units = torch.tensor([1e-8, 1.0, 1e8], dtype=torch.float64)
    M = torch.tensor([[2.0, 0.5, 0.3], [0.5, 1.5, -0.4], [0.3, -0.4, 1.0]], dtype=torch.float64)
    stop = {"eps_abs": 1e-30, "eps_rel": 1e-12}
    solution = argmin(lambda z: (z / units - 1) @ M @ (z / units - 1) / 2, torch.zeros_like(units), **stop)
    assert solution.converged and solution.iterations == 1
    assert (solution.value / units - 1).abs().max() < 1e-14


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
@pytest.mark.parametrize("n", [20, 400])
def test_logistic_regression_has_a_vanishing_gradient(method, n):
    X, y = torch.randn(100, n, dtype=torch.float64), torch.randn(100, dtype=torch.float64).sign()
    decay = torch.zeros(n, dtype=torch.float64, requires_grad=True)

    def loss(w, decay):
        return torch.nn.functional.softplus(-y * (X @ w)).sum() + (decay.exp() * w.square()).sum() / 2

    solution = argmin(loss, torch.zeros(n, dtype=torch.float64), decay, method=method)
    assert solution.converged
    w = solution.value.detach().requires_grad_()
    assert torch.autograd.grad(loss(w, decay), w)[0].abs().max() < 1e-7
    (g,) = torch.autograd.grad(solution.value.sum(), decay)
    H = torch.autograd.functional.hessian(lambda w: loss(w, decay), w.detach())
    expected = -decay.exp() * w * torch.linalg.solve(H, torch.ones(n, dtype=torch.float64))
    assert (g - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (3, 1)])
def test_empty_batches_empty_unknowns_and_single_ones(shape):
    theta = (torch.rand(shape, dtype=torch.float64) + 1).requires_grad_()
    start = torch.ones(shape, dtype=torch.float64)
    for solution in (
        root(lambda z, t: z.square() - t, start, theta, batch_dims=1),
        root(lambda z, t: z.square() - t, start, theta, batch_dims=1, method="broyden", linsolve="gmres"),
        fixed_point(lambda z, t: (z + t / z) / 2, start, theta, batch_dims=1),
        fixed_point(lambda z, t: (z + t / z) / 2, start, theta, batch_dims=1, method="picard"),
        argmin(lambda z, t: (z**3 / 3 - z * t).sum(-1), start, theta, batch_dims=1),
        argmin(lambda z, t: (z**3 / 3 - z * t).sum(-1), start, theta, batch_dims=1, method="lbfgs"),
    ):
        assert solution.value.shape == shape and solution.converged.all()
        (g,) = torch.autograd.grad(solution.value.sum(), theta)
        assert torch.allclose(g, 0.5 / theta.sqrt(), rtol=1e-7)


def test_empty_containers_among_theta_arrive():
    for theta in ((2.0, []), ([], 2.0), ({}, (), 2.0), (2.0, None)):
        seen = []

        def equation(z, *given, seen=seen):
            seen.append(given)
            return z - 1

        root(equation, torch.zeros(1), *theta)
        assert all(given == theta for given in seen)


def test_arguments_of_every_kind():
    """Integer tensors, numbers and None are constants; of several tensors only those asked for get gradients."""
    power, a = torch.tensor(3), torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(1.0, dtype=torch.float64)
    start = torch.tensor(1.0, dtype=torch.float64)
    solution = root(lambda z, k, a, b, c, none: z**k * b - a * c, start, power, a, b, 1.0, None)
    assert solution.value.item() == pytest.approx(2.0, abs=1e-14)
    (g,) = torch.autograd.grad(solution.value, a)
    assert g.item() == pytest.approx(1 / 12, rel=1e-13)


def test_modules_methods_buffers_and_frozen_parameters():
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3, dtype=torch.float64)
            self.linear.weight.data *= 0.5
            self.frozen = torch.nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
            self.register_buffer("shift", torch.tensor(0.1, dtype=torch.float64))

        def forward(self, z, x):
            return torch.tanh(self.linear(z) + x) * self.frozen + self.shift

        def equation(self, z, x):
            return z - self(z, x)

    cell, x = Cell(), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    z = torch.zeros_like(x)
    for _ in range(200):
        z = cell(z, x)
    wanted = (cell.linear.weight, cell.linear.bias, x)
    expected = torch.autograd.grad(z.square().sum(), wanted)
    start = torch.zeros(5, 3, dtype=torch.float64)
    for value in (
        fixed_point(cell, start, x, batch_dims=1, method="newton").value,
        root(cell.equation, start, x, batch_dims=1).value,
        implicit(cell.equation, z.detach(), x, batch_dims=1),
    ):
        for g, h in zip(torch.autograd.grad(value.square().sum(), wanted), expected, strict=True):
            assert (g - h).abs().max() < 1e-13


def test_autocast_leaves_the_solve_in_full_precision():
    W, x = model(8, 5, 0.9, torch.float32)
    x.requires_grad_()
    plain = root(F, torch.zeros_like(x), W, x, batch_dims=1).value
    (g,) = torch.autograd.grad(plain.sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = root(lambda z, W, x: z - f(z, W, x).float(), torch.zeros_like(x), W, x, batch_dims=1)
    assert torch.equal(cast.value, plain)
    assert torch.equal(torch.autograd.grad(cast.value.sum(), x)[0], g)


def test_the_record():
    theta = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
    settings = LinearSettings("gmres")
    solution = root(lambda z, t: z.square() - t, torch.ones_like(theta), theta, batch_dims=1, linsolve=settings)
    shown = "ImplicitSolution(2 of 2 converged, value=(2,), batch=(2,), dtype=torch.float64, device=cpu)"
    assert repr(solution) == shown
    assert solution.status.tolist() == [Status.SOLVED] * 2
    assert solution.report.method is None and solution.report.converged is None
    assert repr(solution.report) == "Report(method=None)"
    solution.value.sum().backward()
    assert solution.report.method == "gmres" and solution.report.iterations.tolist() == [1, 1]
    assert (solution.report.residual < 1e-12).all()
    assert repr(solution.report) == "Report(2 of 2 converged, method='gmres')"
    leaves, spec = torch.utils._pytree.tree_flatten(solution)
    again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert again.value is solution.value and again.report is solution.report
