# SPDX-License-Identifier: Apache-2.0
"""What a batch shares is set up once: its solutions are those of the same batch with a copy for each element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optlayer import Status
from optlayer.problem import NAMES
from optlayer.solvers import native
from optlayer.testing import random_qp

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine is not built")

# What is changed in a batch that shares P, G and A; in the first five the matrices remain fit to be shared.
KINDS = ["rows", "equalities", "an element without data", "an open row", "an infeasible element"]
KINDS += ["bounds", "nearly singular", "indefinite", "no matrix"]
CLOSE = {torch.float64: 1e-9, torch.float32: 3e-7}
"""Both polish: what is left is rounding times the condition of the KKT matrix, below 1e4. float32 is solved in float64,
too, and rounded, by 6e-8."""


def batch_of(kind: str, B: int, dtype: torch.dtype) -> list[Tensor | None]:
    p = 2 if kind == "equalities" else 0
    bounds = kind == "bounds"
    problem = random_qp(6, 7, p, bounds=bounds, batch=(B,), shared=("P", "G", "A"), seed=4)
    P, q, G, h, *rest = problem.tensors
    last = B - 1
    if kind == "an element without data":
        q[last] = torch.nan
    elif kind == "an open row":
        h[last, 2] = torch.inf
    elif kind == "an infeasible element":
        G = torch.cat([G[:-1], -G[:1]])
        h[:, -1] = 2 - h[:, 0]
        h[last, -1] = -1 - h[last, 0]
    elif kind in ("nearly singular", "indefinite"):
        values, vectors = torch.linalg.eigh(P)
        values[0] = 1e-8 if kind == "nearly singular" else -1
        P = vectors @ values.diag() @ vectors.T
        P = (P + P.T) / 2
    elif kind == "no matrix":
        P[1, 1] = torch.nan
    return [None if t is None else t.to(dtype) for t in (P, q, G, h, *rest)]


def solve(tensors: list[Tensor | None]) -> tuple[list[Tensor], int]:
    """x, y, z, z_box and s of all elements and their statuses, by the kernels alone."""
    eps = 1e-9 if tensors[1].dtype == torch.float64 else 1e-5
    outputs, left = native.qp(*tensors, *(None,) * 4, eps, eps, 200, "native", "auto", "nan", True)
    return list(outputs[:6]), left


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("B", [1, 2, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_batch_is_one_of_copies(kind: str, B: int, dtype: torch.dtype) -> None:
    shared = batch_of(kind, B, dtype)
    copies = [
        t.expand(B, *t.shape).contiguous() if name in "PGA" and t is not None else t
        for name, t in zip(NAMES, shared, strict=True)
    ]
    (*ours, status), left = solve(shared)
    (*theirs, expected), left_of_copies = solve(copies)
    assert torch.equal(status, expected) and left == left_of_copies
    here = status != 0  # of those that are left to the other engine nothing is told
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1.0, float(b[here].nan_to_num(posinf=0).abs().max())) if b[here].numel() else 1.0
        torch.testing.assert_close(a[here], b[here], atol=CLOSE[dtype] * scale, rtol=0, equal_nan=True)


def test_the_kinds_are_what_they_are_called() -> None:
    verdicts = {kind: solve(batch_of(kind, 2, torch.float64))[0][5].tolist() for kind in KINDS}
    usual = [Status.SOLVED] * 2
    expected = dict.fromkeys(KINDS, usual) | {
        "an element without data": [Status.SOLVED, Status.INVALID_DATA],
        "an infeasible element": [Status.SOLVED, Status.PRIMAL_INFEASIBLE],
        "indefinite": [0, 0],
        "no matrix": [Status.INVALID_DATA] * 2,
    }
    assert verdicts == expected
