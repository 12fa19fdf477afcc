# SPDX-License-Identifier: Apache-2.0
"""How the KKT matrix K varies: -dK w for a tangent, -u w' for a cotangent, over a batch.

    K = [ P  A'  G'  I ;  A  0  0  0 ;  G  0  -D  0 ;  I  0  0  -D_box ],      w = (x, y, z, z_box)

Only P (through its symmetric part), G and A vary; the weights D are constants.  `push` and `pull` are each other's
transpose, and they are all the mathematics that ``optlayer.derivative`` needs at any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor

Triple = tuple[Tensor, Tensor, Tensor]


def push(
    w: Triple, dP: Tensor | None, dG: Tensor | None, dA: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """-dK w, the right-hand side that a change of the matrices leaves behind; None stands for zero.

    Args: w = (x, y, z) of shapes (*batch, n), (*batch, p), (*batch, m); the changes have the shapes of P, G and A.
    Returns: r_x = -(dP + dP')/2 x - dA'y - dG'z,  r_y = -dA x,  r_z = -dG x.
    """
    x, y, z = w
    rx = ry = rz = None
    if dP is not None:
        rx = (matvec(dP, x) + matvec(dP.mT, x)) / -2
    if dG is not None:
        rx, rz = add(rx, -matvec(dG.mT, z)), -matvec(dG, x)
    if dA is not None:
        rx, ry = add(rx, -matvec(dA.mT, y)), -matvec(dA, x)
    return rx, ry, rz


def pull(
    w: Sequence[Tensor | None], u: Triple, shapes: Sequence[Size | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """-u w' on the entries P, G, A of K; None where no gradient is wanted.

    Args: w = (x, y, z), of which only what the wanted gradients need is read; u = (u_x, u_y, u_z), shaped like w.
    Returns: P_bar = -(u_x x' + x u_x')/2,  G_bar = -(z u_x' + u_z x'),  A_bar = -(y u_x' + u_y x'), each of the shape
        given in `shapes`, summed over the batch dimensions along which that shape is shared.
    """
    (x, y, z), (ux, uy, uz) = w, u
    gradients: list[Tensor | None] = [None, None, None]
    if x is None:
        return gradients
    columns = -torch.stack([ux, x], -2)  # the same for all three
    for i, (v, uv) in enumerate(((x, ux), (z, uz), (y, uy))):
        shape = shapes[i]
        if wanted[i] and shape is not None and v is not None:
            rows = torch.stack([v, uv], -2)
            gradients[i] = outer(rows / 2 if i == 0 else rows, columns, shape)
    return gradients


def matvec(M: Tensor, v: Tensor) -> Tensor:
    """M v; one matrix product when the batch shares M, so that no copy of M per element is formed."""
    if all(size == 1 for size in M.shape[:-2]):
        return v @ M.reshape(M.shape[-2:]).mT
    return (M @ v.unsqueeze(-1)).squeeze(-1)


def outer(rows: Tensor, columns: Tensor, shape: Size) -> Tensor:
    """rows' columns, (*batch, k, a) and (*batch, k, b) to (*batch, a, b), summed where `shape` is shared.

    One matrix product: the shared dimensions are moved next to the k that the product sums over.  For a shared P the
    gradient is X'U + U'X at once, and no matrix per element is formed.
    """
    batch = rows.dim() - 2
    lead = (1,) * (batch + 2 - len(shape)) + tuple(shape[:-2])
    shared = [i for i in range(batch) if lead[i] == 1 and rows.shape[i] != 1]
    if shared:
        kept = [i for i in range(batch) if i not in shared]
        order, sizes = (*kept, *shared, batch, batch + 1), [rows.shape[i] for i in kept]
        terms = math.prod(rows.shape[i] for i in (*shared, batch))
        rows = rows.permute(order).reshape(*sizes, terms, rows.shape[-1])
        columns = columns.permute(order).reshape(*sizes, terms, columns.shape[-1])
    return (rows.mT @ columns).reshape(shape)


def summed(t: Tensor, shape: Size | None, wanted: bool) -> Tensor | None:
    """A cotangent summed over the batch dimensions along which an argument of this shape is shared."""
    if not wanted or shape is None:
        return None
    return t if t.shape == shape else t.sum_to_size(shape)


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None stands for zero."""
    return b if a is None else a if b is None else a + b
