# SPDX-License-Identifier: Apache-2.0
"""The kernels of csrc/qp and csrc/entropic as teams of GPU threads run them, on the CPU: barriers order all that their
threads do to memory. ThreadSanitizer is told of the fibers that stand for threads and of their barriers (emulator.h),
and of nothing else: sums and maxima over a team order nothing."""

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
FLAGS = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-DOPTLAYER_EMULATE", "-DOPTLAYER_TEAM=8"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(tsan.COMPILER[0]) is None, reason=f"no C++ compiler {tsan.COMPILER[0]}"),
    pytest.mark.skipif(sys.platform != "linux", reason="the emulator is for Linux"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulator itself is compiled without the sanitizer."""
    tsan.needed()
    folder = tmp_path_factory.mktemp("races")
    objects = []
    for name, options in (("emulator", []), ("race_check", tsan.FLAGS)):
        objects.append(folder / f"{name}.o")
        include = ["-I", str(ROOT / "csrc"), "-I", str(HERE)]
        source = HERE / f"{name}.cpp"
        subprocess.run([*tsan.COMPILER, *FLAGS, *options, *include, "-c", source, "-o", objects[-1]], check=True)
    subprocess.run([*tsan.COMPILER, *tsan.FLAGS, *objects, "-o", folder / "race_check"], check=True)
    return folder / "race_check"


def run(program: Path, *arguments: str, options: str = "") -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "TSAN_OPTIONS": options}
    return subprocess.run(tsan.command(program, *arguments), env=variables, capture_output=True, text=True, check=False)


def test_no_two_accesses_are_without_an_order(program: Path) -> None:
    result = run(program)
    assert result.returncode == 0, result.stdout + result.stderr[:4000]
    assert result.stdout == "0 reports, 0 failures\n"


def test_barriers_that_are_left_out_are_missed(program: Path) -> None:
    """Of the barriers in csrc/qp, one by one. Those that nobody misses stand beside another one."""
    result = run(program, "plant", options="symbolize=0")
    assert result.returncode == 0, result.stdout
    caught, planted = map(int, re.findall(r"(\d+) of (\d+) left out", result.stdout)[0])
    assert planted > 30 and caught > 0.65 * planted, result.stdout
    assert "backward.h" not in result.stdout, result.stdout
