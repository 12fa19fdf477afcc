# SPDX-License-Identifier: Apache-2.0
"""Tools of tests are tested from both sides: they accept what is right and refuse what is slightly wrong."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from optlayer import Solution, Status, solve_qp
from optlayer.residuals import residuals
from optlayer.testing import (
    PLANTED,
    _complementarity,
    assert_certified,
    assert_gradients,
    assert_optimal,
    planted_qp,
    random_qp,
)

F64 = torch.float64
SIZES: dict[str, tuple[int, int, int]] = {"lp": (6, 7, 2), "redundant": (6, 4, 3)}


def sizes(kind: str) -> tuple[int, int, int]:
    return SIZES.get(kind, (7, 5, 2))


# ---- random problems -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [False, True])
@pytest.mark.parametrize("kind", PLANTED)
def test_the_planted_solution_is_the_solution(kind: Any, bounds: bool) -> None:
    problem, point = planted_qp(*sizes(kind), batch=(5,), kind=kind, bounds=bounds, seed=1)
    assert residuals(*problem.tensors, *point).within(1e-12, 0).all()
    solution = solve_qp(*problem.tensors)
    assert_optimal(solution)
    # the data are of size one and the active constraints well separated: what is left is rounding
    torch.testing.assert_close(solution.x, point.x, rtol=0, atol=1e-10)
    torch.testing.assert_close(solution.z, point.z, rtol=0, atol=1e-10)
    assert (solution.weakly_active == (1 if kind == "weak" else 0)).all()


@pytest.mark.parametrize("bounds", [False, True])
@pytest.mark.parametrize(
    ("kind", "status"), [("infeasible", Status.PRIMAL_INFEASIBLE), ("unbounded", Status.DUAL_INFEASIBLE)]
)
def test_problems_without_a_solution_have_none(kind: Any, status: Status, bounds: bool) -> None:
    solution = solve_qp(*random_qp(7, 5, 2, batch=(5,), kind=kind, bounds=bounds, seed=2).tensors)
    assert (solution.status == status).all()
    assert_certified(solution)


def test_a_random_problem_is_the_same_in_every_dtype_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    double, again = random_qp(4, 3, 1, bounds=True, seed=3), random_qp(4, 3, 1, bounds=True, seed=3)
    single = random_qp(4, 3, 1, bounds=True, seed=3, dtype=torch.float32)
    other = random_qp(4, 3, 1, bounds=True, seed=4)
    for a, b, c, d in zip(double.tensors, again.tensors, single.tensors, other.tensors, strict=True):
        assert a is not None
        assert b is not None
        assert c is not None
        assert d is not None
        assert torch.equal(a, b)
        assert torch.equal(a.float(), c)
        assert not torch.equal(a, d)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_shared_matrices_have_no_batch() -> None:
    problem = random_qp(4, 3, 1, batch=(2, 5), shared=("P", "A"))
    assert problem.P is not None
    assert problem.G is not None
    assert problem.A is not None
    assert problem.P.shape == (4, 4)
    assert problem.G.shape == (2, 5, 3, 4)
    assert problem.A.shape == (1, 4)
    assert problem.batch == (2, 5)


@pytest.mark.parametrize(
    ("n", "m", "p", "kind", "message"),
    [
        (4, 1, 0, "infeasible", "kind='infeasible' needs m >= 2, found 1"),
        (4, 0, 1, "weak", "kind='weak' needs m >= 1, found 0"),
        (4, 3, 1, "redundant", "kind='redundant' needs p >= 2, found 1"),
        (4, 2, 1, "lp", r"kind='lp' needs m >= n - p = 3 or bounds, found m = 2"),
        (4, 2, 4, "regular", "p is 4, expected fewer equalities than the 4 variables"),
    ],
)
def test_impossible_requests_are_refused(n: int, m: int, p: int, kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_qp(n, m, p, kind=kind)


# ---- assertions about solutions --------------------------------------------------------------------------------------


def solved() -> Solution:
    problem, _ = planted_qp(6, 5, 2, batch=(3,), bounds=True, seed=5)
    return solve_qp(*problem.tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_optimal_solution_passes(dtype: torch.dtype) -> None:
    problem = random_qp(6, 5, 2, batch=(3,), bounds=True, seed=5, dtype=dtype)
    assert_optimal(solve_qp(*problem.tensors))


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("x", (1, 0), r"element \[1\]: (primal|dual) residual is .*, expected at most"),
        ("y", (2, 1), r"element \[2\]: dual residual is"),
        ("z", (0, 3), r"element \[0\]: dual residual is"),
        ("z_box", (1, 2), r"element \[1\]: dual residual is"),
        ("s", (2, 4), r"element \[2\]: (negative part of s|h - Gx - s) is"),
    ],
)
def test_a_slightly_wrong_solution_is_refused(name: str, entry: tuple[int, int], message: str) -> None:
    solution = solved()
    wrong = getattr(solution, name).clone()
    wrong[entry] -= 1e-6
    with pytest.raises(AssertionError, match=message):
        assert_optimal(dataclasses.replace(solution, **{name: wrong}))
    assert_optimal(dataclasses.replace(solution, **{name: wrong}), eps_abs=1e-4)


def test_a_point_whose_products_of_multiplier_and_slack_cancel_is_refused() -> None:
    """min |x|^2 / 2 - 2 (x_1 + x_2), x <= 1: x = z = 1.  The other point is stationary; its products are -1/4, 3/4."""
    one = torch.ones(2, dtype=F64)
    honest = solve_qp(torch.eye(2, dtype=F64), -2 * one, torch.eye(2, dtype=F64), one)
    assert_optimal(honest)
    cheat = dataclasses.replace(
        honest,
        x=torch.tensor([1.5, 0.5], dtype=F64),
        z=torch.tensor([0.5, 1.5], dtype=F64),
        s=torch.tensor([-0.5, 0.5], dtype=F64),
    )
    with pytest.raises(AssertionError, match="primal residual"):
        assert_optimal(cheat)
    assert {name: value.item() for name, value in _complementarity(cheat).items()} == {"complementarity of G": 0.75}


def test_an_element_that_failed_is_named() -> None:
    problem = random_qp(4, 3, 0, batch=(2, 2), seed=6)
    assert problem.q is not None
    problem.q[1, 0, 2] = torch.nan
    with pytest.raises(AssertionError, match=r"element \[1, 0\] is INVALID_DATA: The data hold a NaN"):
        assert_optimal(solve_qp(*problem.tensors))


@pytest.mark.parametrize("part", ["y", "z", "z_box"])
def test_a_slightly_wrong_certificate_of_infeasibility_is_refused(part: str) -> None:
    solution = solve_qp(*random_qp(5, 4, 2, kind="infeasible", bounds=True, batch=(2,), seed=7).tensors)
    wrong = getattr(solution.certificate, part).clone()
    wrong[1, 0] += 1e-3
    certificate = solution.certificate._replace(**{part: wrong})
    with pytest.raises(AssertionError, match=r"element \[1\]: certificate of PRIMAL_INFEASIBLE, .* expected at most"):
        assert_certified(dataclasses.replace(solution, ray=torch.cat(certificate, -1)))


def test_a_slightly_wrong_certificate_of_unboundedness_is_refused() -> None:
    solution = solve_qp(*random_qp(5, 4, 2, kind="unbounded", batch=(2,), seed=8).tensors)
    certificate = solution.certificate._replace(x=solution.certificate.x + 1e-3)
    with pytest.raises(AssertionError, match=r"element \[0\]: certificate of DUAL_INFEASIBLE, Px is"):
        assert_certified(dataclasses.replace(solution, ray=torch.cat(certificate, -1)))


# ---- assertions about gradients --------------------------------------------------------------------------------------


class Square(torch.autograd.Function):
    """x^2 with a derivative that is off by a given factor, in either mode."""

    @staticmethod
    def forward(x: Tensor, reverse: float, forward: float) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.reverse, ctx.forward = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return 2 * ctx.reverse * ctx.saved_tensors[0] * g, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Any:
        return 2 * ctx.forward * ctx.saved_tensors[0] * dx


def square(reverse: float = 1.0, forward: float = 1.0) -> Any:
    return lambda x, y: {"square": Square.apply(x, reverse, forward), "product": (x * y).sum(), "number": 3}


def test_right_gradients_pass() -> None:
    x, y = torch.randn(3, 4, dtype=F64), torch.randn(4, dtype=F64)
    assert_gradients(square(), [x, y])
    assert_gradients(square(forward=2.0), [x, y], forward=False)


@pytest.mark.parametrize(("reverse", "forward", "mode"), [(1 + 1e-4, 1.0, "reverse"), (1.0, 1 + 1e-4, "forward")])
def test_gradients_off_by_a_ten_thousandth_are_refused(reverse: float, forward: float, mode: str) -> None:
    x, y = torch.randn(3, 4, dtype=F64), torch.randn(4, dtype=F64)
    with pytest.raises(AssertionError, match=f"input 0, {mode} mode: slope .* finite differences .* difference"):
        assert_gradients(square(reverse, forward), [x, y])


def test_a_gradient_that_is_missing_is_refused() -> None:
    x = torch.randn(3, dtype=F64)
    with pytest.raises(AssertionError, match="input 0, reverse mode: slope 0"):
        assert_gradients(lambda x, y: x.detach() * y, [x, x], forward=False)


def test_single_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input 1 has dtype torch.float32, expected torch.float64"):
        assert_gradients(lambda x, y: x + y, [torch.zeros(2, dtype=F64), torch.zeros(2, dtype=torch.float32)])
