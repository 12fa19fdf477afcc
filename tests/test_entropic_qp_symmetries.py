# SPDX-License-Identifier: Apache-2.0
"""What leaves a program with an entropy the same: batches, permutations, units, data that say nothing."""

import pytest
import torch
from entropic_cases import CURVATURES, F64, assert_close, entropic, normal

from optlayer import solve_qp

pytestmark = pytest.mark.usefixtures("engine")


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", ["cap", "moment and rows", "transport"])
def test_a_batch_equals_a_loop(kind: str, curvature: str) -> None:
    given = entropic(kind, batch=5, scale=10.0, curvature=curvature)
    whole = solve_qp(**given)
    for i in range(5):
        one = {name: t if t is None or t.shape[0] != 5 else t[i] for name, t in given.items()}
        alone = solve_qp(**one)
        assert alone.iterations == whole.iterations[i]
        for name in ("x", "y", "z", "z_box", "s"):
            assert_close(getattr(alone, name), getattr(whole, name)[i], atol=1e-12, rtol=1e-11)


def test_a_neighbour_with_a_bound_or_a_curvature_changes_no_bit() -> None:
    """Without rows the variables of one element go each their own way, whatever holds those of another together."""
    q, ub = normal(3, 5, scale=50.0), torch.full((3, 5), torch.inf, dtype=F64)
    P = torch.zeros(3, 1, 5, dtype=F64)
    plain = solve_qp(P, q, ub=ub, entropy=1.0)
    ub[1, 0], P[2, 0, 3] = 0.5, 1.0
    mixed = solve_qp(P, q, ub=ub, entropy=1.0)
    assert plain.solved.all() and mixed.solved.all()
    assert torch.equal(mixed.x[0], plain.x[0]) and mixed.iterations[0] == plain.iterations[0]


def test_permuted_variables_and_rows_permute_the_solution() -> None:
    given = entropic("moment and rows", scale=10.0, curvature="full")
    j, k = torch.randperm(16), torch.randperm(5)
    moved = {**given, "P": given["P"][:, j][:, :, j], "q": given["q"][:, j], "entropy": given["entropy"][:, j]}
    moved.update(A=given["A"][..., j], G=given["G"][:, k][..., j], h=given["h"][:, k])
    original, permuted = solve_qp(**given), solve_qp(**moved)
    assert_close(permuted.x, original.x[:, j], atol=1e-12, rtol=1e-11)
    assert_close(permuted.z, original.z[:, k], atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_do_not_matter(unit: float) -> None:
    """Objective, variables and rows in other units: the same solution after nearly as many iterations."""
    given = entropic("moment and rows", scale=10.0)
    plain = solve_qp(**given)
    costs = solve_qp(**{**given, "q": unit * given["q"], "entropy": unit * given["entropy"]}, eps_abs=1e-12)
    assert_close(costs.x, plain.x, atol=1e-11, rtol=1e-10)
    rows = solve_qp(**{**given, "G": unit * given["G"], "h": unit * given["h"]})
    assert_close(rows.z * unit, plain.z, atol=1e-10, rtol=1e-9)
    # x -> unit x turns tau x log x into tau unit x (log x + log unit): a shift of the costs takes it back
    tau = given["entropy"] / unit
    q = given["q"] / unit - tau * torch.tensor(unit, dtype=F64).log()
    larger = solve_qp(**{**given, "q": q, "entropy": tau, "b": unit * given["b"], "h": unit * given["h"]})
    assert_close(larger.x / unit, plain.x, atol=1e-10, rtol=1e-9)
    counts = [s.iterations.max() for s in (plain, costs, rows, larger)]
    assert max(counts) - min(counts) <= 4


def test_a_full_matrix_that_is_diagonal_is_the_diagonal() -> None:
    given = entropic("group", scale=10.0, curvature="diagonal")
    full = solve_qp(**{**given, "P": torch.diag_embed(given["P"].squeeze(-2))})
    assert_close(full.x, solve_qp(**given).x)


def test_only_the_symmetric_part_of_P_counts() -> None:
    given = entropic("cap", curvature="full")
    skew = normal(16, 16)
    assert_close(solve_qp(**{**given, "P": given["P"] + skew - skew.T}).x, solve_qp(**given).x, atol=1e-12)


def test_a_row_that_says_nothing_changes_nothing() -> None:
    given = entropic("cap", scale=10.0)
    plain = solve_qp(**given)
    G = normal(2, 16)
    idle = solve_qp(**given, G=G, h=torch.tensor([torch.inf, 1e3], dtype=F64))
    assert_close(idle.x, plain.x, atol=1e-12)
    assert (idle.z == 0).all() and (idle.s[:, 0] == torch.inf).all()
    twice = solve_qp(**{**given, "A": given["A"].expand(2, 16), "b": given["b"].expand(2)})
    assert_close(twice.x, plain.x, atol=1e-12)


def test_bounds_below_zero_do_not_count() -> None:
    given = entropic("cap")
    plain = solve_qp(**given)
    below = solve_qp(**given, lb=-0.5)
    assert_close(below.x, plain.x)
    assert_close(below.z_box, plain.z_box)
