# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mixed import C, L, U, stated

from optlayer import ProblemError, Status, solve_qp
from optlayer.instance import Instance, stack, unstack


def test_the_standard_form_has_the_feasible_set_of_the_rows() -> None:
    instance = stated()
    assert instance.shape == (3, 4, 1)
    rows, l, u = (torch.tensor(t, dtype=torch.float64) for t in (C, L, U))
    for x in torch.randn(100, 3, dtype=torch.float64):
        violation = torch.maximum(l - rows @ x, rows @ x - u).clamp(min=0).max()
        standard = torch.cat([(instance.G @ x - instance.h).clamp(min=0), (instance.A @ x - instance.b).abs()]).max()
        assert standard == violation


def test_blocks_that_say_nothing_are_absent() -> None:
    instance = Instance.from_rows("free", None, [1.0, 2.0], [[1.0, 1.0]], l=[-1e20], u=[1e30])
    assert instance.shape == (2, 0, 0)
    assert {name for name, block in instance.blocks.items() if block is not None} == {"q"}


def test_limits_that_cross_or_are_no_number_reach_the_solver() -> None:
    crossing = Instance.from_rows("crossing", [[1.0]], [0.0], [[1.0]], l=[2.0], u=[1.0])
    assert solve_qp(**crossing.blocks).status == Status.PRIMAL_INFEASIBLE
    broken = Instance.from_rows("broken", [[1.0]], [0.0], [[1.0]], l=[float("nan")], u=[1.0])
    assert solve_qp(**broken.blocks).status == Status.INVALID_DATA


def test_a_padded_element_is_solved_as_if_alone() -> None:
    small = Instance.from_rows("small", [[2.0]], [-6.0], [[1.0]], u=[1.0])
    fixed = Instance.from_rows("fixed", None, [1.0, 1.0], [[1.0, 1.0]], [1.0], [1.0], lb=[0.0, 0.25])
    batch = [stated(), small, fixed]
    together = solve_qp(**stack(batch))
    assert together.x.shape == (3, 3)
    for instance, solution in zip(batch, unstack(together, batch), strict=True):
        alone = solve_qp(**instance.blocks)
        assert solution.status == alone.status == Status.SOLVED
        assert solution.is_optimal()
        for name in ("x", "y", "z", "z_box", "s"):
            # Solutions are unique here; two solves to 1e-9 of problems with conditions below 100.
            torch.testing.assert_close(getattr(solution, name), getattr(alone, name), rtol=0, atol=1e-7)


def test_the_derivative_stays_with_the_batch() -> None:
    batch = [stated(), Instance.from_rows("small", [[2.0]], [-6.0], [[1.0]], u=[1.0])]
    together = solve_qp(**stack(batch))
    # x = 1 is at its limit: it moves with h and not with q.
    assert together.jacobian("x", "h")[1, 0, 0] == pytest.approx(1)
    for ask in (lambda s: s.jacobian("x", "q"), lambda s: s.kkt.solve(r_x=s.x)):
        with pytest.raises(ProblemError, match="ask the solution of the batch"):
            ask(unstack(together, batch)[1])


def test_the_certificate_of_a_padded_element_is_its_own() -> None:
    empty = Instance.from_rows("empty", [[1.0]], [0.0], [[1.0], [-1.0]], u=[-1.0, -1.0])
    batch = [empty, stated()]
    first, second = unstack(solve_qp(**stack(batch)), batch)
    assert first.status == Status.PRIMAL_INFEASIBLE and second.status == Status.SOLVED
    z = first.certificate.z
    assert z.shape == (2,) and (z >= 0).all()
    assert z @ empty.h == pytest.approx(-1)
    assert z @ empty.G == pytest.approx(0, abs=1e-9)


def test_stacking_nothing_raises() -> None:
    with pytest.raises(ProblemError, match="no instance"):
        stack([])
