# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels run on the CPU, their threads as fibers in random order: all tests of the compiled engine hold for
every team of threads, and a barrier that is missing is noticed."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import alone

from benchmarks.cuda_without_gpu import CASES, COMPILER, EMULATED, TEAMS, Difference, agreement, emulators, run_emulated

ROOT = Path(__file__).resolve().parents[2]
Found = Callable[[int], dict[tuple[str, str], Difference]]
SHARED = "tests/native/test_shared.py"
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
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no C++ compiler {COMPILER[0]}"),
    pytest.mark.skipif(sys.platform != "linux", reason="the emulator is for Linux"),
]


@pytest.fixture(scope="module")
def libraries() -> dict[int, Path]:
    """By team."""
    with alone(EMULATED):
        return emulators()


@pytest.fixture(scope="module")
def found(libraries: dict[int, Path]) -> Found:
    """By team, then by dtype and case."""
    return functools.cache(lambda team: agreement(libraries[team]))


@pytest.mark.parametrize("team", TEAMS)
def test_the_contract_of_the_engines_holds(libraries: dict[int, Path], team: int) -> None:
    """Solutions, derivatives, sums of gradients; quadratic and entropic programs."""
    tests = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *CONTRACT, "-k", SOME[team]]
    done = run_emulated(libraries[team], *tests, OPTLAYER_SEED=str(team))
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("team", TEAMS)
def test_a_shared_batch_is_one_of_copies(libraries: dict[int, Path], team: int) -> None:
    done = run_emulated(libraries[team], "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", SHARED)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize(
    ("kinds", "failures"),
    [("rows or equalities or element or open", 0), ("(nearly or indefinite) and not 1-", 8)],
    ids=["shared", "not to be shared"],
)
@pytest.mark.parametrize("team", TEAMS)
def test_what_a_batch_shares_is_set_up_once(libraries: dict[int, Path], team: int, kinds: str, failures: int) -> None:
    """By a first launch: when the others begin, P, G and A are NaN. Of those that cannot be shared each element needs
    its own."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", SHARED, "-k", f"copies and ({kinds})"]
    done = run_emulated(libraries[team], *command, OPTLAYER_UNREAD="1")
    assert done.returncode == (failures > 0), done.stdout[-4000:]
    assert failures == 0 or f"\n{failures} failed, " in done.stdout, done.stdout[-4000:]


@pytest.mark.parametrize("team", TEAMS)
def test_solutions_and_gradients_are_those_of_the_reference(found: Found, team: int) -> None:
    """Both engines polish: what is left is rounding, times the condition of the KKT matrix, at most 1e5 here. The
    data of float32 they solve in float64, too; x, u and the gradients are rounded, by 6e-8 each."""
    assert {name for _, name in found(team)} == CASES.keys()
    for (dtype, name), (_, *differences) in found(team).items():
        assert max(differences) < (1e-10 if dtype == "float64" else 3e-7), (dtype, name, differences)


@pytest.mark.parametrize("team", TEAMS[1:])
def test_a_team_takes_the_steps_that_one_thread_takes(found: Found, team: int) -> None:
    """An attempt to finish that fails by a value read too early costs a step and nothing else."""
    together, alone = ({key: own.iterations for key, own in found(size).items()} for size in (team, 1))
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
    done = run_emulated(libraries[32], *command, OPTLAYER_LEFT_OUT=barrier(path, after))
    assert done.returncode == 1, done.stdout[-2000:]
