# SPDX-License-Identifier: Apache-2.0
"""The operators' kernels: choose the engine, leave to the reference what the other cannot decide, act on failures.

The compiled engine takes the operators' arguments as they are.  For the reference engine they are brought to one batch
dimension and to float64 here.  Importing this module registers the kernels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import SettingsError, SolverError, warn
from ..kkt.program import Program
from ..kkt.system import State, System, grain
from ..problem import CORES, broadcast
from ..settings import FILLED
from ..status import Status
from . import native, reference
from .newton import Rules

# Entries of the KKT matrices that are worked on at once: a CPU's cache should hold them, a GPU should not run dry.
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 25}
# By dtype of the data: the least relative gap or fall that proves infeasibility, and the floor of delta. Contradictions
# below the accuracy that was asked for, or below the rounding of the data, prove nothing.
PROOF = {torch.float64: 1e-9, torch.float32: 5e-7}
DELTA = {torch.float64: 1e-12, torch.float32: 1e-7}


def compiled(backend: str, t: Tensor, fits: bool) -> bool:
    """Whether the compiled engine takes a call with such tensors, (*batch, n), of a size that fits it or does not."""
    if backend == "auto":
        return fits and t.shape[-1] > 0 and native.available() and (t.is_cpu or not native.obstacle(t.device))
    if backend == "reference":
        return False
    why = native.obstacle(t.device)
    if why or not native.available():
        raise SettingsError(f"backend is 'native', but the compiled engine cannot be used: {why}")
    return t.shape[-1] > 0


def _native(backend: str, t: Tensor, rows: int) -> bool:
    """Whether the compiled engine takes a call with such tensors, (*batch, n), and so many rows."""
    largest = native.LARGEST if t.is_cpu else native.LARGEST_ON_CUDA
    return compiled(backend, t, t.shape[-1] <= largest - rows)


def _qp(*arguments: Any) -> tuple[Tensor, ...]:
    q, h, b, backend, on_failure = arguments[1], arguments[3], arguments[5], arguments[15], arguments[17]
    rows = (0 if h is None else h.shape[-1]) + (0 if b is None else b.shape[-1])
    if _native(backend, q, rows):
        return _finished(*native.qp(*arguments), arguments)
    out = _reference_qp(*arguments)
    if on_failure in ("raise", "warn"):
        announce(out[5], arguments[:8], on_failure)
    return out


def qp_at_once(tensors: Sequence[Tensor | None], options: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """The operator without a warm start for a small problem that may be wrong: eight tensors, or None.

    Returns: None where the compiled engine does not take the call, as when it finds the arguments to be wrong.
    """
    _, q, _, h, _, b, _, _ = tensors
    if (
        q is None
        or not q.is_cpu
        or q.numel() + (0 if h is None else h.numel()) + (0 if b is None else b.numel()) > native.LARGEST
        or options[3] == "reference"
        or ops.engines["qp"] is not _qp
        or not native.available()
    ):
        return None
    arguments = (*tensors, None, None, None, None, *options, False)
    try:
        out, left = native.qp(*arguments)
    except RuntimeError:
        return None
    return out if left == 0 and options[5] in ("nan", "ignore") else _finished(out, left, arguments)


def _finished(out: tuple[Tensor, ...], left: int, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """What the compiled engine found, where nothing is left to solve and failures have been announced."""
    if left > 0 or (left < 0 and unsolved(out[5])):
        solve_rest(out, out[5], arguments[:12], ops.QP_CORES, lambda *part: _reference_qp(*part, *arguments[12:]))
    if arguments[17] in ("raise", "warn"):
        announce(out[5], arguments[:8], arguments[17])
    return out


def unsolved(status: Tensor) -> bool:
    """Whether the kernels of a GPU leave an element to the reference engine.

    This waits for them, and is the only thing that does: one number is read for a whole batch.  A CUDA graph that is
    being recorded cannot wait.  There such an element has made insufficient progress.
    """
    if _recording(status):
        status.masked_fill_(status == Status.UNSOLVED, int(Status.INSUFFICIENT_PROGRESS))
        return False
    return status.numel() > 0 and int(status.amin()) == Status.UNSOLVED


def _recording(t: Tensor) -> bool:
    """Whether a CUDA graph records what happens to a tensor."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def solve_rest(
    out: Sequence[Tensor],
    status: Tensor,
    arguments: Sequence[Tensor | None],
    cores: Sequence[int],
    solve: Callable[..., tuple[Tensor, ...]],
) -> None:
    """Let another engine, which is given those elements of the arguments, solve what is UNSOLVED; write it to `out`."""
    batch = status.shape
    which = (status.reshape(-1) == Status.UNSOLVED).nonzero().squeeze(-1)
    element = torch.unravel_index(which, batch) if batch else (None,)
    part = [
        None if t is None else t.expand(*batch, *t.shape[t.dim() - core :])[element]
        for t, core in zip(arguments, cores, strict=True)
    ]
    for whole, piece in zip(out, solve(*part), strict=True):
        whole.view(status.numel(), *whole.shape[len(batch) :])[which] = piece


def announce(status: Tensor, tensors: Sequence[Tensor | None], on_failure: str) -> None:
    """Raise or warn if an element is not solved; the tensors of the program come in the order of CORES."""
    if (status != Status.SOLVED).any():
        message = _report(status, tensors)
        if on_failure == "raise":
            raise SolverError(message)
        warn(message)


def opaque(kernel: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """The kernel without autograd's bookkeeping, which costs an eighth of the time of a small batch.

    The copies are ordinary tensors again, contiguous, and no two share a storage: operators may return nothing else.
    """

    @functools.wraps(kernel)
    def operator(*arguments: Any) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            out = kernel(*arguments)
        return tuple(t.clone(memory_format=torch.contiguous_format) for t in out)

    return operator


@opaque
def _reference_qp(
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
    arguments = (P, q, G, h, A, b, lb, ub, x0, y0, z0, z_box0)
    batch = ops.batch_shape(arguments, ops.QP_CORES)
    B = batch.numel()
    n, m, p = q.shape[-1], 0 if h is None else h.shape[-1], 0 if b is None else b.shape[-1]
    proof = max(PROOF[q.dtype], 0.1 * max(eps_abs, eps_rel))
    rules = Rules(eps_abs, eps_rel, max_iter, proof, q.dtype, DELTA[q.dtype])
    pieces = []
    for part in parts_of(B, (n + m + p) ** 2, q.device):

        def block(t: Tensor | None, *core: int, part: slice = part, fill: float = 0.0) -> Tensor:
            """The elements of this piece, float64, absent blocks filled in."""
            if t is None:
                return q.new_full((1, *core), fill, dtype=torch.float64).expand(part.stop - part.start, *core)
            t = t.expand(*batch, *core).reshape(B, *core) if t.dim() > len(core) else t.expand(B, *core)
            return t[part].to(torch.float64)

        M = block(P, n, n)
        program = Program(
            (M + M.mT) / 2 if P is not None else M,
            block(q, n),
            torch.cat([block(A, p, n), block(G, m, n)], 1),
            torch.cat([block(b, p), block(h, m)], 1),
            block(lb, n, fill=-torch.inf),
            block(ub, n, fill=torch.inf),
        )
        start = None
        if any(t is not None for t in arguments[8:]):
            start = reference.Start(block(x0, n), torch.cat([block(y0, p), block(z0, m)], 1), block(z_box0, n))
        pieces.append(reference.solve(program, p, rules, formulation, start, keep_factor))
    out = reference.Solved(*(torch.cat(column) for column in zip(*pieces, strict=True)))
    x, z_box = out.x, out.z_box
    y, z = out.v.split([p, m], 1)
    s = _slack(q, G, h, x, batch)
    if on_failure in FILLED:
        failed = out.status != Status.SOLVED
        x, y, z, z_box = (t.masked_fill(failed.unsqueeze(-1), torch.nan) for t in (x, y, z, z_box))
        s = s.masked_fill(failed.reshape(*batch, 1), torch.nan)

    def shaped(t: Tensor, dtype: torch.dtype) -> Tensor:
        return t.to(dtype).reshape(batch + t.shape[1:])

    return (
        *(shaped(t, q.dtype) for t in (x, y, z, z_box)),
        s,
        *(shaped(t, torch.int64) for t in (out.status, out.iterations, out.weak)),
        shaped(out.lower_share, q.dtype),
        shaped(torch.cat([out.ray_x, out.ray_v, out.ray_box], 1), q.dtype),
        *(shaped(t, torch.float64) for t in (out.state, out.factors)),
        shaped(out.heavy, torch.int64),
    )


def _slack(q: Tensor, G: Tensor | None, h: Tensor | None, x: Tensor, batch: torch.Size) -> Tensor:
    """s = h - G x."""
    if G is None or h is None:
        return q.new_zeros(*batch, 0)
    Gx = (G.to(x.dtype) @ x.reshape(*batch, q.shape[-1], 1)).squeeze(-1)
    return (h.to(x.dtype) - Gx).to(q.dtype).contiguous()


def _kkt_solve(*arguments: Any) -> tuple[Tensor, ...]:
    rx, ry, rz, _, backend = arguments[6:]
    if _native(backend, rx, ry.shape[-1] + rz.shape[-1]):
        return native.kkt_solve(*arguments)
    return _reference_kkt_solve(*arguments)


@opaque
def _reference_kkt_solve(
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
    own = state.shape[:-1]
    rhs = (rx, ry, rz, r_box)
    batch = broadcast(own, *(t.shape[:-1] for t in rhs))
    dtype, n, p, m = rx.dtype, rx.shape[-1], ry.shape[-1], rz.shape[-1]
    extra = batch[: len(batch) - len(own)]
    own = batch[len(extra) :]
    B, R = own.numel(), extra.numel()

    def columns(t: Tensor) -> Tensor:
        """(*extra, *own, k) -> (B, k, R)."""
        return t.expand(*batch, t.shape[-1]).reshape(R, B, t.shape[-1]).permute(1, 2, 0).to(torch.float64)

    def matrix(t: Tensor | None, rows: int, i: slice) -> Tensor:
        """The elements of one piece; what the batch shares is not copied for all of it."""
        if t is None:
            return state.new_zeros(1, rows, n).expand(i.stop - i.start, rows, n)
        if t.dim() == 2:
            return t.to(torch.float64).expand(i.stop - i.start, rows, n)
        return t.expand(*own, rows, n).reshape(B, rows, n)[i].to(torch.float64)

    def flat(t: Tensor) -> Tensor:
        return t.expand(*own, t.shape[-1]).reshape(B, t.shape[-1])

    r = [columns(t) for t in rhs]
    kept = factor.shape[-1] > 0
    out = []
    for i in parts_of(B, (n + m + p) ** 2, rx.device):
        M = matrix(P, n, i)
        M = (M + M.mT) / 2 if P is not None else M
        C = torch.cat([matrix(A, p, i), matrix(G, m, i)], 1)
        part = State.unpack(flat(state)[i], n, p + m, grain(dtype))
        system = System(M, C, part, *((flat(index)[i], flat(factor)[i]) if kept else ()))
        u = system.solve(r[0][i], torch.cat([r[1][i], r[2][i]], 1), r[3][i])
        if not system.ok.all():
            zero = torch.stack([(t[i] == 0).all(1, keepdim=True) for t in r]).all(0)
            nothing = torch.where(zero, 0.0, torch.nan).to(torch.float64)
            ux, uv, u_box = (torch.where(system.ok[:, None, None], t, nothing) for t in u)
            u = ux, uv, u_box
        out.append(u)
    ux, uv, u_box = (torch.cat(t) for t in zip(*out, strict=True))

    def shaped(t: Tensor) -> Tensor:
        return t.permute(2, 0, 1).reshape(*batch, t.shape[1]).to(dtype)

    uy, uz = uv.split([p, m], 1)
    return shaped(ux), shaped(uy), shaped(uz), shaped(u_box)


def pull(
    w: Sequence[Tensor | None],
    u: Sequence[Tensor],
    shapes: Sequence[torch.Size | None],
    wanted: Sequence[bool],
    backend: str,
) -> list[Tensor | None] | None:
    """The gradients of P, G and A that the derivative rule's own `pull` forms, by the compiled engine.

    Returns: None where the rule must form them itself: there is no engine for them, or a matrix is shared along some of
        the batch's dimensions only.
    """
    (x, y, z), (ux, uy, uz) = w, u
    if not _native(backend, ux, uy.shape[-1] + uz.shape[-1]):
        return None
    kinds = _kinds(ux.shape[:-1], shapes, wanted)
    if kinds is None:
        return None
    y, z = uy if y is None else y, uz if z is None else z  # not read where it is absent
    return _shaped(native.pull(x, y, z, ux, uy, uz, *kinds), shapes, kinds)


def kkt_pull(
    system: Sequence[Tensor | None],
    r: Sequence[Tensor],
    w: Sequence[Tensor | None],
    shapes: Sequence[torch.Size | None],
    wanted: Sequence[bool],
    backend: str,
) -> tuple[tuple[Tensor, ...], list[Tensor | None]] | None:
    """u = K^-1 r and `pull` with it, by one operator of the compiled engine.

    Args: `system`, P, G, A, state, factor and index; `r`, one right-hand side for each element of the batch.
    Returns: (u_x, u_y, u_z, u_box) and the gradients; None as `pull` does.
    """
    own = ops.engines["kkt_solve"] is _kkt_solve  # else the state is that of an engine registered later
    if not own or not _native(backend, r[0], r[1].shape[-1] + r[2].shape[-1]):
        return None
    batch = system[3].shape[:-1]  # type: ignore[union-attr]
    kinds = _kinds(batch, shapes, wanted)
    if kinds is None or any(t.dim() > 1 and t.shape[:-1] != batch for t in r):
        return None
    found = native.kkt_pull(*system, *r, *w, *kinds)
    return found[:4], _shaped(found[4:], shapes, kinds)


def _kinds(batch: torch.Size, shapes: Sequence[torch.Size | None], wanted: Sequence[bool]) -> list[int] | None:
    """What the engine's `pull` is asked for; None where it cannot."""
    kinds = []
    for shape, want in zip(shapes, wanted, strict=True):
        if shape is None or not want:
            kinds.append(0)
        elif shape[:-2] == batch:
            kinds.append(1)
        elif shape[:-2].numel() == 1:
            kinds.append(2)
        else:
            return None
    return kinds


def _shaped(found: Sequence[Tensor], shapes: Sequence[torch.Size | None], kinds: Sequence[int]) -> list[Tensor | None]:
    """The gradients that the engine's `pull` returns, in the shapes of P, G and A."""
    return [
        None if shape is None or not kind else t if t.shape == shape else t.reshape(shape)
        for t, shape, kind in zip(found, shapes, kinds, strict=True)
    ]


def parts_of(B: int, entries: int, device: torch.device) -> list[slice]:
    """Slices of nearly equal length, at least one, of a batch of B elements with so many entries each."""
    count = max(1, -(-B * entries // CHUNK.get(device.type, CHUNK["cuda"])))
    edges = [B * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b > a] or [slice(0, 0)]


def _report(status: Tensor, tensors: Sequence[Tensor | None]) -> str:
    """Which element failed, how, and what may help."""
    failed = (status != Status.SOLVED).nonzero()
    element = tuple(failed[0].tolist())
    verdict = Status(int(status[element]))
    where = f"element {element[0] if len(element) == 1 else element}" if element else "the problem"
    more = f" ({len(failed)} of {status.numel()} failed)" if status.numel() > 1 else ""
    cause = ""
    if verdict == Status.INVALID_DATA:
        guilty = []
        for (name, core), t in zip(CORES.items(), tensors, strict=False):  # the last, an entropy, is not always there
            if t is not None:
                values = t.expand(*status.shape, *t.shape[t.dim() - core :])[element]
                allowed = {"h": torch.inf, "lb": -torch.inf, "ub": torch.inf}.get(name)
                bad = ~values.isfinite() if allowed is None else ~(values.isfinite() | (values == allowed))
                bad = bad | (values <= 0) if name == "entropy" else bad
                guilty += [name] if bool(bad.any()) else []
        cause = f" in {', '.join(guilty)}"
    elif verdict == Status.PRIMAL_INFEASIBLE:
        cause = _crossing(tensors[6], tensors[7], status.shape, element)
    return f"{where}: {verdict.name}{cause}{more}. {verdict.diagnosis} {verdict.advice}"


def _crossing(lb: Tensor | None, ub: Tensor | None, batch: torch.Size, element: tuple[int, ...]) -> str:
    """Which bounds of an element leave no x between them, in words; empty where all do."""
    if lb is None or ub is None:
        return ""
    gap = (lb - ub).expand(*batch, lb.shape[-1])[element]
    i = int(gap.argmax())
    return f", as lb exceeds ub by {float(gap[i]):.4g} for variable {i}" if gap[i] > 0 else ""


ops.implement("qp", _qp)
ops.implement("kkt_solve", _kkt_solve)
