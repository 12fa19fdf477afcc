# SPDX-License-Identifier: Apache-2.0
"""The engine for entropic programs written in torch: the specification, and what runs where nothing is compiled.

The data become float64 pieces of the batch; each goes through the interior point method and the closing, is judged by
its residuals as the caller will read it, and leaves behind what the KKT matrix needs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import ops
from ...kkt.algebra import NONZERO, dot, mv, take, tmv
from ...problem import broadcast
from ...residuals import residuals
from ...settings import FILLED
from ...solvers.choose import PROOF, opaque, parts_of
from ...status import Status
from . import closing, interior_point, system
from .kkt import KKT
from .standard import QP_CORES, Data, Standard, effective, judge, standardise
from .system import State

LOOSEST, TIGHTEST = 1e-7, 1e-11  # accuracies at which the interior point may hand over to the closing
SLIVER = 0.25  # of what a certificate must prove: data that contradict each other by less have a solution
ALMOST = 100.0  # residuals up to so many times their tolerance are ALMOST_SOLVED


class Solved(NamedTuple):
    """One piece of the batch; y and z stacked, all float64 or int64."""

    x: Tensor
    v: Tensor
    z_box: Tensor
    log_x: Tensor
    status: Tensor
    iterations: Tensor
    weak: Tensor
    lower_share: Tensor
    ray: Tensor
    ray_box: Tensor
    state: Tensor
    factor: Tensor


# ---- the program -----------------------------------------------------------------------------------------------------


@opaque
def qp(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    tau: Tensor,
    eps_abs: float,
    eps_rel: float,
    max_iter: int,
    backend: str,
    on_failure: str,
    keep_factor: bool,
) -> tuple[Tensor, ...]:
    """``optlayer::entropic_qp``, but nobody is told of failures."""
    arguments = (P, q, G, h, A, b, lb, ub, tau)
    batch = ops.batch_shape(arguments, QP_CORES)
    B, n = batch.numel(), q.shape[-1]
    m, p = 0 if h is None else h.shape[-1], 0 if b is None else b.shape[-1]
    rows = 0 if P is None else P.shape[-2]
    pieces = []
    for part in parts_of(B, (m + p + rows + 12) * n, q.device):

        def block(t: Tensor | None, *core: int, part: slice = part, fill: float = 0.0) -> Tensor:
            if t is None:
                return q.new_full((part.stop - part.start, *core), fill, dtype=torch.float64)
            return t.expand(*batch, *core).reshape(B, *core)[part].to(torch.float64)

        data = Data(
            None if P is None else block(P, rows, n),
            block(q, n),
            torch.cat([block(A, p, n), block(G, m, n)], 1),
            torch.cat([block(b, p), block(h, m)], 1),
            block(lb, n, fill=-torch.inf),
            block(ub, n, fill=torch.inf),
            block(tau, n),
        )
        if data.P is not None and rows == n:
            data = data._replace(P=(data.P + data.P.mT) / 2)
        pieces.append(_solve(data, p, eps_abs, eps_rel, max_iter, q.dtype, keep_factor))
    out = Solved(*(torch.cat(column) for column in zip(*pieces, strict=True)))
    failed = out.status != Status.SOLVED
    x, v, z_box, log_x = out[:4]
    s = q.new_zeros(B, m, dtype=torch.float64)
    if G is not None and h is not None:
        s = h.double().expand(*batch, m) - (G.double() @ x.reshape(*batch, n, 1)).squeeze(-1)
        s = s.reshape(B, m)
    if on_failure in FILLED:
        x, v, z_box, log_x, s = (t.masked_fill(failed.unsqueeze(-1), torch.nan) for t in (x, v, z_box, log_x, s))

    def shaped(t: Tensor, dtype: torch.dtype = q.dtype) -> Tensor:
        return t.to(dtype).reshape(batch + t.shape[1:])

    (y, z), (ray_y, ray_z) = (t.split([p, m], 1) for t in (v, out.ray))
    return (
        *(shaped(t) for t in (x, y, z, z_box, s, log_x)),
        *(shaped(t, torch.int64) for t in (out.status, out.iterations, out.weak)),
        *(shaped(t) for t in (out.lower_share, ray_y, ray_z, out.ray_box)),
        *(shaped(t, torch.float64) for t in (out.state, out.factor)),
    )


def _solve(data: Data, p: int, eps_abs: float, eps_rel: float, max_iter: int, dtype: torch.dtype, keep: bool) -> Solved:
    """A batch (B, ...), of which only elements with valid data are solved."""
    status = judge(data, p)
    (B, k, n), like = data.C.shape, data.q
    full = data.P is not None and data.P.shape[1] == n
    none = torch.zeros_like(status)
    zero = torch.zeros_like(like)
    out = Solved(
        zero.clone(),
        like.new_zeros(B, k),
        zero.clone(),
        torch.full_like(zero, -torch.inf),
        status,
        none,
        none.clone(),
        zero.clone(),
        like.new_zeros(B, k),
        zero.clone(),
        like.new_zeros(B, State.size(n, k)),
        like.new_zeros(B, KKT.size(n, k, full) if keep else 0),
    )
    some = (status == Status.UNSOLVED).nonzero().squeeze(-1)
    if some.numel():
        valid = _solve_valid(take(data, some), p, eps_abs, eps_rel, max_iter, dtype, keep)
        for whole, piece in zip(out, valid, strict=True):
            whole[some] = piece
    return out


def _solve_valid(
    data: Data, p: int, eps_abs: float, eps_rel: float, max_iter: int, dtype: torch.dtype, keep: bool
) -> Solved:
    """As given, and once more where that failed, for rows that contradict the others by rounding."""
    proof = max(PROOF[dtype], 0.1 * max(eps_abs, eps_rel))
    out = _solve_as(data, data, p, eps_abs, eps_rel, max_iter, dtype, keep, proof)
    failed = (out.status != Status.SOLVED) & (out.status != Status.PRIMAL_INFEASIBLE)
    some = failed.nonzero().squeeze(-1)
    if some.numel():
        given = take(data, some)
        wider = _widened(given, p, out.x[some], SLIVER * proof)
        again = _solve_as(wider, given, p, eps_abs, eps_rel, max_iter, dtype, keep, proof)
        right = again.status == Status.SOLVED
        for whole, piece in zip(out, again, strict=True):
            whole[some[right]] = piece[right]
    return out


def _widened(data: Data, p: int, x: Tensor, share: float) -> Data:
    """Budgets and bounds wider by this share of their terms at x."""
    terms = torch.maximum(data.d.abs(), mv(data.C.abs(), x.nan_to_num(0.0, 0.0)))
    terms[:, :p] = 0
    return data._replace(
        d=data.d + share * terms, lb=data.lb - share * data.lb.abs(), ub=data.ub + share * data.ub.abs()
    )


def _solve_as(
    data: Data,
    given: Data,
    p: int,
    eps_abs: float,
    eps_rel: float,
    max_iter: int,
    dtype: torch.dtype,
    keep: bool,
    proof: float,
) -> Solved:
    """The solution of `data`, judged as one of the data that were given."""
    eps = min(max(0.1 * max(eps_abs, eps_rel), TIGHTEST), LOOSEST)
    problem = standardise(data, p, proof)
    outcome = interior_point.iterate(problem, p, interior_point.Rules(eps, max_iter, proof))
    parts = interior_point.layout(problem, p)
    closed = closing.close(problem, parts, outcome.point._replace(rows=problem.least(outcome.point.rows)))
    x, log_x, v, z_box = _as_given(problem, data, closed.x, closed.log_x, closed.rows, closed.z_box)
    met = _merit(given, p, eps_abs, eps_rel, dtype, x, v, z_box)
    status = outcome.status
    ended = status == Status.PRIMAL_INFEASIBLE
    claimed = status == Status.SOLVED
    status = torch.where(~ended & (met <= 1), int(Status.SOLVED), status)
    status = torch.where(~ended & ~(met <= 1) & ((met <= ALMOST) | claimed), int(Status.ALMOST_SOLVED), status)
    far = ~ended & ~(met <= ALMOST)
    if bool(far.any()):  # Newton's method from so far away may end anywhere: the last iterate is worth more
        at = closing.interior(parts, outcome.point)
        last = _as_given(problem, data, at.x, at.x.log(), outcome.point.rows, at.z_upper - at.z_lower)
        chosen = zip(last, (x, log_x, v, z_box), strict=True)
        x, log_x, v, z_box = (torch.where(far.unsqueeze(-1), old, new) for old, new in chosen)
    ray, ray_box = torch.zeros_like(v), torch.zeros_like(x)
    if bool(ended.any()):
        ray, ray_box = _certificate(data, problem.absorbed(data.C, outcome.ray * problem.unit), ended)

    solved = status == Status.SOLVED
    state = State(
        torch.where(x > closing.TINY, x / data.tau, (log_x - data.tau.log()).exp()),
        closed.w_box,
        closed.w,
        solved.unsqueeze(-1),
    )
    factor = x.new_zeros(x.shape[0], 0)
    if keep:
        kkt = state.system(data.P, data.C)
        state = state._replace(ok=state.ok & kkt.ok.unsqueeze(-1))
        factor = kkt.factors()
    share = torch.where(z_box < 0, 1.0, torch.where(z_box > 0, 0.0, closed.lower_share))
    share = torch.where((problem.free == 0) & (z_box == 0), 0.5, share)
    return Solved(
        x, v, z_box, log_x, status, outcome.iterations, closed.weak, share, ray, ray_box, state.pack(), factor
    )


def _as_given(
    problem: Standard, data: Data, x: Tensor, log_x: Tensor, rows: Tensor, z_box: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, log x, y and z, z_box in the caller's units, with fixed variables and what keeps them there."""
    fixed = problem.free == 0
    x, log_x = torch.where(fixed, problem.value, x), torch.where(fixed, problem.value.log(), log_x)
    v = problem.least(rows) * problem.unit
    force = data.q + tmv(data.C, v) + problem.curvature * x
    if problem.P is not None and data.P is not None:
        force = force + mv(data.P, x)
    elif data.P is not None:
        force = force + torch.where(fixed, data.P.squeeze(1) * x, 0.0)
    return x, log_x, v, torch.where(fixed, -(force + data.tau * (log_x + 1)), z_box)


def _merit(
    data: Data, p: int, eps_abs: float, eps_rel: float, dtype: torch.dtype, x: Tensor, v: Tensor, z_box: Tensor
) -> Tensor:
    """The largest residual in units of its tolerance max(eps_abs, eps_rel scale), of the solution as it is read."""
    P, q, C, d, lb, ub, tau = data
    x, v, z_box = (t.to(dtype).double() for t in (x, v, z_box))
    r = residuals(
        *(P, q, C[:, p:], d[:, p:], C[:, :p], d[:, :p], lb, ub),
        *(x, v[:, :p], v[:, p:], z_box),
        entropy=tau,
        least=torch.finfo(dtype).tiny,
    )
    values = torch.stack([r.primal, r.dual, r.gap])
    scales = torch.stack([r.primal_scale, r.dual_scale, r.gap_scale])
    merit = (values / (eps_rel * scales).clamp(min=max(eps_abs, NONZERO))).amax(0)
    return torch.where(merit.isnan(), torch.inf, merit)


def _certificate(data: Data, v: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Farkas certificates on the data as given, with a proven gap of 1; the bounds and x >= 0 absorb what they can."""
    lb, ub = effective(data)
    d = torch.where(data.d.isfinite(), data.d, 0.0)
    w = -tmv(data.C, v)
    finite = (w < 0) | ub.isfinite()
    z_box = torch.where(finite, w, 0.0)
    bound = torch.where(w > 0, torch.where(finite, ub, 0.0), lb)
    value = -(dot(d, v) + dot(bound, z_box))
    worth = torch.where(which & (value > 0), value, 1.0).unsqueeze(-1)
    which = which.unsqueeze(-1)
    return torch.where(which, v / worth, 0.0), torch.where(which, z_box / worth, 0.0)


# ---- the KKT matrix --------------------------------------------------------------------------------------------------


@opaque
def kkt_solve(
    P: Tensor | None,
    G: Tensor | None,
    A: Tensor | None,
    state: Tensor,
    factor: Tensor,
    rx: Tensor,
    ry: Tensor,
    rz: Tensor,
    r_box: Tensor,
) -> tuple[Tensor, ...]:
    """``optlayer::entropic_kkt_solve``."""
    own, rhs = state.shape[:-1], (rx, ry, rz, r_box)
    batch = broadcast(own, *(t.shape[:-1] for t in rhs))
    dtype, n, p, m = rx.dtype, rx.shape[-1], ry.shape[-1], rz.shape[-1]
    extra, own = batch[: len(batch) - len(own)], batch[len(batch) - len(own) :]
    B, R = own.numel(), extra.numel()
    rows = 0 if P is None else P.shape[-2]

    def columns(t: Tensor) -> Tensor:
        """(*extra, *own, k) -> (B, k, R)."""
        return t.expand(*batch, t.shape[-1]).reshape(R, B, t.shape[-1]).permute(1, 2, 0).to(torch.float64)

    def flat(t: Tensor) -> Tensor:
        return t.expand(*own, t.shape[-1]).reshape(B, t.shape[-1])

    r = [columns(t) for t in rhs]
    out = []
    for i in parts_of(B, (m + p + rows + 12) * n, rx.device):
        M, C = _matrices(P, G, A, n, rx, own, i)
        own_state = State.unpack(flat(state)[i], n, p + m)
        kept = flat(factor)[i] if factor.shape[-1] else None
        out.append(system.solve(M, C, own_state, kept, r[0][i], torch.cat([r[1][i], r[2][i]], 1), r[3][i]))
    ux, uv, u_box, t = (torch.cat(parts) for parts in zip(*out, strict=True))

    def shaped(t: Tensor) -> Tensor:
        return t.permute(2, 0, 1).reshape(*batch, t.shape[1]).to(dtype)

    uy, uz = uv.split([p, m], 1)
    return tuple(shaped(part) for part in (ux, uy, uz, u_box, t))


def _matrices(
    P: Tensor | None, G: Tensor | None, A: Tensor | None, n: int, like: Tensor, batch: torch.Size, i: slice
) -> tuple[Tensor | None, Tensor]:
    """Some elements of P, symmetric or the diagonal of a diagonal one, and of C = [A; G], float64."""

    def block(t: Tensor) -> Tensor:
        return t.expand(*batch, *t.shape[-2:]).reshape(batch.numel(), *t.shape[-2:])[i].to(torch.float64)

    M = None if P is None else block(P)
    if M is not None and M.shape[1] == M.shape[2]:
        M = (M + M.mT) / 2
    rows = [block(t) for t in (A, G) if t is not None]
    none = like.new_zeros(i.stop - i.start, 0, n, dtype=torch.float64)
    return M, torch.cat(rows, 1) if rows else none
