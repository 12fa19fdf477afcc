# SPDX-License-Identifier: Apache-2.0
"""What can be measured of the engine for CUDA without a GPU: ``python -m benchmarks.cuda_without_gpu [--kept]``.

- Agreement: the kernels run on the CPU, their threads as fibers in random order (tests/native/emulator.h), for every
  number of threads that may work on one problem. The largest difference from the reference engine in x, in the
  multipliers and in the gradients of a loss by all data, over problems of every combination of blocks; each relative to
  the largest entry there, or to 1.
- Resources: registers, stack, spills and declared shared memory of each kernel as ptxas reports them.
- Residency: from these, how many problems a multiprocessor of an H200 works on at once, by the arithmetic of a launch.
- The processor time of compiling for architecture 9.0, and the size of the library. ``--kept`` takes what was compiled
  before, and tells no time.

It needs nvcc and a C++ compiler, and takes a quarter of an hour. The tests of tests/cuda use the same functions.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import report
from optlayer import solve_qp
from optlayer.solvers import native
from optlayer.testing import random_qp

ROOT = Path(__file__).resolve().parents[1]
COMPILED, EMULATED = ROOT / "build" / "cuda", ROOT / "build" / "emulated"
LIBRARY = ROOT / "build" / "cuda_check" / "optlayer" / "_cuda.abi3.so"
TEAMS = (1, 8, 32, 128)

SHARED = ("P", "G", "A")
CASES: dict[str, dict[str, Any]] = {
    "one variable": {"n": 1, "m": 2, "bounds": True},
    "tiny": {"n": 4, "m": 4},
    "dense": {"n": 10, "m": 10},
    "dense, shared": {"n": 10, "m": 10, "p": 2, "shared": SHARED},
    "wide": {"n": 12, "m": 30},
    "wide, shared": {"n": 10, "m": 30, "shared": SHARED},
    "equalities": {"n": 10, "m": 8, "p": 4},
    "bounds": {"n": 9, "bounds": True},
    "everything": {"n": 11, "m": 7, "p": 3, "bounds": True},
    "everything, shared": {"n": 20, "m": 12, "p": 2, "bounds": True, "shared": SHARED},
    "psd": {"n": 10, "m": 12, "p": 2, "kind": "psd", "bounds": True},
    "lp": {"n": 8, "m": 12, "p": 2, "kind": "lp", "bounds": True},
    "middle": {"n": 32, "m": 32, "p": 3},
    "middle, shared": {"n": 30, "m": 40, "shared": SHARED},
    "large": {"n": 70, "m": 60, "p": 5, "bounds": True},
    "unconstrained": {"n": 5},
}
"""Programs of every combination of blocks, and of a size for every mapping."""

H200 = (132, 2048, 228 << 10, 227 << 10, 1 << 10, 65536)
"""The limits of csrc/qp/cuda/mapping.h: multiprocessors, threads of one, shared memory of one and of a block at most,
what the system takes of it for a block, registers; CUDA's programming guide, compute capability 9.0."""
SIZES = (2, 4, 6, 8, 10, 12, 16, 20, 32, 40, 50, 64, 100, 150)

COMPILER = os.environ.get("CXX", "c++").split()
INCLUDE = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "tests" / "native")]
EMULATE = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-DOPTLAYER_EMULATE", *INCLUDE]


# ---- emulated --------------------------------------------------------------------------------------------------------


def chosen(team: int) -> list[str]:
    """What a compiler is told for teams of so many threads."""
    return [f"-DOPTLAYER_ISA=cuda_{team}", f"-DOPTLAYER_TEAM={team}"]


def emulators() -> dict[int, Path]:
    """By team, the library that stands in for the compiled engine; made again when a source has changed."""
    folders = (ROOT / "csrc", ROOT / "tests" / "native")
    newest = max(path.stat().st_mtime for folder in folders for path in folder.rglob("*") if path.is_file())
    torch_folder = Path(torch.__file__).parent
    flags = ["-fPIC", "-shared", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += ["-isystem", str(torch_folder / "include")]
    link = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", "-pthread"]
    sources = [str(ROOT / "tests" / "native" / name) for name in ("emulated.cpp", "emulator.cpp")]

    def make(team: int) -> Path:
        kept = EMULATED / f"team_{team}.so"
        if not kept.exists() or kept.stat().st_mtime < newest:
            command = [*COMPILER, *EMULATE, *flags, *chosen(team), *sources, "-o", str(kept), *link]
            subprocess.run(command, check=True)
        return kept

    EMULATED.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TEAMS, pool.map(make, TEAMS), strict=True))


def run_emulated(library: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of Python with the emulated kernels as its compiled engine."""
    variables = {**os.environ, "OPTLAYER_LIBRARY": str(library), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True)


class Difference(NamedTuple):
    """Between the compiled engine and the reference on the problems of a case: the iterations of the former, and the
    largest relative differences."""

    iterations: list[int]
    x: float
    multipliers: float
    gradients: float


def agreement(library: Path) -> dict[tuple[str, str], Difference]:
    """By dtype and case, of the emulated kernels."""
    done = run_emulated(library, "-m", "benchmarks.cuda_without_gpu", "--differences")
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    lines = (json.loads(line) for line in done.stdout.splitlines())
    return {(dtype, name): Difference(*found) for dtype, name, *found in lines}


def differences() -> Iterator[tuple[str, str, Difference]]:
    """Of the compiled engine that this process has loaded."""
    for dtype, (name, case) in itertools.product(("float64", "float32"), CASES.items()):
        problem = random_qp(**case, batch=(3,), seed=2, dtype=getattr(torch, dtype))
        ours, theirs = (solved(problem.tensors, backend) for backend in ("native", "reference"))
        iterations = ours.pop("iterations")[0].tolist()
        theirs.pop("iterations")
        yield dtype, name, Difference(iterations, *(apart(ours[part], theirs[part]) for part in theirs))


def solved(tensors: tuple[Tensor | None, ...], backend: str) -> dict[str, tuple[Tensor, ...]]:
    """A solution and the gradients of a loss in which all of it takes part."""
    P, q, *rest = (None if t is None else t.clone().requires_grad_() for t in tensors)
    found = solve_qp(P, q, *rest, backend=backend)
    multipliers = found.y, found.z, found.z_box
    outputs = [t for t in (found.x, *multipliers, found.s) if t.numel()]
    weights = [torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).reshape(t.shape) for t in outputs]
    loss = sum((t * w).sum() for t, w in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, [t for t in (P, q, *rest) if t is not None])
    return {"iterations": (found.iterations,), "x": (found.x,), "multipliers": multipliers, "gradients": gradients}


def apart(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest entry of a tensor or to 1; NaN shows."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True) if b.numel()]
    return max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in pairs)


# ---- compiled for CUDA -----------------------------------------------------------------------------------------------


class Resources(NamedTuple):
    """Of one thread: registers, and bytes of the stack, of spills and of the shared memory that the kernel declares."""

    registers: int
    stack: int
    spilled: int
    shared: int


def compile_library(cuda: bool = True) -> Path:
    """Compile for architecture 9.0, or the engine for CPUs alone; only what changed since the last time."""
    build = native.build()
    if build is None:
        raise RuntimeError(native.why_not())
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OPTLAYER_")}
    wanted = {
        "OPTLAYER_CUDA": "1" if cuda else "0",
        "OPTLAYER_CUDA_ARCHS": "90",
        "OPTLAYER_SETS": build.built.replace(" ", ""),  # those that are there
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(LIBRARY.parents[1])]
    done = subprocess.run(command, cwd=ROOT, env={**clean, **wanted}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return LIBRARY


def resources(team: int) -> dict[str, Resources]:
    """What ptxas said about each kernel of a team."""
    found = {}
    for log in (COMPILED / f"engine_{team}.log", COMPILED / f"entropic_{team}.log"):
        for part in log.read_text().split("Compiling entry function")[1:]:
            name = re.search(r"worker_kernelINS\d*_(8entropic)?\d+(Preparation|Solver|Adjoint|Backward)Id", part)
            if name is None:
                raise RuntimeError(f"{log} tells of an unknown kernel")
            kernel = "entropic " * (name[1] is not None) + name[2]
            most = {key: [int(n) for n in re.findall(rf"(\d+) {key}", part)] for key in ("bytes stack", "bytes smem")}
            stack = [int(n) for n in re.findall(r"(\d+) bytes cumulative stack", part)] + most["bytes stack"]
            (registers,) = (int(n) for n in re.findall(r"Used (\d+) registers", part))
            spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", part))
            found[kernel] = Resources(registers, max(stack), spilled, max(most["bytes smem"], default=0))
    return found


def residency(registers: dict[int, tuple[int, int]]) -> list[tuple[int, ...]]:
    """For each size its team and whether the factor of the interior point method lies in fast memory; then, of the
    solver and of the backward pass, blocks and problems of a multiprocessor, bytes of a workspace and those of them in
    fast memory.

    Args: the registers of a thread of both kernels, by team.
    """
    sources = [str(ROOT / "benchmarks" / "residency.cpp"), str(ROOT / "tests" / "native" / "emulator.cpp")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for team, used in registers.items():
            program = f"{folder}/team_{team}"
            subprocess.run([*COMPILER, *EMULATE, *chosen(team), *sources, "-o", program], check=True)
            numbers = map(str, (*H200, *used, *SIZES))
            done = subprocess.run([program, *numbers], check=True, capture_output=True, text=True)
            for line in done.stdout.splitlines():
                n, *facts = (int(word) for word in line.split())
                rows.append((n, team, *facts))
    return rows


def processor_time() -> float:
    """Seconds that the processes which this one has waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", action="store_true", help="compile only what has changed")
    parser.add_argument("--differences", action="store_true", help="only those of this process's engine, a line each")
    options = parser.parse_args(arguments)
    if options.differences:
        for line in differences():
            print(json.dumps((*line[:2], *line[2])), flush=True)
        return
    compile_library(cuda=False)
    for old in () if options.kept else COMPILED.glob("*.o"):
        old.unlink()
    before = processor_time()
    library = compile_library()
    seconds = None if options.kept else processor_time() - before
    kernels = {(name, team): found for team in TEAMS for name, found in resources(team).items()}
    registers = {team: (kernels["Solver", team].registers, kernels["Backward", team].registers) for team in TEAMS}
    found = {team: agreement(path) for team, path in emulators().items()}
    largest: list[tuple[Any, ...]] = []
    for team, dtype in itertools.product(TEAMS, ("float64", "float32")):
        own = [value for (kind, _), value in found[team].items() if kind == dtype]
        worst = functools.reduce(lambda a, b: Difference([], *map(max, a[1:], b[1:])), own)
        largest.append((team, dtype, len(own), *(f"{value:.1e}" for value in worst[1:])))
    report.write(
        "cuda_without_gpu",
        "python -m benchmarks.cuda_without_gpu",
        "solved to 1e-9, float32: 1e-5",
        (),
        {
            "largest difference from the reference": (
                ("threads a problem", "dtype", "cases", "x", "multipliers", "gradients"),
                largest,
            ),
            "kernels for architecture 9.0": (
                ("kernel", "threads a problem", "registers", "stack, bytes", "spilled", "shared memory"),
                [(name, team, *used) for (name, team), used in sorted(kernels.items())],
            ),
            "problems at once on one of the 132 multiprocessors of an H200": (
                ("n = m", "threads a problem", "factor fast", "blocks", "problems", "workspace, bytes", "of it fast")
                + ("backward: blocks", "problems", "workspace, bytes", "of it fast"),
                [(n, team, bool(fast), *facts) for n, team, fast, *facts in residency(registers)],
            ),
            "library": f"{library.stat().st_size / 1e6:.1f} MB for architecture 9.0, with its PTX"
            + (f"; compiled in {seconds / 60:.1f} min of processor time" if seconds else ""),
        },
        {"differences": [[team, *key, *value] for team, own in found.items() for key, value in own.items()]},
    )


if __name__ == "__main__":
    main()
