# SPDX-License-Identifier: Apache-2.0
"""QPLayer with an entropy among its blocks: as input, constant or learned."""

import copy
from typing import Any

import pytest
import torch
from entropic_cases import F64
from torch import Tensor

from optlayer import ProblemError, solve_qp
from optlayer.nn import QPLayer
from optlayer.testing import assert_gradients

ONE = torch.ones(1, 4, dtype=F64)
SIMPLEX: dict[str, Any] = {"A": ONE, "b": ONE[0, :1]}


def costs(*batch: int, seed: int = 0) -> Tensor:
    return torch.randn(*batch, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_an_entropy_is_a_constant_a_number_or_a_tensor() -> None:
    q = costs(3)
    each = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=F64)
    for tau in (0.5, torch.tensor(0.5, dtype=F64), torch.tensor([0.5], dtype=F64), each):
        layer = QPLayer(4, p=1, constants={**SIMPLEX, "entropy": tau}, learned=(), dtype=F64)
        torch.testing.assert_close(layer(q), solve_qp(None, q, A=ONE, b=ONE[0, :1], entropy=tau).x, atol=0, rtol=0)
        assert "entropy" in dict(layer.named_buffers()) and not list(layer.parameters())
        again = QPLayer(4, p=1, constants={**SIMPLEX, "entropy": 2.0 * each / each}, learned=(), dtype=F64)
        if isinstance(tau, Tensor) and tau.shape == (4,):
            again.load_state_dict(layer.state_dict())
            assert torch.equal(again(q), layer(q))


def test_an_entropy_is_an_input_with_a_gradient() -> None:
    layer = QPLayer(4, p=1, inputs=("q", "entropy"), constants={**SIMPLEX, "ub": 0.4}, learned=(), dtype=F64)
    for shape in ((2, 4), (2, 1), (4,), ()):
        tau = torch.full(shape, 0.7, dtype=F64, requires_grad=True)
        q = costs(2).requires_grad_()
        by_q, by_tau = torch.autograd.grad((layer(q, tau) ** 2).sum(), (q, tau))
        x = solve_qp(None, q, A=ONE, b=ONE[0, :1], ub=0.4, entropy=tau).x
        expected = torch.autograd.grad((x**2).sum(), (q, tau))
        torch.testing.assert_close((by_q, by_tau), expected, atol=0, rtol=0)
    assert torch.equal(layer(entropy=tau, q=q), layer(q, tau))


def test_a_learned_entropy_is_positive_and_finds_the_temperature_of_its_data() -> None:
    layer = QPLayer(4, p=1, constants={**SIMPLEX, "ub": 0.6}, learned=("entropy",), dtype=F64)
    assert [name for name, _ in layer.named_parameters()] == ["log_entropy"]
    q, tau = costs(50), 0.3
    target = solve_qp(None, q, A=ONE, b=ONE[0, :1], ub=0.6, entropy=tau).x
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(120):
        optimiser.zero_grad()
        loss = (layer(q) - target).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert abs(layer.log_entropy.exp().item() - tau) <= 1e-3  # Adam's last steps are shorter than that
    torch.nn.init.constant_(layer.log_entropy, -3.0)
    assert layer(q).isfinite().all() and layer.blocks(q=q)["entropy"] > 0
    layer.reset_parameters()
    assert layer.log_entropy == 0
    assert copy.deepcopy(layer)(q).equal(layer(q))


def test_everything_is_learned_with_an_entropy_and_stays_feasible() -> None:
    for constants in ({}, {"lb": -1.0}, {"ub": 2.0}, {"lb": 0.1, "ub": 0.8}):
        more = () if "ub" in constants else ("ub",)
        layer = QPLayer(
            4, 3, 1, constants=constants, learned=("P", "G", "h", "A", "b", "entropy", *more), feasible=True, dtype=F64
        )
        with torch.no_grad():
            for i, parameter in enumerate(layer.parameters()):
                source = torch.Generator().manual_seed(i)
                parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=F64))
        assert (layer.feasible_point() > 0).all()
        q = costs(5, seed=7)
        assert layer.solve(q).solved.all()

        def loss(*values: Tensor, layer: QPLayer = layer, q: Tensor = q) -> Tensor:
            names = [name for name, _ in layer.named_parameters()]
            x: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (q,))
            return (x**2).sum()

        assert_gradients(loss, [p.detach().clone() for p in layer.parameters()])


def test_a_diagonal_P_is_a_block_of_an_entropic_program_only() -> None:
    d = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=F64)
    layer = QPLayer(4, p=1, constants={"P": d, **SIMPLEX, "entropy": 0.5}, learned=(), dtype=F64)
    full = QPLayer(4, p=1, constants={"P": torch.diag(d[0]), **SIMPLEX, "entropy": 0.5}, learned=(), dtype=F64)
    torch.testing.assert_close(layer(costs(3)), full(costs(3)), atol=1e-13, rtol=1e-12)
    with pytest.raises(ProblemError, match=r"constant P has shape \(1, 4\), expected \(\*batch, 4, 4\)"):
        QPLayer(4, p=1, constants={"P": d, **SIMPLEX}, learned=(), dtype=F64)


def test_what_is_no_entropy_is_told_so() -> None:
    for tau in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ProblemError, match=r"constant entropy is .*, expected a finite number > 0"):
            QPLayer(4, constants={"entropy": tau})
    with pytest.raises(ProblemError, match=r"constant entropy has shape \(3,\), expected \(\*batch, 4\)"):
        QPLayer(4, constants={"entropy": torch.ones(3)})
    with pytest.raises(ProblemError, match="constant entropy is a str"):
        QPLayer(4, constants={"entropy": "1"})  # type: ignore[dict-item]
    with pytest.raises(ProblemError, match=r'entropy is given by its name, expected constants=\{"entropy": 0.5\} or'):
        QPLayer(4, entropy=0.5)
    with pytest.raises(ProblemError, match="entropy is listed in inputs and in learned"):
        QPLayer(4, inputs=("q", "entropy"), learned=("entropy",))
