# SPDX-License-Identifier: Apache-2.0
"""Programs with an entropy: the optimality conditions at every scale, closed forms, statuses, arguments."""

import itertools
import time
from typing import Any

import pytest
import torch
from entropic_cases import CURVATURES, F64, KINDS, entropic, transport
from torch import Tensor

import optlayer.residuals
from optlayer import ProblemError, Solution, SolverError, Status, solve_qp
from optlayer.testing import assert_certified, assert_optimal

pytestmark = pytest.mark.usefixtures("engine")

SCALES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e6)
EPS = torch.finfo(F64).eps


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def simplex(n: int, k: float = 1.0) -> dict[str, Tensor]:
    return {"A": torch.ones(1, n, dtype=F64), "b": torch.full((1,), k, dtype=F64)}


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-13, rtol: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def symmetric_product(P: Tensor | None, x: Tensor) -> Tensor:
    if P is None:
        return torch.zeros_like(x)
    return P.squeeze(-2) * x if P.shape[-2] == 1 else (P @ x.unsqueeze(-1)).squeeze(-1)


def largest(v: Tensor) -> float:
    return float(v.abs().max()) if v.numel() else 0.0


def assert_kkt(solution: Solution, given: dict[str, Any]) -> None:
    """The optimality conditions, written out once more, to the rounding of the forces that balance.

    The bar 1e-12 is 5000 roundings; forces are as large as the costs, x is at most about 1.
    """
    x, y, z, z_box = (t.detach() for t in (solution.x, solution.y, solution.z, solution.z_box))
    log_x = solution.log_x.detach()
    force = symmetric_product(given["P"], x) + given["q"] + z_box
    size = 1 + largest(given["q"]) + largest(z_box) + largest(force)
    if "A" in given:
        force = force + y @ given["A"] if given["A"].dim() == 2 else force + (y.unsqueeze(-2) @ given["A"]).squeeze(-2)
        assert largest((given["A"] @ x.unsqueeze(-1)).squeeze(-1) - given["b"]) <= 1e-12
        size += largest(y)
    if "G" in given:
        G, h = given["G"], given["h"]
        force = force + (z @ G if G.dim() == 2 else (z.unsqueeze(-2) @ G).squeeze(-2))
        slack = h - (G @ x.unsqueeze(-1)).squeeze(-1)
        assert_close(solution.s, slack)
        assert (slack >= -1e-12).all() and (z >= 0).all() and largest(z * slack) <= 1e-12 * size
        size += largest(z)
    assert largest(force + given["entropy"] * (log_x + 1)) <= 1e-12 * size
    assert largest(x - log_x.exp()) <= 1e-12
    upper, lower = z_box.clamp(min=0), -z_box.clamp(max=0)
    if "ub" in given:
        assert (x <= given["ub"] + 1e-12).all()
        assert largest(upper * (given["ub"] - x)) <= 1e-12 * size
    else:
        assert not upper.any()
    if "lb" in given:
        assert (x >= given["lb"] - 1e-12).all()
        assert largest(lower * (x - given["lb"])) <= 1e-12 * size
    else:
        assert not lower.any()


# ---- the optimality conditions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimality_conditions_hold_at_every_scale_of_the_costs(kind: str, curvature: str) -> None:
    for scale in SCALES:
        given = entropic(kind, scale=scale, curvature=curvature)
        solution = solve_qp(**given)
        assert solution.solved.all(), f"scale {scale}"
        # The method does not care about the scale: it takes 6 to 25 iterations at all of them.
        assert solution.iterations.max() <= 40, f"scale {scale}"
        assert_kkt(solution, given)
        assert solution.is_optimal(1e-11, 1e-11).all()
        if scale in (1.0, 1e4):  # the closing leaves nothing of a looser accuracy
            assert largest(solution.x - solve_qp(**given, eps_abs=1e-6, eps_rel=1e-6).x) <= 1e-10


@pytest.mark.parametrize("n", [1, 2, 3, 200])
@pytest.mark.parametrize("kind", ["softmax", "cap", "cap alone", "floor"])
def test_any_number_of_variables(kind: str, n: int) -> None:
    for scale in (0.1, 10.0, 1e4):
        given = entropic(kind, n, scale=scale)
        given["ub"] = given["ub"] + 0.1 if "ub" in given else None
        given = {name: t for name, t in given.items() if t is not None or name == "P"}
        solution = solve_qp(**given)
        assert solution.solved.all()
        assert_kkt(solution, given)


def test_the_solution_is_the_minimum() -> None:
    """No feasible point near it has a smaller objective; both are evaluated by the definition."""
    given = entropic("moment and rows", n=8, batch=3, curvature="full")
    solution = solve_qp(**given)

    def objective(x: Tensor) -> Tensor:
        return (0.5 * x * symmetric_product(given["P"], x) + given["q"] * x + given["entropy"] * x * x.log()).sum(-1)

    assert_close(solution.objective, objective(solution.x))
    rows = torch.cat([given["A"], given["G"]], 1)
    _, _, V = torch.linalg.svd(rows)
    along = V[:, rows.shape[1] :] if rows.shape[1] < 8 else V[:, -1:] * 0
    steps = (normal(50, 3, along.shape[1]).unsqueeze(-2) @ along).squeeze(-2)
    for size in (1e-3, 1e-5):
        nearby = solution.x + size * steps * solution.x.amin(-1, keepdim=True)
        assert (objective(nearby) >= solution.objective - 1e-15).all()


def test_numbers_that_the_solution_reports_are_those_of_the_definition() -> None:
    given = entropic("group", curvature="diagonal")
    solution = solve_qp(**given)
    r = solution.residuals()
    x = solution.x
    value = (0.5 * given["P"].squeeze(-2) * x * x + given["q"] * x + given["entropy"] * x * x.log()).sum(-1)
    assert_close(r.objective, value)
    assert_close(r.dual_objective, value)  # strong duality
    assert largest(solution.duality_gap()) <= 1e-13
    # a point that is not optimal is not called so
    moved = solve_qp(**{**given, "q": given["q"] + 0.01 * normal(16)})
    wrong = optlayer.residuals.residuals(
        *solution.problem.tensors, moved.x, moved.y, moved.z, moved.z_box, solution.problem.entropy
    )
    assert (wrong.dual >= 1e-3).all()
    assert not wrong.within(1e-6, 1e-6).any()


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_softmax_with_temperature(scale: float, tau: float) -> None:
    theta = normal(5, 20, scale=scale)
    solution = solve_qp(None, -theta, **simplex(20), entropy=tau)
    # theta / tau is rounded before it is exponentiated, by torch.softmax and here alike
    assert_close(solution.x, torch.softmax(theta / tau, -1), atol=4 * EPS * (1 + scale / tau))
    assert_close(solution.log_x, torch.log_softmax(theta / tau, -1), rtol=1e-14, atol=1e-13)
    assert_close(solution.y.squeeze(-1), tau * torch.logsumexp(theta / tau, -1) - tau, rtol=1e-14)


def test_softmax_at_the_ends_of_the_exponent_range() -> None:
    """x underflows, log x does not; multiples of 2^-10 make every difference exact."""
    theta = torch.tensor([0.0, -1.0, -700.0, -5000.0, -1e8], dtype=F64)
    solution = solve_qp(None, -theta, **simplex(5), entropy=1.0)
    assert solution.solved
    assert_close(solution.log_x, torch.log_softmax(theta, -1), rtol=4 * EPS, atol=0)
    assert solution.x[3:].eq(0).all() and solution.is_optimal()


def sorted_softmax(theta: Tensor, upper: Tensor) -> Tensor:
    """Softmax with caps by definition: the k largest theta - log u are at their caps, for the right k."""
    order = (theta - upper.log()).argsort(descending=True)
    t, u = theta[order], upper[order]
    for k in range(len(t)):
        room = 1 - u[:k].sum()
        rest = room * torch.softmax(t[k:], -1)
        if (rest <= u[k:]).all():
            return torch.cat([u[:k], rest])[order.argsort()]
    raise AssertionError("the caps sum to less than one")


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_constrained_softmax(scale: float) -> None:
    """Martins and Kreutzer (2017): x_A = (1 - S) softmax(theta_A), and its derivatives."""
    theta, upper = normal(12, scale=scale), torch.linspace(0.075, 0.2, 12, dtype=F64)
    solution = solve_qp(None, -theta, **simplex(12), ub=upper, entropy=1.0)
    x = sorted_softmax(theta, upper)
    assert_close(solution.x, x)
    active = x == upper
    assert active.any() and ((solution.z_box > 0) == active).all() and solution.weakly_active == 0
    below, room = torch.where(active, 0, x), 1 - x[active].sum()
    toward_theta = torch.diag(below) - below.outer(below) / room
    toward_upper = torch.diag(active.double()) - below.outer(active.double()) / room
    assert_close(-solution.jacobian("x", "q"), toward_theta)
    assert_close(solution.jacobian("x", "ub"), toward_upper)
    assert_close(solution.x, optlayer.softmax(theta, 1.0, upper))


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01, 1e-3])
@pytest.mark.parametrize("redundant", [True, False])
def test_entropic_optimal_transport_two_by_two(eps: float, redundant: bool) -> None:
    """Uniform marginals: X = 1/2 [[p, 1-p], [1-p, p]], p = sigmoid((C12 + C21 - C11 - C22) / (2 eps))."""
    C = torch.tensor([0.3, 0.33, 0.31, 0.29], dtype=F64)
    rows = slice(None) if redundant else slice(3)
    b = torch.full((4,), 0.5, dtype=F64)
    solution = solve_qp(None, C, A=transport(2, 2)[rows], b=b[rows], entropy=eps)
    p = torch.sigmoid((C[1] + C[2] - C[0] - C[3]) / (2 * eps))
    assert_close(solution.x, torch.stack([p, 1 - p, 1 - p, p]) / 2)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=F64)
    assert_close(solution.jacobian("x", "q"), -p * (1 - p) / (4 * eps) * sign.outer(sign), atol=1e-13 / eps)


def test_entropic_optimal_transport_is_sinkhorn() -> None:
    """X = diag(u) exp(-C / eps) diag(v): Sinkhorn's scaling, iterated to its limit."""
    r, c, eps = 6, 8, 0.2
    C, a, b = normal(r, c).abs(), torch.softmax(normal(r, seed=1), -1), torch.softmax(normal(c, seed=2), -1)
    K = torch.exp(-C / eps)
    v = torch.ones_like(b)
    for _ in range(5000):
        u = a / (K @ v)
        v = b / (K.T @ u)
    solution = solve_qp(None, C.flatten(), A=transport(r, c), b=torch.cat([a, b]), entropy=eps)
    assert_close(solution.x.reshape(r, c), u[:, None] * K * v, atol=1e-12, rtol=1e-10)


def test_marginals_rounded_to_float32_contradict_each_other() -> None:
    """As the README says: their sums differ by a rounding of float32, above 1e-9 and below 1e-6."""
    a, b = (torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=F64) for seed in (0, 1))
    a, b = (a / a.sum()).float().double(), (b / b.sum()).float().double()
    C, A = normal(64), transport(8, 8)
    assert 4e-9 < float((a.sum() - b.sum()).abs()) < 1e-6
    assert solve_qp(None, C, A=A, b=torch.cat([a, b]), entropy=0.5).status == Status.PRIMAL_INFEASIBLE
    assert solve_qp(None, C, A=A, b=torch.cat([a, b]), entropy=0.5, eps_abs=1e-6).solved
    assert solve_qp(None, C, A=A, b=torch.cat([a / a.sum(), b / b.sum()]), entropy=0.5).solved


def test_transport_with_marginals_of_zero() -> None:
    """There is no interior: x is zero, to rounding, where a marginal is."""
    a, b = torch.tensor([0.0, 0.4, 0.6], dtype=F64), torch.tensor([0.5, 0.0, 0.5], dtype=F64)
    solution = solve_qp(None, normal(9), A=transport(3, 3), b=torch.cat([a, b]), entropy=0.5)
    assert solution.solved
    X = solution.x.reshape(3, 3)
    assert largest(X[0]) <= 1e-12 and largest(X[:, 1]) <= 1e-12
    assert_close(X.sum(1), a, atol=1e-12)


def test_several_moments_make_an_exponential_family() -> None:
    """The maximum entropy under moments is exp(-(q + A'y) / tau - 1); Newton's method on y alone finds it too."""
    A, q, tau = torch.cat([torch.ones(1, 30, dtype=F64), normal(2, 30)]), normal(30, seed=3), 0.7
    b = A @ torch.softmax(normal(30, seed=4), -1)
    y = torch.zeros(3, dtype=F64)
    for _ in range(100):
        x = torch.exp(-(q + y @ A) / tau - 1)
        step = torch.linalg.solve((A * x) @ A.T / tau, A @ x - b)
        y = y + step.clamp(-0.5, 0.5)
    solution = solve_qp(None, q, A=A, b=b, entropy=tau)
    assert_close(solution.x, torch.exp(-(q + y @ A) / tau - 1), rtol=1e-11)
    assert_close(solution.y, y, rtol=1e-11, atol=1e-11)


def test_without_constraints_x_is_an_exponential() -> None:
    q, tau = normal(4, 6, scale=20.0), torch.tensor([[0.5], [1.0], [2.0], [4.0]], dtype=F64)
    solution = solve_qp(None, q, entropy=tau)
    assert_close(solution.x, torch.exp(-q / tau - 1))
    assert_close(solution.objective, -(tau * solution.x).sum(-1))


def test_without_constraints_a_diagonal_makes_a_lambert_function() -> None:
    """d x + q + tau (log x + 1) = 0: x = tau/d W(d/tau exp(-q/tau - 1)), checked by its equation."""
    q, d = normal(50, scale=30.0), normal(50, seed=1).abs()
    x = solve_qp(d.unsqueeze(0), q, entropy=0.5).x
    assert largest((d * x + q + 0.5 * (x.log() + 1)) / (1 + q.abs())) <= 1e-14


# ---- the same layers without an entropy, as quadratic programs -------------------------------------------------------


def test_sparsemax_budget_sparsemax_and_soft_top_k() -> None:
    """J = diag(d) - d d' / sum d, with d = 1 / omega'' on the free set and 0 elsewhere."""
    n, k = 9, 3
    theta = normal(n, seed=5)
    eye = torch.eye(n, dtype=F64)

    def jacobian(d: Tensor) -> Tensor:
        return torch.diag(d) - d.outer(d) / d.sum()

    # sparsemax: the projection on the simplex, by sorting
    t = theta.sort(descending=True).values
    size = int((1 + torch.arange(1, n + 1) * t > t.cumsum(0)).sum())
    x = (theta - (t[:size].sum() - 1) / size).clamp(min=0)
    solution = solve_qp(eye, -theta, **simplex(n), lb=0.0)
    assert_close(solution.x, x, atol=1e-10)
    assert_close(-solution.jacobian("x", "q"), jacobian((x > 0).double()), atol=1e-10)

    # budget sparsemax: 0 <= x <= 1, sum x = k; the shift nu by bisection
    def bisected(f: Any) -> Tensor:
        low, high = torch.tensor(-50.0, dtype=F64), torch.tensor(50.0, dtype=F64)
        for _ in range(200):
            nu = (low + high) / 2
            low, high = (nu, high) if f(theta + nu).sum() < k else (low, nu)
        return f(theta + high)

    x = bisected(lambda t: t.clamp(0, 1))
    solution = solve_qp(eye, -theta, **simplex(n, k), lb=0.0, ub=1.0)
    assert_close(solution.x, x, atol=1e-10)
    assert_close(-solution.jacobian("x", "q"), jacobian(((x > 0) & (x < 1)).double()), atol=1e-10)

    # soft top-k: entropy of x and of 1 - x, which is a second block w = 1 - x
    x = bisected(torch.sigmoid)
    A = torch.cat([torch.cat([eye, eye], 1), torch.cat([torch.ones(1, n), torch.zeros(1, n)], 1).double()])
    b = torch.cat([torch.ones(n, dtype=F64), torch.full((1,), k, dtype=F64)])
    solution = solve_qp(None, torch.cat([-theta, torch.zeros(n, dtype=F64)]), A=A, b=b, entropy=1.0)
    assert_close(solution.x[:n], x, atol=1e-12)
    assert_close(-solution.jacobian("x", "q")[:n, :n], jacobian(x * (1 - x)), atol=1e-12)


def test_entmax_is_the_limit_of_its_local_programs() -> None:
    """alpha-entmax is x = [(alpha - 1) theta - nu]_+^(1 / (alpha - 1)), by its optimality condition.

    The QP that matches gradient and curvature of its regulariser at x on the support has x for its solution, and its
    Jacobian is that of the closed form, with d = x^(2 - alpha).
    """
    theta, alpha = normal(7, seed=6), 1.5
    low, high = torch.tensor(-50.0, dtype=F64), torch.tensor(50.0, dtype=F64)
    for _ in range(200):
        nu = (low + high) / 2
        total = (((alpha - 1) * theta - nu).clamp(min=0) ** (1 / (alpha - 1))).sum()
        low, high = (nu, high) if total > 1 else (low, nu)
    x = ((alpha - 1) * theta - high).clamp(min=0) ** (1 / (alpha - 1))
    support = x > 0
    d = torch.where(support, x ** (2 - alpha), 0.0)
    curvature = torch.where(support, 1 / d.clamp(min=1e-300), 1.0)
    # omega(x) = sum (x^alpha - x) / (alpha (alpha - 1)): gradient x^(alpha-1) / (alpha-1), up to a constant
    q = x ** (alpha - 1) / (alpha - 1) - theta - curvature * x
    solution = solve_qp(torch.diag(curvature), q, **simplex(7), lb=0.0)
    assert support.any() and not support.all()
    assert_close(solution.x, x, atol=1e-10)
    assert_close(-solution.jacobian("x", "q"), torch.diag(d) - d.outer(d) / d.sum(), atol=1e-9)


# ---- symmetries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", ["cap", "moment and rows", "transport"])
def test_a_batch_equals_a_loop(kind: str, curvature: str) -> None:
    given = entropic(kind, batch=5, scale=10.0, curvature=curvature)
    whole = solve_qp(**given)
    for i in range(5):
        one = {name: t if t is None or t.shape[0] != 5 else t[i] for name, t in given.items()}
        alone = solve_qp(**one)
        assert alone.iterations == whole.iterations[i]
        for name in ("x", "y", "z", "z_box", "s"):
            assert_close(getattr(alone, name), getattr(whole, name)[i], atol=1e-12, rtol=1e-11)


def test_a_neighbour_with_a_bound_or_a_curvature_changes_no_bit() -> None:
    """Without rows the variables of one element go each their own way, whatever holds those of another together."""
    q, ub = normal(3, 5, scale=50.0), torch.full((3, 5), torch.inf, dtype=F64)
    P = torch.zeros(3, 1, 5, dtype=F64)
    plain = solve_qp(P, q, ub=ub, entropy=1.0)
    ub[1, 0], P[2, 0, 3] = 0.5, 1.0
    mixed = solve_qp(P, q, ub=ub, entropy=1.0)
    assert plain.solved.all() and mixed.solved.all()
    assert torch.equal(mixed.x[0], plain.x[0]) and mixed.iterations[0] == plain.iterations[0]


def test_permuted_variables_and_rows_permute_the_solution() -> None:
    given = entropic("moment and rows", scale=10.0, curvature="full")
    j, k = torch.randperm(16), torch.randperm(5)
    moved = {**given, "P": given["P"][:, j][:, :, j], "q": given["q"][:, j], "entropy": given["entropy"][:, j]}
    moved.update(A=given["A"][..., j], G=given["G"][:, k][..., j], h=given["h"][:, k])
    original, permuted = solve_qp(**given), solve_qp(**moved)
    assert_close(permuted.x, original.x[:, j], atol=1e-12, rtol=1e-11)
    assert_close(permuted.z, original.z[:, k], atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_do_not_matter(unit: float) -> None:
    """Objective, variables and rows in other units: the same solution after nearly as many iterations."""
    given = entropic("moment and rows", scale=10.0)
    plain = solve_qp(**given)
    costs = solve_qp(**{**given, "q": unit * given["q"], "entropy": unit * given["entropy"]}, eps_abs=1e-12)
    assert_close(costs.x, plain.x, atol=1e-11, rtol=1e-10)
    rows = solve_qp(**{**given, "G": unit * given["G"], "h": unit * given["h"]})
    assert_close(rows.z * unit, plain.z, atol=1e-10, rtol=1e-9)
    # x -> unit x turns tau x log x into tau unit x (log x + log unit): a shift of the costs takes it back
    tau = given["entropy"] / unit
    q = given["q"] / unit - tau * torch.tensor(unit, dtype=F64).log()
    larger = solve_qp(**{**given, "q": q, "entropy": tau, "b": unit * given["b"], "h": unit * given["h"]})
    assert_close(larger.x / unit, plain.x, atol=1e-10, rtol=1e-9)
    counts = [s.iterations.max() for s in (plain, costs, rows, larger)]
    assert max(counts) - min(counts) <= 4


def test_a_full_matrix_that_is_diagonal_is_the_diagonal() -> None:
    given = entropic("group", scale=10.0, curvature="diagonal")
    full = solve_qp(**{**given, "P": torch.diag_embed(given["P"].squeeze(-2))})
    assert_close(full.x, solve_qp(**given).x)


def test_only_the_symmetric_part_of_P_counts() -> None:
    given = entropic("cap", curvature="full")
    skew = normal(16, 16)
    assert_close(solve_qp(**{**given, "P": given["P"] + skew - skew.T}).x, solve_qp(**given).x, atol=1e-12)


def test_a_row_that_says_nothing_changes_nothing() -> None:
    given = entropic("cap", scale=10.0)
    plain = solve_qp(**given)
    G = normal(2, 16)
    idle = solve_qp(**given, G=G, h=torch.tensor([torch.inf, 1e3], dtype=F64))
    assert_close(idle.x, plain.x, atol=1e-12)
    assert (idle.z == 0).all() and (idle.s[:, 0] == torch.inf).all()
    twice = solve_qp(**{**given, "A": given["A"].expand(2, 16), "b": given["b"].expand(2)})
    assert_close(twice.x, plain.x, atol=1e-12)


def test_bounds_below_zero_do_not_count() -> None:
    given = entropic("cap")
    plain = solve_qp(**given)
    below = solve_qp(**given, lb=-0.5)
    assert_close(below.x, plain.x)
    assert_close(below.z_box, plain.z_box)


def test_a_fixed_variable_and_a_cap_of_zero() -> None:
    theta = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    lb, ub = torch.tensor([0.0, 0.2, 0.0, 0.0], dtype=F64), torch.tensor([1.0, 0.2, 0.0, 1.0], dtype=F64)
    solution = solve_qp(None, -theta, **simplex(4), lb=lb, ub=ub, entropy=1.0)
    rest = 0.8 * torch.softmax(theta[[0, 3]], -1)
    assert_close(solution.x, torch.stack([rest[0], ub[1], ub[2], rest[1]]))
    assert solution.log_x[2] == -torch.inf and solution.z_box[2] == torch.inf
    force = -theta[1] + 0.2 * 0 + solution.log_x[1] + 1 + solution.y[0]
    assert_close(solution.z_box[1], -force)
    assert solution.is_optimal(1e-12, 1e-12)
    assert_optimal(solution)


ZERO, WEIGHTS, MOVES = torch.zeros(1, dtype=F64), [2.0, 1.0, 0.0, 0.0, 0.5], [-1.0, 0.0, 1.0, 0.0, 0.0]
FORCED: dict[str, tuple[dict[str, Any], list[int]]] = {
    "sum = 0": ({"A": torch.ones(1, 5, dtype=F64), "b": ZERO}, [0, 1, 2, 3, 4]),
    "-sum = 0": ({"A": -torch.ones(1, 5, dtype=F64), "b": ZERO}, [0, 1, 2, 3, 4]),
    "sum <= 0": ({"G": torch.ones(1, 5, dtype=F64), "h": ZERO}, [0, 1, 2, 3, 4]),
    "sum = 0 under caps": ({"A": torch.ones(1, 5, dtype=F64), "b": ZERO, "ub": 1.0}, [0, 1, 2, 3, 4]),
    "caps": ({"ub": 0.0}, [0, 1, 2, 3, 4]),
    "caps and rows": ({"ub": 0.0, "A": torch.ones(2, 5, dtype=F64), "b": torch.zeros(2, dtype=F64)}, [0, 1, 2, 3, 4]),
    "a part = 0": ({"A": torch.tensor([WEIGHTS], dtype=F64), "b": ZERO}, [0, 1, 4]),
    "a part <= 0": ({"G": torch.tensor([WEIGHTS], dtype=F64), "h": ZERO}, [0, 1, 4]),
    "a part of the simplex": (
        {"A": torch.tensor([[1.0] * 5, WEIGHTS], dtype=F64), "b": torch.tensor([1.0, 0.0], dtype=F64)},
        [0, 1, 4],
    ),
    "one after the other": (
        {"A": torch.tensor([MOVES], dtype=F64), "b": ZERO, "G": torch.tensor([WEIGHTS], dtype=F64), "h": ZERO},
        [0, 1, 2, 4],
    ),
    "what a fixed variable leaves": (
        {"G": torch.tensor([[3.0, 1.0, 1.0, 0.0, 1.0]], dtype=F64), "h": 3 * ZERO.add(0.1)}
        | {"lb": torch.tensor([0.1, 0, 0, 0, 0], dtype=F64), "ub": torch.tensor([0.1, 9, 9, 9, 9], dtype=F64)},
        [1, 2, 4],
    ),
}


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("curvature", ["none", "diagonal", "full"])
@pytest.mark.parametrize("name", FORCED)
def test_variables_that_must_vanish_are_caps_of_zero(name: str, curvature: str, scale: float) -> None:
    """The solution and the derivative are those of the program with caps of zero instead of the rows that force."""
    given, vanishing = FORCED[name]
    given = {key: torch.full((5,), t, dtype=F64) if isinstance(t, float) else t for key, t in given.items()}
    L = normal(5, 5, seed=1)
    P = {"none": None, "diagonal": scale * normal(1, 5, seed=2).abs(), "full": scale * L @ L.mT}[curvature]
    q = scale * normal(5)
    q = (q.abs() if P is None else q).requires_grad_()  # exp(1e6) would be infinite
    solution = solve_qp(P, q, **given, entropy=1.0)
    assert solution.solved
    assert_optimal(solution)
    zero = torch.zeros(5, dtype=torch.bool)
    zero[vanishing] = True
    assert (solution.x[zero] == 0).all() and (solution.z_box[zero] == torch.inf).all()
    assert (solution.log_x[zero] == -torch.inf).all() and solution.log_x[~zero].isfinite().all()
    ub = given.get("ub", torch.full((5,), torch.inf, dtype=F64)).where(~zero, 0.0)
    capped = solve_qp(P, q, **{**given, "ub": ub}, entropy=1.0)
    assert_close(solution.x, capped.x)
    assert_close(solution.z_box, capped.z_box, atol=1e-12 * scale)
    assert_close(solution.y, capped.y, atol=1e-12 * scale)
    assert not solution.z.any()
    tensors = [q, *(t.requires_grad_() for t in (given[key].clone() for key in given))]
    again = solve_qp(P, q, **dict(zip(given, tensors[1:], strict=True)), entropy=1.0)
    weights = normal(5, seed=3)
    gradients = torch.autograd.grad((weights * again.x).sum(), tensors, materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    (expected,) = torch.autograd.grad((weights * capped.x).sum(), q)
    assert_close(gradients[0], expected, atol=1e-12)
    assert not gradients[0][zero].any()
    if zero.all():  # a row that holds nothing but zeros moves nothing
        assert not any(g.any() for key, g in zip(given, gradients[1:], strict=True) if key in "AbGh")


def test_a_transport_plan_with_empty_bins_is_that_of_the_others() -> None:
    q, b = normal(2, 16, scale=10.0), torch.tensor([0.3, 0.0, 0.5, 0.2, 0.0, 0.0, 0.6, 0.4], dtype=F64)
    full = [4 * i + j for i in (0, 2, 3) for j in (2, 3)]
    plan = solve_qp(None, q, A=transport(4, 4), b=b, entropy=1.0)
    small = solve_qp(None, q[:, full], A=transport(3, 2), b=b[b > 0], entropy=1.0)
    assert plan.solved.all()
    assert_close(plan.x[:, full], small.x)
    assert_close(plan.x.sum(-1), small.x.sum(-1))
    assert_optimal(plan)


def test_rows_that_force_zeros_take_part_in_certificates() -> None:
    """x_0 + x_1 <= 0 and x_2 = x_0 leave nothing for x_2 = 1, nor for a floor under x_1."""
    A = torch.tensor([MOVES, [0.0, 0.0, 1.0, 0.0, 0.0]], dtype=F64)
    G = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]], dtype=F64)
    beyond = solve_qp(None, normal(5), G=G, h=ZERO, A=A, b=torch.tensor([0.0, 1.0], dtype=F64), entropy=1.0)
    floor = solve_qp(None, normal(5), G=G, h=ZERO, lb=torch.tensor([0, 0.1, 0, 0, 0], dtype=F64), entropy=1.0)
    for solution in (beyond, floor):
        assert solution.status == Status.PRIMAL_INFEASIBLE
        assert_certified(solution, 1e-9)


def test_rows_of_fixed_variables_alone() -> None:
    """They hold by rounding only, A x = b to 1e-16 and Gx <= h without a slack: no contradiction, and no multiplier."""
    value = torch.tensor([3.5642148598803325, 0.39720366056568884, 0.1], dtype=F64)
    lb, ub = (torch.cat([value, t.double()]) for t in (torch.zeros(2), torch.full((2,), torch.inf)))
    rows = torch.cat([normal(2, 3), torch.zeros(2, 2)], 1).double()
    side = rows[:, :3] @ value
    for near in (side, side.nextafter(side + 1), side.nextafter(side - 1)):
        for blocks in ({"A": rows, "b": near}, {"G": rows, "h": near}, {"A": rows, "b": near, "G": -rows, "h": -near}):
            solution = solve_qp(None, normal(5), **blocks, lb=lb, ub=ub, entropy=1.0)
            assert solution.solved and solution.iterations <= 20
            assert_close(solution.x, torch.cat([value, torch.exp(-normal(5)[3:] - 1)]))
            assert max(map(largest, (solution.y, solution.z))) <= 1e-9
    violated = solve_qp(None, normal(5), A=rows, b=side + 1e-6, lb=lb, ub=ub, entropy=1.0)
    assert violated.status == Status.PRIMAL_INFEASIBLE


def test_a_row_of_zeros_is_no_constraint_unless_it_is_violated() -> None:
    G, h = torch.zeros(1, 4, dtype=F64), torch.zeros(1, dtype=F64)
    plain = solve_qp(None, normal(4), **simplex(4), entropy=1.0)
    solution = solve_qp(None, normal(4), **simplex(4), G=G, h=h, entropy=1.0)
    assert_close(solution.x, plain.x)
    assert solution.z == 0 and solution.iterations <= 15
    violated = solve_qp(None, normal(4), **simplex(4), G=G, h=h - 1e-3, entropy=1.0)
    assert violated.status == Status.PRIMAL_INFEASIBLE


# ---- degenerate problems ---------------------------------------------------------------------------------------------


def test_a_weakly_active_cap_has_the_central_derivative() -> None:
    """x_2 meets its cap with a multiplier of zero: the derivative lies between the one-sided ones."""
    theta = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    p = torch.softmax(theta, -1)
    upper = torch.tensor([1.0, 1.0, float(p[2])], dtype=F64)
    solution = solve_qp(None, -theta, **simplex(3), ub=upper, entropy=1.0)
    assert_close(solution.x, p, atol=1e-14)
    assert solution.weakly_active == 1
    free = torch.diag(p) - p.outer(p)
    below = torch.cat([p[:2], p.new_zeros(1)])
    held = torch.diag(below) - below.outer(below) / (1 - p[2])
    J = -solution.jacobian("x", "q")
    share = (J[2, 2] / free[2, 2]).item()
    assert 0.01 < share < 0.99
    assert_close(J, share * free + (1 - share) * held, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0, 1e4])
def test_caps_that_leave_no_choice(scale: float) -> None:
    """They sum to one: x is at all of them, their multipliers are not unique, and the derivatives stay finite."""
    upper = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    solution = solve_qp(None, normal(3, 4, scale=scale), **simplex(4), ub=upper, entropy=1.0)
    assert solution.solved.all()
    assert_close(solution.x, upper.expand(3, 4), atol=1e-9)
    assert (solution.weakly_active >= 1).all()
    assert solution.jacobian("x", "q").isfinite().all() and solution.jacobian("x", "ub").isfinite().all()


def test_caps_of_a_tenth_and_large_costs() -> None:
    """Ten of 49 variables are at caps that sum to one, to rounding: the bounds and the row depend on each other."""
    theta = normal(20, 49, scale=1e3)
    solution = solve_qp(None, -theta, **simplex(49), ub=0.1, entropy=1.0)
    assert solution.solved.all()
    expected = torch.stack([sorted_softmax(t, torch.full_like(t, 0.1)) for t in theta])
    assert_close(solution.x, expected, atol=1e-9)


def test_a_P_of_rank_one() -> None:
    given = entropic("cap", scale=10.0)
    v = normal(16)
    solution = solve_qp(**{**given, "P": 10 * v.outer(v)})
    assert solution.solved.all()
    assert_kkt(solution, {**given, "P": 10 * v.outer(v)})


# ---- starts that are far away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6, 1e9])
def test_a_row_may_ask_for_more_than_the_entropy_would_give(scale: float) -> None:
    """Alone x would be exp(-scale): far from the least that the row asks for, yet not infeasible."""
    G, h = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]], dtype=F64), torch.tensor([-3.0, -1.0], dtype=F64)
    for x in ([3.0], [1.0, 1.0]):  # the least that do: one unit of x_2 does what two of x_1 would
        solution = solve_qp(None, torch.full((len(x),), scale, dtype=F64), G[:, : len(x)], h, entropy=1.0)
        assert solution.solved and solution.iterations <= 20
        assert_close(solution.x, torch.tensor(x, dtype=F64))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, 1e8])
def test_variables_that_no_row_holds_beside_others(scale: float) -> None:
    """They are exponentials, as small as exp(-scale), and do not disturb those of rows, floors or caps."""
    theta = torch.tensor([0.0, -0.5, -1.0, -1.0, -2.0], dtype=F64)
    q = scale * -theta + 1
    row = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]], dtype=F64)
    solution = solve_qp(None, q, A=row, b=row[0, :1], entropy=1.0)
    assert solution.solved and solution.iterations <= 20
    assert_close(solution.x, torch.cat([torch.softmax(-q[:3], -1), torch.exp(-q[3:] - 1)]))
    lb = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5], dtype=F64)
    solution = solve_qp(None, q, lb=lb, entropy=1.0)
    assert solution.solved and solution.iterations <= 25
    assert_close(solution.x, torch.maximum(lb, torch.exp(-q - 1)))


def test_a_budget_given_twice_at_a_temperature_near_zero() -> None:
    """One of the two is released, its multiplier of 10^4 goes to the other: a step that rounding makes inexact."""
    source = torch.Generator().manual_seed(0)
    q = 1e4 * torch.randn(64, 5, generator=source, dtype=F64)
    G = torch.randn(64, 1, 5, generator=source, dtype=F64)
    inside = torch.softmax(torch.randn(64, 5, generator=source, dtype=F64), -1)
    h = (G @ inside.unsqueeze(-1)).squeeze(-1)
    once = solve_qp(None, q, G, h, torch.ones(1, 5, dtype=F64), torch.ones(1, dtype=F64), entropy=1e-4)
    G, h = torch.cat([G, 3 * G], 1), torch.cat([h, 3 * h], 1)
    twice = solve_qp(None, q, G, h, torch.ones(1, 5, dtype=F64), torch.ones(1, dtype=F64), entropy=1e-4)
    assert once.solved.all() and twice.solved.all()
    assert_close(twice.x, once.x, atol=1e-9)
    assert (twice.s.amin(-1) >= -1e-14).all()


def test_rows_that_float32_rounds_out_of_each_others_reach() -> None:
    """Equalities, budgets and caps that meet in one point, each rounded: there is none, by 1e-7; the nearest solves it.

    The bar of 1e-6 is 16 roundings.
    """
    source = torch.Generator().manual_seed(0)
    x = torch.softmax(torch.randn(64, 3, generator=source, dtype=F64), -1)
    A, G = torch.ones(1, 3, dtype=F64), torch.randn(64, 3, 3, generator=source, dtype=F64)
    q = torch.randn(64, 3, generator=source, dtype=F64)
    given = {"G": G, "h": (G @ x.unsqueeze(-1)).squeeze(-1), "A": A, "b": A[0, :1], "ub": x}
    solution = solve_qp(None, q.float(), **{name: t.float() for name, t in given.items()}, entropy=0.5)
    assert solution.solved.all()
    assert largest(solution.x - x) <= 1e-6


def test_multipliers_of_dependent_rows_stay_small() -> None:
    """Rows 1, 2, -1 times one whose multiplier is y: the smallest are y (1, 2, -1) / 6, and not much more is found.

    What accumulates along A'y = 0 would be millions here, and float32 would round the others away.
    """
    given = entropic("cap", scale=1e3)
    b = torch.tensor([1.0, 2.0, -1.0], dtype=F64)
    A = b.unsqueeze(-1) * given["A"]
    solution, plain = solve_qp(**{**given, "A": A, "b": b}), solve_qp(**given)
    assert_close(solution.x, plain.x, atol=1e-12)
    assert_close((solution.y * b).sum(-1, keepdim=True), plain.y, atol=1e-9)
    assert (solution.y.abs().amax(-1) <= 20 * plain.y.squeeze(-1).abs()).all()
    single = {name: t if t is None else t.float() for name, t in {**given, "A": A, "b": b}.items()}
    assert solve_qp(**single).solved.all()


# ---- statuses --------------------------------------------------------------------------------------------------------


def infeasible() -> dict[str, dict[str, Any]]:
    one, q = torch.ones(1, 6, dtype=F64), normal(6)
    G = normal(2, 6)
    M = torch.cat([one, normal(1, 6)])
    return {
        "caps that sum to 0.99": {"q": q, **simplex(6), "ub": torch.full((6,), 0.165, dtype=F64)},
        "caps that sum to 0.9999": {"q": q, **simplex(6), "ub": torch.full((6,), 0.9999 / 6, dtype=F64)},
        "a negative sum": {"q": q, "A": one, "b": -one[:, 0]},
        "two sums": {"q": q, "A": one.expand(2, 6), "b": torch.tensor([1.0, 2.0], dtype=F64)},
        "floors that sum to 1.2": {"q": q, **simplex(6), "lb": torch.full((6,), 0.2, dtype=F64)},
        "a moment outside its range": {"q": q, "A": M, "b": torch.stack([one[0, 0], M[1].max() + 0.1])},
        "rows against each other": {"q": q, "G": torch.cat([G[:1], -G[:1]]), "h": torch.tensor([1.0, -1.1]).double()},
        "transport of different mass": {
            "q": normal(9),
            "A": transport(3, 3),
            "b": torch.tensor([0.3, 0.3, 0.4, 0.3, 0.3, 0.41], dtype=F64),
        },
        "a budget below the sum": {"q": q, **simplex(6), "G": one, "h": 0.9 * one[:, 0]},
    }


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("curvature", ["none", "full"])
@pytest.mark.parametrize("name", sorted(infeasible()))
def test_an_infeasible_problem_says_so_and_proves_it(name: str, curvature: str, scale: float) -> None:
    given = infeasible()[name]
    given["q"] = scale * given["q"]
    n = given["q"].shape[-1]
    L = normal(n, n, seed=1)
    solution = solve_qp(L @ L.T if curvature == "full" else None, **given, entropy=1.0)
    assert solution.status == Status.PRIMAL_INFEASIBLE
    assert solution.x.isnan().all()
    # x >= 0 is a constraint of an entropic problem: stated as a bound, the certificate is that of the program without
    floor = given.get("lb", torch.zeros(n, dtype=F64)).clamp(min=0)
    problem = optlayer.problem.validate(None, **{**given, "lb": floor})
    _, y, z, z_box = solution.certificate
    r, t = z_box.clone(), floor @ z_box.clamp(max=0)
    if problem.A is not None:
        r, t = r + y @ problem.A, t + problem.b @ y
    if problem.G is not None:
        r, t = r + z @ problem.G, t + problem.h @ z
    if problem.ub is not None:
        t = t + problem.ub @ z_box.clamp(min=0)
    else:
        assert (z_box <= 0).all()
    assert_certified(solution)
    assert (z >= 0).all() and largest(r) <= 1e-7
    assert_close(t, torch.tensor(-1.0, dtype=F64), atol=1e-9)


def test_crossed_bounds_are_infeasible() -> None:
    for bounds in ({"lb": 0.5, "ub": torch.full((3,), 0.2, dtype=F64)}, {"ub": -0.1}):
        solution = solve_qp(None, normal(3), **bounds, entropy=1.0)
        assert solution.status == Status.PRIMAL_INFEASIBLE
        assert_certified(solution)


def test_invalid_elements_spoil_nobody_else() -> None:
    given = entropic("moment and rows", batch=8, curvature="full")
    alone = solve_qp(**given)
    spoilt = {name: t if t is None else t.clone() for name, t in given.items()}
    spoilt["entropy"][0, 3], spoilt["entropy"][1, 2], spoilt["entropy"][2, 0] = 0.0, -1.0, torch.nan
    spoilt["q"][3, 1], spoilt["h"][4, 0], spoilt["P"][5, 1, 1] = torch.nan, -torch.inf, torch.inf
    spoilt["P"][6] -= 10 * torch.eye(16, dtype=F64)
    solution = solve_qp(**spoilt)
    assert solution.status.tolist() == [*[Status.INVALID_DATA] * 6, Status.NON_CONVEX, Status.SOLVED]
    assert solution.x[:7].isnan().all() and (solution.x[7] == alone.x[7]).all()
    assert solve_qp(-torch.ones(1, 3, dtype=F64), normal(3), entropy=1.0).status == Status.NON_CONVEX


def test_failures_are_raised_with_the_name_of_the_argument() -> None:
    tau = torch.tensor([[1.0], [0.0]], dtype=F64)
    with pytest.raises(SolverError, match=r"element 1: INVALID_DATA in entropy \(1 of 2 failed\)"):
        solve_qp(None, normal(2, 3), **simplex(3), entropy=tau, on_failure="raise")
    with pytest.warns(RuntimeWarning, match="the problem: PRIMAL_INFEASIBLE"):
        assert solve_qp(None, normal(3), **simplex(3), ub=0.1, entropy=1.0, on_failure="warn").x.isnan().all()
    lb, ub = torch.tensor([0.0, 0.75, 0.0], dtype=F64), torch.tensor(0.5, dtype=F64)
    with pytest.raises(SolverError, match=r"PRIMAL_INFEASIBLE, as lb exceeds ub by 0\.25 for variable 1"):
        solve_qp(None, normal(3), lb=lb, ub=ub, entropy=1.0, on_failure="raise")
    best = solve_qp(None, normal(3), **simplex(3), ub=0.1, entropy=1.0, on_failure="ignore")
    assert best.x.isfinite().all()


def test_a_solution_beyond_the_range_of_float32_is_no_solution_in_it() -> None:
    q = torch.tensor([[-100.0, 0.0, -100.0], [0.0, 0.0, 0.0]], dtype=F64)
    assert solve_qp(None, q, entropy=1.0).solved.all()
    assert solve_qp(None, q.float(), entropy=1.0).solved.tolist() == [False, True]


def test_a_solution_beyond_the_range_of_float64_is_no_solution() -> None:
    solution = solve_qp(None, torch.tensor([-1e3, 0.0], dtype=F64), entropy=1.0)
    assert solution.status == Status.NUMERICAL_ERROR


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e3])
def test_a_singular_P_alone_is_never_called_solved_wrongly(scale: float) -> None:
    """x may be as large as exp(scale) along the null space, where Px cancels: solved, or a status says why not."""
    L = normal(20, 8, 4)
    P, q = scale * L @ L.mT, normal(20, 8, scale=scale, seed=1)
    solution = solve_qp(P, q, entropy=1.0, on_failure="ignore")
    force = symmetric_product(P, solution.x) + q + solution.log_x + 1
    size = 1 + symmetric_product(P.abs(), solution.x.abs()) + q.abs()
    assert (force / size).abs()[solution.solved].max() <= 1e-9 if solution.solved.any() else scale > 10
    if scale <= 10:
        assert solution.solved.all()


def test_a_limit_on_the_iterations_is_kept() -> None:
    given = entropic("moment and rows", scale=1e3)
    solution = solve_qp(**given, max_iter=2)
    assert (solution.iterations <= 2).all() and not solution.solved.all()
    assert set(solution.status.tolist()) <= {Status.MAX_ITERATIONS, Status.ALMOST_SOLVED, Status.SOLVED}


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_what_the_limit_leaves_unsolved_is_of_the_size_of_a_solution(curvature: str, limit: int) -> None:
    """All x here are shares of one; an iterate, which need not be feasible yet, is at most ten times that."""
    for kind, scale in itertools.product(KINDS, (1.0, 1e3, 1e6)):
        given = entropic(kind, scale=scale, curvature=curvature)
        solution = solve_qp(**given, max_iter=limit, on_failure="ignore")
        assert (solution.x >= 0).all() and (solution.x <= 10).all(), kind
        for t in (solution.y, solution.z, solution.z_box, solution.s):
            assert (t.abs() <= 1e3 * (1 + largest(given["q"]))).all(), kind
        assert torch.equal(solution.solved, solution.is_optimal())


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_the_entropy_is_a_number_a_scalar_or_a_vector() -> None:
    q, tau = normal(2, 3), torch.tensor(0.5, dtype=F64)
    forms: list[Any] = [0.5, tau, tau.expand(1), tau.expand(3), tau.expand(2, 1), tau.expand(2, 3), tau.expand(1, 2, 1)]
    first, *others = (solve_qp(None, q, **simplex(3), entropy=form).x for form in forms)
    for other in others:
        assert_close(other.reshape(2, 3), first)
    assert solve_qp(None, q, **simplex(3), entropy=2).solved.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entropy": 0.0}, r"entropy is 0.0, expected a finite number > 0; .* entropy=None"),
        ({"entropy": -1}, "entropy is -1, expected a finite number > 0"),
        ({"entropy": float("nan")}, "entropy is nan, expected a finite number > 0"),
        ({"entropy": "high"}, "entropy is a str, expected a torch.Tensor"),
        ({"entropy": torch.ones(2, dtype=F64)}, r"entropy has shape \(2,\), expected \(\*batch, 3\) or \(\*batch, 1\)"),
        ({"entropy": torch.ones(3)}, "entropy has dtype torch.float32 but q has torch.float64"),
        ({"entropy": torch.ones(5, 1, dtype=F64)}, "expected batch shapes that broadcast"),
        ({"P": torch.ones(2, 3, dtype=F64)}, r"P has shape \(2, 3\), expected \(\*batch, 3, 3\) or \(\*batch, 1, 3\)"),
        ({"P": torch.ones(1, 3, dtype=F64), "entropy": None}, r"P has shape \(1, 3\), expected \(\*batch, 3, 3\)"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"P": None, "q": normal(2, 3), "entropy": 1.0, **changes}
    with pytest.raises(ProblemError, match=message):
        solve_qp(**given)


def test_the_record_tells_that_there_is_an_entropy() -> None:
    solution = solve_qp(None, normal(2, 3), **simplex(3), entropy=1.0)
    assert "entropy=(3,)" in repr(solution.problem)
    assert solution.log_x is not None
    assert solve_qp(None, normal(2, 3), **simplex(3), lb=0.0).log_x is None
    assert set(solution.status_names()) == {"SOLVED"}


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
def test_empty_batches(batch: tuple[int, ...]) -> None:
    q = torch.zeros(*batch, 3, dtype=F64, requires_grad=True)
    solution = solve_qp(None, q, **simplex(3), entropy=1.0)
    assert solution.x.shape == (*batch, 3)
    solution.x.sum().backward()
    assert q.grad is not None and q.grad.shape == q.shape


def test_batch_dimensions_broadcast() -> None:
    P, q = normal(5, 1, 1, 3).abs(), normal(2, 3)
    solution = solve_qp(P, q, **simplex(3), entropy=torch.tensor([[[[0.5]]], [[[1.0]]]], dtype=F64))
    assert solution.x.shape == (2, 5, 2, 3)
    one = solve_qp(P[3], q[1], **simplex(3), entropy=1.0)
    assert_close(solution.x[1, 3, 1], one.x.squeeze(0))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_solved_in_float64(kind: str) -> None:
    """Its error is the rounding of the data and of the answer: a few units of float32, times the cost over entropy."""
    for scale in (0.1, 10.0, 1e3):
        given = {name: t if t is None else t.float() for name, t in entropic(kind, scale=scale).items()}
        solution = solve_qp(**given)
        exact = solve_qp(
            **{name: t if t is None else t.double() for name, t in given.items()}, eps_abs=1e-5, eps_rel=1e-5
        )
        assert solution.solved.all() and solution.x.dtype is torch.float32
        assert_close(solution.x.double(), exact.x, atol=1e-6, rtol=1e-6)
        assert solution.is_optimal().all()


def test_half_precision_is_solved_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = solve_qp(None, normal(3).bfloat16(), A=torch.ones(1, 3), b=torch.ones(1), entropy=1.0).x
    assert x.dtype is torch.float32


# ---- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["none", "diagonal"])
def test_a_hundred_thousand_items_with_three_rows(curvature: str) -> None:
    """O(n k^2): half a second where it was measured; a dense n x n matrix would need 80 GB."""
    n = 100_000
    q = normal(n).requires_grad_()
    A = torch.cat([torch.ones(1, n, dtype=F64), normal(2, n, seed=1)])
    b = A @ torch.softmax(normal(n, seed=2), -1)
    P = normal(1, n, seed=3).abs() if curvature == "diagonal" else None
    begin = time.process_time()
    solution = solve_qp(P, q, A=A, b=b, entropy=1.0)
    (solution.x * normal(n, seed=4)).sum().backward()
    assert time.process_time() - begin < 20
    assert solution.solved
    assert_kkt(solution, {"P": P, "q": q.detach(), "A": A, "b": b, "entropy": torch.ones(n, dtype=F64)})
    # the gradient is orthogonal to the rows: moving q by A'y moves y alone
    assert largest(A @ q.grad) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_tight_caps_on_a_hundred_thousand_items(scale: float) -> None:
    """The caps sum to 1.001, and outliers change bound one after another: up to 100 iterations; 20 are the rule."""
    given = entropic("tight cap", 100_000, 1, scale)
    solution = solve_qp(**given)
    assert solution.solved.all() and solution.iterations.max() <= 150
    assert_kkt(solution, given)


def test_many_random_problems() -> None:
    """Every kind at three scales, 40 problems each: all solved, none in more than 40 iterations."""
    for kind, curvature, scale in itertools.product(KINDS, CURVATURES, (0.1, 100.0, 1e5)):
        given = entropic(kind, 9, 40, scale, curvature, seed=7)
        solution = solve_qp(**given)
        assert solution.solved.all() and solution.iterations.max() <= 40, (kind, curvature, scale)
