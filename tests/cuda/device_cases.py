# SPDX-License-Identifier: Apache-2.0
"""Programs for every mapping of a problem on a GPU, and both engines side by side on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import optlayer
from optlayer.problem import Problem
from optlayer.testing import random_qp

TEAMS = (1, 8, 32, 128)
CASES: dict[str, dict[str, Any]] = {
    "one variable": {"n": 1, "m": 2, "bounds": True},
    "tiny": {"n": 4, "m": 4},
    "dense": {"n": 10, "m": 10},
    "wide": {"n": 12, "m": 30},
    "equalities": {"n": 10, "m": 8, "p": 4},
    "bounds": {"n": 9, "bounds": True},
    "everything": {"n": 11, "m": 7, "p": 3, "bounds": True},
    "psd": {"n": 10, "m": 12, "p": 2, "kind": "psd", "bounds": True},
    "lp": {"n": 8, "m": 12, "p": 2, "kind": "lp", "bounds": True},
    "middle": {"n": 32, "m": 32, "p": 3},
    "large": {"n": 70, "m": 60, "p": 5, "bounds": True},
    "unconstrained": {"n": 5},
}
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
