# SPDX-License-Identifier: Apache-2.0
"""Programs for every mapping of a problem on a GPU, and both engines side by side on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import optlayer
from benchmarks.cuda_without_gpu import CASES
from optlayer.problem import Problem
from optlayer.testing import random_qp

AGREE = 1e-7
"""Of x between the engines, relative to its size: both meet 1e-9 in the residuals, and cond(K) is < 100."""


def on_device(name: str, batch: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    problem: Problem = random_qp(**CASES[name], batch=batch, seed=seed)
    return [None if t is None else t.to("cuda", dtype) for t in problem.tensors]


def solve(tensors: list[Tensor | None], backend: str, **settings: Any) -> optlayer.Solution:
    P, q, *rest = tensors
    return optlayer.solve_qp(P, q, *rest, backend=backend, **settings)


def close(a: Tensor, b: Tensor, tolerance: float = AGREE) -> None:
    scale = max(1.0, float(b.nan_to_num().abs().max())) if b.numel() else 1.0
    torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=0, equal_nan=True)
