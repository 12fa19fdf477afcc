# SPDX-License-Identifier: Apache-2.0
"""The derivative of the softmax problem: closed forms, finite differences, every transform of torch, failures."""

import io

import pytest
import torch
from processes import needs_compiler
from test_entropic import assert_close, double, normal, uniform
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.export import Dim, export
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from optlayer.entropic import softmax, solve_softmax

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

ALL = (0, 1, 2)
ORDER_ONE = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
ORDER_TWO = {"check_fwd_over_rev": True, "check_batched_grad": True}


def outputs(*arguments: Tensor) -> tuple[Tensor, ...]:
    solution = solve_softmax(*arguments)
    return solution.x, solution.log_x, solution.y, solution.z_upper


def loss(*arguments: Tensor) -> Tensor:
    """A function of all outputs whose gradients and curvature are nowhere zero."""
    return sum((t * t * t + t).sum() for t in outputs(*arguments))


def regular() -> list[Tensor]:
    """theta (3, 5), temperature (3) and caps (5) that the batch shares; every cap is well above or well below.

    The caps of x_0 and x_1 are active with multipliers above 1; the other variables stay below two thirds of theirs.
    """
    theta = torch.tensor([2.0, 1.5, 0.2, 0.0, -0.3]).double() + normal(3, 5, scale=0.05)
    return [theta, double([0.8, 1.0, 1.2]), double([0.25, 0.22, 0.35, 0.4, 0.3])]


def tracked(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def closed_jacobian(p: Tensor) -> Tensor:
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0, 100.0])
@pytest.mark.parametrize("tau", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("n", [2, 10, 100])
def test_the_jacobian_is_that_of_softmax(n, tau, scale):
    theta = normal(4, n, scale=scale)
    J, p = solve_softmax(theta, tau).jacobian("theta"), torch.softmax(theta / tau, -1)
    expected = closed_jacobian(p) / tau
    error = torch.linalg.matrix_norm(J - expected)
    assert (error <= 1e-13 * torch.linalg.matrix_norm(expected) + 1e-15 / tau).all()
    # Off the diagonal even the smallest entries are right to many digits: nothing cancels there.
    away = ~torch.eye(n, dtype=torch.bool) & (p.unsqueeze(-1) * p.unsqueeze(-2) > 1e-290)
    assert_close(J[away], expected[away], atol=0, rtol=1e-14 * (1 + 10 * scale / tau))


def test_the_temperature_derivative_is_that_of_softmax():
    theta, tau = normal(4, 10), double([0.1, 0.5, 1.0, 5.0])
    expected = jacrev(lambda t: torch.softmax(theta / t[:, None], -1))(tau)[range(4), :, range(4)]
    assert_close(solve_softmax(theta, tau).jacobian("temperature"), expected)


def test_the_multiplier_moves_by_minus_x_and_by_the_entropy():
    """y = tau (logsumexp(theta / tau) - 1) without caps: dy/dtheta = x and dy/dtau = H(x) - 1."""
    theta, tau = tracked([normal(6), double(0.7)])
    solution = solve_softmax(theta, tau)
    slope, drift = grad(solution.y, (theta, tau))
    assert_close(slope, solution.x.detach())
    assert_close(drift, -(solution.x * solution.log_x).sum().detach() - 1)


def test_the_logarithm_is_that_of_log_softmax():
    theta = normal(3, 6, scale=20.0)
    ours, theirs = jacrev(lambda t: solve_softmax(t).log_x)(theta), jacrev(lambda t: torch.log_softmax(t, -1))(theta)
    assert_close(ours, theirs)


def test_with_caps_the_jacobians_are_the_closed_forms():
    theta, tau, upper = regular()
    solution = solve_softmax(theta, tau, upper)
    active = double([1, 1, 0, 0, 0])
    assert ((solution.free == 0) == active.bool()).all() and ((solution.free == 1) == ~active.bool()).all()
    below = solution.x * (1 - active)
    room = below.sum(-1)[:, None, None]
    toward_theta = (torch.diag_embed(below) - below[:, :, None] * below[:, None, :] / room) / tau[:, None, None]
    toward_upper = torch.diag_embed(active.expand(3, 5)) - below[:, :, None] * active / room
    assert_close(solution.jacobian("theta"), toward_theta)
    assert_close(solution.jacobian("upper"), toward_upper)


def test_the_second_derivative_is_that_of_softmax():
    theta, w = normal(6), normal(6, seed=1)
    ours, theirs = (hessian(lambda t, f=f: f(t) ** 2 @ w)(theta) for f in (softmax, lambda t: torch.softmax(t, -1)))
    assert_close(ours, theirs)


def test_the_sum_is_constant():
    theta, tau, upper = tracked(regular())
    x = softmax(theta, tau, upper)
    assert all(g.abs().max() <= 1e-15 for g in grad(x.sum(), (theta, tau, upper)))


# ---- the edges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tau"), [(torch.float64, 1e-320), (torch.float32, 1e-39)])
def test_a_temperature_whose_reciprocal_overflows(dtype, tau):
    """x is a vertex, which nothing moves but an active cap."""
    solution = solve_softmax(torch.tensor([2.0, 1.0, 0.0], dtype=dtype), tau)
    assert solution.solved and solution.x.tolist() == [1, 0, 0]
    assert (solution.jacobian("theta") == 0).all() and (solution.jacobian("temperature") == 0).all()
    upper = torch.tensor([0.25, 1.0, 1.0], dtype=dtype)
    solution = solve_softmax(torch.tensor([2.0, 2.0, 0.0], dtype=dtype), tau, upper)
    assert solution.solved
    assert_close(solution.jacobian("upper"), torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 0, 0]], dtype=dtype))


def test_caps_that_sum_to_one_are_weakly_active():
    solution = solve_softmax(normal(4), 1.0, double([0.1, 0.2, 0.3, 0.4]))
    assert solution.weakly_active == 4 and ((solution.free > 0) & (solution.free < 1)).all()


def test_the_record_knows_the_temperature_of_each_element_after_vmap():
    """Also where the batch that vmap hides is as large as the one that it leaves."""
    theta, tau = normal(3, 3, 4), double([0.1, 1.0, 10.0])
    mapped, whole = vmap(solve_softmax)(theta, tau), solve_softmax(theta, tau[:, None])
    assert mapped.temperature.shape == whole.temperature.shape == (3, 3)
    for parameter in ("theta", "temperature"):
        assert_close(mapped.jacobian(parameter), whole.jacobian(parameter))


def test_a_weakly_active_cap_has_the_central_derivative():
    """The cap equals the softmax probability: the two one-sided derivatives are averaged, here half and half."""
    theta = double([1.0, 0.0])
    p = torch.softmax(theta, -1)
    solution = solve_softmax(theta, 1.0, torch.stack([p[0], double(1.0)]))
    assert solution.weakly_active == 1
    assert_close(solution.x, p)
    # The share is taken from the interior point, which is central up to the size of its last step.
    assert_close(solution.jacobian("theta"), closed_jacobian(p) / 2, atol=1e-3)
    assert_close(solution.jacobian("upper"), double([[0.5, 0.0], [-0.5, 0.0]]), atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 4, 30])
def test_caps_that_sum_to_one_leave_the_projection(n):
    """x cannot follow theta, and it follows the caps as far as sum x = 1 permits."""
    upper = torch.full((n,), 1 / n, dtype=torch.float64)
    solution = solve_softmax(torch.zeros(n, dtype=torch.float64), 1.0, upper)
    assert solution.jacobian("theta").abs().max() <= 1e-9
    assert_close(solution.jacobian("upper"), torch.eye(n, dtype=torch.float64) - 1 / n, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_caps_that_sum_to_one_have_finite_derivatives(scale):
    upper = 0.1 + uniform(5, 7)
    theta, upper = tracked([normal(5, 7, scale=scale), upper / upper.sum(-1, keepdim=True)])
    solution = solve_softmax(theta, 1.0, upper)
    w = normal(5, 7, seed=1)
    for g in grad((w * solution.x).sum(), (theta, upper)):
        assert g.isfinite().all()
    assert solution.jacobian("upper").sum(-2).abs().max() <= 1e-12


def test_a_cap_of_zero():
    theta, upper = tracked([double([0.5, 0.0, 1.0]), double([0.0, 2.0, 2.0])])
    solution = solve_softmax(theta, 1.0, upper)
    p = solution.x.detach()
    assert_close(solution.jacobian("theta"), closed_jacobian(p))
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[:, 0] = -p
    expected[0, 0] = 1
    assert_close(solution.jacobian("upper"), expected)
    assert all(g.isfinite().all() for g in grad(solution.x[1] + solution.y, (theta, upper)))


@pytest.mark.parametrize("caps", [None, 0.6])
def test_minus_infinity_receives_exactly_zero(caps):
    theta, tau = tracked([normal(3, 5), double([0.5, 1.0, 2.0])])
    with torch.no_grad():
        theta[0, 1], theta[2, 3:] = -torch.inf, -torch.inf
    w = normal(3, 5, seed=2)
    ours = grad((w * softmax(theta, tau, caps)).sum(), (theta, tau))
    assert (ours[0][theta == -torch.inf] == 0).all() and all(g.isfinite().all() for g in ours)
    if caps is None:
        finite = tracked([theta.detach().clamp(min=-1e4), tau])  # so far down that nothing is left of it
        assert_close(ours, grad((w * torch.softmax(finite[0] / finite[1][:, None], -1)).sum(), finite))


def test_underflow_is_exact():
    theta, tau = tracked([double([0.0, -1e4, -2e4]), double(0.5)])
    solution = solve_softmax(theta, tau)
    assert solution.x.tolist() == [1.0, 0.0, 0.0]
    assert_close(solution.log_x.detach(), double([0.0, -2e4, -4e4]))
    assert all((g == 0).all() for g in grad(solution.x[0] - solution.x[1], (theta, tau), retain_graph=True))
    assert_close(grad(solution.log_x[1], (theta, tau)), (double([-2.0, 2.0, 0.0]), double(4e4)))


# ---- finite differences ----------------------------------------------------------------------------------------------


def test_first_order_of_every_output_in_every_argument():
    assert gradcheck(outputs, tracked(regular()), **ORDER_ONE)


def test_second_order_of_every_output_in_every_argument():
    assert gradgradcheck(outputs, tracked(regular()), **ORDER_TWO)


def test_orders_one_and_two_without_caps():
    arguments = tracked([normal(2, 4), double([0.7, 1.3])])
    assert gradcheck(outputs, arguments, **ORDER_ONE)
    assert gradgradcheck(outputs, arguments, **ORDER_TWO)


@pytest.mark.parametrize("place", ALL)
def test_third_order(place):
    arguments = regular()

    def second(t: Tensor) -> Tensor:
        f = loss(*arguments[:place], t, *arguments[place + 1 :])
        (g,) = grad(f, t, create_graph=True)
        return grad(g.pow(2).sum(), t, create_graph=True)[0]

    assert gradcheck(second, tracked([arguments[place]]), fast_mode=True)


@pytest.mark.parametrize("place", ALL)
def test_one_argument_alone(place):
    arguments = regular()
    only = tracked([arguments[place]])
    assert gradgradcheck(lambda t: outputs(*arguments[:place], t, *arguments[place + 1 :]), only, fast_mode=True)


def test_shared_arguments_receive_the_sum_over_the_batch():
    theta, _, upper = regular()
    shared = tracked([theta[0], double(0.9), upper])
    batched = [shared[0] + double([[0.0], [1.0]]), shared[1], shared[2]]  # a shift changes y alone
    whole = tracked([batched[0].detach(), shared[1].detach().expand(2), upper.expand(2, 5)])
    ours = grad(loss(*batched), shared)
    for g, expected, like in zip(ours, grad(loss(*whole), whole), shared, strict=True):
        assert_close(g, expected.sum_to_size(like.shape))


@pytest.mark.parametrize("batch", [(0,), (2, 0), (1,), (2, 2)], ids=str)
def test_gradients_have_the_shape_of_their_arguments(batch):
    arguments = tracked([normal(*batch, 4), double(1.0), double([0.5] * 4)])
    assert [g.shape for g in grad(loss(*arguments), arguments)] == [t.shape for t in arguments]


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_any_dimension(dim):
    theta, tau, upper = tracked([normal(3, 4), double(0.8), double(0.6)])
    assert gradcheck(lambda *a: softmax(*a, dim=dim), (theta, tau, upper), check_forward_ad=True)


def test_float32_is_as_accurate_as_torch_softmax():
    """Each is held against float64; ours may err three times as much."""
    theta, w = normal(20, 50, scale=5.0), normal(20, 50, seed=1)
    exact, ours, theirs = (
        grad((f(t) * w.to(t.dtype)).sum(), t)[0].double()
        for f, t in (
            (lambda t: torch.softmax(t, -1), theta.float().double().requires_grad_()),
            (softmax, theta.float().requires_grad_()),
            (lambda t: torch.softmax(t, -1), theta.float().requires_grad_()),
        )
    )
    assert (ours - exact).norm() <= 3 * (theirs - exact).norm()


# ---- transforms ------------------------------------------------------------------------------------------------------


def test_reverse_mode_equals_forward_mode():
    arguments = regular()
    assert_close(jacrev(outputs, ALL)(*arguments), jacfwd(outputs, ALL)(*arguments))


def test_four_ways_to_a_hessian():
    arguments = regular()
    ways = [outer(inner(loss, ALL), ALL)(*arguments) for outer in (jacrev, jacfwd) for inner in (jacrev, jacfwd)]
    for way in ways[1:]:
        assert_close(way, ways[0], atol=1e-11)


def test_forward_over_forward_is_not_zero():
    """torch switches forward mode off inside a jvp; unless it is switched on again, this is zero without a word."""

    def along(t: Tensor) -> Tensor:
        return softmax(t * double([1.0, 2.0, 3.0]))[0]

    def twice(t: Tensor) -> Tensor:
        return jvp(lambda s: jvp(along, (s,), (double(1.0),))[1], (t,), (double(1.0),))[1]

    assert_close(twice(double(0.3)), hessian(lambda t: torch.softmax(t * double([1.0, 2.0, 3.0]), 0)[0])(double(0.3)))


def test_dual_numbers():
    theta, tau, upper = regular()
    tangent = normal(3, 5, seed=3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(theta, tangent)
        found = [forward_ad.unpack_dual(t).tangent for t in outputs(dual, tau, upper)]
    assert_close(found, list(jvp(lambda t: outputs(t, tau, upper), (theta,), (tangent,))[1]))


def test_vmap_over_any_argument():
    theta, tau, upper = regular()
    plain = outputs(theta, tau, upper)
    assert_close(vmap(outputs, (0, 0, None))(theta, tau, upper), plain)
    assert_close(vmap(outputs, (1, 0, None))(theta.T, tau, upper), plain)
    many = torch.stack([upper, upper + 0.1])
    found = vmap(lambda u: outputs(theta, tau, u))(many)
    for i, caps in enumerate(many):
        assert_close([t[i] for t in found], list(outputs(theta, tau, caps)))
    assert vmap(solve_softmax)(theta).status.tolist() == [1, 1, 1]


def test_nested_vmap_and_per_sample_gradients():
    theta, _, upper = regular()
    nested = vmap(vmap(lambda t, u: softmax(t, 0.7, u), (None, 0)), (0, None))(theta, torch.stack([upper, upper + 0.1]))
    assert_close(nested[:, 1], softmax(theta, 0.7, upper + 0.1))
    theta, tau, upper = regular()
    gradients = vmap(torch.func.grad(loss, ALL), (0, 0, None))(theta, tau, upper)
    for i in range(3):
        assert_close([g[i] for g in gradients], list(torch.func.grad(loss, ALL)(theta[i], tau[i], upper)))


def test_the_record_differentiates_and_its_jacobian_too():
    theta = tracked([normal(2, 4)])[0]
    assert gradcheck(lambda t: solve_softmax(t, 0.8, 0.6).jacobian("theta"), theta, check_forward_ad=True)
    assert gradcheck(lambda t: solve_softmax(t, 0.8, 0.6).jacobian("temperature"), theta)


def test_the_graph_twice_checkpoints_and_saved_tensor_hooks():
    arguments = tracked(regular())
    value = loss(*arguments)
    expected = grad(value, arguments, retain_graph=True)
    assert_close(grad(value, arguments), expected, atol=0, rtol=0)
    with torch.autograd.graph.save_on_cpu():
        assert_close(grad(loss(*arguments), arguments), expected)
    for reentrant in (True, False):
        again = tracked(arguments)
        checkpoint(loss, *again, use_reentrant=reentrant).backward()
        assert_close([t.grad for t in again], list(expected))


def test_a_change_of_the_solution_is_noticed():
    theta = tracked([normal(3)])[0]
    x = softmax(theta)
    value = x.sum()
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(value, theta)


def test_without_recording():
    theta = tracked([normal(3)])[0]
    with torch.no_grad():
        assert not softmax(theta).requires_grad
    with torch.inference_mode():
        assert_close(softmax(theta), torch.softmax(theta, -1))
    assert not solve_softmax(theta).free.requires_grad


def test_autocast_solves_in_float32():
    theta = normal(3, 4).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = theta.bfloat16()
        x = softmax(half)
        assert x.dtype is torch.float32
        assert softmax(theta).dtype is torch.float32
    assert_close(x, softmax(half.float()), atol=0, rtol=0)
    (g,) = grad(x[:, 0].sum(), half)
    assert g.dtype is torch.bfloat16


# ---- compiled and exported -------------------------------------------------------------------------------------------


def compiled(function, backend="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


def test_compiled_backward():
    arguments, plain = tracked(regular()), tracked(regular())
    compiled(loss)(*arguments).backward()
    loss(*plain).backward()
    assert_close([t.grad for t in arguments], [t.grad for t in plain])


@pytest.mark.parametrize(
    "function",
    [
        lambda *a: torch.func.grad(loss, ALL)(*a),
        lambda *a: jvp(outputs, a, tuple(torch.ones_like(t) for t in a))[1],
        lambda *a: vmap(torch.func.grad(loss), (0, 0, None))(*a),
        lambda *a: hessian(loss)(*a),
        lambda *a: jacfwd(jacfwd(loss))(*a),
    ],
    ids=["grad", "jvp", "vmap(grad)", "hessian", "jacfwd(jacfwd)"],
)
def test_compiled_transforms(function):
    assert_close(compiled(function)(*regular()), function(*regular()), atol=1e-12)


def test_compiled_record():
    theta, tau, upper = regular()
    solution = compiled(lambda *a: solve_softmax(*a, eps=1e-8))(theta, tau, upper)
    assert_close(solution.jacobian("upper"), solve_softmax(theta, tau, upper).jacobian("upper"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:torch")
def test_compiled_with_inductor():
    arguments, plain = tracked(regular()), tracked(regular())
    compiled(loss, "inductor")(*arguments).backward()
    loss(*plain).backward()
    assert_close([t.grad for t in arguments], [t.grad for t in plain])


class Layer(torch.nn.Module):
    def forward(self, theta: Tensor, tau: Tensor) -> Tensor:
        return softmax(theta, tau, upper=0.6)


def test_exported():
    """One operator in the graph, a dynamic batch, gradients and second gradients; forward mode is refused."""
    batch = Dim("batch", min=2)
    program = export(Layer(), (normal(3, 4), double(0.8)), dynamic_shapes=({0: batch}, None))
    assert [str(node.target) for node in program.graph.nodes].count("optlayer.entropic_softmax.default") == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    module = torch.export.load(file).module()
    arguments = tracked([normal(5, 4), double(0.7)])
    assert_close(module(*arguments), Layer()(*arguments))
    assert gradcheck(module, arguments)
    assert gradgradcheck(module, arguments)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode cannot cross"):
        module(forward_ad.make_dual(arguments[0].detach(), normal(5, 4)), arguments[1])


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("capped", [False, True])
def test_the_operator_obeys_its_schema(recorded, capped):
    theta, tau, upper = (t.clone().requires_grad_(recorded) for t in regular())
    operator = torch.ops.optlayer.entropic_softmax.default
    torch.library.opcheck(operator, (theta, tau, upper if capped else None, 1e-9, 100, "nan"))


# ---- failures --------------------------------------------------------------------------------------------------------


def spoilt(what: str) -> list[Tensor]:
    """Three elements, of which the middle one cannot be solved."""
    theta, tau, upper = regular()
    upper = upper.expand(3, 5).clone()
    if what == "theta":
        theta[1, 2] = torch.nan
    elif what == "temperature":
        tau[1] = -1.0
    else:
        upper[1] = 0.1
    return tracked([theta, tau, upper])


@pytest.mark.parametrize("what", ["theta", "temperature", "upper"])
def test_a_masked_loss_trains_on(what):
    arguments = spoilt(what)
    solution = solve_softmax(*arguments)
    assert solution.solved.tolist() == [True, False, True]
    value = sum((t[solution.solved] ** 2).sum() for t in (solution.x, solution.log_x, solution.y, solution.z_upper))
    gradients = grad(value, arguments, create_graph=True)
    for g in gradients:
        assert (g[1] == 0).all() and g.isfinite().all()
    second = grad(sum((g[[0, 2]] ** 2).sum() for g in gradients), arguments)
    for g in second:
        assert (g[1] == 0).all() and g.isfinite().all()


@pytest.mark.parametrize("what", ["theta", "temperature", "upper"])
def test_a_loss_on_a_failed_element_is_nan_and_its_neighbours_are_not(what):
    arguments, whole = spoilt(what), tracked(regular())
    w = normal(3, 5, seed=4)
    gradients = grad((w * softmax(*arguments)).sum(), arguments)
    expected = grad((w * softmax(*whole)).sum(), whole)
    for i, (g, e) in enumerate(zip(gradients, expected, strict=True)):
        assert g[1].isnan().all()
        if i < 2:
            assert_close(g[[0, 2]], e[[0, 2]])


def test_tangents_of_a_failed_element():
    theta, tau, upper = (t.detach() for t in spoilt("upper"))
    tangent = torch.zeros_like(theta)
    tangent[0, 0] = 1.0
    quiet = jvp(lambda t: outputs(t, tau, upper), (theta,), (tangent,))[1]
    assert all((t[1] == 0).all() and t.isfinite().all() for t in quiet)
    tangent[1, 0] = 1.0
    loud = jvp(lambda t: outputs(t, tau, upper), (theta,), (tangent,))[1]
    assert all(t[1].isnan().all() and t[[0, 2]].isfinite().all() for t in loud)
    assert jvp(lambda t: softmax(theta, t, upper), (tau,), (double([0.0, 1.0, 0.0]),))[1][1].isnan().all()


def test_the_jacobian_of_a_failed_element_is_nan():
    solution = solve_softmax(*(t.detach() for t in spoilt("upper")))
    for parameter in ("theta", "temperature", "upper"):
        J = solution.jacobian(parameter)
        assert J[1].isnan().all() and J[[0, 2]].isfinite().all()
