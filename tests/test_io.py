# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from optlayer import ProblemError, Status, solve_qp
from optlayer.io import INF, Instance, read, stack, unstack, write

# min x1^2 + x1 x2 + x2^2 + 3 x1 - 4 x2 + 7 over a row of each kind and a bound of each kind.
P = [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
Q = [3.0, -4.0, 1.0]
C = [[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 2.0], [1.0, 2.0, 3.0]]
L = [2.0, -INF, -1.0, -3.0, -INF]
U = [2.0, 4.0, INF, 5.0, INF]
LB = [-INF, 0.0, -2.0]
UB = [INF, INF, 2.0]
R = 7.0

MPS = """NAME          MIXED
{sense}ROWS
 N  COST
 E  SUM
 L  DIFF
 G  LOW
 L  BOTH
 N  FREE
COLUMNS
    X1        COST      3.0   SUM       1.0
    X1        DIFF      1.0   BOTH      1.0
    X1        FREE      1.0
    X2        COST     -4.0   SUM       1.0
    X2        DIFF     -1.0   LOW       1.0
    X2        FREE      2.0
    X3        COST      1.0   SUM       1.0
    X3        LOW       1.0   BOTH      2.0
    X3        FREE      3.0
RHS
    RHS       COST     -7.0   SUM       2.0
    RHS       DIFF      4.0   LOW      -1.0
    RHS       BOTH      5.0
RANGES
    RNG       BOTH      8.0
BOUNDS
 FR BND       X1
 UP BND       X3        2.0
 LO BND       X3       -2.0
QUADOBJ
    X1        X1        2.0
    X1        X2        1.0
    X2        X2        2.0
ENDATA
"""


def stated(**changes: object) -> Instance:
    """The problem above as an instance."""
    return Instance.from_rows("mixed", P, Q, C, L, U, LB, UB, **{"r": R, **changes})


def save_npz(path: Path, **changes: object) -> Path:
    """The problem above in coordinates."""
    Ps, Cs = scipy.sparse.coo_array(np.array(P)), scipy.sparse.coo_array(np.array(C))
    parts = {"P_row": Ps.row, "P_col": Ps.col, "P_val": Ps.data, "A_row": Cs.row, "A_col": Cs.col, "A_val": Cs.data}
    parts |= {"name": "mixed", "n": 3, "m": 5, "q": Q, "r": R, "l": L, "u": U, "lb": LB, "ub": UB, "f_opt": 0.5}
    np.savez(path, **{k: v for k, v in (parts | changes).items() if v is not None})
    return path


def save_mat(path: Path, **changes: object) -> Path:
    """The problem above with its bounds as rows, 1e20 for infinity."""
    big = lambda values: np.clip(np.array(values)[:, None], -1e20, 1e20)  # noqa: E731
    A = scipy.sparse.csc_matrix(np.vstack([C, np.eye(3)]))
    data = {"P": scipy.sparse.csc_matrix(np.array(P)), "q": np.array(Q)[:, None], "r": R, "n": 3, "m": 8, "A": A}
    data |= {"l": big(L + LB), "u": big(U + UB)}
    scipy.io.savemat(path, {k: v for k, v in (data | changes).items() if v is not None})
    return path


def save_mps(path: Path, sense: str = "") -> Path:
    path.write_text(MPS.format(sense=sense))
    return path


SAVED = {"mixed.npz": save_npz, "mixed.mat": save_mat, "mixed.mps": save_mps, "mixed.qps": save_mps}


@pytest.mark.parametrize("name", SAVED)
def test_every_format_states_the_same_problem(name: str, tmp_path: Path) -> None:
    found, expected = read(SAVED[name](tmp_path / name)), stated()
    assert found.name == "mixed"
    assert found.r == expected.r and found.sense == 1
    for block in ("P", "q", "G", "h", "A", "b", "lb", "ub"):
        torch.testing.assert_close(getattr(found, block), getattr(expected, block), rtol=0, atol=0)
    assert np.isnan(found.optimum) == (name != "mixed.npz")


def test_the_standard_form_has_the_feasible_set_of_the_rows() -> None:
    instance = stated()
    assert instance.shape == (3, 4, 1)
    rows, l, u = (torch.tensor(t, dtype=torch.float64) for t in (C, L, U))
    for x in torch.randn(100, 3, dtype=torch.float64):
        violation = torch.maximum(l - rows @ x, rows @ x - u).clamp(min=0).max()
        standard = torch.cat([(instance.G @ x - instance.h).clamp(min=0), (instance.A @ x - instance.b).abs()]).max()
        assert standard == violation


def test_a_maximisation_is_the_minimisation_of_the_negative(tmp_path: Path) -> None:
    up = read(save_mps(tmp_path / "up.mps", sense="OBJSENSE\n    MAX\n"))
    down = stated()
    torch.testing.assert_close(up.P, -down.P)
    torch.testing.assert_close(up.q, -down.q)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    value = float(0.5 * x @ up.P @ x + up.q @ x)
    assert up.objective(value) == pytest.approx(down.objective(-value)) == 1 + 2 + 4 + 3 - 8 + 3 + 7


def test_blocks_that_say_nothing_are_absent() -> None:
    instance = Instance.from_rows("free", None, [1.0, 2.0], [[1.0, 1.0]], l=[-1e20], u=[1e30])
    assert instance.shape == (2, 0, 0)
    assert {name for name, block in instance.blocks.items() if block is not None} == {"q"}


def test_limits_that_cross_or_are_no_number_reach_the_solver() -> None:
    crossing = Instance.from_rows("crossing", [[1.0]], [0.0], [[1.0]], l=[2.0], u=[1.0])
    assert solve_qp(**crossing.blocks).status == Status.PRIMAL_INFEASIBLE
    broken = Instance.from_rows("broken", [[1.0]], [0.0], [[1.0]], l=[float("nan")], u=[1.0])
    assert solve_qp(**broken.blocks).status == Status.INVALID_DATA


def test_values_at_one_place_add_up(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "twice.npz", A_row=[0, 0], A_col=[1, 1], A_val=[2.0, 3.0], m=1, l=[-1.0], u=[1.0])
    assert read(path).G.tolist() == [[0.0, 5.0, 0.0], [-0.0, -5.0, -0.0]]


def test_a_solution_file_is_optimal_in_the_units_of_the_problem_file(tmp_path: Path) -> None:
    instance = stated()
    solution = solve_qp(**instance.blocks)
    assert solution.solved
    write(tmp_path / "mixed.npz", instance, solution)
    file = np.load(tmp_path / "mixed.npz")
    assert str(file["status"]) == "SOLVED"
    x, w = file["x"], file["row_multipliers"]
    # The solver stops at 1e-9 absolute or relative; the numbers here are below 10.
    np.testing.assert_allclose(P @ x + np.array(Q) + np.transpose(C) @ w + file["z_box"], 0, atol=1e-8)
    assert file["objective"] == pytest.approx(0.5 * x @ P @ x + x @ Q + R)
    Cx = C @ x
    for i, multiplier in enumerate(w):
        if multiplier > 1e-6:
            assert Cx[i] == pytest.approx(U[i])
        if multiplier < -1e-6:
            assert Cx[i] == pytest.approx(L[i])


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


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npz: no such file"):
        read(tmp_path / "absent.npz")
    with pytest.raises(ProblemError, match=r"suffix '\.txt', expected one of \.npz, \.mat, \.mps, \.qps"):
        read(tmp_path / "problem.txt")
    with pytest.raises(ProblemError, match=r"no_q\.npz: holds .*, expected q"):
        read(save_npz(tmp_path / "no_q.npz", q=None))
    with pytest.raises(ProblemError, match=r"has no P_val, expected P_row, P_col, P_val"):
        read(save_npz(tmp_path / "no_val.npz", P_val=None))
    with pytest.raises(ProblemError, match=r"have 4, 4, 1 entries"):
        read(save_npz(tmp_path / "short.npz", P_val=[1.0]))
    with pytest.raises(ProblemError, match=r"A_col has entries outside 0\.\.2"):
        read(save_npz(tmp_path / "far.npz", A_row=[0], A_col=[3], A_val=[1.0]))
    with pytest.raises(ProblemError, match=r"mixed: l has shape \(2,\), expected \(5,\)"):
        read(save_npz(tmp_path / "l.npz", l=[0.0, 0.0]))
    with pytest.raises(ProblemError, match=r"has no 'u'; holds .*, expected P, q, A, l, u"):
        read(save_mat(tmp_path / "no_u.mat", u=None))
    (tmp_path / "no.mat").write_text("no matrix")
    with pytest.raises(ProblemError, match=r"no\.mat: "):
        read(tmp_path / "no.mat")
    (tmp_path / "no.qps").write_text("no problem\n")
    with pytest.raises(ProblemError, match=r"no\.qps: HiGHS cannot read it"):
        read(tmp_path / "no.qps")
    integer = MPS.format(sense="").replace(" UP BND", " UI BND")
    (tmp_path / "integer.mps").write_text(integer)
    with pytest.raises(ProblemError, match=r"integer or semi-continuous variables, expected continuous"):
        read(tmp_path / "integer.mps")


@pytest.mark.parametrize(("name", "package"), [("a.npz", "numpy"), ("a.mat", "scipy.io"), ("a.mps", "highspy")])
def test_a_missing_package_is_named_with_its_remedy(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"install {package.partition('.')[0]}: pip install 'optlayer\[io\]'"):
        read(tmp_path / name)


@pytest.mark.data
@pytest.mark.parametrize("path", ["mm/HS35", "mm/QAFIRO", "mpc/LIPMWALK0", "netlib/sc50a"])
def test_a_real_problem_reaches_its_known_optimum(path: str, data_folder: Path) -> None:
    instance = read(data_folder / f"{path}.npz")
    solution = solve_qp(**instance.blocks)
    assert solution.solved and solution.is_optimal()
    assert instance.objective(float(solution.objective)) == pytest.approx(instance.optimum, rel=1e-6)
