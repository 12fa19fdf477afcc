# SPDX-License-Identifier: Apache-2.0
"""A second engine for the two operators, dense and simple: it shares no code with optlayer's engines.

The tests of the derivative rule run on it, because a rule that knows no engine must hold on any, and because it is
quick on small programs; the reference engine is compared with it.  An interior point method on the full matrix guesses
the active set, one LU solve on that set gives the solution to rounding, and kkt_solve solves with the same matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from optlayer import ops
from optlayer.status import Status

Kernel = Callable[..., tuple[Tensor, ...]]
calls = {"qp": 0, "kkt_solve": 0}


@contextlib.contextmanager
def installed() -> Iterator[dict[str, int]]:
    """The operators run on this engine; yields the number of calls of each."""
    with _kernels(qp=qp, kkt_solve=kkt_solve):
        yield calls


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """The operators run on the engine that ships; yields the number of calls of each."""

    def counting(name: str) -> Kernel:
        shipped = ops.engines[name]

        def kernel(*arguments: Any) -> tuple[Tensor, ...]:
            calls[name] += 1
            return shipped(*arguments)

        return kernel

    with _kernels(**{name: counting(name) for name in calls}):
        yield calls


@contextlib.contextmanager
def _kernels(**kernels: Kernel) -> Iterator[None]:
    """The operators run on these kernels, and all counts are zero."""
    previous = {name: ops.implement(name, kernel) for name, kernel in kernels.items()}
    calls.update(qp=0, kkt_solve=0)
    try:
        yield
    finally:
        for name, kernel in previous.items():
            if kernel is not None:
                ops.implement(name, kernel)


def times(M: Tensor, v: Tensor) -> Tensor:
    return (M @ v.unsqueeze(-1)).squeeze(-1)


def dense_solve(K: Tensor, r: Tensor) -> Tensor:
    return torch.linalg.solve_ex(K, r.unsqueeze(-1))[0].squeeze(-1)


def kkt(P: Tensor, A: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """[P A' C'; A 0 0; C 0 -D], with the rows of C whose D is infinite replaced by u = 0."""
    p, c = A.shape[-2], C.shape[-2]
    on = D.isfinite()
    C_on = C * on.unsqueeze(-1)
    top = torch.cat([P, A.mT, C_on.mT], -1)
    middle = torch.cat([A, A.new_zeros(*A.shape[:-2], p, p + c)], -1)
    bottom = torch.cat([C_on, C.new_zeros(*C.shape[:-2], c, p), torch.diag_embed(torch.where(on, -D, 1.0))], -1)
    return torch.cat([top, middle, bottom], -2)


def qp(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    *options: object,
) -> tuple[Tensor, ...]:
    calls["qp"] += 1
    on_failure = options[-2]
    shapes = [t.shape for t in ops.qp_fake(P, q, G, h, A, b, lb, ub, *options)[10:]]
    n, m, p = q.shape[-1], 0 if h is None else h.shape[-1], 0 if b is None else b.shape[-1]
    cores = zip((P, q, G, h, A, b, lb, ub), ops.QP_CORES, strict=False)
    batch = torch.broadcast_shapes(*(t.shape[: t.dim() - core] for t, core in cores if t is not None))

    def full(t: Tensor | None, *core: int, fill: float = 0.0) -> Tensor:
        return (q.new_full(core, fill) if t is None else t).to(torch.float64).expand(*batch, *core)

    P, q64, G, h, A, b = full(P, n, n), full(q, n), full(G, m, n), full(h, m), full(A, p, n), full(b, p)
    lb, ub = full(lb, n, fill=-torch.inf), full(ub, n, fill=torch.inf)
    finite = [t.isfinite().flatten(len(batch)).all(-1) for t in (P, q64, G, A, b)]
    valid = torch.stack([*finite, *(~t.isnan().flatten(len(batch)).any(-1) for t in (h, lb, ub))]).all(0)
    bad = ~valid.unsqueeze(-1)
    eye = torch.eye(max(n, p), dtype=torch.float64)
    P, G = torch.where(bad[..., None], eye[:n, :n], (P + P.mT) / 2), torch.where(bad[..., None], 0, G)
    A, q64, b = torch.where(bad[..., None], eye[:p, :n], A), torch.where(bad, 0, q64), torch.where(bad, 0, b)
    C = torch.cat([G, -eye[:n, :n].expand(*batch, n, n), eye[:n, :n].expand(*batch, n, n)], -2)
    d = torch.where(bad, 1, torch.cat([h, -lb, ub], -1))
    real = d.isfinite()
    d, C = torch.where(real, d, 1), C * real.unsqueeze(-1)

    x, y, z = q64.new_zeros(*batch, n), q64.new_zeros(*batch, p), q64.new_ones(*batch, m + 2 * n)
    s = torch.ones_like(z)
    for _ in range(60):
        mu = (s * z).mean(-1, keepdim=True)
        target = (0.1 * mu).clamp(min=1e-13)
        rd, rp, rg = times(P, x) + q64 + times(A.mT, y) + times(C.mT, z), times(A, x) - b, times(C, x) + s - d
        error = torch.cat([rd, rp, rg, mu - 1e-13], -1).abs().amax(-1)
        if bool((error < 1e-11).all()):
            break
        step = dense_solve(kkt(P, A, C, s / z), -torch.cat([rd, rp, rg - s + target / z], -1))
        dx, dy, dz = step.split([n, p, m + 2 * n], -1)
        ds = -rg - times(C, dx)
        ratio = torch.cat([-s / ds, -z / dz], -1)
        a = (0.99 * torch.where(ratio > 0, ratio, torch.inf).amin(-1, keepdim=True)).clamp(max=1)
        x, y, z, s = x + a * dx, y + a * dy, z + a * dz, s + a * ds

    weak = (z < 1e-5) & (s < 1e-5)
    D = torch.where(weak, s / z, torch.where(z > s, 0.0, torch.inf))
    K = kkt(P, A, C, torch.where(weak, torch.inf, D))
    x, y, z = dense_solve(K, torch.cat([-q64, b, torch.where(D == 0, d, 0)], -1)).split([n, p, m + 2 * n], -1)
    residual = times(P, x) + q64 + times(A.mT, y) + times(C.mT, z)
    outside = (times(C, x) - d).clamp(min=0)
    solved = (torch.cat([residual, outside, z.clamp(max=0)], -1).abs() < 1e-8).all(-1)
    status = torch.where(solved, int(Status.SOLVED), int(Status.MAX_ITERATIONS))
    status = torch.where(valid, status, int(Status.INVALID_DATA))

    lower, upper = z[..., m : m + n], z[..., m + n :]
    D_box = torch.minimum(D[..., m : m + n], D[..., m + n :])
    share = (D[..., m : m + n] <= D[..., m + n :]) & D_box.isfinite()
    x, y, z, z_box, s = x, y, z[..., :m], upper - lower, h - times(G, x)
    if on_failure == "nan":
        x, y, z, z_box, s = (torch.where(solved.unsqueeze(-1) & ~bad, t, torch.nan) for t in (x, y, z, z_box, s))
    state = q64.new_zeros(shapes[0])
    state[..., : m + n + 1] = torch.cat([D[..., :m], D_box, (status == 1).unsqueeze(-1)], -1)
    counts = (status, torch.zeros_like(status), weak.sum(-1))
    return (
        *(t.to(q.dtype).contiguous() for t in (x, y, z, z_box, s)),
        *(t.contiguous() for t in counts),
        share.to(q.dtype).contiguous(),
        q.new_zeros(*batch, n + p + m + n),
        state,
        q64.new_zeros(shapes[1]),
        torch.zeros(shapes[2], dtype=torch.int64),
    )


def kkt_solve(
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
    calls["kkt_solve"] += 1
    rhs, own = (rx, ry, rz, r_box), state.shape[:-1]
    batch = torch.broadcast_shapes(own, *(t.shape[:-1] for t in rhs))
    n, p, m = rx.shape[-1], ry.shape[-1], rz.shape[-1]
    ok = state[..., m + n : m + n + 1] == 1

    def full(t: Tensor | None, rows: int) -> Tensor:
        t = state.new_zeros(rows, n) if t is None else t.to(torch.float64)
        return torch.where(ok[..., None], t.expand(*own, rows, n), torch.eye(rows, n, dtype=torch.float64))

    D = torch.where(ok, state[..., : m + n], torch.inf)
    eye = torch.eye(n, dtype=torch.float64).expand(*own, n, n)
    M = full(P, n)
    K = kkt((M + M.mT) / 2, full(A, p), torch.cat([full(G, m), eye], -2), D)
    r = torch.cat([t.expand(*batch, t.shape[-1]).to(torch.float64) for t in rhs], -1)
    silent = (r == 0).all(-1, keepdim=True)
    on = torch.cat([torch.ones(*own, n + p, dtype=torch.bool), D.isfinite()], -1)
    u = dense_solve(K.expand(*batch, *K.shape[-2:]), torch.where(on, r, 0))
    u = torch.where(ok, u, torch.where(silent, 0.0, torch.nan))
    return tuple(t.to(rx.dtype).contiguous() for t in u.split([n, p, m, n], -1))
