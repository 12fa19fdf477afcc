# SPDX-License-Identifier: Apache-2.0
"""The derivative of the softmax problem, from its KKT system, at every order.

At the solution, with tau for the temperature,

    -theta + tau (log x + 1) + y + z = 0,      sum x = 1,      x = upper where z > 0,

and differentiating gives one symmetric system for tangents and cotangents, K (u_x, u_y, u_z) = (r_x, r_y, r_z) with

    K = [ tau diag(1/x)  1   I ;       tangent    r = (dtheta - (log x + 1) dtau, 0, dupper)
          1'             0   0 ;       cotangent  theta: u_x,  tau: -(log x + 1)'u_x,  upper: u_z
          I              0  -D ].

Let f be the share of each variable that its cap leaves free: 1 below the cap, 0 at the cap, and between the two at a
cap that is active with z = 0 (D = f x / ((1 - f) tau)).  With w = f x the solution is

    u_y = (w'r_x + tau ((1 - f)'r_z - r_y)) / sum w
    u_x = w (r_x - u_y) / tau + (1 - f) r_z
    u_z = (1 - f) (r_x - u_y - tau r_z / x)

and it divides by x at caps only, so that it holds where x underflows to zero, and by tau only what vanishes with tau,
so that it holds where 1 / tau overflows.  log x moves by (r_x - u_y - u_z) / tau.

A row and diagonals are all there is, so that this solve takes O(n) operations where the dense one of optlayer.kkt would
take O(n^3), and would need a 1/x that may overflow.

This solve is a handful of plain tensor operations, and x, log x and tau in it are themselves differentiable.  So its
own derivative is what torch makes of them, and every order follows from the first without a second rule.  Held fixed is
f alone, which is locally constant wherever the solution is smooth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..derivative.tracing import (
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
from ..derivative.variation import add, summed
from ..status import Status
from .operator import CORES, entropic_softmax, library


class Raw(NamedTuple):
    """The outputs of the operator; the first four are differentiable."""

    x: Tensor
    log_x: Tensor
    y: Tensor
    z_upper: Tensor
    free: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor


class KKT:
    """The KKT system at a solution.

    An element that failed has no system: it answers exactly zero to a right-hand side that is exactly zero, so that a
    masked loss trains on, and NaN to any other.
    """

    def __init__(self, temperature: Tensor, x: Tensor, log_x: Tensor, free: Tensor, status: Tensor) -> None:
        self.failed = (status != int(Status.SOLVED)).unsqueeze(-1)
        self.tau = torch.where(self.failed, 1, temperature.unsqueeze(-1))
        x = torch.where(self.failed, 0, x)
        at_zero = self.failed | (log_x == -torch.inf)
        self.slope = torch.where(at_zero, self.failed.to(x.dtype), log_x + 1)  # of x log x
        self.share = free * x
        self.capped = 1 - free
        # At a cap of zero x and log x do not move, and z has no derivative: a stiffness of zero leaves all three alone.
        self.stiffness = self.capped * torch.where(x > 0, self.tau / torch.where(x > 0, x, 1), 0)
        total = self.share.sum(-1, keepdim=True)
        self.total = torch.where(total > 0, total, 1)

    def solve(self, rx: Tensor, ry: Tensor | None, rz: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """u_x, u_y, u_z for r_x (*batch, n), r_y (*batch, 1), r_z (*batch, n); leading dimensions are more r's."""
        rz = rx.new_zeros(1) if rz is None else rz
        room = (self.capped * rz).sum(-1, keepdim=True)
        room = room if ry is None else room - ry
        uy = (self.share * rx).sum(-1, keepdim=True) / self.total + self.tau * room / self.total
        ux = self.share * (rx - uy) / self.tau + self.capped * rz
        uz = self.capped * (rx - uy) - self.stiffness * rz
        touched = (rx != 0).any(-1, keepdim=True) | (rz != 0).any(-1, keepdim=True)
        if ry is not None:
            touched = touched | (ry != 0)
        verdict = torch.where(self.failed & touched, torch.nan, 1.0).to(rx.dtype)
        return ux * verdict, uy * verdict, uz * verdict


class Softmax(Function):
    """The operator ``optlayer::entropic_softmax`` with its derivative."""

    @staticmethod
    def forward(*args: Any) -> Any:
        with below_autograd(), full_precision(args[0].device.type):
            return entropic_softmax(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raw, (theta, temperature, upper, *_) = Raw(*output), inputs
        ctx.mark_non_differentiable(*raw[4:])
        ctx.shapes = [None if t is None else t.shape for t in (theta, temperature, upper)]
        save(ctx, [True] * 5, temperature, raw.x, raw.log_x, raw.free, raw.status)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        gx, gl, gy, gz, *_ = cotangents
        theta, temperature, upper = ctx.shapes
        kkt = KKT(*ctx.saved_tensors)
        gy = None if gy is None else gy.unsqueeze(-1)
        if gl is not None:  # log x moves by (r_x - u_y - u_z) / tau
            gl = gl / kkt.tau
            gy, gz = add(gy, -gl.sum(-1, keepdim=True)), add(gz, -gl)
        ux, _, uz = kkt.solve(torch.zeros_like(kkt.share) if gx is None else gx, gy, gz)
        ux = ux if gl is None else ux + gl
        wants = ctx.needs_input_grad
        return (
            summed(ux, theta, wants[0]),
            summed(-(kkt.slope * ux).sum(-1), temperature, wants[1]),
            summed(uz, upper, wants[2]),
            *(None,) * (len(wants) - 3),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        dtheta, dtau, dupper = tangents[:3]
        with forward_mode():
            kkt = KKT(*primals(ctx))
            r = torch.zeros_like(kkt.share) if dtheta is None else dtheta
            if dtau is not None:
                r = r - kkt.slope * dtau.unsqueeze(-1)
            dx, dy, dz = kkt.solve(r, None, dupper)
            return dx, (r - dy - dz) / kkt.tau, dy.squeeze(-1), dz, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return ops.map_batch(Softmax.apply, CORES, in_dims, args)


@in_graph
def _tracked_solve(theta: Tensor, temperature: Tensor, upper: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    """`Softmax` as one call of a compiled graph: Dynamo refuses to look into a Function that has a jvp."""
    tensors: tuple[Tensor | None, ...] = (theta, temperature, upper)
    if autocast_on(theta.device.type):  # half precision is solved in float32, as torch.softmax does
        half = torch.float16, torch.bfloat16
        tensors = tuple(t.float() if t is not None and t.dtype in half else t for t in tensors)
    out: tuple[Tensor, ...] = Softmax.apply(*tensors, *options)  # type: ignore[no-untyped-call]
    return out


def solve(theta: Tensor, temperature: Tensor, upper: Tensor | None, eps: float, max_iter: int, on_failure: str) -> Raw:
    """Solve a batch of softmax problems; x, log_x, y and z_upper are differentiable in the three tensors.

    Shapes are those of the operator, and the arguments are taken to be valid.
    """
    tensors, options = (theta, temperature, upper), (eps, max_iter, on_failure)
    if torch.compiler.is_compiling() or recording(tensors) or autocast_on(theta.device.type):
        return Raw(*_tracked_solve(*tensors, *options))
    with below_autograd():
        return Raw(*entropic_softmax(*tensors, *options))


def _bare(*args: Any) -> Any:
    refuse_tangents(args)
    return (Softmax.apply if recording(args[:3]) else Softmax.forward)(*args)


# Exported and compiled graphs call the operator itself; there too it has its derivative.
library.impl("entropic_softmax", _bare, "Autograd")
