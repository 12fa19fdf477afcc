# SPDX-License-Identifier: Apache-2.0
"""The compiled engine for entropic programs: the operators of csrc/entropic, where the library is there.

It solves one problem in each SIMD lane, in float64 whatever the dtype.  What it cannot decide it leaves to the engine
written in torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...solvers import native
from ...solvers.choose import compiled
from .standard import QP_CORES

# Measured with AVX2 on one thread: at these sizes one problem takes 0.4 to 0.6 of the time of the engine in torch, a
# batch of 8 a quarter; at four times the entries, and at n = 400 with a full P, one problem takes as long or longer.
LARGEST = 2**16  # entries of the rows A and G, n k
LARGEST_FULL = 256  # n with a full P
LONGEST = 2**14 - 1  # n or rows that the compiled engine can count
LARGEST_ON_CUDA, LARGEST_FULL_ON_CUDA = 2**12, 64  # guesses


def takes(backend: str, P: Tensor | None, like: Tensor, rows: int) -> bool:
    """Whether the compiled engine is to be called, with so many rows of A and G and a vector (*batch, n)."""
    n, on_cpu = like.shape[-1], like.is_cpu
    fits = max(n, rows) <= LONGEST and n * max(rows, 1) <= (LARGEST if on_cpu else LARGEST_ON_CUDA)
    if P is not None and P.shape[-2] == n:
        fits = fits and n <= (LARGEST_FULL if on_cpu else LARGEST_FULL_ON_CUDA)
    return compiled(backend, like, fits)


def qp(*arguments: Any) -> tuple[Any, ...]:
    """``optlayer::entropic_qp`` without its factor, but nobody is told of failures.

    Args: the nine tensors, eps_abs, eps_rel, max_iter, and whether failures are to be NaN.
    Returns: the outputs up to the state, and the number of elements with the status UNSOLVED, whose other outputs hold
        nothing; -1 where that is still being computed.
    """
    *tensors, tau = arguments[:9]
    tau = tau.expand(*tau.shape[:-1], arguments[1].shape[-1])  # one number for all variables
    found: tuple[Any, ...] = _qp(*tensors, tau, *arguments[9:])
    return found


def kkt_solve(*arguments: Any) -> tuple[Tensor, ...]:
    """``optlayer::entropic_kkt_solve`` from P, G, A, the state and the right-hand sides alone."""
    u: tuple[Tensor, ...] = _kkt_solve(*arguments)
    return u


def _qp_fake(*arguments: Any) -> tuple[Any, ...]:
    q, h, b = arguments[1], arguments[3], arguments[5]
    batch = ops.batch_shape(arguments[:9], QP_CORES)
    n, m, p = q.shape[-1], 0 if h is None else h.shape[-1], 0 if b is None else b.shape[-1]
    sizes = (n, p, m, n, m, n), (n, p, m, n)
    vectors, rays = ([q.new_empty(*batch, size) for size in part] for part in sizes)
    counts = [q.new_empty(batch, dtype=torch.int64) for _ in range(3)]
    return (*vectors, *counts, *rays, q.new_empty(*batch, 2 * n + p + m + 1, dtype=torch.float64), 0)


def _kkt_fake(*arguments: Any) -> tuple[Tensor, ...]:
    state, rx, ry, rz, r_box = arguments[3:]
    batch = ops.batch_shape((state, rx, ry, rz, r_box), (1,) * 5)
    return tuple(r.new_empty(*batch, r.shape[-1]) for r in (rx, ry, rz, r_box, rx))


if native.available():
    _kkt_solve = torch.ops.optlayer_native.entropic_kkt_solve.default
    torch.library.register_fake("optlayer_native::entropic_kkt_solve", _kkt_fake)
    _qp = torch.ops.optlayer_native.entropic_qp.default
    torch.library.register_fake("optlayer_native::entropic_qp", _qp_fake)
