# SPDX-License-Identifier: Apache-2.0
"""The derivative of an entropic program: the rule of ``optlayer.derivative`` with P + diag(tau / x) in place of P.

At a solution w = (x, y, z, z_box), stationarity Px + q + tau (log x + 1) + A'y + G'z + z_box = 0 gives

    tangent      K dw = dr - dK w,     dr = (-dq - (log x + 1) dtau, db, dh, dbounds)
    cotangent    K u = w_bar,          r_bar = u,  P_bar, G_bar, A_bar = -u w',  tau_bar = -(log x + 1) u_x

where -dK w and -u w' are the `push` and `pull` of the quadratic program.  Two things are new.

The entropy's part of K varies: with e = tau / x, K holds diag(e) and its derivative is diag(e dlog e).  A solve with K
returns t = e u_x as well, the entropy's part of the force, which is finite where x underflows:

    push:  -t dlog e on the first row of the right-hand side,      pull:  -u_x t on log e

and log e = log tau - log x, where log x is an output of the program, with  tau dlog x = t  in a tangent.  So u, t and
log x close among each other, at every order, without a 1 / x.

A cotangent g on t goes in by t = r_x - P u_x - A'u_y - G'u_z - u_box, that is as K u = w_bar - (P, A, G, I) g with
r_x_bar = u_x + g.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.autograd import Function

from ... import ops
from ...derivative.linear import failed_elements
from ...derivative.tracing import (
    Zeros,
    apply,
    autocast_on,
    below_autograd,
    forward_mode,
    full_precision,
    in_graph,
    primals,
    recording,
    refuse_tangents,
    save,
)
from ...derivative.variation import add, matvec, pull, push, summed
from ...problem import CORES
from ...residuals import curvature
from . import operators
from .standard import QP_CORES

PARAMETERS = tuple(CORES)


class Options(NamedTuple):
    """How to solve, as the plain values that the operator takes."""

    eps_abs: float
    eps_rel: float
    max_iter: int
    backend: str
    on_failure: str
    keep_factor: bool = True  # where something differentiates; else nothing is kept


class Raw(NamedTuple):
    """The outputs of the operator ``optlayer::entropic_qp``; the first six are differentiable."""

    x: Tensor
    y: Tensor
    z: Tensor
    z_box: Tensor
    s: Tensor
    log_x: Tensor
    status: Tensor
    iterations: Tensor
    weakly_active: Tensor
    lower_share: Tensor
    ray_y: Tensor
    ray_z: Tensor
    ray_box: Tensor
    state: Tensor
    factor: Tensor


class System(NamedTuple):
    """K at a solution: the matrices, log e (*batch, n), and what the operator left."""

    P: Tensor | None
    G: Tensor | None
    A: Tensor | None
    log_e: Tensor
    state: Tensor
    factor: Tensor
    status: Tensor


Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _adjoint(
    system: System, cotangents: Sequence[Tensor | None], zeros: Zeros, backend: str
) -> tuple[Five, Tensor | None]:
    """(u_x, u_y, u_z, u_box, t) for the cotangents of (x, y, z, z_box, t), and what u_x lacks of r_x_bar: that of t."""
    gx, gy, gz, g_box, gt = cotangents
    if gt is not None:
        failed = failed_elements(system.status)
        # a failed element must see its cotangent, but not its product with data that may hold NaN
        gx = add(gx, torch.where(failed, gt.abs(), 0))
        g = torch.where(failed, 0, gt)
        g_box = add(g_box, -g)
        P, G, A = system[:3]
        gx = add(gx, None if P is None else -torch.where(failed, 0, curvature(P, g)))
        gy = add(gy, None if A is None else -torch.where(failed, 0, matvec(A, g)))
        gz = add(gz, None if G is None else -torch.where(failed, 0, matvec(G, g)))
    return linear(*system, *zeros.fill((gx, gy, gz, g_box)), backend), gt


def _push(
    system: System, w: Sequence[Tensor], t: Tensor, changes: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """-dK w for changes of P, G, A and log e, of which t is the part e w_x of K w."""
    dP, dG, dA, dlog_e = changes
    x, y, z = w
    rx, ry, rz = push((x, y, z), None, dG, dA)
    rx = add(rx, None if dP is None else -curvature(dP, x))
    return add(rx, None if dlog_e is None else -t * dlog_e), ry, rz


def _pull(
    w: Sequence[Tensor | None], u: Sequence[Tensor], shapes: Sequence[Size | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """-u w' on P, G and A; of a diagonal P on its diagonal."""
    shape, (x, ux) = shapes[0], (w[0], u[0])
    diagonal = shape is not None and shape[-2] != shape[-1]
    gradients = pull(w, (u[0], u[1], u[2]), shapes, (wanted[0] and not diagonal, *wanted[1:]))
    if wanted[0] and diagonal and x is not None and shape is not None:
        gradients[0] = (-ux * x).unsqueeze(-2).sum_to_size(shape)
    return gradients


class Linear(Function):
    """The operator ``optlayer::entropic_kkt_solve`` with its derivative, in P, G, A, log e and the right-hand sides."""

    @staticmethod
    def forward(*args: Any) -> Any:
        P, G, A, _, state, factor, _, *rest = args
        with below_autograd(), full_precision(state.device.type):
            return operators.entropic_kkt_solve(P, G, A, state, factor, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        system, r, ctx.backend = System(*inputs[:7]), inputs[7:11], inputs[11]
        ctx.shapes = [None if t is None else t.shape for t in (*system[:4], *r)]
        ctx.zeros = Zeros([t.shape[-1] for t in r], r[0].dtype, r[0].device)
        save(ctx, [True] * 11, *system, *output[:3], output[4])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        *system, wx, wy, wz, t = ctx.saved_tensors
        system, wants = System(*system), ctx.needs_input_grad
        with full_precision(ctx.zeros.device.type):
            (ux, uy, uz, u_box, _), direct = _adjoint(system, cotangents, ctx.zeros, ctx.backend)
            quiet = failed_elements(system.status) & (wx == 0).all(-1, keepdim=True)
            held = [torch.where(quiet, 0, part) for part in (ux, uy, uz)]
            dlog_e = summed(-held[0] * t, ctx.shapes[3], wants[3])
            ux = ux if direct is None else ux + direct
            held[0] = torch.where(quiet, 0, ux)
            matrices = _pull((wx, wy, wz), held, ctx.shapes[:3], wants[:3])
            rest = zip((ux, uy, uz, u_box), ctx.shapes[4:], wants[7:11], strict=True)
            return *matrices, dlog_e, None, None, None, *(summed(part, shape, want) for part, shape, want in rest), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *system, wx, wy, wz, t = primals(ctx)
        with full_precision(ctx.zeros.device.type), forward_mode():
            pushed = _push(System(*system), (wx, wy, wz), t, tangents[:4])
            r = [add(a, b) for a, b in zip((*pushed, None), tangents[7:11], strict=True)]
            return linear(*system, *ctx.zeros.fill(r), ctx.backend)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return ops.map_batch(linear, (2, 2, 2, 1, 1, 1, 0, 1, 1, 1, 1), in_dims, args)


@in_graph
def linear(*args: Any) -> Five:
    """(u_x, u_y, u_z, u_box, t) with K u = r and t = diag(e) u_x, differentiable in P, G, A, log e and r.

    Args: the fields of a `System`, then r_x (*batch, n), r_y (*batch, p), r_z (*batch, m), r_box (*batch, n), which
        broadcast among each other and against the batch, then the backend.
    """
    recorded = torch.compiler.is_compiling() or recording((*args[:4], *args[7:11]))
    u: Five = apply(Linear, *args) if recorded else Linear.forward(*args)
    return u


class Program(Function):
    """The operator ``optlayer::entropic_qp`` with its derivative."""

    @staticmethod
    def forward(*args: Any) -> Any:
        with below_autograd(), full_precision(args[1].device.type):
            return operators.entropic_qp(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raw, (P, q, G, _, A, *_), tau = Raw(*output), inputs[:8], inputs[8]
        ctx.mark_non_differentiable(*output[6:])
        ctx.backend = inputs[12]
        ctx.shapes = [None if t is None else t.shape for t in inputs[:9]]
        ctx.zeros = Zeros([raw.x.shape[-1], raw.y.shape[-1], raw.z.shape[-1], raw.x.shape[-1]], q.dtype, q.device)
        kept = (raw.state, raw.factor, raw.status, raw.x, raw.y, raw.z, raw.s, raw.log_x, raw.lower_share)
        save(ctx, [True] * 13, P, G, A, tau, *kept)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        P, G, A, tau, state, factor, status, x, y, z, s, log_x, lower_share = ctx.saved_tensors
        wants = ctx.needs_input_grad
        with full_precision(ctx.zeros.device.type):
            raw = (x, y, z, s, log_x, lower_share)
            gradients = _gradients(P, G, A, tau, (state, factor, status), raw, cotangents[:6], ctx.zeros, ctx.backend)
            w, u, vectors = gradients
            dP, dG, dA = _pull(w, u, (ctx.shapes[0], ctx.shapes[2], ctx.shapes[4]), (wants[0], wants[2], wants[4]))
            named: list[Any] = [dP, vectors[0], dG, vectors[1], dA, *vectors[2:]]
            for i in (1, 3, 5, 6, 7, 8):
                named[i] = summed(named[i], ctx.shapes[i], wants[i])
            return *named, *(None,) * (len(wants) - 9)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        P, G, A, tau, state, factor, status, x, y, z, s, log_x, lower_share = primals(ctx)
        dP, dq, dG, dh, dA, db, dlb, dub, dtau = tangents[:9]
        with full_precision(ctx.zeros.device.type), forward_mode():
            failed = failed_elements(status)
            x, y, z = (torch.where(failed, 0, part) for part in (x, y, z))
            system = System(P, G, A, log_e(tau, log_x, status), state, factor, status)
            rx, ry, rz = _push(system, (x, y, z), x, (dP, dG, dA, None))
            rx = add(rx, None if dq is None else -dq)
            rx = add(rx, None if dtau is None else -_slope(log_x, failed) * dtau)
            r_box = add(
                None if dlb is None else lower_share * dlb,
                None if dub is None else (1 - lower_share) * dub,
            )
            r = ctx.zeros.fill((rx, add(ry, db), add(rz, dh), r_box))
            dx, dy, dz, dz_box, t = linear(*system, *r, ctx.backend)
            ds = dz
            if G is not None:
                ds = torch.where(failed, dz, r[2] - matvec(G, torch.where(failed, 0, dx)))
                ds = torch.where(torch.isinf(s), 0, ds)
            return dx, dy, dz, dz_box, ds, t / torch.where(failed, 1, tau), *(None,) * 9

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return ops.map_batch(Program.apply, QP_CORES, in_dims, args)


def _slope(log_x: Tensor, failed: Tensor) -> Tensor:
    """log x + 1, the derivative of x log x; zero where there is no solution, or no logarithm."""
    return torch.where(failed | (log_x == -torch.inf), 0, log_x + 1)


def log_e(tau: Any, log_x: Any, status: Tensor) -> Tensor:
    """log(tau / x), zero for elements that failed."""
    failed = failed_elements(status)
    log_tau: Tensor = torch.where(failed, 1, tau).log()
    return torch.where(failed, 0, log_tau - log_x)


def _gradients(
    P: Tensor | None,
    G: Tensor | None,
    A: Tensor | None,
    tau: Tensor,
    kept: tuple[Tensor, Tensor, Tensor],
    raw: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    cotangents: Sequence[Tensor | None],
    zeros: Zeros,
    backend: str,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """w and u for the `pull` on the matrices, and the cotangents of q, h, b, lb, ub and tau, element by element."""
    x, y, z, s, log_x, lower_share = raw
    gx, gy, gz, g_box, gs, gl = cotangents
    state, factor, status = kept
    failed = failed_elements(status)
    system = System(P, G, A, log_e(tau, log_x, status), state, factor, status)
    if gs is not None and G is not None:
        gz = torch.where(failed, gs.abs() if gz is None else gz.abs() + gs.abs(), 0 if gz is None else gz)
        gs = torch.where(failed | torch.isinf(s), 0, gs)
        gx = add(gx, -torch.where(failed, 0, matvec(G.mT, gs)))
    gt = None if gl is None else torch.where(log_x == -torch.inf, 0, gl) / torch.where(failed, 1, tau)
    (ux, uy, uz, u_box, _), direct = _adjoint(system, (gx, gy, gz, g_box, gt), zeros, backend)
    ux = ux if direct is None else ux + torch.where(failed, 0, direct)
    uz = uz if gs is None else uz + gs
    w = tuple(torch.where(failed, 0, part) for part in (x, y, z))
    vectors = (-ux, uz, uy, lower_share * u_box, (1 - lower_share) * u_box, -_slope(log_x, failed) * ux)
    # a failed element's slope is zero; its gradient is NaN all the same, unless its cotangents are zero
    vectors = (*vectors[:5], torch.where(failed, -ux, vectors[5]))
    return w, (ux, uy, uz), vectors


@in_graph
def _tracked_solve(*args: Any) -> tuple[Tensor, ...]:
    """`Program`, written into a compiled graph as one call: Dynamo refuses to look into a Function that has a jvp."""
    tensors = args[:9]
    if autocast_on(args[1].device.type):  # half precision is solved in float32, as torch.linalg does
        half = torch.float16, torch.bfloat16
        tensors = tuple(t.float() if t is not None and t.dtype in half else t for t in tensors)
    out: tuple[Tensor, ...] = apply(Program, *tensors, *args[9:-1], args[-1] and recording(tensors))
    return out


def solve(*args: Any) -> Raw:
    """Solve a batch of entropic programs; x, y, z, z_box, s and log x are differentiable in the nine tensors.

    Args: P, q, G, h, A, b, lb, ub, tau, of the operator's shapes and taken to be valid, then the fields of `Options`.
    """
    tensors = args[:9]
    if torch.compiler.is_compiling() or recording(tensors) or autocast_on(args[1].device.type):
        return Raw(*_tracked_solve(*args))
    with below_autograd():
        return Raw(*operators.entropic_qp(*args[:-1], False))


def adjoint(
    tensors: Sequence[Any],
    raw: Sequence[Tensor],
    kept: tuple[Tensor, Tensor, Tensor],
    cotangents: Sequence[Tensor | None],
    wanted: Collection[str],
    backend: str,
) -> dict[str, Tensor]:
    """The gradients of each element of the batch by itself, also in arguments that the batch shares.

    Args: the nine tensors; (x, y, z, s, log_x, lower_share); (state, factor, status); the cotangents of x, y, z, z_box,
        s and log x, each with any leading dimensions added, all to be solved at once; names of arguments.
    Returns: for each wanted argument that is not None its gradient, (*leading, *batch, ...), not summed over the batch.
    """
    P, q, G, _, A, _, _, _, tau = tensors
    given = dict(zip(PARAMETERS, tensors, strict=True))
    names = [name for name in PARAMETERS if name in wanted and given[name] is not None]
    x, y, z, s, log_x, lower_share = raw
    zeros = Zeros([t.shape[-1] for t in (x, y, z, x)], q.dtype, q.device)
    with full_precision(q.device.type):
        parts = (x, y, z, s, log_x, lower_share)
        w, u, (dq, dh, db, dlb, dub, dtau) = _gradients(P, G, A, tau, kept, parts, cotangents, zeros, backend)
        batch = u[0].shape[:-1]
        w = tuple(t.expand(*batch, t.shape[-1]) for t in w)
        n = x.shape[-1]
        shapes = [Size((*batch, n if P is None else P.shape[-2], n)), *(Size((*batch, t.shape[-1], n)) for t in (z, y))]
        dP, dG, dA = _pull(w, u, shapes, [name in names for name in ("P", "G", "A")])
        dtau = dtau if tau.shape[-1] == n else dtau.sum(-1, keepdim=True)
    gradients = (dP, dq, dG, dh, dA, db, dlb, dub, dtau)
    return {name: t for name, t in zip(PARAMETERS, gradients, strict=True) if name in names and t is not None}


def _bare_qp(*args: Any) -> Any:
    refuse_tangents(args)
    return apply(Program, *args) if recording(args[:9]) else Program.forward(*args)


def _bare_kkt_solve(P: Any, G: Any, A: Any, state: Tensor, factor: Tensor, *rest: Any) -> Any:
    refuse_tangents((P, G, A, *rest[:-1]))
    if recording((P, G, A, *rest[:-1])):
        raise NotImplementedError("optlayer::entropic_kkt_solve has a derivative in optlayer only, not as an operator")
    return Linear.forward(P, G, A, None, state, factor, None, *rest)


# Exported and compiled graphs call the operator itself; there too it has its derivative, or refuses.
operators.library.impl("entropic_qp", _bare_qp, "Autograd")
operators.library.impl("entropic_kkt_solve", _bare_kkt_solve, "Autograd")
