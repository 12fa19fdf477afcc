# SPDX-License-Identifier: Apache-2.0
"""Every solver obeys the laws of a derivative, at every order and under every transform of torch."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from optlayer import solve_qp
from optlayer.implicit import LinearSettings, Report, argmin, fixed_point, implicit, kkt, linear_solve, root

B, N = 2, 3
TIGHT = {"eps_abs": 1e-13, "eps_rel": 0.0}  # the derivative's error is that of z, and finite differences multiply it
GMRES = LinearSettings("gmres", eps_rel=1e-13)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")


def f(z, W, x):
    """tanh(Wz + x), a contraction for the small W below."""
    return torch.tanh(z @ W.mT + x)


def F(z, W, x):
    return z - f(z, W, x)


def energy(z, W, x):
    """Strictly convex, with a Hessian that depends on z."""
    return (z.square().square().sum(-1) + (z @ W.mT - x).square().sum(-1) + z.square().sum(-1)) / 2


def point(W, x):
    return fixed_point(f, torch.zeros_like(x), W, x, **TIGHT).value.detach()


def simplex(W, x):
    program = kkt(energy, lambda z, W, x: z.sum(-1, keepdim=True) - 1, lambda z, W, x: -z, n=N, p=1)
    start = program.pack(torch.full_like(x, 1 / N), torch.zeros_like(x[..., :1]), torch.zeros_like(x))
    return root(program, start, W, x, batch_dims=x.dim() - 1).value


def solver(function, *args, **kwargs):
    return lambda W, x: function(*args, torch.zeros_like(x), W, x, batch_dims=x.dim() - 1, **kwargs).value


def matrix(W):
    return W @ W.mT + torch.eye(N, dtype=W.dtype)


CASES = {
    "implicit": lambda W, x: implicit(F, point(W, x), W, x, batch_dims=x.dim() - 1),
    "implicit, one system": lambda W, x: implicit(F, point(W, x), W, x),
    "implicit, gmres": lambda W, x: implicit(F, point(W, x), W, x, batch_dims=x.dim() - 1, linsolve=GMRES),
    "root, newton": solver(root, F),
    "root, newton by gmres": solver(root, F, linsolve=GMRES),
    "root, broyden": solver(root, F, method="broyden", **TIGHT),
    "fixed_point, anderson": solver(fixed_point, f, **TIGHT),
    "fixed_point, picard": solver(fixed_point, f, method="picard", **TIGHT),
    "fixed_point, newton": solver(fixed_point, f, method="newton"),
    "argmin, newton": solver(argmin, energy),
    "argmin, lbfgs": solver(argmin, energy, method="lbfgs", **TIGHT),
    "kkt": simplex,
    "linear_solve, lu": lambda W, x: linear_solve(W, x).value,
    "linear_solve, cholesky": lambda W, x: linear_solve(matrix(W), x, method="cholesky").value,
    "linear_solve, cg": lambda W, x: linear_solve(matrix(W), x, method="cg", eps_rel=1e-14).value,
    "linear_solve, gmres": lambda W, x: linear_solve(W, x, method="gmres", eps_rel=1e-14).value,
    "linear_solve, bicgstab": lambda W, x: linear_solve(W, x, method="bicgstab", eps_rel=1e-14).value,
    "linear_solve, lsmr": lambda W, x: linear_solve(W, x, method="lsmr", eps_rel=1e-14).value,
    "linear_solve, normal_cg": lambda W, x: linear_solve(W, x, method="normal_cg", eps_rel=1e-14).value,
    "linear_solve, function": lambda W, x: linear_solve(lambda v, W: v @ W.mT, x, W, eps_rel=1e-14).value,
}
EASY = ("implicit", "implicit, gmres", "root, newton", "argmin, newton", "linear_solve, lu", "linear_solve, function")


def data(requires_grad=True):
    W = 0.4 * torch.randn(N, N, dtype=torch.float64) + 0.6 * torch.eye(N, dtype=torch.float64)
    x = torch.randn(B, N, dtype=torch.float64)
    return W.requires_grad_(requires_grad), x.requires_grad_(requires_grad)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture(params=EASY)
def easy(request):
    return CASES[request.param]


def largest(a, b):
    return (a - b).abs().max().item()


def test_reverse_and_forward_mode_equal_finite_differences(case):
    assert gradcheck(case, data(), check_forward_ad=True, fast_mode=True)


def test_second_derivatives_equal_finite_differences(easy):
    assert gradgradcheck(easy, data(), check_fwd_over_rev=True, fast_mode=True)


def test_jacobians_of_both_modes_agree(case):
    data_ = data(False)
    for a, b in zip(jacrev(case, (0, 1))(*data_), jacfwd(case, (0, 1))(*data_), strict=True):
        assert largest(a, b) < 1e-11  # two solves of the same system, to 1e-13 each


def test_hessians_of_all_four_compositions_agree(easy):
    W, x = data(False)

    def loss(x):
        return easy(W, x).square().sum()

    H = torch.autograd.functional.hessian(loss, x)
    assert H.abs().max() > 1e-3
    for other in (hessian(loss), jacfwd(jacfwd(loss)), jacrev(jacrev(loss)), jacrev(jacfwd(loss))):
        assert largest(other(x), H) < 1e-10


def test_third_derivatives_equal_finite_differences():
    case = CASES["root, newton"]
    W, x = data(False)

    def bend(x):
        (g,) = torch.autograd.grad(case(W, x).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
        return h

    assert gradcheck(bend, (x[:1].clone().requires_grad_(),))


def test_vmap_equals_a_loop(case):
    W, x = data(False)
    X = torch.stack([x, 0.5 * x, -x], 1)  # mapped in the middle
    mapped = vmap(case, (None, 1))(W, X)
    assert largest(mapped, torch.stack([case(W, X[:, i]) for i in range(3)])) < 1e-11


def test_vmap_over_everything_equals_a_loop(case):
    W, x = data(False)
    Ws, X = torch.stack([W, 0.5 * W + torch.eye(N)]), torch.stack([x, 0.5 * x])
    mapped = vmap(case)(Ws, X)
    assert largest(mapped, torch.stack([case(*pair) for pair in zip(Ws, X, strict=True)])) < 1e-11


def test_per_sample_gradients_equal_a_loop(easy):
    W, x = data(False)

    def loss(W, x):
        return easy(W, x).square().sum()

    found = vmap(grad(loss), (None, 0))(W, x)
    assert largest(found, torch.stack([grad(loss)(W, row) for row in x])) < 1e-11


def test_forward_mode_and_vmap_commute(easy):
    W, x = data(False)
    X = torch.stack([x, 0.5 * x])
    inside = vmap(lambda x: jvp(lambda x: easy(W, x), (x,), (x,))[1])(X)
    outside = jvp(lambda X: vmap(easy, (None, 0))(W, X), (X,), (X,))[1]
    assert largest(inside, outside) < 1e-11


def test_the_gradient_of_a_shared_argument_is_the_sum_over_the_batch(case):
    W, x = data()
    (whole,) = torch.autograd.grad(case(W, x).sum(), W)
    parts = [torch.autograd.grad(case(W, row).sum(), W)[0] for row in x]
    assert largest(whole, sum(parts)) < 1e-11


def test_backward_twice_and_only_what_is_wanted(case):
    W, x = data()
    out = case(W.detach(), x).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not case(W.detach(), x.detach()).requires_grad


def test_batched_cotangents_equal_a_loop(case):
    W, x = data()
    out = case(W, x)
    cotangents = torch.randn(4, *out.shape, dtype=out.dtype)
    together = torch.autograd.grad(out, (W, x), cotangents, is_grads_batched=True, retain_graph=True)
    for i, g in enumerate(cotangents):
        for a, b in zip(together, torch.autograd.grad(out, (W, x), g, retain_graph=True), strict=True):
            assert largest(a[i], b) < 1e-11


def test_batched_cotangents_are_differentiable_again(easy):
    W, x = data()

    def bend(x):
        cotangents = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
        return torch.autograd.grad(easy(W, x), x, cotangents, is_grads_batched=True, create_graph=True)[0]

    assert gradcheck(bend, (x,), fast_mode=True)


@pytest.mark.parametrize("method", ["lu", "gmres", "bicgstab", "lsmr"])
def test_the_report_tells_of_each_right_hand_side(method):
    """One cotangent of four is zero, which takes no iterations."""
    W, x = data()
    report = Report()
    z = implicit(F, point(W, x), W, x, batch_dims=1, linsolve=method, report=report)
    cotangents = torch.ones(4, *z.shape, dtype=z.dtype)
    cotangents[2] = 0
    torch.autograd.grad(z, x, cotangents, is_grads_batched=True)
    assert report.converged.shape == (4, B) and report.converged.all()
    assert ((report.iterations > 0) == (cotangents[..., 0] != 0)).all() or method == "lu"
    assert "8 of 8 converged" in repr(report)


def test_a_module_under_functional_call_gets_the_same_gradient():
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.W = torch.nn.Parameter(data(False)[0])

        def forward(self, z, x):
            return f(z, self.W, x)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Cell()

        def forward(self, x):
            return fixed_point(self.cell, torch.zeros_like(x), x, batch_dims=1, method="newton").value.sum()

    model, x = Model(), data(False)[1]
    (expected,) = torch.autograd.grad(model(x), model.cell.W)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = grad(lambda p: functional_call(model, p, (x,)))(parameters)["cell.W"]
    assert largest(found, expected) < 1e-13
    direction = {"cell.W": torch.ones_like(expected)}
    tangent = jvp(lambda p: functional_call(model, p, (x,)), (parameters,), (direction,))[1]
    assert abs(tangent - expected.sum()) < 1e-12


def test_theta_in_lists_dictionaries_and_modules_gets_the_same_derivatives():
    """And modules among theta share their parameters with F and with each other, as torch's modules do."""
    W, x = data()
    expected = torch.autograd.grad(CASES["fixed_point, newton"](W, x).sum(), (W, x))

    def held(z, given, factor):
        return torch.tanh(factor * (z @ given["W"][0].mT + given["pair"][1]))

    kept = {"W": [W], "pair": ("a constant", x)}
    out = fixed_point(held, torch.zeros_like(x), kept, 1.0, batch_dims=1, method="newton").value
    for a, b in zip(torch.autograd.grad(out.sum(), (W, x)), expected, strict=True):
        assert largest(a, b) < 1e-13

    cell = torch.nn.Linear(N, N, dtype=W.dtype)
    cell.load_state_dict({"weight": W.detach(), "bias": torch.zeros(N, dtype=W.dtype)})

    def called(z, x, cells):
        return torch.tanh(cells["one"](z) + x)

    def solve(x):
        cells = {"one": cell, "same": [cell]}
        return fixed_point(called, torch.zeros_like(x), x, cells, batch_dims=1, method="newton").value

    for a, b in zip(torch.autograd.grad(solve(x).sum(), (cell.weight, x)), expected, strict=True):
        assert largest(a, b) < 1e-13
    assert gradcheck(solve, (x,), check_forward_ad=True, fast_mode=True)
    X = torch.stack([x, 2 * x]).detach()
    assert largest(vmap(solve)(X), torch.stack([*map(solve, X)])) < 1e-12


def test_solvers_nest_in_each_other_and_around_solve_qp():
    def inner(y, a, linsolve):
        return root(lambda z, y, a: z + z**3 - torch.cos(y) * a, torch.zeros_like(y), y, a, linsolve=linsolve).value

    def clipped(y):
        return solve_qp(torch.eye(2, dtype=y.dtype), -y, lb=-0.5, ub=0.5).x

    def outer(a, t, linsolve="lu"):
        def equation(y, a, t):
            return y - 0.5 * inner(y, a, linsolve) - 0.3 * clipped(y) - t

        return root(equation, torch.zeros_like(t), a, t, linsolve=linsolve).value

    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([-0.1, 1.2], dtype=torch.float64, requires_grad=True)
    assert gradcheck(outer, (a, t), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(lambda t: outer(a.detach(), t), (t,), fast_mode=True)
    direct = torch.autograd.grad(outer(a, t).sum(), (a, t))
    by_products = torch.autograd.grad(outer(a, t, GMRES).sum(), (a, t))
    for g, h in zip(direct, by_products, strict=True):
        assert largest(g, h) < 1e-11


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo itself looks at what crosses a graph break
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_breaks_its_graph_here_and_stays_right(backend):
    def loss(theta):
        return 2 * root(lambda z, t: z.square() - t, torch.ones_like(theta), 1.0 * theta).value.sum()

    theta = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
    value = torch.compile(loss, backend=backend)(theta)
    (g,) = torch.autograd.grad(value, theta)
    assert value.item() == pytest.approx(10.0) and g.tolist() == pytest.approx([0.5, 1 / 3])
    torch._dynamo.reset()
    with pytest.raises(Exception, match="function `root`"):
        torch.compile(loss, backend=backend, fullgraph=True)(theta)
