# SPDX-License-Identifier: Apache-2.0
"""Derivatives of programs with an entropy: finite differences, closed forms, every transform of torch, failures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from entropic_cases import CURVATURES, F64, entropic, transport
from processes import needs_compiler
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from optlayer import solve_qp

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]

NAMES = ("P", "q", "G", "h", "A", "b", "lb", "ub", "entropy")
OUTPUTS = ("x", "y", "z", "z_box", "s", "log_x")


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-12, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def regular(curvature: str, batch: int = 2) -> dict[str, Tensor]:
    """Six variables with every kind of constraint: of rows and bounds each, some active and some not, none weakly.

    The caps of x_0 and the floor of x_1 are active with multipliers of about one; so is the first row of G.
    """
    q = torch.tensor([-3.0, 3.0, 0.3, -0.2, 0.1, 0.6], dtype=F64) + 0.1 * normal(batch, 6)
    G = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]], dtype=F64).expand(batch, 2, 6)
    given = {
        "q": q,
        "G": G + 0.01 * normal(batch, 2, 6, seed=1),
        "h": torch.tensor([0.2, 2.0], dtype=F64).expand(batch, 2).clone(),
        "A": torch.ones(batch, 1, 6, dtype=F64) + 0.1 * normal(batch, 1, 6, seed=2),
        "b": torch.ones(batch, 1, dtype=F64),
        "lb": torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0, -1.0], dtype=F64).expand(batch, 6).clone(),
        "ub": torch.tensor([0.25, 0.9, 2.0, 2.0, torch.inf, 2.0], dtype=F64).expand(batch, 6).clone(),
        "entropy": 0.5 + torch.linspace(0, 1, 6, dtype=F64).expand(batch, 6),
    }
    L = normal(batch, 6, 6, seed=3)
    if curvature == "full":
        given["P"] = L @ L.mT / 6
    if curvature == "diagonal":
        given["P"] = L[:, :1].abs()
    return given


def function(names: tuple[str, ...], **options: Any) -> Callable[..., tuple[Tensor, ...]]:
    """All differentiable outputs as a function of the named arguments."""

    def solve(*tensors: Tensor) -> tuple[Tensor, ...]:
        solution = solve_qp(**{"P": None, **dict(zip(names, tensors, strict=True))}, **options)
        return tuple(getattr(solution, name) for name in OUTPUTS)

    return solve


def split(given: dict[str, Tensor]) -> tuple[tuple[str, ...], list[Tensor]]:
    """Names and finite tensors to differentiate; an infinite bound has no finite difference and becomes a far one."""
    names = tuple(name for name in NAMES if name in given)
    return names, [given[name].clamp(max=50.0).detach().clone().requires_grad_() for name in names]


# ---- finite differences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
def test_every_gradient_of_every_output_is_the_finite_difference(curvature: str) -> None:
    """Forward and reverse, batched and not: 9 arguments, 6 outputs.  Differences of 1e-6 have errors of 1e-9.

    Every pair of them is compared along random directions, where every wrong entry shows.
    """
    given = regular(curvature, batch=1)
    names, tensors = split(given)
    solution = solve_qp(**{"P": None, **given})
    assert ((solution.z > 0.05) == torch.tensor([True, False])).all() and (solution.weakly_active == 0).all()
    assert (solution.z_box[:, 0] > 0.05).all() and (solution.z_box[:, 1] < -0.05).all()
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function(names), tensors, atol=1e-7, rtol=1e-6, fast_mode=True, **checks)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_every_second_derivative_is_the_finite_difference(curvature: str) -> None:
    names, tensors = split(regular(curvature, batch=1))
    checks = {"check_fwd_over_rev": True, "check_batched_grad": True}
    assert gradgradcheck(function(names), tensors, atol=1e-6, rtol=1e-5, fast_mode=True, **checks)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_gradients_along_random_directions_at_larger_costs(scale: float) -> None:
    """The derivative along a direction, forward and reverse, against a central difference of step 1e-6 / scale."""
    given = entropic("moment and rows", n=12, batch=3, scale=scale, curvature="full", seed=3)
    names = tuple(name for name in NAMES if name in given)
    values = tuple(given[name] for name in names)
    f = function(names, eps_abs=1e-12, eps_rel=1e-12)
    for trial in range(3):
        tangents = tuple(t * normal(*t.shape, seed=trial) for t in values)
        out, forward = jvp(lambda *t: f(*t)[:5], values, tangents)
        step = 1e-6 / scale
        pairs = list(zip(values, tangents, strict=True))
        ahead, behind = (f(*(t + signed * d for t, d in pairs)) for signed in (step, -step))
        for a, b, d in zip(ahead, behind, forward, strict=False):
            difference = (a - b) / (2 * step)
            # rounding of the outputs over the step, and the curvature, which grows with the scale
            assert (difference - d).abs().max() <= 1e-5 * (1 + d.abs().max())
        tracked = [t.clone().requires_grad_() for t in values]
        weights = [normal(*t.shape, seed=9) for t in out]
        gradients = grad(sum((w * t).sum() for w, t in zip(weights, f(*tracked), strict=False)), tracked)
        reverse = sum((g * d).sum() for g, d in zip(gradients, tangents, strict=True))
        assert_close(reverse, sum((w * d).sum() for w, d in zip(weights, forward, strict=True)), atol=1e-9, rtol=1e-9)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_the_jacobian_of_softmax(scale: float, tau: float) -> None:
    """(diag p - p p') / tau; off the diagonal nothing cancels and even the smallest entries are right."""
    theta, one = normal(5, 20, scale=scale), torch.ones(1, 20, dtype=F64)
    solution = solve_qp(None, -theta, A=one, b=one[:, 0], entropy=tau)
    p = solution.x
    J, exact = -solution.jacobian("x", "q"), (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)) / tau
    assert (J - exact).abs().max() <= 1e-15 / tau
    away = ~torch.eye(20, dtype=torch.bool) & (p.unsqueeze(-1) * p.unsqueeze(-2) > 1e-290)
    assert_close(J[away], exact[away], atol=0, rtol=1e-12)
    drift = (exact @ -theta.unsqueeze(-1)).squeeze(-1) / tau  # dp/dtau = -J theta / tau
    assert_close(solution.jacobian("x", "entropy").sum(-1), drift, atol=1e-12 * scale / tau**2)
    assert_close(-solution.jacobian("y", "q").squeeze(-2), p, atol=1e-13)


def test_derivatives_where_x_underflows() -> None:
    """log x of softmax has the Jacobian I - 1 p', whatever x; x itself has zero there."""
    theta, one = torch.tensor([0.0, -1.0, -800.0, -5000.0], dtype=F64), torch.ones(1, 4, dtype=F64)

    def f(theta: Tensor) -> Tensor:
        log_x = solve_qp(None, -theta, A=one, b=one[:, 0], entropy=1.0).log_x
        assert log_x is not None
        return log_x

    p = torch.softmax(theta, -1)
    expected = torch.eye(4, dtype=F64) - p
    assert_close(jacrev(f)(theta), expected)
    assert_close(jacfwd(f)(theta), expected)
    second = -torch.einsum("jk,i->ijk", torch.diag(p) - p.outer(p), torch.ones(4, dtype=F64))
    assert_close(jacrev(jacrev(f))(theta), second)
    assert_close(jacfwd(jacrev(f))(theta), second)


def test_a_row_of_zeros_takes_no_part_in_the_derivatives() -> None:
    """Whatever its multiplier is asked: rounding of it must not reach the others, a weakly active row beside it."""
    A = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    b = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
    G = torch.tensor([[1.0, 0.0, -1.0], [1.0, -1.0, -1.0], [0.0, 0.0, 0.0]], dtype=F64)
    h, lb = torch.tensor([0.0, -1.0, 0.0], dtype=F64), torch.tensor([-1.0, 1.0, -1.0], dtype=F64)
    P, q = torch.tensor([[23.005630627859688, 0.0, 6.0860036307155045]], dtype=F64), torch.zeros(3, dtype=F64)
    q[2] = -1
    q.requires_grad_()
    solution = solve_qp(P, q, G, h, A, b, lb=lb, entropy=1.2185973188051296)
    assert solution.solved and solution.weakly_active == 1
    # rows 1 and 2 of stationarity: y_0 = q_1 + ..., y_2 = -q_2 - ..., where all else is fixed
    (found,) = grad(solution.y.sum(), q)
    assert_close(found, torch.tensor([0.0, 1.0, -1.0], dtype=F64))
    less = solve_qp(P, q.detach(), G[:2], h[:2], A[::2], b[::2], lb=lb, entropy=1.2185973188051296)
    assert_close(solution.x.detach(), less.x)
    assert_close(solution.jacobian("x", "q").detach(), less.jacobian("x", "q"))


def test_the_second_derivative_of_softmax_by_every_route() -> None:
    theta, w, one = normal(6), normal(6, seed=1), torch.ones(1, 6, dtype=F64)

    def ours(t: Tensor) -> Tensor:
        return solve_qp(None, -t, A=one, b=one[:, 0], entropy=0.7).x ** 2 @ w

    expected = hessian(lambda t: torch.softmax(t / 0.7, -1) ** 2 @ w)(theta)
    routes = (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f)))
    for route in routes:
        assert_close(route(ours)(theta), expected)


def test_third_derivatives() -> None:
    theta, one = normal(4), torch.ones(1, 4, dtype=F64)
    ours = jacrev(hessian(lambda t: solve_qp(None, -t, A=one, b=one[:, 0], entropy=1.0).x[0]))(theta)
    assert_close(ours, jacrev(hessian(lambda t: torch.softmax(t, -1)[0]))(theta), atol=1e-11)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_value_has_the_envelope_derivative(curvature: str) -> None:
    """d value = 1/2 x'dP x + x'dq + y'(dA x - db) + z'(dG x - dh) - z_box'd(bounds) + (x log x)'dtau."""
    given = regular(curvature)
    names, tensors = split(given)
    solution = solve_qp(**{"P": None, **dict(zip(names, tensors, strict=True))})
    gradients = dict(zip(names, grad(solution.objective.sum(), tensors), strict=True))
    x, y, z, z_box = (t.detach() for t in (solution.x, solution.y, solution.z, solution.z_box))
    outer = 0.5 * x.unsqueeze(-1) * x.unsqueeze(-2)
    expected = {
        "P": outer if curvature == "full" else 0.5 * (x * x).unsqueeze(-2),
        "q": x,
        "G": z.unsqueeze(-1) * x.unsqueeze(-2),
        "h": -z,
        "A": y.unsqueeze(-1) * x.unsqueeze(-2),
        "b": -y,
        "lb": -z_box.clamp(max=0),
        "ub": -z_box.clamp(min=0),
        "entropy": x * x.log(),
    }
    for name in names:
        assert_close(gradients[name], expected[name], atol=1e-11)


def test_the_value_of_softmax_is_a_log_sum_exp() -> None:
    """For the maximum tau lse(theta / tau): d/dtheta = x, d/dtau = the entropy of x, d/db = y."""
    theta, tau = normal(8, scale=3.0).requires_grad_(), torch.tensor(0.6, dtype=F64, requires_grad=True)
    one = torch.ones(1, 8, dtype=F64)
    b = one[:, 0].clone().requires_grad_()
    solution = solve_qp(None, -theta, A=one, b=b, entropy=tau)
    value = -solution.objective
    assert_close(value, tau * torch.logsumexp(theta / tau, -1))
    by_theta, by_tau, by_b = grad(value, (theta, tau, b))
    x = solution.x.detach()
    assert_close(by_theta, x)
    assert_close(by_tau, -(x * x.log()).sum())
    assert_close(by_b, solution.y.detach())


def test_transport_with_its_redundant_row() -> None:
    """A perturbation of the marginals that keeps their masses equal moves X; costs move it as without the row."""
    A, C = transport(3, 4), normal(12).abs()
    b = torch.cat([torch.softmax(normal(3, seed=1), -1), torch.softmax(normal(4, seed=2), -1)])
    full = solve_qp(None, C, A=A, b=b, entropy=0.3)
    less = solve_qp(None, C, A=A[:-1], b=b[:-1], entropy=0.3)
    assert_close(full.x, less.x)
    assert_close(full.jacobian("x", "q"), less.jacobian("x", "q"), atol=1e-11)
    # b moves along the range of A only
    onto = A @ torch.linalg.pinv(A)
    move = onto @ normal(7, seed=3)
    _, dx = jvp(lambda b: solve_qp(None, C, A=A, b=b, entropy=0.3).x, (b,), (move,))
    assert_close(dx, less.jacobian("x", "b") @ move[:-1], atol=1e-11)
    assert_close(A @ dx, move, atol=1e-11)
    # a move off the range has no answer; the nearest one is taken, and the cotangent of y is projected alike
    off = torch.cat([torch.ones(3), -torch.ones(4)]).double()
    _, dx = jvp(lambda b: solve_qp(None, C, A=A, b=b, entropy=0.3).x, (b,), (off,))
    assert dx.isfinite().all() and dx.abs().max() <= 10
    assert full.jacobian("y", "q").isfinite().all()


# ---- shared arguments, transforms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_gradient_of_what_is_shared_is_the_sum(curvature: str) -> None:
    given = regular(curvature, batch=4)
    shared = {name: t if name == "q" else t[0] for name, t in given.items()}
    names, tensors = split(shared)
    _, copies = split({name: t if name == "q" else t.expand(4, *t.shape) for name, t in shared.items()})
    f = function(names)

    def loss(values: list[Tensor]) -> Tensor:
        return sum((t**3).sum() for t in f(*values))

    for name, one, many in zip(names, grad(loss(tensors), tensors), grad(loss(copies), copies), strict=True):
        assert_close(one, many if name == "q" else many.sum(0), atol=1e-10, rtol=1e-10)


def test_an_entropy_for_all_variables_has_the_sum_of_their_gradients() -> None:
    given = regular("full")
    tau = torch.full((2, 6), 0.7, dtype=F64, requires_grad=True)
    one, number = (tau.detach()[:, :1].clone().requires_grad_(), torch.tensor(0.7, dtype=F64, requires_grad=True))
    grads = [grad((solve_qp(**{**given, "entropy": t}).x ** 3).sum(), t)[0] for t in (tau, one, number)]
    assert_close(grads[1], grads[0].sum(-1, keepdim=True))
    assert_close(grads[2], grads[0].sum())
    J = solve_qp(**{**given, "entropy": one.detach()}).jacobian("x", "entropy")
    assert J.shape == (2, 6, 1)
    assert_close(J.squeeze(-1), solve_qp(**{**given, "entropy": tau.detach()}).jacobian("x", "entropy").sum(-1))


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_jacobian_of_the_record_is_that_of_autograd(curvature: str) -> None:
    given = regular(curvature, batch=1)
    names, tensors = split(given)
    solution = solve_qp(**{"P": None, **dict(zip(names, tensors, strict=True))})
    jacobians = torch.autograd.functional.jacobian(function(names), tuple(tensors))
    for output, row in zip(OUTPUTS[:5], jacobians, strict=False):
        for name, expected in zip(names, row, strict=True):
            ours = solution.jacobian(output, name).detach()
            assert_close(ours.reshape(-1), expected.reshape(-1), atol=1e-11)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_solves_with_the_kkt_matrix(curvature: str) -> None:
    """K u = r row by row, with P + diag(tau / x) in place of P, for K over the active rows and bounds."""
    given = {name: t.clamp(max=50.0) for name, t in regular(curvature).items()}
    solution = solve_qp(**{"P": None, **given})
    r = [normal(2, size, seed=i) for i, size in enumerate((6, 1, 2, 6))]
    u = solution.kkt.solve(*r)
    H = torch.diag_embed(given["entropy"] / solution.x)
    if curvature == "full":
        H = H + given["P"]
    if curvature == "diagonal":
        H = H + torch.diag_embed(given["P"].squeeze(-2))
    active, held = solution.z > 0, solution.z_box != 0

    def times(M: Tensor, v: Tensor) -> Tensor:
        return (M @ v.unsqueeze(-1)).squeeze(-1)

    assert_close(times(H, u.x) + times(given["A"].mT, u.y) + times(given["G"].mT, u.z) + u.z_box, r[0], atol=1e-11)
    assert_close(times(given["A"], u.x), r[1], atol=1e-11)
    assert_close(times(given["G"], u.x)[active], r[2][active], atol=1e-11)
    assert_close(u.x[held], r[3][held], atol=1e-11)
    assert not u.z[~active].any() and not u.z_box[~held].any()


def test_vmap_over_any_argument_equals_the_batch() -> None:
    given = regular("full", batch=3)
    names = tuple(name for name in NAMES if name in given)
    f, values = function(names), [given[name] for name in names]
    for a, b in zip(vmap(f)(*values), f(*values), strict=True):
        assert_close(a, b)
    i = names.index("entropy")
    dims = tuple(0 if j == i else None for j in range(len(names)))
    single = [t if j == i else t[0] for j, t in enumerate(values)]
    for a, b in zip(vmap(f, in_dims=dims)(*single), f(*single), strict=True):
        assert_close(a, b)

    def gradients(*one: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda *t: (f(*t)[0] ** 3).sum(), argnums=tuple(range(len(names))))(*one)

    tracked = [t.clone().requires_grad_() for t in values]
    expected = grad((f(*tracked)[0] ** 3).sum(), tracked)
    for a, b in zip(vmap(gradients)(*values), expected, strict=True):
        assert_close(a, b, atol=1e-11)


def test_the_record_may_be_made_inside_vmap() -> None:
    given = regular("diagonal", batch=3)
    inside = vmap(lambda q: solve_qp(**{**{k: t[0] for k, t in given.items()}, "q": q}))(given["q"])
    outside = solve_qp(**{**{k: t[0] for k, t in given.items()}, "q": given["q"]})
    assert_close(inside.x, outside.x)
    assert_close(inside.residuals().objective, outside.residuals().objective)


def test_forward_mode_of_the_duals_of_autograd() -> None:
    given = regular("full")
    direction = normal(2, 6, seed=4)
    with forward_ad.dual_level():
        out = solve_qp(**{**given, "q": forward_ad.make_dual(given["q"], direction)}).x
        tangent = forward_ad.unpack_dual(out).tangent
    expected = (solve_qp(**given).jacobian("x", "q") @ direction.unsqueeze(-1)).squeeze(-1)
    assert_close(tangent, expected)


def test_factors_made_anew_give_the_same_gradients() -> None:
    for curvature in CURVATURES:
        names, tensors = split(regular(curvature))
        kept, anew = (
            grad(sum((t**3).sum() for t in function(names, factorisation=how)(*tensors)), tensors)
            for how in ("keep", "recompute")
        )
        for a, b in zip(kept, anew, strict=True):
            assert_close(a, b, atol=1e-11)


def test_float32_gradients_are_those_of_float64_rounded() -> None:
    names, tensors = split(regular("full"))
    exact = grad(sum((t**3).sum() for t in function(names)(*tensors)), tensors)
    single = [t.detach().float().requires_grad_() for t in tensors]
    rounded = grad(sum((t**3).sum() for t in function(names)(*single)), single)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype is torch.float32
        assert_close(a.double(), b, atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_function_has_the_same_value_and_gradient() -> None:
    given = regular("full")

    def loss(q: Tensor, tau: Tensor) -> Tensor:
        return (solve_qp(**{**given, "q": q, "entropy": tau}).x ** 3).sum()

    arguments = [given["q"].clone().requires_grad_(), given["entropy"].clone().requires_grad_()]
    compiled = torch.compile(loss, fullgraph=True)(*arguments)
    plain = loss(*arguments)
    assert_close(compiled.detach(), plain.detach())
    for a, b in zip(grad(compiled, arguments), grad(plain, arguments), strict=True):
        assert_close(a, b)


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_element_has_zero_gradient_for_a_zero_cotangent_and_nan_for_any_other() -> None:
    for curvature in CURVATURES:
        given = {name: t.clamp(max=50.0) for name, t in regular(curvature, batch=3).items()}
        clean = {name: t.clone() for name, t in given.items()}
        given["entropy"][1, 2] = -1.0
        given["G"][1, 0, 0] = torch.nan
        names, tensors = split(given)
        outputs = function(names)(*tensors)
        masked = sum((t[[0, 2]] ** 3).sum() for t in outputs)
        _, sound = split(clean)
        expected = grad(sum((t[[0, 2]] ** 3).sum() for t in function(names)(*sound)), sound)
        for found, right in zip(grad(masked, tensors, retain_graph=True), expected, strict=True):
            assert (found[1] == 0).all()
            assert_close(found[[0, 2]], right[[0, 2]])
        for output in outputs:
            (spoilt,) = grad(output.sum(), tensors[names.index("q")], retain_graph=True)
            assert spoilt[1].isnan().all() and spoilt[[0, 2]].isfinite().all()


def test_the_floor_of_a_variable_that_the_entropy_keeps_above_zero_has_no_gradient() -> None:
    given = regular("none")
    lb = torch.full((2, 6), -0.5, dtype=F64, requires_grad=True)
    solve_qp(None, **{**given, "lb": lb}).x.pow(3).sum().backward()
    assert lb.grad is not None and not lb.grad.any()
