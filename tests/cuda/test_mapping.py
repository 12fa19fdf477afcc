# SPDX-License-Identifier: Apache-2.0
"""How a batch is laid on a GPU, asked about GPUs that are not there."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cuda_without_gpu import COMPILER, SIZES, TEAMS, residency

ROOT = Path(__file__).resolve().parents[2]
# Multiprocessors and their threads, shared memory in KB (of one, and the most of a block), as CUDA's guide tells them.
GPUS = {
    "7.5, T4": (40, 1024, 64, 64),
    "8.0, A100": (108, 2048, 164, 163),
    "8.9, L4": (58, 1536, 100, 99),
    "9.0, H200": (132, 2048, 228, 227),
    "12.0, RTX 5090": (170, 1536, 100, 99),
}
REGISTERS = 65536
RESERVED = 1024
BATCHES = (1, 7, 128, 4096, 1_000_000)
NEEDS = ((80, 3_000, 6_000), (320, 9_000, 20_000), (1_600, 40_000, 200_000), (8_000, 200_000, 4_000_000))

Ask = Callable[[list[tuple[object, ...]]], list[list[int]]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"no C++ compiler {COMPILER[0]}")
    program = tmp_path_factory.mktemp("mapping") / "table"
    source = ROOT / "tests" / "cuda" / "mapping_table.cpp"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "csrc")]
    subprocess.run([*COMPILER, *options, source, "-o", program], check=True)

    def table(questions: list[tuple[object, ...]]) -> list[list[int]]:
        text = "\n".join(" ".join(map(str, question)) for question in questions)
        done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
        return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]

    return table


def test_larger_programs_get_larger_teams(ask: Ask) -> None:
    sizes = [1, 4, 5, 10, 12, 13, 32, 40, 50, 100, 500]
    by_variables = [team for (team,) in ask([("team", n, n) for n in sizes])]
    assert by_variables == sorted(by_variables) and set(by_variables) == set(TEAMS)
    by_rows = [team for (team,) in ask([("team", 40, rows) for rows in sizes])]
    assert by_rows == sorted(by_rows)


def test_every_launch_is_within_the_limits_of_its_gpu(ask: Ask) -> None:
    questions, facts = [], []
    for gpu, team, B, need, registers in itertools.product(GPUS.values(), TEAMS, BATCHES, NEEDS, (64, 255)):
        processors, threads, shared, block = gpu
        limits = (processors, threads, shared << 10, block << 10, RESERVED, REGISTERS)
        questions.append((*limits, team, registers, B, *need))
        facts.append((limits, team, registers, B, need))
    for answer, (limits, team, registers, B, need) in zip(ask(questions), facts, strict=True):
        threads, blocks, own, fast, share = answer
        processors, most_threads, shared, block, reserved, _ = limits
        teams = threads // team
        assert threads % 32 == 0 and teams * team == threads
        assert blocks >= 1 and (blocks - 1) * teams < B  # no block without a problem
        assert fast == teams * own <= block and own % 8 == 0
        read = 8 * team  # what a team reads at once: the banks of two teams of a warp must not be the same
        assert own <= need[2] + (16 if team >= 32 else 2 * read) and (team >= 32 or own == 0 or own // read % 2 == 1)
        each = -(-blocks // processors)  # blocks of one processor, all there at once
        warps = -(
            -each * threads // 32 // 4
        )  # of one of the processor's four parts, which has a quarter of the registers
        assert each == 1 or (each * threads <= most_threads and warps * 32 * (registers + 7 & ~7) <= REGISTERS // 4)
        assert each == 1 or each * (-(-(fast + reserved) // 256) * 256) <= shared
        assert share <= 100 and share * shared >= 100 * min(shared, each * (fast + reserved))  # the cache has the rest
        assert (blocks * teams - teams) * (need[2] - own) <= 2 << 30  # but for one block: it must run


def test_a_large_batch_occupies_the_whole_gpu(ask: Ask) -> None:
    for processors, threads, shared, block in GPUS.values():
        limits = (processors, threads, shared << 10, block << 10, RESERVED, REGISTERS)
        for team in TEAMS:
            ((_, blocks, *_),) = ask([(*limits, team, 128, 1_000_000, *NEEDS[1])])
            assert blocks >= processors and blocks % processors == 0


@pytest.mark.slow
def test_what_every_step_reads_lies_in_fast_memory() -> None:
    """The factor of the interior point method on an H200, up to n = m = 100: 80 KB for each of two blocks there."""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"no C++ compiler {COMPILER[0]}")
    rows = residency(dict.fromkeys(TEAMS, (255, 255)))
    assert sorted(n for n, *_ in rows) == list(SIZES)
    for n, team, factor, blocks, problems, workspace, fast, *_ in rows:
        assert factor == (n <= 100) and fast <= workspace
        assert problems == blocks * (32 // team if team < 32 else 1)
