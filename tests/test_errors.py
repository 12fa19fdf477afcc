# SPDX-License-Identifier: Apache-2.0
"""Every exception of optlayer is also the standard one that a caller would expect; warnings point at the caller."""

from pathlib import Path

import pytest
import torch

from optlayer import OptlayerError, ProblemError, SettingsError, SolverError, solve_qp, solve_softmax
from optlayer.implicit import root
from optlayer.nn import QPLayer

ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("error", "standard"),
    [(ProblemError, ValueError), (SettingsError, ValueError), (SolverError, RuntimeError)],
)
def test_an_error_is_ours_and_the_standard_one(error: type[Exception], standard: type[Exception]) -> None:
    assert issubclass(error, OptlayerError)
    assert issubclass(error, standard)
    with pytest.raises(standard, match="said so"):
        raise error("said so")


WARNS = {
    "solve_qp": lambda: solve_qp(None, ONE, on_failure="warn"),
    "a differentiated solve": lambda: solve_qp(None, ONE.clone().requires_grad_(), on_failure="warn"),
    "a mapped solve": lambda: torch.vmap(lambda q: solve_qp(None, q, on_failure="warn").x)(ONE.expand(2, 1)),
    "a layer": lambda: QPLayer(1, learned=(), dtype=torch.float64, on_failure="warn")(ONE),
    "an entropic solve": lambda: solve_qp(None, ONE, A=ONE[None], b=-ONE, entropy=1.0, on_failure="warn"),
    "solve_softmax": lambda: solve_softmax(ONE * torch.nan, on_failure="warn"),
    "root": lambda: root(lambda z: z**2 + 1, ONE, on_failure="warn"),
}


@pytest.mark.parametrize("name", WARNS)
def test_a_warning_points_at_the_line_that_asked_for_the_solve(name: str) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        WARNS[name]()
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
