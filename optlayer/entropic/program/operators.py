# SPDX-License-Identifier: Apache-2.0
"""The two operators of entropic programs: solve one, solve with its KKT matrix.  Both are opaque to autograd.

``optlayer::entropic_qp`` solves, independently for every element of the batch and in float64 whatever the dtype,

    minimise  1/2 x'Px + q'x + sum_i tau_i x_i log x_i    subject to   Gx <= h,   Ax = b,   lb <= x <= ub

    arguments   P (*batch, n, n), or (*batch, 1, n) for the diagonal of a diagonal one; tau (*batch, n) or (*batch, 1);
                the others as those of ``optlayer::qp``; leading dimensions broadcast.
    returns     x, y, z, z_box, s, log_x                solution, multipliers, slack; log x is finite where x underflows
                status, iterations, weakly_active       (*batch), int64
                lower_share                             (*batch, n): the part of an active bound that is the lower one
                ray_y, ray_z, ray_box                   certificates of infeasible elements, zero elsewhere
                state, factor                           what the other operator needs

``optlayer::entropic_kkt_solve`` returns u = K^-1 r = (u_x, u_y, u_z, u_box), and t = diag(tau / x) u_x, with

    K = [ P + diag(tau / x)  A'  G'   I     ;
          A                  0   0    0     ;
          G                  0  -D    0     ;
          I                  0   0   -D_box ]      over the active rows and bounds; u = 0 on the inactive ones.

t is finite where x underflows and tau / x does not exist.  Right-hand sides broadcast as in ``optlayer::kkt_solve``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...settings import FILLED
from ...solvers.choose import announce, solve_rest, unsolved
from . import native, reference
from .kkt import KKT
from .standard import QP_CORES
from .system import State

library = torch.library.Library("optlayer", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
library.define(
    "entropic_qp(Tensor? P, Tensor q, Tensor? G, Tensor? h, Tensor? A, Tensor? b, Tensor? lb, Tensor? ub, Tensor tau, "
    "float eps_abs, float eps_rel, int max_iter, str backend, str on_failure, bool keep_factor) -> "
    "(Tensor x, Tensor y, Tensor z, Tensor z_box, Tensor s, Tensor log_x, Tensor status, Tensor iterations, "
    "Tensor weakly_active, Tensor lower_share, Tensor ray_y, Tensor ray_z, Tensor ray_box, "
    "Tensor state, Tensor factor)",
    tags=_TAGS,
)
library.define(
    "entropic_kkt_solve(Tensor? P, Tensor? G, Tensor? A, Tensor state, Tensor factor, "
    "Tensor rx, Tensor ry, Tensor rz, Tensor r_box, str backend) -> "
    "(Tensor ux, Tensor uy, Tensor uz, Tensor u_box, Tensor t)",
    tags=_TAGS,
)
entropic_qp = torch.ops.optlayer.entropic_qp.default
entropic_kkt_solve = torch.ops.optlayer.entropic_kkt_solve.default

# Number of trailing dimensions of each tensor argument that are not batch; those of the program are QP_CORES.
KKT_CORES = (2, 2, 2, 1, 1, 1, 1, 1, 1)


# ---- the program -----------------------------------------------------------------------------------------------------


def _qp_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, on_failure = arguments[:9], arguments[13]
    if _compiled(*arguments):
        *parts, left = native.qp(*arguments[:12], on_failure in FILLED)
        out = (*parts, parts[-1].new_empty(*parts[-1].shape[:-1], 0))
        if left > 0 or (left < 0 and unsolved(out[6])):
            solve_rest(out, out[6], tensors, QP_CORES, lambda *part: reference.qp(*part, *arguments[9:14], False))
    else:
        out = reference.qp(*arguments)
    if on_failure in ("raise", "warn"):
        announce(out[6], tensors, on_failure)
    return out


def _compiled(*arguments: Any) -> bool:
    """Whether the compiled engine, which keeps no factor, takes a call of the operator."""
    rows = sum(0 if t is None else t.shape[-1] for t in (arguments[3], arguments[5]))
    return native.takes(arguments[12], arguments[0], arguments[1], rows)


# ---- the KKT matrix --------------------------------------------------------------------------------------------------


def _kkt_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    P, G, A, state, factor, rx, ry, rz, r_box, backend = arguments
    if not factor.shape[-1] and native.takes(backend, P, rx, ry.shape[-1] + rz.shape[-1]):
        return native.kkt_solve(P, G, A, state, rx, ry, rz, r_box)
    return reference.kkt_solve(*arguments[:-1])


# ---- shapes and vmap -------------------------------------------------------------------------------------------------


def _qp_fake(*arguments: Any) -> tuple[Tensor, ...]:
    P, q, _, h, _, b, *_ = arguments
    batch = ops.batch_shape(arguments[:9], QP_CORES)
    n, m, p = q.shape[-1], 0 if h is None else h.shape[-1], 0 if b is None else b.shape[-1]
    full = P is not None and P.shape[-2] == n
    vectors = [q.new_empty(*batch, size) for size in (n, p, m, n, m, n)]
    counts = [q.new_empty(batch, dtype=torch.int64) for _ in range(3)]
    rays = [q.new_empty(*batch, size) for size in (n, p, m, n)]
    kept = arguments[14] and (q.device.type == "meta" or not _compiled(*arguments))
    size = KKT.size(n, p + m, full) if kept else 0
    packed = [q.new_empty(*batch, s, dtype=torch.float64) for s in (State.size(n, p + m), size)]
    return (*vectors, *counts, *rays, *packed)


def _kkt_fake(*arguments: Any) -> tuple[Tensor, ...]:
    state, _, rx, ry, rz, r_box, _ = arguments[3:]
    batch = ops.batch_shape((state, rx, ry, rz, r_box), (1,) * 5)
    return tuple(r.new_empty(*batch, r.shape[-1]) for r in (rx, ry, rz, r_box, rx))


def _mapped(operator: Any, cores: Sequence[int]) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return ops.map_batch(operator, cores, in_dims, args)

    return rule


for _name, _kernel, _fake, _operator, _cores in (
    ("entropic_qp", _qp_kernel, _qp_fake, entropic_qp, QP_CORES),
    ("entropic_kkt_solve", _kkt_kernel, _kkt_fake, entropic_kkt_solve, KKT_CORES),
):
    for _key in ("CPU", "CUDA"):
        library.impl(_name, _kernel, _key)
    torch.library.register_fake(f"optlayer::{_name}", _fake, lib=library)
    torch.library.register_vmap(f"optlayer::{_name}", _mapped(_operator, _cores), lib=library)
