# SPDX-License-Identifier: Apache-2.0
"""Entropic programs of every kind of constraint, feasible by construction, at any scale of the costs; and their
optimality conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optlayer import Solution

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


def at_scales(kind: str, scales: Sequence[float], curvature: str = "none", batch: int = 4) -> dict[str, Any]:
    """The same program at each of the scales, one after the other in one batch."""
    each = [entropic(kind, batch=batch, scale=scale, curvature=curvature) for scale in scales]
    core = {"P": 2, "G": 2, "A": 2}
    return {
        name: t if t is None or t.ndim == core.get(name, 1) else torch.cat([given[name] for given in each])
        for name, t in each[0].items()
    }


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def simplex(n: int, k: float = 1.0) -> dict[str, Tensor]:
    return {"A": torch.ones(1, n, dtype=F64), "b": torch.full((1,), k, dtype=F64)}


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-13, rtol: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def symmetric_product(P: Tensor | None, x: Tensor) -> Tensor:
    if P is None:
        return torch.zeros_like(x)
    return P.squeeze(-2) * x if P.shape[-2] == 1 else (P @ x.unsqueeze(-1)).squeeze(-1)


def largest(v: Tensor) -> float:
    return float(v.abs().max()) if v.numel() else 0.0


def assert_kkt(solution: Solution, given: dict[str, Any]) -> None:
    """The optimality conditions, written out once more, to the rounding of the forces that balance.

    The bar 1e-12 is 5000 roundings; forces are as large as the costs, x is at most about 1.
    """
    x, y, z, z_box = (t.detach() for t in (solution.x, solution.y, solution.z, solution.z_box))
    log_x = solution.log_x.detach()
    force = symmetric_product(given["P"], x) + given["q"] + z_box
    size = 1 + largest(given["q"]) + largest(z_box) + largest(force)
    if "A" in given:
        force = force + y @ given["A"] if given["A"].dim() == 2 else force + (y.unsqueeze(-2) @ given["A"]).squeeze(-2)
        assert largest((given["A"] @ x.unsqueeze(-1)).squeeze(-1) - given["b"]) <= 1e-12
        size += largest(y)
    if "G" in given:
        G, h = given["G"], given["h"]
        force = force + (z @ G if G.dim() == 2 else (z.unsqueeze(-2) @ G).squeeze(-2))
        slack = h - (G @ x.unsqueeze(-1)).squeeze(-1)
        assert_close(solution.s, slack)
        assert (slack >= -1e-12).all() and (z >= 0).all() and largest(z * slack) <= 1e-12 * size
        size += largest(z)
    assert largest(force + given["entropy"] * (log_x + 1)) <= 1e-12 * size
    assert largest(x - log_x.exp()) <= 1e-12
    upper, lower = z_box.clamp(min=0), -z_box.clamp(max=0)
    if "ub" in given:
        assert (x <= given["ub"] + 1e-12).all()
        assert largest(upper * (given["ub"] - x)) <= 1e-12 * size
    else:
        assert not upper.any()
    if "lb" in given:
        assert (x >= given["lb"] - 1e-12).all()
        assert largest(lower * (x - given["lb"])) <= 1e-12 * size
    else:
        assert not lower.any()


def sorted_softmax(theta: Tensor, upper: Tensor) -> Tensor:
    """Softmax with caps by definition: the k largest theta - log u are at their caps, for the right k."""
    order = (theta - upper.log()).argsort(descending=True)
    t, u = theta[order], upper[order]
    for k in range(len(t)):
        room = 1 - u[:k].sum()
        rest = room * torch.softmax(t[k:], -1)
        if (rest <= u[k:]).all():
            return torch.cat([u[:k], rest])[order.argsort()]
    raise AssertionError("the caps sum to less than one")
