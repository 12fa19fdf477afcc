# SPDX-License-Identifier: Apache-2.0
"""The solution of the softmax problem: its closed forms, its laws, its statuses."""

import math

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import ProblemError, SettingsError, SolverError, Status
from optlayer.entropic import softmax, solve_softmax

pytestmark = pytest.mark.usefixtures("engine")

EPS = torch.finfo(torch.float64).eps
SCALES = (1e-6, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e12, 1e100)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-14, rtol: float = 1e-12) -> None:
    """By default rounding, with room for its growth over a sum."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def capped(a: Tensor, upper: Tensor) -> Tensor:
    """The closed form of Martins and Kreutzer, one element at a time: cap what exceeds its cap until nothing does."""
    x = torch.empty_like(a)
    for row, u, out in zip(a, upper, x, strict=True):
        active = torch.zeros_like(row, dtype=torch.bool)
        while True:
            rest = torch.softmax(row.masked_fill(active, -torch.inf), -1)
            out[:] = torch.where(active, u, (1 - u[active].sum()) * rest)
            if not (out > u).any():
                break
            active |= out > u
    return x


def assert_optimal(theta: Tensor, tau: Tensor | float, upper: Tensor | float, solution: object) -> None:
    """The optimality conditions themselves, recomputed; the rounding of theta limits the stationarity."""
    tau = torch.as_tensor(tau, dtype=torch.float64).unsqueeze(-1)
    x, log_x, y, z = solution.x, solution.log_x, solution.y.unsqueeze(-1), solution.z_upper
    rounding = 8 * EPS * (theta.abs().amax(-1, keepdim=True) + y.abs() + z)
    assert ((x.sum(-1) - 1).abs() <= 8 * EPS).all()
    assert ((theta - tau * (log_x + 1) - y - z).abs() <= rounding + 8 * EPS * tau).all()
    assert (x >= 0).all() and (x <= upper).all() and (z >= 0).all()
    assert (z * (upper - x) == 0)[torch.isfinite(z * upper)].all()
    assert_close(x, log_x.exp(), atol=0)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", [1, 2, 10, 300])
def test_without_caps_it_is_softmax(n, scale):
    theta = normal(8, n, scale=scale)
    solution = solve_softmax(theta, temperature=1.0)
    assert solution.solved.all()
    assert_close(solution.x, torch.softmax(theta, -1))
    assert_close(solution.log_x, torch.log_softmax(theta, -1), atol=1e-14)
    assert_close(solution.y, torch.logsumexp(theta, -1) - 1, atol=1e-14)
    assert (solution.z_upper == 0).all() and (solution.free == 1).all()
    assert_optimal(theta, 1.0, torch.inf, solution)


def test_the_iterations_do_not_grow_with_the_scale():
    """Without a multiplier for x >= 0 the method needs twice as many at every tenfold scale, and fails at 1e3."""
    for scale in (1.0, 1e2, 1e4, 1e6):
        assert solve_softmax(normal(20, 50, scale=scale)).iterations.max() <= 20


@pytest.mark.parametrize("tau", [1e-3, 0.05, 1.0, 30.0, 1e6])
def test_temperature(tau):
    theta = normal(5, 7)
    solution = solve_softmax(theta, tau)
    assert_close(solution.x, torch.softmax(theta / tau, -1))
    assert_close(solution.y, tau * (torch.logsumexp(theta / tau, -1) - 1), rtol=1e-14)


def test_one_temperature_for_each_element():
    theta, tau = normal(4, 6), double([0.1, 0.5, 1.0, 10.0])
    assert_close(solve_softmax(theta, tau).x, torch.softmax(theta / tau[:, None], -1))


@pytest.mark.parametrize("scale", SCALES[:-2])
@pytest.mark.parametrize("n", [2, 10, 300])
def test_with_caps_it_is_the_closed_form(n, scale):
    theta = normal(20, n, scale=scale)
    upper = 0.1 + uniform(20, n)
    upper = upper * torch.maximum(double(3.0) / n, 1.2 / upper.sum(-1, keepdim=True))
    solution = solve_softmax(theta, 1.0, upper)
    assert solution.solved.all() and (solution.z_upper > 0).any()
    # The closed form loses 1 - sum u to cancellation where that is small.
    assert_close(solution.x, capped(theta, upper), atol=1e-13)
    assert_optimal(theta, 1.0, upper, solution)


def test_some_variables_without_a_cap():
    theta, upper = normal(20, 9), torch.where(uniform(20, 9) < 0.5, torch.inf, double(0.15))
    upper[:, 0] = torch.inf
    solution = solve_softmax(theta, 1.0, upper)
    assert_close(solution.x, capped(theta, upper))
    assert_optimal(theta, 1.0, upper, solution)


def test_caps_over_twelve_orders_of_magnitude():
    theta, upper = normal(30, 12, scale=5.0), 10 ** (-12 * uniform(30, 12))
    upper[:, 0] = 1.0
    assert_close(solve_softmax(theta, 1.0, upper).x, capped(theta, upper))


def test_many_variables():
    theta = normal(1, 100_000, scale=5.0)
    assert_close(softmax(theta), torch.softmax(theta, -1))
    solution = solve_softmax(theta, 1.0, 2e-4)
    assert_optimal(theta, 1.0, 2e-4, solution)


def test_many_elements():
    """More than are solved at once."""
    theta = normal(20_000, 10)
    assert_close(softmax(theta), torch.softmax(theta, -1))


# ---- the conditions of the report that states them wrongly -----------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_where_logsumexp_is_zero_or_one(shift):
    """With y (sum x - 1) = 0 in place of sum x = 1, the system is singular at logsumexp(theta) = 1, where y = 0."""
    theta = normal(4, 6)
    theta = theta - torch.logsumexp(theta, -1, keepdim=True) + shift
    solution = solve_softmax(theta)
    p = torch.softmax(theta, -1)
    assert_close(solution.x, p)
    assert_close(solution.y, torch.full_like(solution.y, shift - 1))
    assert_close(solution.jacobian("theta"), torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


def test_theta_zero():
    """y = 1 - log n in the report's sign is negative for n > 2; there is no u > 0 to rely on."""
    for n in (1, 2, 3, 100):
        solution = solve_softmax(torch.zeros(n, dtype=torch.float64))
        assert_close(solution.x, torch.full((n,), 1 / n, dtype=torch.float64))
        assert_close(solution.y, double(n).log() - 1)


# ---- laws ------------------------------------------------------------------------------------------------------------


def test_permutation():
    theta, upper, order = normal(3, 8), 0.15 + 0.1 * uniform(3, 8), torch.randperm(8)
    plain, moved = solve_softmax(theta, 0.3, upper), solve_softmax(theta[:, order], 0.3, upper[:, order])
    assert_close(moved.x, plain.x[:, order])
    assert_close(moved.z_upper, plain.z_upper[:, order])


@pytest.mark.parametrize("shift", [-1e3, 1e-3, 7.0, 1e6])
def test_shift_of_theta_shifts_y_alone(shift):
    theta, upper = normal(3, 8), 0.2
    plain, moved = solve_softmax(theta, 0.3, upper), solve_softmax(theta + shift, 0.3, upper)
    tolerance = 8 * EPS * abs(shift) / 0.3 + 1e-14  # theta + shift is rounded
    assert_close(moved.x, plain.x, atol=tolerance)
    assert_close(moved.y, plain.y + shift, atol=4 * EPS * abs(shift) + tolerance)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_common_scale_of_theta_and_temperature(scale):
    theta, upper = normal(3, 8), 0.2
    plain, moved = solve_softmax(theta, 0.3, upper), solve_softmax(theta * scale, 0.3 * scale, upper)
    assert_close(moved.x, plain.x)
    assert_close(moved.y, plain.y * scale, atol=1e-14 * scale)
    assert_close(moved.z_upper, plain.z_upper * scale, atol=1e-14 * scale)


def test_caps_that_cannot_bind_change_nothing():
    theta = normal(5, 6)
    for upper in (1.0, 1.5, torch.inf, double([1.0, 2.0, torch.inf, 1e300, 1.0, 1.0])):
        solution = solve_softmax(theta, 1.0, upper)
        assert_close(solution.x, torch.softmax(theta, -1))
        assert (solution.z_upper == 0).all()


def test_a_batch_equals_a_loop():
    theta, tau, upper = normal(2, 3, 7, scale=4.0), 0.5 + uniform(2, 1), 0.2 + uniform(3, 7)
    batch = solve_softmax(theta, tau, upper)
    for i in range(2):
        for j in range(3):
            one = solve_softmax(theta[i, j], tau[i, 0], upper[j])
            assert one.iterations == batch.iterations[i, j]
            for name in ("x", "log_x", "y", "z_upper"):
                assert_close(getattr(one, name), getattr(batch, name)[i, j])


def test_neighbours_change_no_bit():
    theta, upper = normal(6, 9, scale=3.0), torch.full((6, 9), 0.2, dtype=torch.float64)
    plain = solve_softmax(theta, 1.0, upper)
    theta[[1, 3]], upper[4], upper[5] = double([[torch.nan], [1e9]]) * torch.arange(9), 0.01, 1 / 9
    beside = solve_softmax(theta, 1.0, upper)
    assert not torch.equal(plain.status, beside.status)
    for name in ("x", "log_x", "y", "z_upper", "free", "iterations", "residual"):
        assert torch.equal(getattr(plain, name)[[0, 2]], getattr(beside, name)[[0, 2]])


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)], ids=str)
def test_zero_batch(batch):
    for upper in (None, 0.5):
        solution = solve_softmax(torch.zeros(*batch, 4, dtype=torch.float64), 1.0, upper)
        assert solution.x.shape == (*batch, 4) and solution.status.shape == batch
        assert solution.jacobian("theta").shape == (*batch, 4, 4)


def test_batch_dimensions_broadcast():
    theta, tau, upper = normal(3, 1, 5), 1 + uniform(4), 0.3 + uniform(2, 1, 1, 5)
    solution = solve_softmax(theta, tau, upper)
    assert solution.x.shape == (2, 3, 4, 5) and solution.y.shape == solution.status.shape == (2, 3, 4)
    whole = solve_softmax(theta.expand(2, 3, 4, 5), tau.expand(2, 3, 4), upper.expand(2, 3, 4, 5))
    assert torch.equal(solution.x, whole.x)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_any_dimension(dim):
    theta = normal(2, 3, 4)
    assert_close(softmax(theta, dim=dim), torch.softmax(theta, dim))
    tau = 1 + uniform(*(k for i, k in enumerate(theta.shape) if i != dim % 3))
    assert_close(softmax(theta, tau, dim=dim), torch.softmax(theta / tau.unsqueeze(dim), dim))
    square, caps = normal(3, 3), 0.35 + 0.2 * uniform(3)
    columns = torch.stack([softmax(square[:, j], upper=caps[j]) for j in range(3)], 1)
    assert_close(softmax(square, upper=caps, dim=0), columns)  # caps broadcast to theta, not along dim
    upper = 0.6 + 0.2 * uniform(3, 1)
    moved = softmax(theta.movedim(dim, -1), upper=upper.expand_as(theta).movedim(dim, -1))
    assert_close(softmax(theta, upper=upper, dim=dim), moved.movedim(-1, dim))


def test_strides_do_not_matter():
    theta = normal(7, 5).T
    assert torch.equal(softmax(theta), softmax(theta.contiguous()))
    assert softmax(theta).is_contiguous()


def test_arguments_are_left_alone():
    theta, tau, upper = normal(3, 4), 1 + uniform(3), 0.5 + uniform(4)
    copies = [t.clone() for t in (theta, tau, upper)]
    solve_softmax(theta, tau, upper)
    assert all(map(torch.equal, (theta, tau, upper), copies))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_float32_is_the_rounded_solution(scale):
    theta, upper = normal(10, 20, scale=scale).float(), (0.1 + 0.1 * uniform(10, 20)).float()
    for caps in (None, upper):
        found = solve_softmax(theta, 1.0, caps)
        exact = solve_softmax(theta.double(), 1.0, None if caps is None else caps.double())
        for name in ("x", "log_x", "y", "z_upper"):
            assert getattr(found, name).dtype is torch.float32
            assert_close(getattr(found, name), getattr(exact, name).float(), atol=1e-14, rtol=2.5e-7)


def test_iterations_and_accuracy_are_reported():
    solution = solve_softmax(normal(4, 5))
    assert solution.iterations.dtype is torch.int64 and (solution.iterations > 0).all()
    assert (solution.residual <= 1e-14).all()
    assert solve_softmax(normal(4, 5), eps=1e-3).iterations.sum() < solution.iterations.sum()
    refused = solve_softmax(double([[0.0, 1.0], [torch.nan, 0.0], [-torch.inf, -torch.inf], [2.0, 0.0]]))
    assert (refused.iterations > 0).tolist() == [True, False, False, True]


def test_the_record_tells_how_many_are_solved():
    solution = solve_softmax(double([[0.0, 1.0], [torch.nan, 0.0], [2.0, 0.0]]))
    assert repr(solution) == "SoftmaxSolution(2 of 3 solved, batch=(3,), n=2, dtype=torch.float64, device=cpu)"
    assert solution.status_names() == ["SOLVED", "INVALID_DATA", "SOLVED"]


# ---- the edges of the feasible set -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("n", [1, 2, 3, 30, 1000])
def test_caps_that_sum_to_one_leave_one_point(n, scale):
    upper = 0.1 + uniform(10, n)
    upper = upper / upper.sum(-1, keepdim=True)
    solution = solve_softmax(normal(10, n, scale=scale), 1.0, upper)
    assert solution.solved.all()
    assert_close(solution.x, upper)
    assert (solution.z_upper >= 0).all()


def test_caps_that_sum_to_one_in_float32():
    upper = torch.full((3,), 1 / 3)  # three of them are less than one by a rounding error or more
    assert solve_softmax(torch.zeros(3), 1.0, upper).solved
    upper = torch.rand(100, 50) + 0.1
    upper = upper / upper.sum(-1, keepdim=True)
    assert solve_softmax(torch.randn(100, 50), 1.0, upper).solved.all()


@pytest.mark.parametrize("room", [1e-3, 1e-8, 1e-12, 1e-15])
def test_caps_that_sum_to_little_more_than_one(room):
    upper = 0.1 + uniform(20, 12)
    upper = upper / upper.sum(-1, keepdim=True) * (1 + room)
    solution = solve_softmax(normal(20, 12, scale=50.0), 1.0, upper)
    assert solution.solved.all()
    assert ((upper - solution.x) <= room + 1e-14).all()
    assert_close(solution.x.sum(-1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize(
    "upper", [0.3, [0.2, 0.3, 0.4999], [-0.1, 2.0, 2.0], [0.0, 0.0, 0.0], [-torch.inf] * 3], ids=str
)
def test_caps_without_room_are_infeasible(upper):
    solution = solve_softmax(normal(3), 1.0, double(upper) if isinstance(upper, list) else upper)
    assert solution.status == Status.PRIMAL_INFEASIBLE and not solution.solved
    for name in ("x", "log_x", "y", "z_upper", "residual"):
        assert getattr(solution, name).isnan().all()


@pytest.mark.parametrize(
    ("theta", "temperature", "upper"),
    [
        ([torch.nan, 0.0], 1.0, None),
        ([torch.inf, 0.0], 1.0, None),
        ([0.0, 0.0], double(0.0), None),
        ([0.0, 0.0], double(-1.0), 0.7),
        ([0.0, 0.0], double(torch.nan), None),
        ([0.0, 0.0], double(torch.inf), None),
        ([0.0, 0.0], 1.0, [0.7, torch.nan]),
    ],
)
def test_invalid_values_are_a_status(theta, temperature, upper):
    solution = solve_softmax(double(theta), temperature, None if upper is None else torch.as_tensor(upper).double())
    assert solution.status == Status.INVALID_DATA
    assert solution.x.isnan().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, torch.nan, torch.inf, 0])
def test_a_number_that_is_no_temperature_is_refused(temperature):
    for solve in (softmax, solve_softmax):
        with pytest.raises(ProblemError, match=f"^temperature is {temperature!r}, expected a finite number > 0$"):
            solve(normal(3), temperature)


def test_minus_infinity_masks():
    theta = normal(5, 6)
    theta[0, 2], theta[1, :5], theta[4, :] = -torch.inf, -torch.inf, -torch.inf
    solution = solve_softmax(theta, 0.7)
    assert solution.status.tolist() == [1, 1, 1, 1, Status.PRIMAL_INFEASIBLE]
    assert_close(solution.x[:4], torch.softmax(theta / 0.7, -1)[:4])
    assert_close(solution.log_x[:4], torch.log_softmax(theta / 0.7, -1)[:4])
    assert_close(solution.y[:4], 0.7 * (torch.logsumexp(theta / 0.7, -1)[:4] - 1))


def test_what_is_masked_makes_no_room():
    theta = double([-torch.inf, 0.0, 0.0])
    assert solve_softmax(theta, 1.0, double([0.9, 0.4, 0.4])).status == Status.PRIMAL_INFEASIBLE
    assert_close(softmax(theta, upper=double([0.1, 0.4, 0.7])), double([0.0, 0.4, 0.6]))


def test_a_cap_of_zero_removes():
    solution = solve_softmax(double([5.0, 1.0, 0.0]), 1.0, double([0.0, 1.0, 1.0]))
    assert_close(solution.x[1:], torch.softmax(double([1.0, 0.0]), 0))
    assert solution.x[0] == 0 and solution.log_x[0] == -torch.inf and solution.z_upper[0] == torch.inf


def test_differences_beyond_all_numbers():
    for theta, tau in (([1e308, -1e308, 0.0], 1.0), ([1.0, 0.0, 0.5], 1e-308), ([0.0, -1e-300, -1e-300], 1e-320)):
        solution = solve_softmax(double(theta), tau)
        assert solution.solved and solution.x.tolist() == [1.0, 0.0, 0.0]
    theta = double([1e308, -1e308, 0.0])
    assert solve_softmax(theta, 1.0, double([1.0, 0.5, 0.5])).solved
    assert solve_softmax(theta, 1.0, double([0.5, 0.5, 0.5])).status == Status.NUMERICAL_ERROR


def test_ties_and_caps_of_zero_are_ordinary():
    """Thousands of problems whose theta are integer multiples of a scale, with caps of zero among the others."""
    for n in (4, 8, 12, 20):
        theta, upper = normal(5000, n, seed=n).round() * 10 ** (4 * uniform(5000, 1)), uniform(5000, n, seed=1)
        upper = torch.where(uniform(5000, n, seed=2) < 0.3, 0.0, upper * (2 + 10 * uniform(5000, 1, seed=3)) / n)
        room = upper.sum(-1) > 1
        solution = solve_softmax(theta[room], 1.0, upper[room])
        assert room.sum() > 1000 and solution.solved.all() and solution.iterations.max() <= 40


def test_a_problem_on_which_predictor_and_corrector_nearly_run_in_a_circle():
    """Without iterations that only centre it takes 39."""
    theta = 3034.5330 * double([0, -1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0])
    caps = [0.2999994158744812, 0.013843840919435024, 0.20608074963092804, 0.2267398238182068, 0.12534648180007935]
    upper = double([0, 0, caps[0], 0, 0, caps[1], 0, *caps[2:], 0, 0.19257262349128723])
    solution = solve_softmax(theta, 1.0, upper)
    assert solution.solved and solution.iterations <= 25
    assert_close(solution.x, capped(theta[None], upper[None])[0])


def test_a_slope_that_jumps_by_thirteen_orders_of_magnitude():
    """x_0 leaves its cap of 1 by the 2e-14 that the others take: c'x falls 1e13 times as fast beyond that point."""
    theta = double([31.406508616703974, 0.0, 15.703254308351987, -15.703254308351987])
    solution = solve_softmax(theta, 1.0, double([1.0, 1.0, 0.0, 1.0]))
    theta[2] = -torch.inf
    assert_close(solution.x, torch.softmax(theta, -1))
    assert_close(solution.log_x, torch.log_softmax(theta, -1), atol=1e-13)


# ---- failures and options --------------------------------------------------------------------------------------------


def test_failures_stay_where_they_are():
    theta = normal(4, 5)
    theta[2, 1] = torch.nan
    solution = solve_softmax(theta)
    assert solution.solved.tolist() == [True, True, False, True]
    assert_close(solution.x[[0, 1, 3]], torch.softmax(theta[[0, 1, 3]], -1))


def test_on_failure():
    upper = double([[0.5, 0.6], [0.4, 0.4], [0.3, 0.4]])
    theta = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(SolverError, match=r"element \(1,\) of the batch ended with PRIMAL_INFEASIBLE.* 2 of 3"):
        solve_softmax(theta, 1.0, upper, on_failure="raise")
    with pytest.warns(RuntimeWarning, match="PRIMAL_INFEASIBLE"):
        warned = solve_softmax(theta, 1.0, upper, on_failure="warn")
    torch.testing.assert_close(warned.x, solve_softmax(theta, 1.0, upper).x, rtol=0, atol=0, equal_nan=True)
    assert warned.x[1:].isnan().all()
    with pytest.raises(SolverError, match=r"the caps sum to less than one.* Raise upper"):
        solve_softmax(theta[0], upper=0.1, on_failure="raise")
    with pytest.raises(SolverError, match="the problem ended with INVALID_DATA"):
        solve_softmax(theta[0], double(torch.nan), on_failure="raise")


def test_the_iteration_limit():
    theta, upper = normal(6, 40, scale=1e4), 0.02 + uniform(6, 40)
    limited = solve_softmax(theta, 1.0, upper, max_iter=2)
    assert (limited.status == Status.MAX_ITERATIONS).all() and limited.x.isnan().all()
    assert (limited.iterations == 2).all()
    assert solve_softmax(theta, 1.0, upper, max_iter=2, on_failure="ignore").x.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "^eps is 0.0, expected"),
        ({"eps": -1.0}, "^eps is -1.0, expected"),
        ({"eps": float("nan")}, "^eps is nan, expected"),
        ({"eps": "1e-9"}, "^eps is '1e-9', expected"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"on_failure": "shrug"}, "on_failure is 'shrug'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SettingsError, match=message):
        solve_softmax(normal(3), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0],), "theta is a list, expected a torch.Tensor"),
        ((torch.zeros(4, 3), torch.ones(4, 1)), r"temperature has shape \(4, 1\), expected .* \(4,\)"),
        ((torch.zeros(3), 1.0, -1.0), "upper is -1.0, expected a number >= 0"),
        ((torch.zeros(3), 1.0, math.nan), "upper is nan, expected a number >= 0"),
        ((torch.arange(3),), "theta has dtype torch.int64"),
        ((torch.zeros(3).half(),), "theta has dtype torch.float16"),
        ((torch.zeros(()),), r"theta has shape \(\)"),
        ((torch.zeros(2, 0),), r"theta has shape \(2, 0\)"),
        ((torch.zeros(3), "warm"), "temperature is a str"),
        ((torch.zeros(3), double(1.0)), "temperature has dtype torch.float64 but theta has torch.float32"),
        ((torch.zeros(3), torch.ones((), device="meta")), "temperature is on meta but theta is on cpu"),
        ((torch.zeros(3), 1.0, torch.ones(2)), r"upper has shape \(2,\), expected \(\*batch, 3\)"),
        ((torch.zeros(2, 3), torch.ones(4)), r"theta \(2,\), temperature \(4,\) and upper \(\) do not broadcast"),
    ],
)
def test_malformed_arguments(arguments, message):
    with pytest.raises(ProblemError, match=message):
        solve_softmax(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 3), torch.ones(4, 1)), r"temperature has shape \(4, 1\), expected .* \(4,\)"),
        ((torch.zeros(4, 3), 1.0, torch.ones(5, 4, 3)), r"upper has shape \(5, 4, 3\), expected .* \(4, 3\)"),
        ((torch.zeros(()),), "at least one dimension"),
        ((torch.zeros(3), 1.0, -1.0), "upper is -1.0, expected a number >= 0"),
    ],
)
def test_softmax_keeps_the_shape_of_theta(arguments, message):
    with pytest.raises(ProblemError, match=message):
        softmax(*arguments)
    with pytest.raises(IndexError, match=r"dim is 1, expected -1 to 0 because theta has shape \(3,\)"):
        softmax(torch.zeros(3), dim=1)


def test_the_front_door():
    assert optlayer.softmax is softmax
    with pytest.raises(ValueError, match="parameter is 'tau'"):
        solve_softmax(normal(3)).jacobian("tau")
