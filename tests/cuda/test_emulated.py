# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels run on the CPU, their threads as fibers in random order: all tests of the compiled engine hold for
every team of threads, and a barrier that is missing is noticed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from processes import alone

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "emulated"
COMPILER = os.environ.get("CXX", "c++").split()
TORCH = Path(torch.__file__).parent
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-DOPTLAYER_EMULATE",
]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(TORCH / "include")]
FLAGS += ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "tests" / "native")]
LINK = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-pthread"]
TEAMS = (1, 8, 32, 128)
CONTRACT = ["tests/native/test_engine.py", "tests/native/test_operators.py", "tests/native/test_entropic_engine.py"]
# Of the tests in these files, by team, for the time that they take; teams of eight run the most.
BACKWARD = "(kkt_pull_is and (7 or 3) and not float32) or pull_is_that or right_hand"
ENGINE = "test_engine and not test_threads"
GRADIENTS = "engines_give_the_same_gradients or infeasible_elements or redundant_row"
SOME = {
    1: f"({ENGINE}) or {BACKWARD} or {GRADIENTS}",
    8: f"({ENGINE}) or {BACKWARD} or {GRADIENTS} or float32 or number_of_variables or any_batch or lane_does",
    32: f"({ENGINE} and not (size_of or so_many or batch0 or batch5)) or {BACKWARD} or {GRADIENTS}",
    128: f"(test_engine and (same_derivative or batch4 or recomputed)) or {BACKWARD} or (same_gradients and full)",
}
SOLVE = """
from optlayer.testing import random_qp
from optlayer import solve_qp
for name, case in CASES.items():
    P, q, *rest = random_qp(**case, batch=(3,), seed=2).tensors
    ours, theirs = (solve_qp(P, q, *rest, backend=backend) for backend in ("native", "reference"))
    error = float((ours.x - theirs.x).abs().max() / theirs.x.abs().max())
    print(name, ours.iterations.tolist(), error, sep=";")
"""
SHARED = ("P", "G", "A")
CASES = {
    "dense": {"n": 10, "m": 10, "p": 2},
    "dense, shared": {"n": 10, "m": 10, "p": 2, "shared": SHARED},
    "more rows": {"n": 10, "m": 30},
    "more rows, shared": {"n": 10, "m": 30, "shared": SHARED},
    "bounds": {"n": 20, "m": 12, "p": 2, "bounds": True},
    "bounds, shared": {"n": 20, "m": 12, "p": 2, "bounds": True, "shared": SHARED},
    "psd": {"n": 10, "m": 12, "p": 2, "kind": "psd", "bounds": True},
    "lp": {"n": 8, "m": 12, "p": 2, "kind": "lp", "bounds": True},
    "beyond a tile": {"n": 37, "m": 45, "p": 4},
    "beyond a tile, shared": {"n": 30, "m": 40, "shared": SHARED},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no C++ compiler {COMPILER[0]}"),
    pytest.mark.skipif(sys.platform != "linux", reason="the emulator is for Linux"),
]


@pytest.fixture(scope="module")
def libraries() -> dict[int, Path]:
    """By team; made again when a source has changed."""
    folders = (ROOT / "csrc", ROOT / "tests" / "native")
    newest = max(path.stat().st_mtime for folder in folders for path in folder.rglob("*") if path.is_file())

    def make(team: int) -> Path:
        kept = FOLDER / f"team_{team}.so"
        if not kept.exists() or kept.stat().st_mtime < newest:
            own = [f"-DOPTLAYER_ISA=cuda_{team}", f"-DOPTLAYER_TEAM={team}"]
            sources = [str(ROOT / "tests" / "native" / name) for name in ("emulated.cpp", "emulator.cpp")]
            subprocess.run([*COMPILER, *FLAGS, *own, *sources, "-o", str(kept), *LINK], check=True)
        return kept

    with alone(FOLDER), ThreadPoolExecutor(2) as pool:
        return dict(zip(TEAMS, pool.map(make, TEAMS), strict=True))


def run(library: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OPTLAYER_LIBRARY": str(library), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def solved(libraries: dict[int, Path]) -> Callable[[int], dict[str, tuple[str, float]]]:
    """Iterations and the largest relative error of x, by team and case."""

    @functools.cache
    def by(team: int) -> dict[str, tuple[str, float]]:
        done = run(libraries[team], "-c", SOLVE.replace("CASES", repr(CASES)))
        assert done.returncode == 0, done.stderr
        lines = (line.split(";") for line in done.stdout.splitlines())
        return {name: (iterations, float(error)) for name, iterations, error in lines}

    return by


@pytest.mark.parametrize("team", TEAMS)
def test_the_contract_of_the_engines_holds(libraries: dict[int, Path], team: int) -> None:
    """Solutions, derivatives, sums of gradients; quadratic and entropic programs."""
    tests = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *CONTRACT, "-k", SOME[team]]
    done = run(libraries[team], *tests, OPTLAYER_SEED=str(team))
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("team", TEAMS)
def test_solutions_are_those_of_the_reference(solved: Callable[[int], dict[str, tuple[str, float]]], team: int) -> None:
    errors = {name: error for name, (_, error) in solved(team).items()}
    assert errors.keys() == CASES.keys()
    assert max(errors.values()) < 1e-8, errors


@pytest.mark.parametrize("team", TEAMS[1:])
def test_a_team_takes_the_steps_that_one_thread_takes(
    solved: Callable[[int], dict[str, tuple[str, float]]], team: int
) -> None:
    """An attempt to finish that fails by a value read too early costs a step and nothing else."""
    together, alone = ({name: steps for name, (steps, _) in solved(size).items()} for size in (team, 1))
    assert together == alone


def barrier(path: str, after: str) -> str:
    """The first barrier after some text of a source, as the emulator names it."""
    lines = (ROOT / "csrc" / path).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if after in line)
    return f"{path}:{next(i for i in range(start, len(lines)) if lines[i].strip() == 'sync();') + 1}"


@pytest.mark.parametrize(
    ("path", "after"),
    [("qp/adjoint.h", "load_matrix(call.G"), ("qp/cuda/backward.h", "load_solution(call.wz")],
    ids=["adjoint", "backward"],
)
def test_a_missing_barrier_is_noticed(libraries: dict[int, Path], path: str, after: str) -> None:
    """By a warp; tests/native/test_races.py leaves out all barriers of a smaller team, one by one."""
    some = "kkt_pull_is and 7 and not float32"
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/native/test_operators.py", "-k", some]
    done = run(libraries[32], *command, OPTLAYER_LEFT_OUT=barrier(path, after))
    assert done.returncode == 1, done.stdout[-2000:]
