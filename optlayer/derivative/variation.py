# SPDX-License-Identifier: Apache-2.0
"""How the KKT matrix K varies: -dK w for a tangent, -u w' for a cotangent, over a batch.

    K = [ P  A'  G'  I ;  A  0  0  0 ;  G  0  -D  0 ;  I  0  0  -D_box ],      w = (x, y, z, z_box)

Only P (through its symmetric part), G and A vary; the weights D are constants.  `push` and `pull` are each other's
transpose, and they are all the mathematics that ``optlayer.derivative`` needs at any order.
"""

from __future__ import annotations

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
    if wanted[0] and shapes[0] is not None and x is not None:
        gradients[0] = outer([(ux, x / -2), (x, ux / -2)], shapes[0])
    if wanted[1] and shapes[1] is not None and x is not None and z is not None:
        gradients[1] = outer([(-z, ux), (-uz, x)], shapes[1])
    if wanted[2] and shapes[2] is not None and x is not None and y is not None:
        gradients[2] = outer([(-y, ux), (-uy, x)], shapes[2])
    return gradients


def matvec(M: Tensor, v: Tensor) -> Tensor:
    """M v; one matrix product when the batch shares M, so that no copy of M per element is formed."""
    if all(size == 1 for size in M.shape[:-2]):
        return v @ M.reshape(M.shape[-2:]).mT
    return (M @ v.unsqueeze(-1)).squeeze(-1)


def outer(pairs: Sequence[tuple[Tensor, Tensor]], shape: Size) -> Tensor:
    """The sum of a b' over the pairs (a, b) and over every batch dimension that `shape` shares, as one matrix product.

    The pairs are stacked along the dimension that the product sums over, and the shared batch dimensions are moved next
    to it: for a shared P the gradient is X'U + U'X at once, and no per-element matrix is formed.
    """
    rows = torch.stack([a for a, _ in pairs], -2)  # (*batch, pairs, rows)
    cols = torch.stack([b for _, b in pairs], -2)  # (*batch, pairs, columns)
    batch = rows.dim() - 2
    lead = (1,) * (batch + 2 - len(shape)) + tuple(shape[:-2])
    shared = [i for i in range(batch) if lead[i] == 1 and rows.shape[i] != 1]
    if shared:
        kept = [i for i in range(batch) if i not in shared]
        order, sizes = (*kept, *shared, batch, batch + 1), [rows.shape[i] for i in kept]
        terms = 1
        for i in (*shared, batch):
            terms = terms * rows.shape[i]
        rows = rows.permute(order).reshape(*sizes, terms, rows.shape[-1])
        cols = cols.permute(order).reshape(*sizes, terms, cols.shape[-1])
    return (rows.mT @ cols).reshape(shape)


def summed(t: Tensor, shape: Size | None, wanted: bool) -> Tensor | None:
    """A cotangent summed over the batch dimensions along which an argument of this shape is shared."""
    if not wanted or shape is None:
        return None
    return t if t.shape == shape else t.sum_to_size(shape)


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None stands for zero."""
    return b if a is None else a if b is None else a + b
