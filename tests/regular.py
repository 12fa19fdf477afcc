# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs whose solution is known and smooth: made backwards, from the solution to the data.

A point x, multipliers and an active set are drawn first; the data are then chosen so that the optimality conditions
hold.  Every active constraint has a multiplier of at least 0.5 and every inactive one a slack of at least 0.5, so that
finite differences with small steps never meet a change of the active set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from optlayer.derivative import Options, solve
from optlayer.settings import DEFAULT_EPS

OPTIONS = Options(eps_abs=1e-9, eps_rel=1e-9, max_iter=200, backend="auto", formulation="auto", on_failure="nan")


class Program(NamedTuple):
    P: Tensor
    q: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor
    lb: Tensor
    ub: Tensor


class Known(NamedTuple):
    x: Tensor
    y: Tensor
    z: Tensor
    z_box: Tensor
    s: Tensor


def regular(
    *batch: int, n: int = 5, m: int = 3, p: int = 1, seed: int = 0, shared: Sequence[str] = ()
) -> tuple[Program, Known]:
    """A random program with n >= 4 variables: row 0 of G, the lower bound of x_0 and the upper bound of x_1 are active.

    The bounds of x_2 are infinite.  With p = 1 there are at least as many variables as active constraints.  Those of P,
    G and A that are named in `shared` have no batch dimensions.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn((*batch, *shape), dtype=torch.float64, generator=random)

    def positive(*shape: int) -> Tensor:
        return 0.5 + torch.rand((*batch, *shape), dtype=torch.float64, generator=random)

    L, G, A, x, y = normal(n, n), normal(m, n), normal(p, n), normal(n), normal(p)
    P = L @ L.mT / n + torch.eye(n, dtype=torch.float64)
    first = (0,) * len(batch)
    P, G, A = (t[first] if name in shared else t for name, t in (("P", P), ("G", G), ("A", A)))
    active = torch.arange(m) < 1
    z, s = positive(m) * active, positive(m) * ~active
    z_box, lb, ub = torch.zeros_like(x), x - positive(n), x + positive(n)
    lb[..., 0], z_box[..., 0] = x[..., 0], -positive()
    ub[..., 1], z_box[..., 1] = x[..., 1], positive()
    lb[..., 2], ub[..., 2] = -torch.inf, torch.inf

    def times(M: Tensor, v: Tensor) -> Tensor:
        return (M @ v.unsqueeze(-1)).squeeze(-1)

    q = -(times(P, x) + times(G.mT, z) + times(A.mT, y) + z_box)
    return Program(P, q, G, times(G, x) + s, A, times(A, x), lb, ub), Known(x, y, z, z_box, s)


def outputs(*program: Tensor | None) -> tuple[Tensor, ...]:
    """The differentiable outputs x, y, z, z_box, s as a function of the eight blocks of data."""
    eps = DEFAULT_EPS[torch.promote_types(program[1].dtype, torch.float32)]
    return solve(*program, None, OPTIONS._replace(eps_abs=eps, eps_rel=eps))[:5]


def loss(*program: Tensor | None) -> Tensor:
    """A function of all outputs whose gradients and curvature are nowhere zero."""
    return sum((t * t * t / 3 + t).sum() for t in outputs(*program))


def tracked(program: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the data that require gradients."""
    return [t.detach().clone().requires_grad_() for t in program]


def close(a: object, b: object, atol: float = 1e-9, rtol: float = 1e-6) -> None:
    """All tensors in a equal those in b; the tolerance is far below any error in a formula, far above rounding."""
    left, right = tree_leaves(a), tree_leaves(b)
    assert len(left) == len(right)
    for u, v in zip(left, right, strict=True):
        torch.testing.assert_close(u, v, atol=atol, rtol=rtol)
