# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from optlayer import Status, solve_qp
from optlayer.hock_schittkowski import COLLECTION, problems
from optlayer.instance import stack, unstack
from optlayer.io import read

# The minimisers that the books print as fractions.
pytestmark = pytest.mark.usefixtures("engine")

MINIMISERS = {
    "HS21": ([2, 0], 1),
    "HS28": ([1, -1, 1], 2),
    "HS35": ([12, 7, 4], 9),
    "HS48": ([1, 1, 1, 1, 1], 1),
    "HS51": ([1, 1, 1, 1, 1], 1),
    "HS52": ([-33, 11, 180, -158, 11], 349),
    "HS53": ([-33, 11, 27, -5, 11], 43),
    "HS76": ([3, 23, 0, 6], 11),
    "HS268": ([1, 2, -1, 3, -4], 1),
}


@pytest.mark.parametrize("name", COLLECTION)
def test_the_known_optimum_is_found(name: str) -> None:
    (instance,) = problems(name)
    solution = solve_qp(**instance.blocks)
    assert solution.status == Status.SOLVED
    # HS268 has d'd = 14463 and cond(D'D) = 1e7, and its optimum is zero: 1e-9 of the largest number that cancels.
    assert instance.objective(float(solution.objective)) == pytest.approx(instance.optimum, rel=1e-9, abs=1.5e-5)
    if name in MINIMISERS:
        numerators, denominator = MINIMISERS[name]
        expected = torch.tensor(numerators, dtype=torch.float64) / denominator
        torch.testing.assert_close(solution.x, expected, rtol=0, atol=1e-7)


def test_all_of_them_are_one_batch_whatever_their_shapes() -> None:
    batch = problems()
    together = solve_qp(**stack(batch))
    assert together.solved.all()
    for instance, solution in zip(batch, unstack(together, batch), strict=True):
        assert solution.x.shape == (instance.n,)
        assert solution.is_optimal()
        # Both are solved to 1e-9; cond(P) = 1e7 (HS268) is what may stand between two such points.
        torch.testing.assert_close(solution.x, solve_qp(**instance.blocks).x, rtol=0, atol=1e-7)


@pytest.mark.data
@pytest.mark.parametrize("name", ["HS21", "HS35", "HS51", "HS53"])
def test_they_are_the_problems_of_the_maros_meszaros_collection(name: str, data_folder) -> None:
    (ours,), theirs = problems(name), read(data_folder / "mm" / f"{name}.npz")
    assert ours.shape == theirs.shape
    for block in ("P", "q", "lb", "ub"):
        torch.testing.assert_close(getattr(ours, block), getattr(theirs, block), rtol=0, atol=1e-12)
    assert ours.optimum == pytest.approx(theirs.optimum, abs=1e-7)  # theirs has eight digits
