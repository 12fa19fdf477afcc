# SPDX-License-Identifier: Apache-2.0
"""The rows of the gradient table, two seeds each, at their bars; `python -m benchmarks.gradients` prints it whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import optlayer
from benchmarks import gradients
from benchmarks.exact import known
from optlayer import Status

pytestmark = pytest.mark.usefixtures("engine")

BAR = 1e-6
"""Of the relative error of the worst parameter in float64: rounding times the condition of the active set's KKT system,
refined; the regular cases come to 1e-13, cond(P) = 1e12 to 1e-8."""

BAR32 = 1e-3
"""The same in float32, whose rounding is 6e-8, for systems of condition below 1e3."""

CASES = [case for case in gradients.CASES if case != "regular n = 50"]
SCALINGS = [{}, *gradients.SCALINGS]


@pytest.fixture(autouse=True)
def two_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "SEEDS", range(2))


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: " ".join(f"{k} x {v:.0e}" for k, v in s.items()) or "plain")
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_exact(case: str, scaling: dict[str, float]) -> None:
    assert max(gradients.errors(case, **scaling)) <= BAR


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_all_outputs_is_exact(case: str) -> None:
    assert max(gradients.errors(case, everything=True)) <= BAR


@pytest.mark.parametrize("case", ["regular n = 10", "regular n = 30", "one infeasible of 6, the healthy 5"])
def test_the_gradient_in_float32(case: str) -> None:
    assert max(gradients.errors(case, torch.float32)) <= BAR32


def test_an_infeasible_problem_has_no_gradient_unless_none_is_asked() -> None:
    for _, status, zero, nan in gradients.infeasible():
        assert status == "PRIMAL_INFEASIBLE"
        assert zero
        assert nan


def test_a_masked_loss_trains_on_beside_an_infeasible_element() -> None:
    """With on_failure="nan", masking the failed element by indexing leaves the exact gradient for the others."""
    elements = [known(i).problem for i in range(3)]
    bad = elements[1]
    G, h = bad.G.copy(), bad.h.copy()
    G[1], h[1] = -G[0], -h[0] - 1
    elements[1] = replace(bad, G=G, h=h)
    stack = {k: torch.tensor(np.stack([getattr(p, k) for p in elements])) for k in ("P", "q", "G", "h", "A", "b")}
    q = stack["q"].requires_grad_()
    found = optlayer.solve_qp(stack["P"], q, stack["G"], stack["h"], stack["A"], stack["b"])
    assert found.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    (g,) = torch.autograd.grad(found.x[found.solved].sum(), q)
    assert (g[1] == 0).all()
    assert torch.isfinite(g).all()
    assert g[0].abs().max() > 0
