# SPDX-License-Identifier: Apache-2.0
"""The command line, ``python -m optlayer info | verify | solve FILE... | demo``.

The exit code is 0 when all went well, 1 when a problem was not solved or a check failed, 2 for a wrong command.
"""

import argparse
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from . import __version__, demo, verify
from .console import progress, table
from .errors import ProblemError, SettingsError
from .instance import Instance, stack, unstack
from .io import read, write
from .qp import solve_qp
from .settings import Settings
from .solution import Solution
from .solvers import native
from .status import ITERATES, Status

UNREADABLE = "UNREADABLE"
TOGETHER = 64  # problems of one shape that are solved in one call, between two steps of the progress bar
OPTIONAL = {
    "numpy": "reads .npz files",
    "scipy": "reads .mat files",
    "highspy": "reads .mps and .qps files",
    "sklearn": "the data of the demo",
    "matplotlib": "the plot of the demo",
    "tqdm": "progress bars",
}


VERIFY = (
    "Compare the Jacobian of the softmax problem with its closed form, and every gradient of the QP layer with values "
    "that are computed independently of it; print a table of the errors."
)
DEMO = (
    "Verify the derivatives, solve a batch of real problems in one call per shape, and learn the penalty of a lasso "
    "through its solution; write a plot of the latter."
)
FORMS = """\
The .npz files hold either

  dense blocks   P, G, h, A, b    with Gx <= h and Ax = b, as in solve_qp
  or coordinates P_row, P_col, P_val, A_row, A_col, A_val, l, u, n, m
                                  with l <= Ax <= u; every entry of P, both triangles

and in either form q, lb, ub, name, r (the constant of the objective) and f_opt (a known optimum).
All but q may be absent. A .mat file is one of Maros and Meszaros: P, q, r, A, l, u. An .mps or .qps
file may have the section QUADOBJ or QMATRIX. Numbers of magnitude 1e20 or more are infinite.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="optlayer", description="Batches of quadratic programs as a differentiable PyTorch layer."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="info | verify | solve | demo")
    commands.add_parser("info", help="versions, devices, and which engine runs on each").set_defaults(run=_info)
    against = "the softmax Jacobian and every gradient of the QP layer against independent values"
    check = commands.add_parser("verify", help=against, description=f"{VERIFY} The exit code is 1 when one is wrong.")
    check.set_defaults(run=_verify)
    files = commands.add_parser(
        "solve",
        help="solve the problems in .npz, .mat, .mps and .qps files",
        description="Solve each problem and print a table; the exit code is 1 when one of them was not solved.",
        epilog=FORMS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a problem each; the suffix says the form")
    files.add_argument("--eps", type=float, help="absolute and relative accuracy (default: 1e-9)")
    files.add_argument("--max-iter", type=int, default=Settings.max_iter, help="default: %(default)s")
    files.add_argument("--output", type=Path, metavar="DIR", help="write each solution to DIR/NAME.solution.npz")
    files.add_argument("--json", action="store_true", help="print JSON instead of a table")
    files.set_defaults(run=_solve)
    show = commands.add_parser(
        "demo",
        help="the whole layer on real input: solve, differentiate, train, verify",
        description=f"{DEMO} The exit code is 1 when a check failed.",
    )
    plot = "where the plot goes (default: %(default)s)"
    show.add_argument("--output", type=Path, default=Path("out"), metavar="DIR", help=plot)
    show.set_defaults(run=_demo)
    options, unknown = parser.parse_known_args(arguments)
    command = commands.choices[options.command]
    if unknown:
        command.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return int(options.run(options))
    except SettingsError as error:
        command.error(str(error))


def _info(_: argparse.Namespace) -> int:
    threads = torch.get_num_threads()
    build = native.build()
    cpu = ["reference", "no compiled engine"] if build is None else [f"native, {build.runs}", "compiled for it"]
    devices = [["cpu", f"{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}", *cpu]]
    on_cuda = native.cuda_build()
    for i in range(torch.cuda.device_count()):
        none = native.obstacle(torch.device("cuda", i))
        why = ["reference", "plain torch runs anywhere"] if none else ["native, CUDA", "compiled for it"]
        devices.append([f"cuda:{i}", torch.cuda.get_device_name(i), *why])
    print(f"optlayer {__version__}, torch {torch.__version__}, Python {platform.python_version()}\n")
    print(table(["device", "what it is", "engine", "why"], devices))
    print()
    if build is None:
        print(f"compiled engine: none, {native.why_not()}")
    else:
        print(f"compiled engine: {build.built}; by {build.compiler}, for torch {build.torch} and newer")
        print(f"{build.runs} solves {build.lanes} problems at once; reference, those of n + m + p > {native.LARGEST}")
    if on_cuda is None:
        print(f"engine for CUDA: none, {native.why_not_cuda()}")
    else:
        print(
            f"engine for CUDA: teams of {on_cuda.teams} threads a problem, up to n + m + p = {native.LARGEST_ON_CUDA};"
        )
        print(f"architectures {on_cuda.architectures}, by CUDA {on_cuda.toolkit}")
    print()
    rows = [[name, "yes" if find_spec(name) else "no", use] for name, use in OPTIONAL.items()]
    print(table(["optional package", "installed", "use"], rows))
    return 0


def _demo(options: argparse.Namespace) -> int:
    _make_folder(options.output)
    return demo.run(options.output)


def _verify(_: argparse.Namespace) -> int:
    report = verify.run()
    print(verify.text(report))
    return 0 if all(row.passed for row in report) else 1


@dataclass(frozen=True)
class Row:
    """What is told of one file.

    NaN or ``None`` where a number is not known: the objective of a problem that was not solved, the residuals of one
    of which no iterate approaches a solution, everything of a file that cannot be read.
    """

    file: str
    name: str
    n: int | None = None
    m: int | None = None
    p: int | None = None
    status: str = UNREADABLE
    objective: float = math.nan
    optimum: float = math.nan
    primal_residual: float = math.nan
    dual_residual: float = math.nan
    duality_gap: float = math.nan
    iterations: int | None = None
    milliseconds: float = math.nan
    advice: str = ""
    error: str | None = None

    @classmethod
    def of(cls, path: Path, instance: Instance, solution: Solution, milliseconds: float) -> "Row":
        status = Status(int(solution.status))
        residuals = solution.residuals()
        found = status in ITERATES
        return cls(
            str(path),
            instance.name,
            *instance.shape,
            status.name,
            instance.objective(float(residuals.objective)) if status == Status.SOLVED else math.nan,
            instance.optimum if status == Status.SOLVED else math.nan,
            float(residuals.primal) if found else math.nan,
            float(residuals.dual) if found else math.nan,
            float(residuals.gap) if found else math.nan,
            int(solution.iterations),
            milliseconds,
            "" if status == Status.SOLVED else f"{status.diagnosis} {status.advice}",
        )


def _solve(options: argparse.Namespace) -> int:
    settings = Settings(options.eps, options.eps, options.max_iter, on_failure="ignore")
    if options.output:
        _check_names(options.files)
        _make_folder(options.output)
    rows: dict[int, Row] = {}
    shapes: dict[tuple[int, int, int], list[tuple[int, Instance]]] = {}
    for k, path in enumerate(progress(options.files, len(options.files), "read")):
        try:
            instance = read(path)
            shapes.setdefault(instance.shape, []).append((k, instance))
        except (ProblemError, OSError, ImportError) as error:
            rows[k] = Row(str(path), path.stem, error=str(error))
    calls = [group[i : i + TOGETHER] for group in shapes.values() for i in range(0, len(group), TOGETHER)]
    for call in progress(calls, len(calls), "solve"):
        instances = [instance for _, instance in call]
        start = time.perf_counter()
        batch = solve_qp(**stack(instances), settings=settings)
        milliseconds = 1e3 * (time.perf_counter() - start) / len(call)
        for (k, instance), solution in zip(call, unstack(batch, instances), strict=True):
            rows[k] = Row.of(options.files[k], instance, solution, milliseconds)
            if options.output:
                write(options.output / f"{options.files[k].stem}.solution.npz", instance, solution)
    report = [rows[k] for k in sorted(rows)]
    print(_json(report) if options.json else _text(report))
    return 0 if all(row.status == Status.SOLVED.name for row in report) else 1


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--output is {folder}, where no folder can be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"--output is {folder}, where nothing may be written")


def _check_names(files: Sequence[Path]) -> None:
    """Solutions are named after their files, without folder and suffix: no two may be the same."""
    for name, count in Counter(file.stem for file in files).items():
        if count > 1:
            raise SettingsError(f"{count} files are called {name}: one solution would overwrite the other")


def _text(report: Sequence[Row]) -> str:
    known = any(not math.isnan(row.optimum) for row in report)
    header = ["name", "n", "m", "p", "status", "objective", "primal", "dual", "gap", "iterations", "ms"]
    cells = []
    for r in report:
        numbers = [_text_of(v, ".1e") for v in (r.primal_residual, r.dual_residual, r.duality_gap)]
        time_and_optimum = [_text_of(r.milliseconds, ".1f"), *([_text_of(r.optimum, ".9g")] if known else [])]
        n, m, p, iterations = ("" if v is None else v for v in (r.n, r.m, r.p, r.iterations))
        cells.append([r.name, n, m, p, r.status, _text_of(r.objective, ".9g"), *numbers, iterations, *time_and_optimum])
    lines = [table(header + (["known optimum"] if known else []), cells), ""]
    lines += [f"{r.name}: {r.status}. {r.error or r.advice}" for r in report if r.error or r.advice]
    solved = sum(r.status == Status.SOLVED.name for r in report)
    return "\n".join([*lines, f"{solved} of {len(report)} solved"])


def _text_of(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _json(report: Sequence[Row]) -> str:
    rows = [{k: None if v != v else v for k, v in asdict(row).items()} for row in report]
    return json.dumps(rows, indent=1, allow_nan=False)
