# SPDX-License-Identifier: Apache-2.0
"""The quadratic program as a differentiable function of its data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.autograd import Function

from .. import ops
from ..solvers import choose
from .linear import failed_elements, linear
from .tracing import (
    Zeros,
    apply,
    autocast_on,
    forward_mode,
    full_precision,
    in_graph,
    primals,
    recording,
    refuse_tangents,
    run,
    save,
    unwatched,
)
from .variation import Triple, add, matvec, pull, push, summed

PARAMETERS = ("P", "q", "G", "h", "A", "b", "lb", "ub")


class Options(NamedTuple):
    """How to solve, as the plain values that the operator ``optlayer::qp`` takes."""

    eps_abs: float
    eps_rel: float
    max_iter: int
    backend: str
    formulation: str
    on_failure: str
    keep_factor: bool = True  # where something differentiates; else nothing is kept


class Raw(NamedTuple):
    """The outputs of the operator ``optlayer::qp``; the first five are differentiable, the others are constants."""

    x: Tensor
    y: Tensor
    z: Tensor
    z_box: Tensor
    s: Tensor
    status: Tensor
    iterations: Tensor
    weakly_active: Tensor
    lower_share: Tensor
    ray: Tensor
    state: Tensor
    factor: Tensor
    index: Tensor  # type: ignore[assignment]


def _adjoint_solve(
    system: Sequence[Any], s: Tensor, cotangents: Sequence[Tensor | None], zeros: Zeros
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cotangents (u_x, u_y, u_z, u_box) of (-q, b, h, bounds) for the cotangents of (x, y, z, z_box, s).

    K u = (g_x - G'g_s, g_y, g_z, g_box), then u_z + g_s, because s = h - Gx.
    """
    gx, gy, gz, g_box, gs = cotangents
    G, status = system[1], system[6]
    if gs is not None and G is not None:
        failed = failed_elements(status)
        # A failed element must see its cotangent, but not the product with a G that may hold NaN.
        gz = torch.where(failed, gs.abs() if gz is None else gz.abs() + gs.abs(), 0 if gz is None else gz)
        gs = torch.where(failed | torch.isinf(s), 0, gs)
        gx = add(gx, -torch.where(failed, 0, matvec(G.mT, gs)))
    ux, uy, uz, u_box = linear(*(*system[:7], *zeros.fill((gx, gy, gz, g_box)), system[7]))
    return ux, uy, uz if gs is None else uz + gs, u_box


def _pull(
    w: Sequence[Tensor | None],
    u: Triple,
    status: Tensor,
    shapes: Sequence[Size | None],
    wanted: Sequence[bool],
    backend: str,
) -> list[Tensor | None]:
    """`pull` at a solution, where failed elements take no part unless their u says so; by the engine if it can."""
    if unwatched((*w, *u), constant=True):
        gradients = choose.pull(w, u, shapes, wanted, backend)
        if gradients is not None:
            return gradients
    failed = failed_elements(status)
    return pull([None if t is None else torch.where(failed, 0, t) for t in w], u, shapes, wanted)


def _adjoint_solve_and_pull(
    system: Sequence[Any],
    s: Tensor,
    cotangents: Sequence[Tensor | None],
    zeros: Zeros,
    w: Sequence[Tensor | None],
    shapes: Sequence[Size | None],
    wanted: Sequence[bool],
) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
    """`_adjoint_solve` and then `_pull` where a gradient is wanted: one operator where s has no cotangent."""
    if not any(wanted):
        return _adjoint_solve(system, s, cotangents, zeros), (None, None, None)
    *arrays, status, backend = system
    if cotangents[4] is None:
        r = zeros.fill(cotangents[:4])
        if unwatched((*arrays, *r, *w), constant=True):
            found = choose.kkt_pull(arrays, r, w, shapes, wanted, backend)
            if found is not None:
                return found
    u = _adjoint_solve(system, s, cotangents, zeros)
    return u, _pull(w, u[:3], status, shapes, wanted, backend)


class Solution(Function):
    """The operator ``optlayer::qp`` with its derivative."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return run("qp", args[:12], *args[12:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raw, (P, q, G, _, A, *_) = Raw(*output), inputs[:8]
        ctx.mark_non_differentiable(*output[5:])
        ctx.shapes = [None if t is None else t.shape for t in inputs[:8]]
        ctx.backend = inputs[15]
        ctx.zeros = Zeros([raw.x.shape[-1], raw.y.shape[-1], raw.z.shape[-1], raw.x.shape[-1]], q.dtype, q.device)
        wants_P, _, wants_G, _, wants_A, _, *wants_bounds = ctx.needs_input_grad[:8]
        save(
            ctx,
            [True] * 7 + [wants_P or wants_G or wants_A, wants_A, wants_G, G is not None, any(wants_bounds)],
            *(P, G, A, raw.state, raw.factor, raw.index, raw.status, raw.x, raw.y, raw.z, raw.s, raw.lower_share),
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        *system, x, y, z, s, lower_share = ctx.saved_tensors  # read once: checkpointing insists
        P, q, G, h, A, b, lb, ub = ctx.shapes
        wants = ctx.needs_input_grad
        with full_precision(ctx.zeros.device.type):
            matrices = (wants[0], wants[2], wants[4])
            (ux, uy, uz, u_box), (dP, dG, dA) = _adjoint_solve_and_pull(
                [*system, ctx.backend], s, cotangents[:5], ctx.zeros, (x, y, z), (P, G, A), matrices
            )
            return (
                *(dP, summed(-ux, q, True) if wants[1] else None, dG, summed(uz, h, wants[3])),
                *(dA, summed(uy, b, wants[5])),
                summed(lower_share * u_box, lb, True) if wants[6] else None,
                summed((1 - lower_share) * u_box, ub, True) if wants[7] else None,
                *(None,) * (len(wants) - 8),
            )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        P, G, A, state, factor, index, status, x, y, z, s, lower_share = primals(ctx)
        dP, dq, dG, dh, dA, db, dlb, dub = tangents[:8]
        with full_precision(ctx.zeros.device.type), forward_mode():
            failed = failed_elements(status)
            x, y, z = (torch.where(failed, 0, t) for t in (x, y, z))
            rx, ry, rz = push((x, y, z), dP, dG, dA)
            rx = add(rx, None if dq is None else -dq)
            r_box = add(
                None if dlb is None else lower_share * dlb,
                None if dub is None else (1 - lower_share) * dub,
            )
            r = ctx.zeros.fill((rx, add(ry, db), add(rz, dh), r_box))
            dx, dy, dz, dz_box = linear(P, G, A, state, factor, index, status, *(*r, ctx.backend))
            ds = dz
            if G is not None:
                ds = torch.where(failed, dz, r[2] - matvec(G, torch.where(failed, 0, dx)))
                ds = torch.where(torch.isinf(s), 0, ds)
            return dx, dy, dz, dz_box, ds, *(None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return ops.map_batch(Solution.apply, ops.QP_CORES, in_dims, args)


@in_graph
def _tracked_solve(*args: Any) -> tuple[Tensor, ...]:
    """`Solution`, written into a compiled graph as one call.

    Dynamo refuses to look into a Function that has a jvp; behind this door it need not, while AOTAutograd and
    torch.func still trace the rule itself.
    """
    tensors = args[:12]
    if autocast_on(args[1].device.type):  # half precision is solved in float32, as torch.linalg does
        half = torch.float16, torch.bfloat16
        tensors = tuple(t.float() if t is not None and t.dtype in half else t for t in tensors)
    out: tuple[Tensor, ...] = apply(Solution, *tensors, *args[12:-1], args[-1] and recording(tensors[:8]))
    return out


def solve(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    warm: Sequence[Tensor | None] | None,
    options: Options,
) -> Raw:
    """Solve a batch of quadratic programs; x, y, z, z_box and s are differentiable in the eight tensors.

    Shapes are those of the operator ``optlayer::qp``, and the arguments are taken to be valid.  `warm` holds
    (x0, y0, z0, z_box0), which are constants: they receive no gradient.  The factorisation is kept only when something
    differentiates and the options say so.
    """
    tensors = (P, q, G, h, A, b, lb, ub)
    given = (*tensors, *(warm or (None, None, None, None)))
    if torch.compiler.is_compiling():
        return Raw(*_tracked_solve(*given, *options))
    if recording(tensors) or autocast_on(q.device.type):
        return Raw(*_tracked_solve(*given, *options))
    return Raw(*run("qp", given, *options[:-1], False))


def solve_at_once(tensors: Sequence[Any], options: Options) -> Sequence[Tensor] | None:
    """`solve` for a small problem, (P, q, G, h, A, b, lb, ub) as they came, without a look at their shapes or dtypes.

    Looking at them in Python takes as long as such a problem takes to solve; the compiled engine does it as well.

    Returns: None where it does not take them, and where anything but the engine would see the call.
    """
    if torch.compiler.is_compiling() or not unwatched(tensors, constant=True):
        return None
    return choose.qp_at_once(tensors, options[:-1])


def adjoint(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    raw: Raw,
    *,
    g_x: Tensor | None = None,
    g_y: Tensor | None = None,
    g_z: Tensor | None = None,
    g_box: Tensor | None = None,
    g_s: Tensor | None = None,
    wanted: Collection[str] = PARAMETERS,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """The gradients of each element of the batch by itself, also in arguments that the batch shares.

    Args: the arguments and the result of `solve`; the cotangents of x, y, z, z_box and s, each of the shape of its
        output with any leading dimensions added, all to be solved at once: `torch.eye` gives a Jacobian; `wanted`:
        names of arguments.
    Returns: for each wanted argument that is not None its gradient, (*leading, *batch, ...), not summed over the batch.
    """
    given = dict(zip(PARAMETERS, (P, q, G, h, A, b, lb, ub), strict=True))
    names = [name for name in PARAMETERS if name in wanted and given[name] is not None]
    zeros = Zeros([t.shape[-1] for t in (raw.x, raw.y, raw.z, raw.x)], q.dtype, q.device)
    cotangents = (g_x, g_y, g_z, g_box, g_s)
    with full_precision(q.device.type):
        system = (P, G, A, raw.state, raw.factor, raw.index, raw.status, backend)
        ux, uy, uz, u_box = _adjoint_solve(system, raw.s, cotangents, zeros)
        failed, batch = failed_elements(raw.status), ux.shape[:-1]
        x, y, z = (torch.where(failed, 0, t).expand(*batch, t.shape[-1]) for t in raw[:3])
        shapes = [Size((*batch, t.shape[-1], x.shape[-1])) for t in (x, z, y)]
        dP, dG, dA = pull((x, y, z), (ux, uy, uz), shapes, [name in names for name in ("P", "G", "A")])
        share = raw.lower_share
        gradients = (dP, -ux, dG, uz, dA, uy, share * u_box, (1 - share) * u_box)
    return {name: t for name, t in zip(PARAMETERS, gradients, strict=True) if name in names and t is not None}


def _bare_qp(*args: Any) -> Any:
    refuse_tangents(args)
    return apply(Solution, *args) if recording(args[:8]) else Solution.forward(*args)


# Exported and compiled graphs call the operator itself, and compiled kernels drop tangents without a word.  There too a
# derivative is right or refused, never zero.
ops.library.impl("qp", _bare_qp, "Autograd")
