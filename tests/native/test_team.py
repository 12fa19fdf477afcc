# SPDX-License-Identifier: Apache-2.0
"""The dense kernels of csrc/linalg as teams of GPU threads run them, on the CPU: their threads are fibers in random
order (emulator.h). Each agrees with its plain form, and no barrier in them is missing or needless."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tsan

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "native"
COMPILER = os.environ.get("CXX", "c++").split()
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-DOPTLAYER_EMULATE"]
TEAMS = (1, 8, 32, 128)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no C++ compiler {COMPILER[0]}"),
    pytest.mark.skipif(sys.platform != "linux", reason="the emulator is for Linux"),
]


def compiled(folder: Path, team: int, *options: str) -> Path:
    """The check for a team of so many threads; the emulator itself is compiled without the options."""
    check, emulator, program = folder / f"check_{team}.o", folder / "emulator.o", folder / f"check_{team}"
    common = [*COMPILER, *FLAGS, "-I", str(ROOT / "csrc"), "-I", str(HERE)]
    if not emulator.exists():
        subprocess.run([*common, "-c", HERE / "emulator.cpp", "-o", emulator], check=True)
    source = HERE / "team_check.cpp"
    subprocess.run([*common, *options, f"-DOPTLAYER_TEAM={team}", "-c", source, "-o", check], check=True)
    subprocess.run([*COMPILER, *options, emulator, check, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module", params=TEAMS)
def program(request: pytest.FixtureRequest, folder: Path) -> Path:
    return compiled(folder, request.param)


def test_every_kernel_agrees_with_its_plain_form_on_every_schedule(program: Path) -> None:
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_barrier_that_is_left_out_is_missed(program: Path) -> None:
    if program.name == "check_1":
        pytest.skip("a thread alone has no barriers")
    result = subprocess.run([program, "plant"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    caught, planted = map(int, re.findall(r"\d+", result.stdout)[:2])
    assert caught == planted > 100


def test_barriers_order_all_accesses_to_memory(folder: Path) -> None:
    """ThreadSanitizer, told of the fibers and of their barriers, finds no two accesses that none orders."""
    tsan.needed()
    run = tsan.command(compiled(folder, 8, *tsan.FLAGS), "few")
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[:4000]
