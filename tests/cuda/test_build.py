# SPDX-License-Identifier: Apache-2.0
"""The engine for CUDA without a GPU: it compiles, it loads, and its kernels keep to the resources they were given."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import alone

from benchmarks.cuda_without_gpu import COMPILED, TEAMS, Resources, compile_library, resources
from optlayer.solvers import native

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler nvcc"),
    pytest.mark.skipif(not native.available(), reason="there is no compiled engine"),
]


# The most that each kernel may use on architecture 9.0, by its team: eight warps a processor have 255 registers each.
TABLE = {
    ("Preparation", 1): Resources(255, 2048, 0, 0),
    ("Preparation", 8): Resources(255, 2048, 0, 0),
    ("Preparation", 32): Resources(255, 2048, 0, 0),
    ("Preparation", 128): Resources(255, 2048, 0, 1024),
    ("Solver", 1): Resources(255, 2048, 256, 0),
    ("Solver", 8): Resources(255, 2048, 256, 0),
    ("Solver", 32): Resources(255, 2048, 256, 0),
    ("Solver", 128): Resources(255, 2048, 256, 1024),
    ("Backward", 1): Resources(255, 1024, 512, 0),
    ("Backward", 8): Resources(255, 1024, 512, 0),
    ("Backward", 32): Resources(255, 1024, 512, 0),
    ("Backward", 128): Resources(255, 1024, 512, 1024),
    ("entropic Solver", 1): Resources(255, 1536, 0, 0),
    ("entropic Solver", 8): Resources(255, 1536, 0, 0),
    ("entropic Solver", 32): Resources(255, 1536, 0, 0),
    ("entropic Solver", 128): Resources(255, 1536, 0, 1024),
    ("entropic Adjoint", 1): Resources(255, 768, 0, 0),
    ("entropic Adjoint", 8): Resources(255, 768, 0, 0),
    ("entropic Adjoint", 32): Resources(255, 768, 0, 0),
    ("entropic Adjoint", 128): Resources(255, 768, 0, 1024),
}


def build() -> Path:
    """Compile for one architecture; only what changed since the last time."""
    with alone(COMPILED):
        return compile_library()


@pytest.fixture(scope="module")
def library() -> Path:
    """The engine for CUDA."""
    return build()


def test_registers_spills_and_shared_memory_are_within_the_table(library: Path) -> None:
    assert library.exists()
    found = {(kernel, team): used for team in TEAMS for kernel, used in resources(team).items()}
    assert found.keys() == TABLE.keys()
    for key, used in found.items():
        assert all(a <= b for a, b in zip(used, TABLE[key], strict=True)), (key, used)


def test_only_what_changed_is_compiled_again(library: Path) -> None:
    def ages() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in COMPILED.glob("*.o")}

    before = ages()
    assert len(before) == 10 and build() == library
    assert ages() == before


def test_it_loads_where_there_is_no_gpu(library: Path) -> None:
    code = (
        "import torch; from optlayer.solvers import native\n"
        f"torch.ops.load_library({str(library)!r})\n"
        "print(torch.ops.optlayer_native.cuda_info())\n"
        "print('driver', torch.ops.optlayer_native.cuda_driver() > 0, torch.cuda.is_available())\n"
        "names = ('qp', 'kkt_solve', 'pull', 'kkt_pull', 'entropic_qp', 'entropic_kkt_solve')\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(all(has(f'optlayer_native::{name}', 'CUDA') for name in names))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "teams=1, 8, 32, 128" in done.stdout and "architectures=90" in done.stdout
    assert "driver False False" in done.stdout or "driver True" in done.stdout
    assert done.stdout.strip().endswith("True")
    assert library.stat().st_size < 32 << 20
