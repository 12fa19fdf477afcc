# SPDX-License-Identifier: Apache-2.0
"""Linear systems with the KKT matrix of a solution, differentiable at every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..status import Status
from .tracing import (
    Zeros,
    apply,
    forward_mode,
    full_precision,
    in_graph,
    primals,
    recording,
    refuse_tangents,
    run,
    save,
)
from .variation import add, pull, push, summed


def failed_elements(status: Tensor) -> Tensor:
    """Where the batch holds elements without a solution, (*batch, 1)."""
    return (status != int(Status.SOLVED)).unsqueeze(-1)


class Linear(Function):
    """The operator ``optlayer::kkt_solve`` with its derivative, in P, G, A and the four right-hand sides.

    Arguments are those of the operator with `status` (or None) after `index`.
    """

    @staticmethod
    def forward(*args: Any) -> Any:
        return run("kkt_solve", (*args[:6], *args[7:11]), args[11])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        system, r = inputs[:7], inputs[7:11]
        ctx.shapes = [None if t is None else t.shape for t in (*system[:3], *r)]
        ctx.backend = inputs[11]
        ctx.zeros = Zeros([t.shape[-1] for t in r], r[0].dtype, r[0].device)
        wants_P, wants_G, wants_A = ctx.needs_input_grad[:3]
        save(ctx, [True] * 7 + [wants_P or wants_G or wants_A, wants_A, wants_G], *system, *output[:3])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        *system, wx, wy, wz = ctx.saved_tensors
        wants, status = ctx.needs_input_grad, system[6]
        with full_precision(ctx.zeros.device.type):
            u = linear(*(*system, *ctx.zeros.fill(cotangents), ctx.backend))
            matrices: list[Tensor | None] = [None, None, None]
            if any(wants[:3]):
                ux, uy, uz = u[:3]
                if status is not None:  # a failed element whose w was zero takes no part, even if u is NaN there
                    quiet = failed_elements(status) & (wx == 0).all(-1, keepdim=True)
                    ux, uy, uz = (torch.where(quiet, 0, t) for t in (ux, uy, uz))
                matrices = pull((wx, wy, wz), (ux, uy, uz), ctx.shapes[:3], wants[:3])
            vectors = (summed(t, shape, want) for t, shape, want in zip(u, ctx.shapes[3:], wants[7:11], strict=True))
            return *matrices, None, None, None, None, *vectors, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *system, wx, wy, wz = primals(ctx)
        with full_precision(ctx.zeros.device.type), forward_mode():
            pushed = (*push((wx, wy, wz), *tangents[:3]), None)
            r = ctx.zeros.fill([add(a, b) for a, b in zip(pushed, tangents[7:11], strict=True)])
            return linear(*(*system, *r, ctx.backend))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return ops.map_batch(linear, (2, 2, 2, 1, 1, 1, 0, 1, 1, 1, 1), in_dims, args)


@in_graph
def linear(
    P: Tensor | None,
    G: Tensor | None,
    A: Tensor | None,
    state: Tensor,
    factor: Tensor,
    index: Tensor,
    status: Tensor | None,
    rx: Tensor,
    ry: Tensor,
    rz: Tensor,
    r_box: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u = K^-1 r at a solution, differentiable in P, G, A and r.

    Args: P, G, A as given to `solve`; state, factor, index, status from its `Raw`; r_x (*batch, n), r_y (*batch, p),
        r_z (*batch, m), r_box (*batch, n), which broadcast among each other and against the batch.
    Returns: u_x, u_y, u_z, u_box, each over the full broadcast batch; zero on inactive rows and bounds.
    """
    args = P, G, A, state, factor, index, status, rx, ry, rz, r_box, backend
    recorded = torch.compiler.is_compiling() or recording((P, G, A, rx, ry, rz, r_box))
    u: tuple[Tensor, Tensor, Tensor, Tensor] = apply(Linear, *args) if recorded else Linear.forward(*args)
    return u


def _bare_kkt_solve(*args: Any) -> Any:
    refuse_tangents(args)
    return apply(Linear, *args[:6], None, *args[6:])


# Exported and compiled graphs call the operator itself; there too it has its derivative.
ops.library.impl("kkt_solve", _bare_kkt_solve, "Autograd")
