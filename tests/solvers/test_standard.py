# SPDX-License-Identifier: Apache-2.0
"""Bad data are judged, infinities and fixed variables become masks."""

import pytest
import torch
from torch import Tensor

from optlayer.kkt.program import Program
from optlayer.solvers.standard import convex, judge, restored, standardise, unlimited
from optlayer.status import Status

f64 = torch.float64
nan, inf = torch.nan, torch.inf


def data() -> dict[str, Tensor]:
    """n = 2, one equality row and one inequality row."""
    return {
        "P": torch.eye(2, dtype=f64).expand(1, 2, 2).clone(),
        "q": torch.ones(1, 2, dtype=f64),
        "C": torch.ones(1, 2, 2, dtype=f64),
        "d": torch.ones(1, 2, dtype=f64),
        "lb": torch.full((1, 2), -inf, dtype=f64),
        "ub": torch.full((1, 2), inf, dtype=f64),
    }


def verdict(**changes: Tensor) -> Status:
    t = {**data(), **changes}
    return Status(int(judge(t["P"], t["q"], t["C"], t["d"], 1, t["lb"], t["ub"])))


@pytest.mark.parametrize("name", ["P", "q", "C", "d", "lb", "ub"])
def test_nan_anywhere_is_invalid(name: str) -> None:
    t = data()[name]
    t.flatten()[-1] = nan
    assert verdict(**{name: t}) == Status.INVALID_DATA


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("P", inf, Status.INVALID_DATA),
        ("q", -inf, Status.INVALID_DATA),
        ("C", inf, Status.INVALID_DATA),
        ("lb", inf, Status.INVALID_DATA),
        ("ub", -inf, Status.INVALID_DATA),
        ("lb", -inf, Status.UNSOLVED),
        ("ub", inf, Status.UNSOLVED),
    ],
)
def test_infinities_stand_only_where_they_mean_absence(name: str, value: float, expected: Status) -> None:
    t = data()[name]
    t.flatten()[0] = value
    assert verdict(**{name: t}) == expected


def test_right_hand_sides_and_crossed_bounds() -> None:
    assert verdict(d=torch.tensor([[1.0, inf]], dtype=f64)) == Status.UNSOLVED
    assert verdict(d=torch.tensor([[inf, 1.0]], dtype=f64)) == Status.INVALID_DATA, "an equality with infinity"
    assert verdict(d=torch.tensor([[1.0, -inf]], dtype=f64)) == Status.INVALID_DATA
    assert verdict(lb=torch.ones(1, 2, dtype=f64), ub=torch.zeros(1, 2, dtype=f64)) == Status.PRIMAL_INFEASIBLE


def test_fixed_variables_are_substituted() -> None:
    t = data()
    t["lb"][0, 1] = t["ub"][0, 1] = 3.0
    s = standardise(**t)
    assert s.fixed.tolist() == [[False, True]]
    assert s.P.tolist() == [[[1.0, 0.0], [0.0, 1.0]]]
    assert s.C.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]
    assert s.d.tolist() == [[-2.0, -2.0]]
    assert s.offset.tolist() == [3.0 + 4.5]
    x, z_box = restored(
        s, t["P"], t["q"], t["C"], torch.zeros(1, 2, dtype=f64), torch.ones(1, 2, dtype=f64), 0 * t["q"]
    )
    assert x.tolist() == [[0.0, 3.0]]
    assert z_box.tolist() == [[0.0, -(3.0 + 1.0 + 2.0)]]


def test_huge_bounds_and_right_hand_sides_are_none() -> None:
    t = data()
    t["d"][0, 1], t["lb"][0, 0], t["ub"][0, 1] = 1e20, -1e21, 1e30
    program = unlimited(Program(**t), 1)
    assert program.lb[0, 1] == -inf
    s = standardise(*program)
    assert s.live.tolist() == [[True, False]]
    assert s.C[0, 1].tolist() == [0.0, 0.0]
    assert not s.lb.isfinite().any()
    assert not s.ub.isfinite().any()


def test_convexity_forgives_rounded_data_only() -> None:
    P = torch.diag_embed(torch.tensor([[1.0, 0.0], [1.0, -1e-5], [1.0, -1e-4], [0.0, 0.0], [1e9, -1e3]], dtype=f64))
    assert convex(P).tolist() == [True, True, False, True, True]
