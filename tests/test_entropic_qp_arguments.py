# SPDX-License-Identifier: Apache-2.0
"""The arguments of a program with an entropy: forms, batches, precisions, what is wrong with them."""

from typing import Any

import pytest
import torch
from entropic_cases import F64, KINDS, assert_close, entropic, normal, simplex

from optlayer import ProblemError, solve_qp

pytestmark = pytest.mark.usefixtures("engine")


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
