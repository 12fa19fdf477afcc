# SPDX-License-Identifier: Apache-2.0
"""The dense kernels of csrc/linalg against their plain forms, and the exponential and the logarithm of packs against
those of a wider type, on every instruction set that this processor has."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "c++").split()
FLAGS = ["-std=c++17", "-O2", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]
X86 = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": ["-msse4.2"],
}
INSTRUCTIONS = X86 if platform.machine() in ("x86_64", "AMD64") else {"native": []}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no C++ compiler {COMPILER[0]}"),
]


def has(options: list[str]) -> bool:
    """Whether this processor runs what these options make."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return all(option.removeprefix("-m").replace(".", "_") in words for option in options)


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("check", ["linalg", "elementary"])
def test_every_kernel_agrees_with_its_plain_form(check: str, name: str, tmp_path: Path) -> None:
    options = INSTRUCTIONS[name]
    if not has(options):
        pytest.skip(f"this processor has no {name}; that it compiles is seen where the engine is built")
    program = tmp_path / "check"
    source = ROOT / "tests" / "native" / f"{check}_check.cpp"
    subprocess.run([*COMPILER, *FLAGS, *options, "-I", ROOT / "csrc", source, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
