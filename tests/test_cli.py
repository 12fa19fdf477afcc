# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optlayer import __version__
from optlayer.cli import main
from optlayer.instance import INF


def save(path: Path, q: float, l: float, u: float) -> Path:
    """min 1/2 x^2 + q x;  l <= x <= u as a row."""
    one = {"P_row": [0], "P_col": [0], "P_val": [1.0], "A_row": [0], "A_col": [0], "A_val": [1.0]}
    np.savez(path, q=[q], l=[l], u=[u], name=path.stem, **one)
    return path


@pytest.fixture
def good(tmp_path: Path) -> list[str]:
    return [str(save(tmp_path / "free.npz", -1.0, -INF, INF)), str(save(tmp_path / "held.npz", -1.0, -INF, 0.5))]


@pytest.fixture
def bad(tmp_path: Path) -> str:
    return str(save(tmp_path / "empty.npz", -1.0, 2.0, 1.0))


def test_solve_prints_a_row_per_file_and_succeeds(good: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", *good]) == 0
    found = capsys.readouterr().out
    header, _, free, held = found.splitlines()[:4]
    assert " ".join(header.split()) == "name n m p status objective primal dual gap iterations ms"
    assert free.split()[:6] == ["free", "1", "0", "0", "SOLVED", "-0.5"]
    assert held.split()[:6] == ["held", "1", "1", "0", "SOLVED", "-0.375"]
    assert found.endswith("2 of 2 solved\n")


def test_solve_fails_when_one_problem_does_and_says_why(
    good: list[str], bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", good[0], bad, "nowhere.npz"]) == 1
    found = capsys.readouterr().out
    assert "empty: PRIMAL_INFEASIBLE. No point satisfies the constraints" in found
    assert "nowhere: UNREADABLE. nowhere.npz: no such file" in found
    rows = [line.split() for line in found.splitlines()[3:5]]
    assert rows[0][:-1] == ["empty", "1", "2", "0", "PRIMAL_INFEASIBLE", rows[0][5]]  # iterations and time follow
    assert rows[1] == ["nowhere", "UNREADABLE"]
    assert found.endswith("1 of 3 solved\n")


def test_solve_prints_json_that_any_reader_takes(good: list[str], bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--json", *good, bad, "nowhere.npz"]) == 1
    free, _, empty, nowhere = json.loads(capsys.readouterr().out)
    assert free["status"] == "SOLVED" and free["objective"] == -0.5 and free["optimum"] is None
    numbers = ("objective", "primal_residual", "dual_residual", "duality_gap")
    assert empty["status"] == "PRIMAL_INFEASIBLE" and empty["advice"] and empty["error"] is None
    assert all(empty[key] is None for key in numbers)
    assert nowhere["status"] == "UNREADABLE" and nowhere["error"] == "nowhere.npz: no such file"
    assert all(nowhere[key] is None for key in (*numbers, "n", "m", "p", "iterations"))


def test_solve_writes_solutions(good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", *good, "--output", str(tmp_path / "new" / "folder")]) == 0
    file = np.load(tmp_path / "new" / "folder" / "held.solution.npz")
    assert file["x"] == pytest.approx([0.5])
    assert file["row_multipliers"] == pytest.approx([0.5])


def test_solve_refuses_two_solutions_of_one_name(good: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["solve", good[0], good[0], "--output", str(tmp_path)])
    assert stop.value.code == 2


def test_solve_obeys_its_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    M, A = generator.normal(size=(12, 12)), generator.normal(size=(48, 12))
    row, col = np.indices(M.shape).reshape(2, -1)
    A_row, A_col = np.indices(A.shape).reshape(2, -1)
    P = {"P_row": row, "P_col": col, "P_val": (M.T @ M).ravel()}
    path = str(tmp_path / "polytope.npz")  # too many faces for one step to show which are active
    np.savez(path, **P, A_row=A_row, A_col=A_col, A_val=A.ravel(), l=-np.full(48, np.inf), u=np.ones(48), q=10 * M[0])
    assert main(["solve", "--max-iter", "1", path]) == 1
    assert "MAX_ITERATIONS" in capsys.readouterr().out
    assert main(["solve", "--max-iter", "1", "--json", path]) == 1
    (stopped,) = json.loads(capsys.readouterr().out)
    assert stopped["objective"] is None and stopped["dual_residual"] > 0  # how far it came
    iterations = []
    for eps in ("1e-2", "1e-9"):
        assert main(["solve", "--json", "--eps", eps, path]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert max(row["primal_residual"], row["dual_residual"]) <= 10 * float(eps)
        iterations.append(row["iterations"])
    assert iterations[0] <= iterations[1]


def test_a_wrong_setting_is_a_wrong_command(good: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["solve", "--eps", "-1", good[0]])
    assert stop.value.code == 2
    assert "eps_abs is -1.0, expected" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_wrong_command(
    good: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for command in (["solve", good[0]], ["demo"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--output", str(tmp_path / "file" / "out")])
        assert stop.value.code == 2
        found = capsys.readouterr().err
        assert found.startswith(f"usage: optlayer {command[0]} ")
        assert "file/out, where no folder can be made: Not a directory" in found
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SystemExit) as stop:
        main(["solve", good[0], "--output", str(tmp_path)])
    assert stop.value.code == 2 and "where nothing may be written" in capsys.readouterr().err


def test_a_wrong_option_prints_the_usage_of_its_command(good: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--epsilon", "1"], ["--eps", "small"], ["--max-iter", "0"], ["--wrong"]):
        with pytest.raises(SystemExit) as stop:
            main(["solve", good[0], *options])
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("usage: optlayer solve [-h]")


def test_a_folder_given_as_a_file_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(tmp_path)]) == 1
    assert "is a directory, expected a file" in capsys.readouterr().out


def test_solve_takes_dense_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = {"P": np.eye(2), "q": [-3.0, 0.0], "G": [[1.0, 2.0]], "h": [2.0], "A": [[1.0, -1.0]], "b": [0.0]}
    np.savez(tmp_path / "dense.npz", **dense, lb=0.0)
    assert main(["solve", "--json", str(tmp_path / "dense.npz")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["n"], row["m"], row["p"]) == (2, 1, 1)
    assert row["objective"] == pytest.approx(4 / 9 - 2)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("solve", ["a problem each", "P, G, h, A, b", "P_row, P_col, P_val, A_row, A_col, A_val, l, u", "f_opt"]),
        ("verify", ["closed form", "exit code is 1"]),
        ("demo", ["lasso", "where the plot goes"]),
    ],
)
def test_help_says_what_a_command_does(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    found = " ".join(capsys.readouterr().out.split())
    assert all(word in found for word in words)


def test_info_tells_versions_devices_and_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    found = capsys.readouterr().out
    assert f"optlayer {__version__}" in found
    assert "cpu" in found and "reference" in found


def test_the_package_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "optlayer", "info"], capture_output=True, text=True, check=True)
    assert __version__ in run.stdout
    assert run.stderr == ""
