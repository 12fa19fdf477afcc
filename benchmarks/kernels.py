# SPDX-License-Identifier: Apache-2.0
"""GFLOP/s of the dense kernels of ``csrc/linalg`` by size, on one core: ``python -m benchmarks.kernels``.

Matrices are square; a solve with or a product of a matrix and its transpose counts the flops of one triangle. The
first table has one problem in each lane of a vector, the second has one problem alone.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import report

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]


@contextmanager
def compiled() -> Iterator[Path]:
    """The program of linalg.cpp for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "linalg"
        compiler = os.environ.get("CXX", "c++").split()
        source = Path(__file__).with_name("linalg.cpp")
        subprocess.run([*compiler, *FLAGS, "-I", SOURCES, source, "-o", program], check=True)
        yield program


def main() -> None:
    """Run from the command line."""
    with compiled() as program:
        print(report.machine(), flush=True)
        subprocess.run([program], check=True)


if __name__ == "__main__":
    main()
