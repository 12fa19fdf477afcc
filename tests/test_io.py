# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from mixed import LB, UB, C, L, P, Q, R, U, stated

from optlayer import ProblemError, solve_qp
from optlayer.io import read, write

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


def save_dense(path: Path, **changes: object) -> Path:
    """min 1/2 |x|^2 - 3 x_1;  x_1 + 2 x_2 <= 2, 1e30 for no limit, x_1 = x_2, x >= 0."""
    parts = {"P": np.eye(2), "q": [-3.0, 0.0], "G": [[1.0, 2.0], [1.0, 0.0]], "h": [2.0, 1e30]}
    parts |= {"A": [[1.0, -1.0]], "b": [0.0], "lb": 0.0, "ub": [1e20, 5.0], "r": 4.0, "f_opt": 2.5}
    np.savez(path, **{k: v for k, v in (parts | changes).items() if v is not None})
    return path


def test_the_dense_form_is_the_problem_in_the_letters_of_solve_qp(tmp_path: Path) -> None:
    instance = read(save_dense(tmp_path / "dense.npz"))
    assert instance.name == "dense" and instance.shape == (2, 2, 1)
    assert instance.G.tolist() == [[1.0, 2.0], [1.0, 0.0]] and instance.h.tolist() == [2.0, np.inf]
    assert instance.A.tolist() == [[1.0, -1.0]] and instance.b.tolist() == [0.0]
    assert instance.lb.tolist() == [0.0, 0.0] and instance.ub.tolist() == [np.inf, 5.0]
    solution = solve_qp(**instance.blocks)
    assert solution.x.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert instance.objective(float(solution.objective)) == pytest.approx(4 / 9 - 2 + 4)
    # The rows of G, then the one of A.
    assert instance.row_multipliers(solution.y, solution.z).tolist() == pytest.approx([5 / 9, 0, 16 / 9])


def test_either_form_takes_a_column_for_a_vector_and_one_number_for_a_bound(tmp_path: Path) -> None:
    plain = read(save_dense(tmp_path / "plain.npz"))
    column = read(save_dense(tmp_path / "column.npz", q=[[-3.0], [0.0]], h=[[2.0], [1e30]]))
    assert torch.equal(plain.q, column.q) and torch.equal(plain.h, column.h)
    assert read(save_npz(tmp_path / "bound.npz", ub=3.0)).ub.tolist() == [3.0, 3.0, 3.0]
    only_q = tmp_path / "box.npz"
    np.savez(only_q, q=[1.0, -1.0], lb=-1, ub=1)
    assert solve_qp(**read(only_q).blocks).x.tolist() == pytest.approx([-1.0, 1.0])


WRONG_DENSE = [
    ({"l": [0.0, 0.0]}, r"holds P, G, h, A, b of the dense form and l of the coordinate form, expected entries of one"),
    ({"Q": np.eye(2)}, r"holds Q, which no form knows: the dense form has P, G, h, A, b, the coordinate form P_row,"),
    ({"h": None}, r"G is given without h, expected both or neither"),
    ({"A": None}, r"b is given without A, expected both or neither"),
    ({"P": np.eye(3)}, r"P has shape \(3, 3\), expected \(2, 2\)"),
    ({"G": np.zeros((2, 3))}, r"G has shape \(2, 3\), expected \(2, 2\)"),
    ({"h": [1.0]}, r"h has shape \(1,\), expected \(2,\)"),
    ({"b": [1.0, 2.0]}, r"b has shape \(2,\), expected \(1,\)"),
    ({"A": 3.0}, r"A has shape \(\), expected"),
    ({"lb": [0.0] * 3}, r"lb has shape \(3,\), expected \(2,\)"),
    ({"q": np.zeros((5, 2))}, r"q has shape \(5, 2\), expected one vector: a file holds one problem"),
    ({"r": [1.0, 2.0]}, r"r has shape \(2,\), expected one number"),
    ({"P": [["a"]]}, r"P has dtype <U1, expected real numbers"),
    ({"q": [1j, 0]}, r"q has dtype complex128, expected real numbers"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_DENSE)
def test_a_wrong_dense_file_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=rf"wrong\.npz: {message}"):
        read(save_dense(tmp_path / "wrong.npz", **changes))


@pytest.mark.parametrize(("row", "col", "triangle"), [(0, 1, "upper"), (1, 0, "lower")])
def test_one_triangle_of_P_is_refused(row: int, col: int, triangle: str, tmp_path: Path) -> None:
    entries = {"P_row": [0, 1, row], "P_col": [0, 1, col], "P_val": [2.0, 2.0, 1.0]}
    message = f"hold the {triangle} triangle of P only, expected every entry of P, both triangles"
    with pytest.raises(ProblemError, match=message):
        read(save_npz(tmp_path / "half.npz", **entries))
    diagonal = {key: values[:2] for key, values in entries.items()}
    assert read(save_npz(tmp_path / "diagonal.npz", **diagonal)).P.diagonal().tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("name", SAVED)
def test_every_format_states_the_same_problem(name: str, tmp_path: Path) -> None:
    found, expected = read(SAVED[name](tmp_path / name)), stated()
    assert found.name == "mixed"
    assert found.r == expected.r and found.sense == 1
    for block in ("P", "q", "G", "h", "A", "b", "lb", "ub"):
        torch.testing.assert_close(getattr(found, block), getattr(expected, block), rtol=0, atol=0)
    assert np.isnan(found.optimum) == (name != "mixed.npz")


def test_a_maximisation_is_the_minimisation_of_the_negative(tmp_path: Path) -> None:
    up = read(save_mps(tmp_path / "up.mps", sense="OBJSENSE\n    MAX\n"))
    down = stated()
    torch.testing.assert_close(up.P, -down.P)
    torch.testing.assert_close(up.q, -down.q)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    value = float(0.5 * x @ up.P @ x + up.q @ x)
    assert up.objective(value) == pytest.approx(down.objective(-value)) == 1 + 2 + 4 + 3 - 8 + 3 + 7


def test_values_at_one_place_add_up(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "twice.npz", A_row=[0, 0], A_col=[1, 1], A_val=[2.0, 3.0], m=1, l=[-1.0], u=[1.0])
    assert read(path).G.tolist() == [[0.0, 5.0, 0.0], [-0.0, -5.0, -0.0]]


def test_a_solution_file_without_a_solution_holds_no_numbers(tmp_path: Path) -> None:
    instance = stated()
    nowhere = {**instance.blocks, "lb": torch.ones(3, dtype=torch.float64), "ub": torch.zeros(3, dtype=torch.float64)}
    write(tmp_path / "nowhere.npz", instance, solve_qp(**nowhere, on_failure="ignore"))
    file = np.load(tmp_path / "nowhere.npz")
    assert str(file["status"]) == "PRIMAL_INFEASIBLE"
    for name in ("x", "y", "z", "z_box", "s", "row_multipliers", "objective", "primal_residual"):
        assert np.isnan(file[name]).all()


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


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npz: no such file"):
        read(tmp_path / "absent.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.npz: is a directory, expected a file"):
        read(tmp_path / "folder.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ProblemError, match=r"text\.npz: not an \.npz file of numbers"):
        read(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", q=np.array([None]))
    with pytest.raises(ProblemError, match=r"objects\.npz: not an \.npz file of numbers"):
        read(tmp_path / "objects.npz")
    with pytest.raises(ProblemError, match=r"free\.npz: the matrix A is given without l and u"):
        read(save_npz(tmp_path / "free.npz", l=None, u=None))
    with pytest.raises(ProblemError, match=r"none\.npz: q has no entries"):
        read(save_dense(tmp_path / "none.npz", q=[]))
    with pytest.raises(ProblemError, match=r"n is 7 but q has 3 entries"):
        read(save_npz(tmp_path / "n.npz", n=7))
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
    with pytest.raises(ProblemError, match=r"l\.npz: l has shape \(2,\), expected \(5,\)"):
        read(save_npz(tmp_path / "l.npz", l=[0.0, 0.0]))
    with pytest.raises(ProblemError, match=r"has no 'u'; holds .*, expected P, q, A, l, u"):
        read(save_mat(tmp_path / "no_u.mat", u=None))
    (tmp_path / "no.mat").write_text("no matrix")
    with pytest.raises(ProblemError, match=r"no\.mat: "):
        read(tmp_path / "no.mat")
    (tmp_path / "no.qps").write_text("no problem\n")
    with pytest.raises(ProblemError, match=r"no\.qps: HiGHS cannot read it"):
        read(tmp_path / "no.qps")
    (tmp_path / "stray.mps").write_text("NAME Q\nROWS\n N obj\n G c1\nCOLUMNS\n x obj 1 c1 1\nRHS\n rhs c9 2\nENDATA\n")
    with pytest.raises(ProblemError, match=r"stray\.mps: HiGHS says: Row name \"c9\" in RHS section is not defined"):
        read(tmp_path / "stray.mps")
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
