# SPDX-License-Identifier: Apache-2.0
"""Entropic programs of every kind of constraint, feasible by construction, at any scale of the costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

F64 = torch.float64
KINDS = ("softmax", "cap", "tight cap", "cap alone", "group", "rows", "moment", "moment and rows", "transport", "floor")
CURVATURES = ("none", "diagonal", "full")


def transport(r: int, c: int) -> Tensor:
    """The rows of an r x c transport plan: r row sums, then c column sums; one of them is redundant."""
    ones = torch.ones
    rows = torch.kron(torch.eye(r, dtype=F64), ones(1, c, dtype=F64))
    return torch.cat([rows, torch.kron(ones(1, r, dtype=F64), torch.eye(c, dtype=F64))])


def entropic(
    kind: str, n: int = 16, batch: int = 4, scale: float = 1.0, curvature: str = "none", seed: int = 0
) -> dict[str, Any]:
    """Arguments of solve_qp; costs have the size `scale`, the entropy lies between 1/2 and 3/2 for each variable."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=F64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source, dtype=F64)

    inside = torch.softmax(normal(batch, n), -1)
    one = torch.ones(1, n, dtype=F64)
    given: dict[str, Any] = {"P": None, "q": scale * normal(batch, n), "entropy": 0.5 + uniform(batch, n)}
    if kind not in ("cap alone", "transport"):
        given.update(A=one, b=one[:, 0])
    if kind in ("cap", "cap alone"):
        given["ub"] = (2 + 2 * uniform(batch, n)) / n
    elif kind == "tight cap":
        caps = 0.5 + uniform(batch, n)
        given["ub"] = 1.001 * caps / caps.sum(-1, keepdim=True)
    elif kind == "group":
        G = torch.zeros(4, n, dtype=F64)
        for i in range(4):
            G[i, i::4] = 1
        given.update(G=G, h=torch.full((4,), 0.3, dtype=F64))
    elif kind == "transport":
        r = round(n**0.5)
        given.update(A=transport(r, r), b=torch.softmax(normal(batch, 2, r), -1).flatten(1))
    elif kind == "floor":
        given["lb"] = inside / 3
    if kind.startswith("moment"):
        A = torch.cat([one.expand(batch, 1, n), normal(batch, 2, n)], 1)
        given.update(A=A, b=(A @ inside.unsqueeze(-1)).squeeze(-1))
    if kind.endswith("rows"):
        G = normal(batch, 5, n)
        given.update(G=G, h=(G @ inside.unsqueeze(-1)).squeeze(-1) + 0.01 * uniform(batch, 5))
    if curvature == "diagonal":
        given["P"] = scale * uniform(batch, 1, n)
    elif curvature == "full":
        L = normal(batch, n, n)
        given["P"] = scale * L @ L.mT / n
    return given
