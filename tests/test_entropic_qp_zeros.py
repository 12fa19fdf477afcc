# SPDX-License-Identifier: Apache-2.0
"""Variables of an entropic program that its rows or bounds force to zero, or fix: caps of zero say the same."""

from typing import Any

import pytest
import torch
from entropic_cases import F64, assert_close, largest, normal, simplex, transport

from optlayer import Status, solve_qp
from optlayer.testing import assert_certified, assert_optimal

pytestmark = pytest.mark.usefixtures("engine")


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
