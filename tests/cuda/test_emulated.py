# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels run on the CPU, their threads as fibers in random order: all tests of the compiled engine hold for
every team of threads, and a barrier that is missing is noticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
ERROR = """
import torch
from optlayer.testing import random_qp
from optlayer import solve_qp
for name, case in CASES.items():
    P, q, *rest = random_qp(**case, batch=(3,), seed=2).tensors
    a, b = (solve_qp(P, q, *rest, backend=backend).x for backend in ("native", "reference"))
    print(name, float((a - b).abs().max() / b.abs().max()))
"""
STEPS = """
from optlayer.testing import random_qp
from optlayer import solve_qp
for n, m, p, bounds in ((10, 10, 2, False), (30, 40, 0, False), (10, 30, 0, False), (20, 12, 2, True)):
    for shared in ((), ("P", "G", "A")):
        P, q, *rest = random_qp(n, m, p, bounds=bounds, batch=(3,), shared=shared, seed=2).tensors
        print(solve_qp(P, q, *rest, backend="native").iterations.tolist())
"""

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


@pytest.mark.parametrize("team", TEAMS)
def test_the_contract_of_the_engines_holds(libraries: dict[int, Path], team: int) -> None:
    some = ["-k", "derivative or batch4"] if team > 32 else []
    tests = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/native/test_engine.py", *some]
    done = run(libraries[team], *tests, OPTLAYER_SEED=str(team))
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("team", TEAMS)
def test_solutions_are_those_of_the_reference(libraries: dict[int, Path], team: int) -> None:
    cases = {
        "dense": {"n": 10, "m": 10},
        "everything": {"n": 9, "m": 7, "p": 3, "bounds": True},
        "psd": {"n": 10, "m": 12, "p": 2, "kind": "psd", "bounds": True},
        "lp": {"n": 8, "m": 12, "p": 2, "kind": "lp", "bounds": True},
        "beyond a tile": {"n": 37, "m": 45, "p": 4},
    }
    done = run(libraries[team], "-c", ERROR.replace("CASES", repr(cases)))
    assert done.returncode == 0, done.stderr
    errors = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert errors.keys() == cases.keys()
    assert max(map(float, errors.values())) < 1e-8, errors


@pytest.mark.parametrize("team", TEAMS[1:])
def test_a_team_takes_the_steps_that_one_thread_takes(libraries: dict[int, Path], team: int) -> None:
    """An attempt to finish that fails by a value read too early costs a step and nothing else."""
    alone, together = (run(libraries[size], "-c", STEPS) for size in (1, team))
    assert alone.returncode == together.returncode == 0, together.stderr
    assert together.stdout == alone.stdout


@pytest.mark.parametrize("team", TEAMS)
def test_a_backward_pass_and_its_sums_are_those_of_the_rule(libraries: dict[int, Path], team: int) -> None:
    some = "(kkt_pull_is and (7 or 3) and not float32) or pull_is_that or right_hand"
    tests = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/native/test_operators.py", "-k", some]
    done = run(libraries[team], *tests, OPTLAYER_SEED=str(team))
    assert done.returncode == 0, done.stdout[-4000:]


def barrier(path: str, after: str) -> str:
    """The first barrier after some text of a source, as the emulator names it."""
    lines = (ROOT / "csrc" / path).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if after in line)
    return f"{path}:{next(i for i in range(start, len(lines)) if lines[i].strip() == 'sync();') + 1}"


@pytest.mark.parametrize("team", [8, 32])
@pytest.mark.parametrize(
    ("path", "after"),
    [("qp/adjoint.h", "load_matrix(call.G"), ("qp/cuda/backward.h", "load_solution(call.wz")],
    ids=["adjoint", "backward"],
)
def test_a_missing_barrier_is_noticed(libraries: dict[int, Path], team: int, path: str, after: str) -> None:
    command = [
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/native/test_operators.py",
        "-k",
        "kkt_pull_is",
    ]
    done = run(libraries[team], *command, OPTLAYER_LEFT_OUT=barrier(path, after))
    assert done.returncode == 1, done.stdout[-2000:]
