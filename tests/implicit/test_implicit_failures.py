# SPDX-License-Identifier: Apache-2.0
"""What has no root or no derivative says so, element by element, and leaves its neighbours alone."""

import functools
import math

import pytest
import torch

from optlayer import ProblemError, SettingsError, SolverError, Status
from optlayer.implicit import LinearSettings, Report, argmin, fixed_point, implicit, linear_solve, root

SQUARES = torch.tensor([[4.0], [-1.0], [math.nan], [9.0]], dtype=torch.float64)


def F(z, theta):
    return z.square() - theta


def ones(*shape, dtype=torch.float64):
    return torch.ones(shape, dtype=dtype)


def grad(value, *theta, **kwargs):
    return torch.autograd.grad(value, theta, retain_graph=True, **kwargs)


def test_each_element_has_its_status_and_failed_ones_are_nan():
    solution = root(F, ones(4, 1), SQUARES, batch_dims=1)
    assert solution.converged.tolist() == [True, False, False, True]
    assert solution.status[1] in (Status.INSUFFICIENT_PROGRESS, Status.MAX_ITERATIONS)
    assert solution.status[2] == Status.INVALID_DATA
    assert solution.value[[0, 3]].flatten().tolist() == pytest.approx([2.0, 3.0], abs=1e-14)
    assert solution.value[1:3].isnan().all()


def test_a_bad_neighbour_changes_no_bit():
    together = root(F, ones(4, 1), SQUARES, batch_dims=1).value
    assert torch.equal(together[[0, 3]], root(F, ones(2, 1), SQUARES[[0, 3]], batch_dims=1).value)


@pytest.mark.parametrize("linsolve", ["lu", "gmres"])
def test_a_masked_loss_trains_on_and_an_unmasked_one_is_nan(linsolve):
    theta, scale = SQUARES.clone().requires_grad_(), ones().requires_grad_()
    solution = root(lambda z, t, s: z.square() - s * t, ones(4, 1), theta, scale, batch_dims=1, linsolve=linsolve)
    own, shared = grad(solution.value[solution.converged].sum(), theta, scale)
    assert own[[0, 3]].flatten().tolist() == pytest.approx([1 / 4, 1 / 6], rel=1e-14)
    assert (own[1] == 0).all()
    own, shared = grad(solution.value.sum(), theta, scale)
    assert own.isnan().flatten().tolist() == [False, True, True, False]
    assert shared.isnan()
    # Data that are not finite spoil what they are multiplied with, so the shared gradient is asked for without them.
    theta = SQUARES[:2].clone().requires_grad_()
    solution = root(lambda z, t, s: z.square() - s * t, ones(2, 1), theta, scale, batch_dims=1, linsolve=linsolve)
    assert grad(solution.value[0].sum(), scale)[0].item() == pytest.approx(1.0, rel=1e-14)


def test_forward_mode_is_nan_for_failed_elements_only():
    def solve(theta):
        return root(F, ones(4, 1), theta, batch_dims=1).value

    tangent = torch.func.jvp(solve, (SQUARES,), (ones(4, 1),))[1].flatten()
    assert tangent.isnan().tolist() == [False, True, True, False]
    assert tangent[[0, 3]].tolist() == pytest.approx([1 / 4, 1 / 6], rel=1e-14)


def test_on_failure():
    kwargs = {"batch_dims": 1}
    found = root(F, ones(4, 1), SQUARES, **kwargs)
    assert repr(found).startswith("ImplicitSolution(2 of 4 converged, value=(4, 1), batch=(4,)")
    assert found.status_names()[::3] == ["SOLVED"] * 2 and "SOLVED" not in found.status_names()[1:3]
    with pytest.raises(SolverError, match="root failed for 2 of 4 elements; the first is element 1: INSUFFICIENT"):
        root(F, ones(4, 1), SQUARES, on_failure="raise", **kwargs)
    with pytest.warns(RuntimeWarning, match="root failed for 2 of 4"):
        solution = root(F, ones(4, 1), SQUARES, on_failure="warn", **kwargs)
    assert solution.value[1].isnan()
    theta = SQUARES.clone().requires_grad_()
    solution = root(F, ones(4, 1), theta, on_failure="ignore", **kwargs)
    assert solution.value.isnan().flatten().tolist() == [False, False, True, False] and not solution.converged[1]
    assert solution.value[1].abs() < 0.5  # the best point, near the minimum of z^2 + 1
    assert grad(solution.value.sum(), theta)[0][1].isnan()  # of a point that solves nothing


@pytest.mark.parametrize("linsolve", ["lu", "cholesky", "gmres", "cg", "bicgstab"])
def test_a_singular_jacobian_is_nan_and_reported(linsolve):
    """z^2 = theta has no derivative at 0."""
    theta = torch.tensor([[0.0], [4.0]], dtype=torch.float64, requires_grad=True)
    report = Report()
    z = implicit(F, theta.detach().sqrt(), theta, batch_dims=1, linsolve=linsolve, report=report)
    (g,) = grad(z.sum(), theta)
    assert g[0].isnan() and g[1].item() == pytest.approx(0.25)
    assert report.method == linsolve
    assert report.converged.tolist() == [False, True]
    assert repr(report) == f"Report(1 of 2 converged, method={linsolve!r})"
    (g,) = grad(z[1].sum(), theta)
    assert g.flatten().tolist() == pytest.approx([0.0, 0.25])


def test_a_nearly_singular_jacobian_is_singular():
    """eps makes this matrix singular, so that no digit of a derivative would be right."""
    A = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2e-16]], dtype=torch.float64)
    b = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    z = implicit(lambda z, b: A @ z - b, ones(2), b)
    assert grad(z.sum(), b)[0].isnan().all()


def test_scaling_of_rows_and_columns_is_no_singularity():
    d = torch.tensor([1e-200, 1.0, 1e150], dtype=torch.float64)
    b = ones(3).requires_grad_()
    z = implicit(lambda z, b: d * z - b, 1 / d, b)
    assert torch.allclose(grad(z.sum(), b)[0], 1 / d, rtol=1e-14, atol=0)


def test_a_failed_derivative_can_raise_or_warn():
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    z = implicit(F, theta.detach(), theta, linsolve=LinearSettings(on_failure="raise"))
    with pytest.raises(SolverError, match="the derivative of implicit failed for 1 of 1 elements"):
        grad(z.sum(), theta)
    z = implicit(F, theta.detach(), theta, linsolve=LinearSettings(on_failure="warn"))
    with pytest.warns(RuntimeWarning, match="the derivative of implicit failed"):
        assert grad(z.sum(), theta)[0].isnan()


def test_an_iterative_solve_that_is_cut_short_is_reported_and_not_silent():
    A = torch.randn(40, 40, dtype=torch.float64) + 7 * torch.eye(40, dtype=torch.float64)
    b = torch.randn(40, dtype=torch.float64)
    for method in ("gmres", "bicgstab", "lsmr", "normal_cg"):
        solution = linear_solve(A, b, method=method, max_iter=3)
        assert solution.status == Status.MAX_ITERATIONS and solution.iterations == 3
        assert solution.value.isnan().all() and 1e-9 < solution.residual < 1
        best = linear_solve(A, b, method=method, max_iter=3, on_failure="ignore")
        assert best.value.isfinite().all() and not best.converged


def test_a_point_that_is_not_finite_has_no_derivative():
    theta = ones(2, 1).requires_grad_()
    z = implicit(F, torch.tensor([[1.0], [math.nan]], dtype=torch.float64), theta, batch_dims=1)
    assert z.isnan().flatten().tolist() == [False, True]
    assert grad(z[0].sum(), theta)[0].flatten().tolist() == pytest.approx([0.5, 0.0])
    assert grad(z.sum(), theta)[0].isnan().flatten().tolist() == [False, True]


def test_an_iteration_that_diverges_says_so():
    solution = fixed_point(lambda z, t: 3 * z + t, ones(1), ones(1), method="picard")
    assert solution.status == Status.INSUFFICIENT_PROGRESS and solution.iterations < 30
    cycle = fixed_point(lambda z: -z, ones(1), method="picard", max_iter=20)
    assert cycle.status == Status.MAX_ITERATIONS and cycle.value.isnan().all()


def test_a_stationary_point_that_is_no_minimiser_says_so():
    start = torch.tensor([[0.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    solution = argmin(lambda z: (z[..., 0].square() - 1).square() + z[..., 1].square(), start, batch_dims=1)
    assert solution.status.tolist() == [Status.NON_CONVEX, Status.SOLVED]
    assert solution.value[1].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


SOLVERS = {
    "newton": lambda start, t, **kw: root(F, start, t, **kw),
    "broyden": lambda start, t, **kw: root(F, start, t, method="broyden", **kw),
    "anderson": lambda start, t, **kw: fixed_point(lambda z, t: (z + t / z) / 2, start, t, **kw),
    "picard": lambda start, t, **kw: fixed_point(lambda z, t: (z + t / z) / 2, start, t, method="picard", **kw),
    "minimiser": lambda start, t, **kw: argmin(lambda z, t: z**3 / 3 - z * t, start, t, **kw),
    "lbfgs": lambda start, t, **kw: argmin(lambda z, t: z**3 / 3 - z * t, start, t, method="lbfgs", **kw),
}


@pytest.mark.parametrize("on_failure", ["nan", "ignore"])
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())
def test_a_start_or_data_that_are_not_finite_are_invalid(solve, on_failure):
    start = torch.tensor([1.0, math.nan, 1.0, math.inf], dtype=torch.float64)
    theta = torch.tensor([4.0, 4.0, math.nan, 4.0], dtype=torch.float64, requires_grad=True)
    solution = solve(start, theta, batch_dims=1, on_failure=on_failure)
    assert solution.status.tolist() == [Status.SOLVED] + 3 * [Status.INVALID_DATA]
    assert solution.value.isnan().tolist() == [False, True, True, True]
    assert solution.value[0].item() == pytest.approx(2.0, abs=1e-8)
    (g,) = grad(solution.value[0], theta)
    assert g.tolist() == pytest.approx([0.25, 0, 0, 0], abs=1e-8)
    assert grad(solution.value.sum(), theta)[0].isnan().tolist() == [False, True, True, True]


@pytest.mark.parametrize("method", ["anderson", "picard", "newton"])
def test_an_iteration_that_is_cut_off_has_a_status_and_no_derivative_but_implicit_attaches_one(method):
    """cos(tz) = z, where z' = -z sin(tz) / (1 + t sin(tz)): the error of z' is of the order of that of z."""
    t, start = torch.tensor([1.0, 1.1], dtype=torch.float64).requires_grad_(), ones(2)

    def f(z, t):
        return torch.cos(t * z)

    exact = fixed_point(f, start, t, batch_dims=1).value
    cut = fixed_point(f, start, t, batch_dims=1, method=method, max_iter=2, on_failure="ignore")
    assert cut.status.tolist() == [Status.MAX_ITERATIONS] * 2 and cut.value.isfinite().all()
    assert grad(cut.value.sum(), t)[0].isnan().all()
    attached = implicit(lambda z, t: z - f(z, t), cut.value, t, batch_dims=1)
    error = (grad(attached.sum(), t)[0] - grad(exact.sum(), t)[0]).abs()
    assert (error <= 2 * (cut.value - exact).abs()).all() and (cut.value != exact).all()


W = torch.ones(2, dtype=torch.float64, requires_grad=True)
LOST = "that requires grad, or that torch.func differentiates or maps, and that is none of its arguments"


class Holder:
    """What torch cannot look into."""

    def __init__(self):
        self.tensor = 2 * W

    def difference(self, z):
        return z - self.tensor


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2, dtype=torch.float64)
        self.scaled = 2 * W

    def forward(self, z):
        return z - self.scaled


CELL, HIDDEN = Cell(), [W]


@pytest.mark.parametrize(
    "call",
    [
        lambda: implicit(lambda z: z - W, ones(2)),
        lambda: root(lambda z: z - W, ones(2)),
        lambda: fixed_point(lambda z: z / 2 + W, ones(2)),
        lambda: argmin(lambda z: (z - W).square().sum(), ones(2)),
        lambda: linear_solve(lambda v: W * v, ones(2)),
        lambda: torch.func.grad(lambda W: implicit(lambda z: z - W, ones(2)).sum())(ones(2)),
        lambda: torch.func.vmap(lambda W: implicit(lambda z: z - W, ones(2)))(ones(3, 2)),
    ],
)
def test_closures_over_what_is_differentiated_are_refused(call):
    with pytest.raises(ProblemError, match=LOST):
        call()


def nested():
    V = 2 * W

    def inner(z):
        return z - V

    return lambda z: inner(z)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: root(lambda z: z - W, ones(2)), r"F depends on W, a tensor of shape \(2,\)"),
        (lambda: fixed_point(nested(), ones(2)), r"f depends on V, a tensor of shape \(2,\)"),
        (lambda: root(lambda z: z - CELL.linear(z), ones(2)), "F depends on CELL, a Cell with parameters"),
        (lambda: root(lambda z, held: z - held.tensor, ones(2), Holder()), "F depends on a Holder among theta"),
        (lambda: root(Holder().difference, ones(2)), r"F depends on tensor, a tensor of shape \(2,\)"),
        (lambda: root(Cell(), ones(2)), r"F depends on scaled, a tensor of shape \(2,\)"),
        (lambda: root(Cell().forward, ones(2)), r"F depends on scaled, a tensor of shape \(2,\)"),
        (lambda: root(functools.partial(torch.sub, W), ones(2)), "F depends on argument 0 of a partial"),
        (lambda: root(lambda z: z - HIDDEN[0], ones(2)), "F depends on a tensor that requires grad"),
    ],
)
def test_a_closure_over_what_is_differentiated_is_named(call, found):
    with pytest.raises(ProblemError, match=found) as error:
        call()
    assert LOST in str(error.value)
    assert "as one of theta, by itself, in a list, tuple or dictionary" in str(error.value)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_closures_over_tangents_are_refused():
    with pytest.raises(ProblemError, match=LOST):
        torch.func.jvp(lambda W: implicit(lambda z: z - W, ones(2)), (ones(2),), (ones(2),))


def test_closures_over_constants_are_welcome():
    constant = ones(2)
    assert root(lambda z: z - constant, torch.zeros(2, dtype=torch.float64)).value.tolist() == [1.0, 1.0]
    with torch.no_grad():  # nothing is lost where nothing is differentiated
        assert root(lambda z: z - W, torch.zeros(2, dtype=torch.float64)).converged


def test_a_closure_over_a_variable_without_a_value_is_refused_in_the_same_words():
    def f(z):
        return z - W if z is not None else later

    with pytest.raises(ProblemError, match=LOST):
        root(f, ones(2))
    later = None


@pytest.mark.parametrize("solve", [root, fixed_point, argmin])
def test_what_was_made_in_inference_mode_is_welcome(solve):
    with torch.inference_mode():
        start, scale = torch.zeros(2, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    functions = {root: lambda z, a, b: a * z - b, fixed_point: lambda z, a, b: z - (a * z - b) / a / a}
    f = functions.get(solve, lambda z, a, b: (a * z * z / 2 - b * z).sum())
    assert solve(f, start, scale, ones(2)).value.tolist() == pytest.approx([0.5, 0.5])
    b = ones(2).requires_grad_()
    (found,) = grad(solve(f, start, scale, b).value.sum(), b)
    assert found.tolist() == pytest.approx([0.5, 0.5])
    (closed,) = grad(solve(lambda z, b: f(z, scale, b), start, b).value.sum(), b)
    assert closed.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("method", ["auto", "lu"])
def test_a_function_that_is_affine_is_no_linear_one(method):
    with pytest.raises(ProblemError, match=r"A\(0\) has entries up to 3, expected a linear function"):
        linear_solve(lambda v: 2 * v + torch.tensor([1.0, -3.0], dtype=torch.float64), ones(2), method=method)


@pytest.mark.parametrize("solve", [root, fixed_point])
def test_a_function_that_changes_theta_is_refused(solve):
    class Trains(torch.nn.Linear):
        def forward(self, z):
            self.bias.mul_(0.5)
            return super().forward(z)

    def changes(z, t):
        return z / 2 - t.add_(1)

    with pytest.raises(ProblemError, match=r"changes a tensor of shape \(2,\) among theta in place"):
        solve(changes, ones(2), ones(2))
    with pytest.raises(ProblemError, match=r"changes a tensor of shape \(2,\) among theta in place"):
        solve(Trains(2, 2, dtype=torch.float64), ones(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: implicit(3, ones(2)), "F is int, expected a function"),
        (lambda: implicit(F, [1.0], ones(1)), "z is list, expected a torch.Tensor"),
        (lambda: implicit(F, torch.ones(2, dtype=torch.int64), ones(2)), "z is torch.int64, expected torch.float64"),
        (lambda: root(F, ones(2), ones(2), batch_dims=2), "batch_dims is 2, expected an integer between 0 and 1"),
        (lambda: root(F, ones(2), ones(2), batch_dims=True), "batch_dims is True"),
        (lambda: root(lambda z, t: z.sum(), ones(2), ones(2)), r"F returns shape \(\), expected \(2,\)"),
        (lambda: root(lambda z: z.float(), ones(2)), "F returns torch.float32 on cpu, expected torch.float64"),
        (lambda: root(lambda z: None, ones(2)), "F returns NoneType, expected one tensor"),
        (
            lambda: root(lambda z: z.sub_(1), ones(2)),
            "F changes its argument in place, expected a function that leaves",
        ),
        (lambda: argmin(lambda z: z, ones(2, 3), batch_dims=1), r"f returns shape \(2, 3\), expected \(2,\)"),
        (lambda: fixed_point(lambda z: z[:1], ones(2)), r"f returns shape \(1,\), expected \(2,\)"),
        (lambda: root(F, ones(2).to("meta"), ones(2)), "z0 is on the device meta, where tensors hold no values"),
        (lambda: implicit(F, ones(2), ones(2).to("meta")), "a tensor among theta is on the device meta"),
        (lambda: linear_solve(ones(2, 2).to("meta"), ones(2).to("meta")), "b is on the device meta"),
        (lambda: linear_solve(ones(2, 2), 3.0), "b is float, expected a tensor"),
        (lambda: linear_solve(ones(2, 2), ones(3)), r"A has shape \(2, 2\), expected \(\*batch, 3, n\)"),
        (lambda: linear_solve(ones(2, 2), ones(2, dtype=torch.float32)), "A is torch.float64 on cpu, expected"),
        (lambda: linear_solve(ones(3, 2, 2), ones(4, 2)), "do not broadcast"),
        (lambda: linear_solve(ones(3, 2), ones(3), method="lu"), "A is 3 x 2 and method 'lu' is for square ones"),
        (lambda: linear_solve(ones(2, 2), ones(2), ones(2)), "A is a matrix, yet 1 further arguments"),
        (lambda: linear_solve(lambda v: v, ones(2), n=-1), "n is -1, expected a count"),
        (lambda: linear_solve(lambda v: v[..., :1], ones(2)), r"A returns shape \(1,\), expected \(2,\)"),
    ],
)
def test_malformed_arguments_are_refused(call, message):
    with pytest.raises(ProblemError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: root(F, ones(2), ones(2), method="secant"), "method is 'secant', expected one of 'newton', 'broyden'"),
        (lambda: root(F, ones(2), ones(2), linsolve=3), "linsolve is 3, expected a method's name"),
        (lambda: root(F, ones(2), ones(2), linsolve="qr"), "method is 'qr', expected one of 'auto', 'lu'"),
        (lambda: root(F, ones(2), ones(2), eps_abs=-1), "eps_abs is -1, expected"),
        (lambda: root(F, ones(2), ones(2), max_iter=0), "max_iter is 0, expected an integer >= 1"),
        (lambda: root(F, ones(2), ones(2), on_failure="print"), "on_failure is 'print', expected one of"),
        (lambda: LinearSettings(eps_rel=-1.0), "eps_rel is -1.0, expected None or a finite number >= 0"),
        (lambda: LinearSettings(max_iter=0), "max_iter is 0, expected an integer >= 1"),
        (lambda: LinearSettings(on_failure="print"), "on_failure is 'print', expected one of"),
    ],
)
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(SettingsError, match=message):
        call()


FAILURES = {
    "a function without a root": (lambda **kw: root(lambda z: z.square() + 1, ones(1), **kw), "INSUFFICIENT_PROGRESS"),
    "Broyden's method without a root": (
        lambda **kw: root(lambda z: z.square() + 1, ones(1), method="broyden", **kw),
        "INSUFFICIENT_PROGRESS",
    ),
    "a root out of reach": (lambda **kw: root(F, ones(1), 1e4 * ones(1), max_iter=2, **kw), "MAX_ITERATIONS"),
    "a root from nowhere": (lambda **kw: root(F, math.nan * ones(1), ones(1), **kw), "INVALID_DATA"),
    "no fixed point": (
        lambda **kw: fixed_point(lambda z: 2 * z + 1, ones(1), method="picard", **kw),
        "INSUFFICIENT_PROGRESS",
    ),
    "no fixed point in time": (lambda **kw: fixed_point(torch.cos, ones(1), max_iter=2, **kw), "MAX_ITERATIONS"),
    "a fixed point from nowhere": (lambda **kw: fixed_point(torch.cos, math.inf * ones(1), **kw), "INVALID_DATA"),
    "a kink": (lambda **kw: argmin(lambda z: z.abs().sum(), ones(1) / 3, **kw), "INSUFFICIENT_PROGRESS"),
    "no minimum": (lambda **kw: argmin(torch.sum, ones(1), **kw), "MAX_ITERATIONS"),
    "a saddle": (lambda **kw: argmin(lambda z: z.square().diff().sum(), 0 * ones(2), **kw), "NON_CONVEX"),
    "a minimiser from nowhere": (lambda **kw: argmin(lambda z: z.log().sum(), -ones(1), **kw), "INVALID_DATA"),
    "a singular matrix": (lambda **kw: linear_solve(ones(2, 2), ones(2), **kw), "NUMERICAL_ERROR"),
    "a system without a solution": (
        lambda **kw: linear_solve(torch.diag(ones(2).cumsum(0) - 1), ones(2), method="gmres", **kw),
        "INSUFFICIENT_PROGRESS",
    ),
    "a system in a hurry": (
        lambda **kw: linear_solve(torch.diag(ones(5).cumsum(0)), ones(5), method="cg", max_iter=2, **kw),
        "MAX_ITERATIONS",
    ),
    "a right-hand side with NaN": (lambda **kw: linear_solve(ones(1, 1), math.nan * ones(1), **kw), "INVALID_DATA"),
}


@pytest.mark.parametrize(("solve", "status"), FAILURES.values(), ids=FAILURES)
def test_the_words_of_a_failure_are_of_equations_and_not_of_programs(solve, status):
    with pytest.raises(SolverError, match=f"failed for 1 of 1 elements; the first is element 0: {status}. ") as error:
        solve(on_failure="raise")
    words = str(error.value).split(": ", 1)[1].lower()
    for foreign in ("feasib", "constraint", "kkt", " p ", "lb", "ub ", "convex, "):
        assert foreign not in words
    assert words.count(".") >= 3  # name, diagnosis, advice
