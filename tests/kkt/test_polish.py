# SPDX-License-Identifier: Apache-2.0
"""From a rough interior point the polish finds the exact solution, or says that it cannot."""

import torch
from torch import Tensor

from optlayer.kkt.polish import Face, Interior, centralised, polish
from optlayer.kkt.program import Program
from optlayer.kkt.scaling import Scaling

f64 = torch.float64


def tensor(*rows: object) -> Tensor:
    return torch.tensor([list(rows)], dtype=f64)


LIVE = torch.ones(1, 1, dtype=torch.bool)


def given(x: Tensor, z: Tensor, s: Tensor, h: float = 1.0, ub: float = 2.0) -> tuple[Program, Interior]:
    """min 1/2 |x - (3, 5)|^2 s.t. x_0 <= h, x_1 <= ub: the solution is (h, ub), multipliers (3 - h, 5 - ub)."""
    program = Program(
        torch.eye(2, dtype=f64).unsqueeze(0),
        tensor(-3, -5),
        tensor([1.0, 0.0]),
        tensor(h),
        tensor(-torch.inf, -torch.inf),
        tensor(torch.inf, ub),
    )
    zero, ones = torch.zeros(1, 2, dtype=f64), torch.ones(1, 2, dtype=f64)
    absent = tensor(0, 1)
    return program, Interior(x, z[:, :1], s[:, :1], zero, ones, z[:, 1:] * absent, s[:, 1:] * absent + (1 - absent))


def run(x: Tensor, z: Tensor, s: Tensor, h: float = 1.0, keep: bool = True) -> Face:
    program, interior = given(x, z, s, h)
    one = Scaling(torch.ones(1, 2, dtype=f64), torch.ones(1, 1, dtype=f64), torch.ones(1, 1, dtype=f64))
    return polish(program, 0, LIVE, one, interior, keep)


def test_a_rough_point_becomes_the_exact_solution() -> None:
    face = run(tensor(0.9, 1.9), tensor(1.8, 2.7), tensor(0.1, 0.1))
    assert face.sure.all()
    assert face.weak.tolist() == [0]
    assert face.x.tolist() == [[1.0, 2.0]]
    assert face.v.tolist() == [[2.0]]
    assert face.z_box.tolist() == [[0.0, 3.0]]
    assert face.state.w.tolist() == [[torch.inf]]
    assert face.state.w_box.tolist() == [[0.0, torch.inf]]


def test_a_wrong_guess_is_mended() -> None:
    """Both constraints seem inactive at first; both are violated by the free minimum, and change sides."""
    face = run(tensor(0.5, 0.5), tensor(0.1, 0.1), tensor(0.5, 1.5))
    assert face.sure.all()
    assert face.x.tolist() == [[1.0, 2.0]]


def test_a_weakly_active_row_keeps_its_central_weight() -> None:
    """h = 3 passes through the free minimum: multiplier and slack both vanish."""
    face = run(tensor(3 - 1e-6, 2 - 1e-9), tensor(1e-6, 3.0), tensor(2e-6, 1e-9), h=3.0)
    assert face.sure.all()
    assert face.weak.tolist() == [1]
    torch.testing.assert_close(face.x, tensor(3.0, 2.0), rtol=1e-15, atol=0)
    torch.testing.assert_close(face.state.w, tensor(0.5), rtol=1e-12, atol=0)


def test_a_bound_that_is_decided_is_active_in_the_central_system() -> None:
    """Its multiplier moves by w (x - bound), of which no digit would be left."""
    point = tensor(0.9, 2 - 1e-9), tensor(1.8, 3.0), tensor(0.1, 1e-9)
    program, interior = given(*point)
    face = centralised(program, 0, LIVE, interior, run(*point), torch.tensor([0]))
    torch.testing.assert_close(face.state.w, tensor(18.0))
    assert face.state.w_box.tolist() == [[0.0, torch.inf]]


def test_no_factors_unless_wanted() -> None:
    face = run(tensor(0.9, 1.9), tensor(1.8, 2.7), tensor(0.1, 0.1), keep=False)
    assert face.factors is None
    assert face.heavy is None
