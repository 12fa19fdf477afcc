# SPDX-License-Identifier: Apache-2.0
"""The two operators every engine implements: solve a quadratic program, solve with its KKT matrix.

Both are opaque to autograd: their derivatives are stated in ``optlayer.derivative``, once for all engines.

``optlayer::qp`` solves, independently for every element of the batch,

    minimise  1/2 x'Px + q'x   subject to   Gx <= h,   Ax = b,   lb <= x <= ub.

    arguments   P (*batch, n, n), q (*batch, n), G (*batch, m, n), h (*batch, m), A (*batch, p, n), b (*batch, p),
                lb, ub (*batch, n); all but q may be None; leading dimensions broadcast.
                x0, y0, z0, z_box0: a warm start, each may be None.
                eps_abs, eps_rel, max_iter, backend, formulation, on_failure: the settings of a solve.
                keep_factor: whether the factorisation is handed out; without it kkt_solve refactorises from `state`.
    returns     x, y, z, z_box, s                    solution, multipliers and slack s = h - Gx
                status, iterations, weakly_active    (*batch), int64
                lower_share                          (*batch, n): the part of an active bound that is the lower one
                ray                                  (*batch, n + p + m + n): the certificates (x, y, z, z_box) of
                                                     infeasible and unbounded elements in a row, zero elsewhere
                state, factor, index                 what kkt_solve needs, in the engine's own layout

``optlayer::kkt_solve`` returns u = K^-1 r = (u_x, u_y, u_z, u_box) at the solution of such a program,

    K = [ P  A'  G'   I     ;
          A  0   0    0     ;
          G  0  -D    0     ;
          I  0   0   -D_box ]      over the active rows and bounds; u = 0 on the inactive ones, whatever r is there.

K is symmetric, so tangents and cotangents are solved alike.  The right-hand sides broadcast among each other and
against the batch; dimensions to the left of the batch are further right-hand sides.  An element that has no solution
gives u = 0 when its r is exactly zero and NaN otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .problem import broadcast

__all__ = ["engines", "implement", "kkt_solve", "map_batch", "qp"]

library = torch.library.Library("optlayer", "DEF")

# Engines may look at values on the host while they iterate, which a CUDA graph cannot record.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)

library.define(
    "qp(Tensor? P, Tensor q, Tensor? G, Tensor? h, Tensor? A, Tensor? b, Tensor? lb, Tensor? ub, "
    "Tensor? x0, Tensor? y0, Tensor? z0, Tensor? z_box0, "
    "float eps_abs, float eps_rel, int max_iter, str backend, str formulation, str on_failure, bool keep_factor) -> "
    "(Tensor x, Tensor y, Tensor z, Tensor z_box, Tensor s, Tensor status, Tensor iterations, Tensor weakly_active, "
    "Tensor lower_share, Tensor ray, Tensor state, Tensor factor, Tensor index)",
    tags=_TAGS,
)
library.define(
    "kkt_solve(Tensor? P, Tensor? G, Tensor? A, Tensor state, Tensor factor, Tensor index, "
    "Tensor rx, Tensor ry, Tensor rz, Tensor r_box, str backend) -> "
    "(Tensor ux, Tensor uy, Tensor uz, Tensor u_box)",
    tags=_TAGS,
)

qp = torch.ops.optlayer.qp.default
kkt_solve = torch.ops.optlayer.kkt_solve.default

# Number of trailing dimensions of each tensor argument that are not batch.
QP_CORES = (2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1)
KKT_CORES = (2, 2, 2, 1, 1, 1, 1, 1, 1, 1)


# ---- kernels ---------------------------------------------------------------------------------------------------------

engines: dict[str, Callable[..., Any]] = {}


def implement(name: str, function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Make `function` the kernel of the operator `name` ("qp" or "kkt_solve") on CPU and CUDA tensors.

    The function is called with all arguments of the operator's schema, by position, below autograd: it needs no
    derivative.  It returns a tuple of new contiguous tensors.  A later call replaces an earlier one.

    Returns: the function that was registered before, or None.
    Raises: ValueError if there is no operator of that name.
    """
    if name not in ("qp", "kkt_solve"):
        raise ValueError(f"optlayer has no operator {name!r}; expected 'qp' or 'kkt_solve'")
    previous = engines.get(name)
    engines[name] = function
    return previous


def _kernel(name: str) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        if name not in engines:
            raise NotImplementedError(f"no solver implements optlayer::{name}; importing optlayer registers one")
        return engines[name](*args)

    return kernel


for _name in ("qp", "kkt_solve"):
    for _key in ("CPU", "CUDA"):
        library.impl(_name, _kernel(_name), _key)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def batch_shape(tensors: Sequence[Tensor | None], cores: Sequence[int]) -> torch.Size:
    """The shape that the leading dimensions of some tensors broadcast to; `cores` counts the others."""
    return broadcast(*(t.shape[: t.dim() - core] for t, core in zip(tensors, cores, strict=False) if t is not None))


def packed_sizes(n: int, m: int, p: int) -> tuple[int, int, int]:
    """Entries per element of `state`, `factor` and `index`, for n variables, m inequality and p equality rows.

    torch keeps compiled graphs on disk under the operator's schema and does not notice a change of these sizes: a
    release that changes them must change the schema too, or graphs compiled by the one before stop with an error.
    """
    k = torch.sym_min(p + m, 2 * n)
    return 2 * n + 2 * (p + m) + 2, (n * (n + 1) + k * (k + 1)) // 2, k


def qp_fake(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    x0: Tensor | None,
    y0: Tensor | None,
    z0: Tensor | None,
    z_box0: Tensor | None,
    eps_abs: float,
    eps_rel: float,
    max_iter: int,
    backend: str,
    formulation: str,
    on_failure: str,
    keep_factor: bool,
) -> tuple[Tensor, ...]:
    batch = batch_shape((P, q, G, h, A, b, lb, ub, x0, y0, z0, z_box0), QP_CORES)
    n, m, p = q.shape[-1], 0 if h is None else h.shape[-1], 0 if b is None else b.shape[-1]
    in_state, in_factor, in_index = packed_sizes(n, m, p)
    primal = [q.new_empty(*batch, size) for size in (n, p, m, n, m)]
    counts = [q.new_empty(batch, dtype=torch.int64) for _ in range(3)]
    return (
        *primal,
        *counts,
        q.new_empty(*batch, n),
        q.new_empty(*batch, n + p + m + n),
        q.new_empty(*batch, in_state, dtype=torch.float64),
        q.new_empty(*batch, in_factor if keep_factor else 0, dtype=torch.float64),
        q.new_empty(*batch, in_index, dtype=torch.int64),
    )


def kkt_solve_fake(
    P: Tensor | None,
    G: Tensor | None,
    A: Tensor | None,
    state: Tensor,
    factor: Tensor,
    index: Tensor,
    rx: Tensor,
    ry: Tensor,
    rz: Tensor,
    r_box: Tensor,
    backend: str,
) -> tuple[Tensor, ...]:
    batch = batch_shape((state, rx, ry, rz, r_box), (1,) * 5)
    return tuple(r.new_empty(*batch, r.shape[-1]) for r in (rx, ry, rz, r_box))


torch.library.register_fake("optlayer::qp", qp_fake, lib=library)
torch.library.register_fake("optlayer::kkt_solve", kkt_solve_fake, lib=library)


# ---- vmap ------------------------------------------------------------------------------------------------------------


def map_batch(
    function: Callable[..., tuple[Tensor, ...]],
    cores: Sequence[int],
    in_dims: Sequence[int | None],
    args: Sequence[Any],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The vmap rule of a function whose leading dimensions broadcast.

    The mapped dimension goes to the left of all batch dimensions; arguments that are not mapped stay as they are, so
    what the elements share is never expanded.

    Args: `cores` counts the trailing dimensions of each tensor argument that are not batch; further arguments are
        passed on.
    Returns: the outputs and their mapped dimensions, all 0, as ``torch.library.register_vmap`` expects them.
    """
    tensors = [(t, d, core) for t, d, core in zip(args, in_dims, cores, strict=False) if isinstance(t, Tensor)]
    rank = max(t.dim() - core - (d is not None) for t, d, core in tensors)
    moved = list(args)
    for i, (t, d, core) in enumerate(zip(args, in_dims, cores, strict=False)):
        if d is not None:
            t = t.movedim(d, 0)
            moved[i] = t[(slice(None),) + (None,) * (rank + 1 + core - t.dim())]
    out = function(*moved)
    return out, (0,) * len(out)


def _qp_vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return map_batch(qp, QP_CORES, in_dims, args)


def _kkt_solve_vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return map_batch(kkt_solve, KKT_CORES, in_dims, args)


torch.library.register_vmap("optlayer::qp", _qp_vmap, lib=library)
torch.library.register_vmap("optlayer::kkt_solve", _kkt_solve_vmap, lib=library)
