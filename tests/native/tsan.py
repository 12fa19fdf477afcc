# SPDX-License-Identifier: Apache-2.0
"""ThreadSanitizer, where the compiler has it and it runs."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

COMPILER = os.environ.get("CXX", "c++").split()
FLAGS = ["-fsanitize=thread"]


def command(program: Path, *arguments: str) -> list[str]:
    """How to run what is compiled with FLAGS: some kernels place memory where it does not look for any."""
    return [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program), *arguments]


@functools.cache
def _there() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "empty.cpp"), Path(folder, "empty")
        source.write_text("int main() {}\n")
        made = subprocess.run([*COMPILER, *FLAGS, source, "-o", program], capture_output=True, check=False)
        if made.returncode != 0:
            return False
        return subprocess.run(command(program), capture_output=True, check=False).returncode == 0


def needed() -> None:
    """Skip the test where there is none."""
    if not _there():
        pytest.skip("no ThreadSanitizer")
