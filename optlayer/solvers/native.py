# SPDX-License-Identifier: Apache-2.0
"""The compiled engine: the operators of csrc/library.cpp, where the library is there.

    OPTLAYER_NATIVE=0          leave it alone
    OPTLAYER_ISA=NAME          run this instruction set of those that were built, not the best
    OPTLAYER_LIBRARY=PATH      load this file instead of the one in the package

It solves float64 and float32 problems on the CPU.  What it cannot decide it leaves to another engine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops

FORMULATIONS = ("auto", "split", "range")  # in the order of csrc/qp/call.h
LARGEST = 1024  # n + m + p beyond which torch's own matrix products and factorisations are as fast


class Build(NamedTuple):
    """What was compiled."""

    built: str  # instruction sets
    runs: str  # the one of them that runs
    lanes: str  # float64 problems that it solves at once
    compiler: str
    torch: str  # the oldest that will do


def _load() -> Build | str:
    """Load the library; or say why it is not there."""
    if os.environ.get("OPTLAYER_NATIVE") == "0":
        return "OPTLAYER_NATIVE is 0"
    given = os.environ.get("OPTLAYER_LIBRARY")
    found = [Path(given)] if given else sorted(Path(__file__).parent.parent.glob("_native*.so"))
    if not found or not found[0].is_file():
        if given:
            return f"OPTLAYER_LIBRARY is {given}, where there is no file"
        return "it was not compiled when optlayer was installed"
    try:
        torch.ops.load_library(str(found[0]))
        text = torch.ops.optlayer_native.info()
    except (OSError, RuntimeError) as error:
        return f"{found[0].name}: {str(error).splitlines()[0]}"
    return Build(**dict(line.split("=", 1) for line in text.splitlines()))


_loaded = _load()


def available() -> bool:
    """Whether there is a compiled engine."""
    return isinstance(_loaded, Build)


def build() -> Build | None:
    """What was compiled, or None."""
    return _loaded if isinstance(_loaded, Build) else None


def why_not() -> str:
    """Why there is no compiled engine; empty where there is one."""
    return _loaded if isinstance(_loaded, str) else ""


def qp(*arguments: Any) -> tuple[tuple[Tensor, ...], int]:
    """``optlayer::qp`` for ``on_failure`` "nan" or "ignore".

    Args: those of the operator.
    Returns: its outputs, and the number of elements with the status UNSOLVED, whose other outputs hold nothing.
    """
    form, nan = FORMULATIONS.index(arguments[16]), arguments[17] == "nan"
    out = _qp(*arguments[:15], form, nan, arguments[18])
    return out[:-1], out[-1]


def kkt_solve(*arguments: Any) -> tuple[Tensor, ...]:
    """``optlayer::kkt_solve``, with all its arguments."""
    u: tuple[Tensor, ...] = _kkt_solve(*arguments[:-1])
    return u


def pull(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of P, G and A from x, y, z, u_x, u_y, u_z and what is wanted of each: 0 none, 1 each, 2 the sum."""
    gradients: tuple[Tensor, ...] = _pull(*arguments)
    return gradients


# ---- fake kernels ----------------------------------------------------------------------------------------------------


def _qp_fake(*arguments: Any) -> tuple[Any, ...]:
    full = *arguments[:15], "native", "auto", "nan", arguments[17]
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


if isinstance(_loaded, Build):
    _qp = torch.ops.optlayer_native.qp.default
    _kkt_solve = torch.ops.optlayer_native.kkt_solve.default
    _pull = torch.ops.optlayer_native.pull.default
    torch.library.register_fake("optlayer_native::qp", _qp_fake)
    torch.library.register_fake("optlayer_native::kkt_solve", _kkt_solve_fake)
    torch.library.register_fake("optlayer_native::pull", _pull_fake)
