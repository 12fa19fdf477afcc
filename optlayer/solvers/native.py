# SPDX-License-Identifier: Apache-2.0
"""The compiled engines: the operators of csrc/library.cpp, where the libraries are there.

    OPTLAYER_NATIVE=0          leave them alone
    OPTLAYER_ISA=NAME          run this instruction set of those that were built, not the best
    OPTLAYER_LIBRARY=PATH      load this file instead of the one in the package
    OPTLAYER_CUDA=0            leave the engine for CUDA alone
    OPTLAYER_CUDA_LIBRARY=PATH load this file instead of the one in the package
    OPTLAYER_TEAM=8            threads of a GPU that work on one problem, instead of what its size suggests
    OPTLAYER_FAST=80           percent of a GPU's shared memory for workspaces, instead of 53; the rest is for its cache

They solve float64 and float32 problems on the CPU, and on GPUs where torch has CUDA.  What they cannot decide they
leave to another engine.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..settings import FILLED

OPERATORS = ("qp", "kkt_solve", "pull", "kkt_pull", "entropic_qp", "entropic_kkt_solve")
FORMULATIONS = ("auto", "split", "range")  # in the order of csrc/qp/call.h
# n + m + p beyond which torch's own matrix products and factorisations are as fast.
LARGEST = 1024
LARGEST_ON_CUDA = 512


class Build(NamedTuple):
    """What was compiled."""

    built: str  # instruction sets
    runs: str  # the one of them that runs
    lanes: str  # float64 problems that it solves at once
    compiler: str
    torch: str  # the oldest that will do


class CudaBuild(NamedTuple):
    """What was compiled for CUDA."""

    teams: str  # how many threads may work on one problem
    architectures: str
    toolkit: str


def _load(kind: str, variable: str, info: str, *others: str) -> dict[str, str] | str:
    """Load a library and ask what it is; or say why it is not there."""
    if os.environ.get("OPTLAYER_NATIVE") == "0":
        return "OPTLAYER_NATIVE is 0"
    given = os.environ.get(variable)
    found = [Path(given)] if given else sorted(Path(__file__).parent.parent.glob(f"_{kind}*.so"))
    if not found or not found[0].is_file():
        if given:
            return f"{variable} is {given}, where there is no file"
        return "it was not compiled when optlayer was installed"
    try:
        torch.ops.load_library(str(found[0]))
        operators = torch.ops.optlayer_native
        text: str = getattr(operators, info)()
        for name in (*OPERATORS, *others):  # an old library lacks some
            getattr(operators, name)
    except (AttributeError, OSError, RuntimeError) as error:
        return f"{found[0].name}: {str(error).splitlines()[0]}"
    return dict(line.split("=", 1) for line in text.splitlines())


def _load_native() -> Build | str:
    found = _load("native", "OPTLAYER_LIBRARY", "info")
    return found if isinstance(found, str) else Build(**found)


def _load_cuda() -> CudaBuild | str:
    """No CUDA is initialised here: processes may still be forked afterwards."""
    if isinstance(_loaded, str):
        return f"there is no compiled engine: {_loaded}"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if os.environ.get("OPTLAYER_CUDA") == "0":
        return "OPTLAYER_CUDA is 0"
    found = _load("cuda", "OPTLAYER_CUDA_LIBRARY", "cuda_info", "cuda_driver")
    return found if isinstance(found, str) else CudaBuild(**found)


_loaded = _load_native()
_loaded_cuda = _load_cuda()


def available() -> bool:
    """Whether there is a compiled engine."""
    return isinstance(_loaded, Build)


def build() -> Build | None:
    """What was compiled, or None."""
    return _loaded if isinstance(_loaded, Build) else None


def why_not() -> str:
    """Why there is no compiled engine; empty where there is one."""
    return _loaded if isinstance(_loaded, str) else ""


def cuda_build() -> CudaBuild | None:
    """What was compiled for CUDA, or None."""
    return _loaded_cuda if isinstance(_loaded_cuda, CudaBuild) else None


def why_not_cuda() -> str:
    """Why there is no compiled engine for CUDA; empty where there is one."""
    return _loaded_cuda if isinstance(_loaded_cuda, str) else ""


def obstacle(device: torch.device) -> str:
    """Why no compiled engine runs on a device; empty where one does."""
    if not available() or device.type == "cpu":
        return why_not()
    if device.type != "cuda":
        return f"it runs on the cpu and on CUDA, the data are on {device}"
    return _obstacle_on(device) if isinstance(_loaded_cuda, CudaBuild) else _loaded_cuda


def _driver() -> int:
    """The CUDA that the driver is made for, 13020 for 13.2."""
    version: int = torch.ops.optlayer_native.cuda_driver()
    return version


@functools.cache
def _obstacle_on(device: torch.device) -> str:
    """Code for 8.0 runs on 8.6, but not on 9.0; what is newer than all of it gets the newest, which is kept as PTX. A
    driver runs machine code that CUDA of its own major version has compiled, or an older one, as torch's may be; PTX it
    runs of no newer CUDA than its own."""
    built = [divmod(int(name), 10) for name in _loaded_cuda.architectures.split(", ")]  # type: ignore[union-attr]
    capability = torch.cuda.get_device_capability(device)
    ready = any(a == capability[0] and b <= capability[1] for a, b in built)
    if not ready and capability < max(built):
        names = ", ".join(f"{a}.{b}" for a, b in built)
        return f"it was compiled for the architectures {names}, {device} has {capability[0]}.{capability[1]}"
    toolkit = _loaded_cuda.toolkit  # type: ignore[union-attr]
    version, compiler = divmod(_driver() // 10, 100), tuple(map(int, toolkit.split(".")))
    if version[0] < compiler[0] or (not ready and version < compiler):
        return f"it was compiled by CUDA {toolkit}, the driver is for CUDA {version[0]}.{version[1]}"
    return ""


def qp(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    x0: Tensor | None,
    y0: Tensor | None,
    z0: Tensor | None,
    z_box0: Tensor | None,
    eps_abs: float,
    eps_rel: float,
    max_iter: int,
    backend: str,
    formulation: str,
    on_failure: str,
    keep_factor: bool,
) -> tuple[tuple[Tensor, ...], int]:
    """``optlayer::qp``, but nobody is told of failures.

    Args: those of the operator.
    Returns: its outputs, and the number of elements with the status UNSOLVED, whose other outputs hold nothing; -1
        where that is still being computed, on CUDA.
    """
    form, nan = FORMULATIONS.index(formulation), on_failure in FILLED
    if x0 is None and y0 is None and z0 is None and z_box0 is None:  # to hand over what is not there takes its time too
        out = _qp(P, q, G, h, A, b, lb, ub, eps_abs, eps_rel, max_iter, form, nan, keep_factor)
    else:
        warm = x0, y0, z0, z_box0
        out = _qp(P, q, G, h, A, b, lb, ub, eps_abs, eps_rel, max_iter, form, nan, keep_factor, *warm)
    return out[:-1], out[-1]


def kkt_solve(*arguments: Any) -> tuple[Tensor, ...]:
    """``optlayer::kkt_solve``, with all its arguments."""
    u: tuple[Tensor, ...] = _kkt_solve(*arguments[:-1])
    return u


def pull(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of P, G and A from x, y, z, u_x, u_y, u_z and what is wanted of each: 0 none, 1 each, 2 the sum."""
    gradients: tuple[Tensor, ...] = _pull(*arguments)
    return gradients


def kkt_pull(*arguments: Any) -> tuple[Tensor, ...]:
    """`kkt_solve` for one right-hand side an element, then `pull`: P, G, A, state, factor, index, the right-hand side,
    x, y, z (of which y and z may be None) and what is wanted of P, G and A."""
    found: tuple[Tensor, ...] = _kkt_pull(*arguments)
    return found


# ---- fake kernels ----------------------------------------------------------------------------------------------------


def _qp_fake(*arguments: Any) -> tuple[Any, ...]:
    eps_abs, eps_rel, max_iter, _, _, keep_factor, *warm = arguments[8:]
    warm += [None] * (4 - len(warm))
    full = *arguments[:8], *warm, eps_abs, eps_rel, max_iter, "native", "auto", "nan", keep_factor
    return *ops.qp_fake(*full), 0


def _kkt_solve_fake(*arguments: Any) -> tuple[Tensor, ...]:
    full = *arguments, "native"
    return ops.kkt_solve_fake(*full)


def _pull_fake(
    x: Tensor, y: Tensor, z: Tensor, ux: Tensor, uy: Tensor, uz: Tensor, P: int, G: int, A: int
) -> tuple[Tensor, ...]:
    batch = ops.batch_shape((x, y, z, ux, uy, uz), (1,) * 6)
    n, p, m = x.shape[-1], y.shape[-1], z.shape[-1]
    shapes = [[(0,), (*batch, rows, n), (rows, n)][wanted] for wanted, rows in ((P, n), (G, m), (A, p))]
    return tuple(x.new_empty(shape) for shape in shapes)


def _kkt_pull_fake(*arguments: Any) -> tuple[Tensor, ...]:
    u, x, (y, z), wanted = _kkt_solve_fake(*arguments[:10]), arguments[10], arguments[11:13], arguments[13:]
    ux, uy, uz, _ = u
    return *u, *_pull_fake(x, uy if y is None else y, uz if z is None else z, ux, uy, uz, *wanted)


if isinstance(_loaded, Build):
    _qp = torch.ops.optlayer_native.qp.default
    _kkt_solve = torch.ops.optlayer_native.kkt_solve.default
    _pull = torch.ops.optlayer_native.pull.default
    _kkt_pull = torch.ops.optlayer_native.kkt_pull.default
    torch.library.register_fake("optlayer_native::qp", _qp_fake)
    torch.library.register_fake("optlayer_native::kkt_solve", _kkt_solve_fake)
    torch.library.register_fake("optlayer_native::pull", _pull_fake)
    torch.library.register_fake("optlayer_native::kkt_pull", _kkt_pull_fake)
