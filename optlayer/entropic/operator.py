# SPDX-License-Identifier: Apache-2.0
"""The operator ``optlayer::entropic_softmax``: the softmax problem from its data to its outputs, below autograd.

    maximise  theta'x - temperature sum_i x_i log x_i    subject to   sum_i x_i = 1,   0 <= x <= upper

    arguments   theta (*batch, n), temperature (*batch), upper (*batch, n) or None; leading dimensions broadcast
    returns     x, log_x                (*batch, n)
                y                       (*batch), the multiplier of the sum
                z_upper                 (*batch, n), those of the caps, >= 0
                free                    (*batch, n), the share of each variable that its cap leaves free
                status, iterations      (*batch) int64
                residual                (*batch)

The problem is solved in float64 whatever the dtype, as the equivalent problem with a = (theta - max theta) /
temperature and temperature 1.  What cannot take part is taken out first: a variable with theta = -inf or with a cap of
zero is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..errors import SolverError, warn
from ..problem import broadcast
from ..settings import FILLED
from ..solvers.choose import opaque
from ..status import Status
from . import interior_point
from .interior_point import Point, Problem, Solution
from .program import native

library = torch.library.Library("optlayer", "FRAGMENT")
library.define(
    "entropic_softmax(Tensor theta, Tensor temperature, Tensor? upper, float eps, int max_iter, str on_failure) -> "
    "(Tensor x, Tensor log_x, Tensor y, Tensor z_upper, Tensor free, "
    "Tensor status, Tensor iterations, Tensor residual)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)
entropic_softmax = torch.ops.optlayer.entropic_softmax.default

# Number of trailing dimensions of each tensor argument that are not batch.
CORES = (1, 0, 1)

# Values solved at once by each thread of a CPU: about what its cache holds of the dozen vectors of an iteration.
PIECE = 2**15

# One problem of more variables, without caps, is solved faster in torch; measured with AVX2 on one thread.
LARGEST = 4096

# A cap that no probability can reach.
NO_CAP = 2.0

# A variable whose theta lies so many temperatures below the largest is zero; where the caps of the others do not let it
# be, float64 cannot tell one such variable from the next, and the element fails.
FARTHEST = 1e120


# What the statuses mean here, and what may help.
WORDS = {
    Status.PRIMAL_INFEASIBLE: (
        "No x is possible: the caps sum to less than one, one of them is negative, or theta is -inf throughout.",
        "Raise upper until it sums to more than one over the variables whose theta is not -inf.",
    ),
    Status.MAX_ITERATIONS: (
        Status.MAX_ITERATIONS.diagnosis,
        "Raise max_iter, or eps.",
    ),
    Status.NUMERICAL_ERROR: (
        "Rounding errors kept the optimality conditions from being met.",
        "Solve in float64, or raise the temperature: theta / temperature is too large to be told apart.",
    ),
    Status.INVALID_DATA: (
        "The data hold a NaN, theta = +inf, or a temperature that is not positive and finite.",
        "Check theta, temperature and upper; of infinities only theta = -inf and upper = +inf are allowed.",
    ),
}


class Columns(NamedTuple):
    """Outputs with one problem a column: (n, B) or (B,)."""

    x: Tensor
    log_x: Tensor
    y: Tensor
    z_upper: Tensor
    free: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor


def _batch(theta: Tensor, temperature: Tensor, upper: Tensor | None) -> torch.Size:
    upper_batch = () if upper is None else upper.shape[:-1]
    return broadcast(theta.shape[:-1], temperature.shape, upper_batch)


@opaque
def _kernel(
    theta: Tensor, temperature: Tensor, upper: Tensor | None, eps: float, max_iter: int, on_failure: str
) -> tuple[Tensor, ...]:
    batch, n = _batch(theta, temperature, upper), theta.shape[-1]
    B = batch.numel()
    rounding = torch.finfo(theta.dtype).eps

    def rows(t: Tensor) -> Tensor:
        return t.expand(*batch, n).reshape(B, n)

    theta_rows, taus = rows(theta), temperature.expand(batch).reshape(B)
    caps = None if upper is None else rows(upper)
    size = max(1, PIECE * torch.get_num_threads() // n) if theta.device.type == "cpu" else max(1, B)
    pieces = []
    for first in range(0, max(B, 1), size):
        part = slice(first, first + size)
        columns = (theta_rows[part].double().T.contiguous(), taus[part].double())
        cap = None if caps is None else caps[part].double().T.contiguous()
        pieces.append(_solve(*columns, cap, rounding, eps, max_iter))
    out = Columns(*map(_joined, zip(*pieces, strict=True)))
    failed = out.status != Status.SOLVED
    some = on_failure != "ignore" and bool(failed.any())
    if on_failure in ("raise", "warn") and some:
        message = _report(out.status.reshape(batch))
        if on_failure == "raise":
            raise SolverError(message)
        warn(message)
    if on_failure in FILLED and some:
        x, log_x, y, z_upper = (t.masked_fill(failed, torch.nan) for t in out[:4])
        out = out._replace(x=x, log_x=log_x, y=y, z_upper=z_upper)

    def shaped(t: Tensor) -> Tensor:
        dtype = theta.dtype if t.is_floating_point() else t.dtype
        return t.T.to(dtype).reshape(*batch, n) if t.dim() == 2 else t.to(dtype).reshape(batch)

    return tuple(map(shaped, out))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _solve(theta: Tensor, tau: Tensor, caps: Tensor | None, rounding: float, eps: float, max_iter: int) -> Columns:
    """One problem a column: theta and caps (n, B), tau (B,), all float64; `rounding` is that of the caller's dtype."""
    invalid = ~(tau > 0) | tau.isinf() | (theta.isnan() | (theta == torch.inf)).any(0)
    removed = theta == -torch.inf
    infeasible, lost = removed.all(0), torch.zeros_like(invalid)
    if caps is not None:
        invalid |= caps.isnan().any(0)
        caps = caps.clamp(max=NO_CAP)
        # The one way to be infeasible; its proof is the multiplier 1 on every cap and -1 on the sum.
        room, enough = torch.where(removed, 0, caps).sum(0), 1 - 64 * rounding
        infeasible = (caps < 0).any(0) | (room < enough)
        caps = caps / room.clamp(max=1)  # caps that sum to 1 in the caller's precision do so here
        removed |= caps == 0
    shift = torch.where(removed, -torch.inf, theta).amax(0)
    a = (theta - shift) / tau
    removed = removed | (a < -FARTHEST)
    if caps is not None:
        lost = torch.where(removed, 0, caps).sum(0) < enough
    skip = invalid | infeasible | lost
    tau = torch.where(skip, 1, tau)
    aside = removed | skip
    some = bool(aside.any())
    if some:
        a = torch.where(aside, 0, a)
        u = None if caps is None else torch.where(aside, NO_CAP, caps)
        problem = Problem(a, u, torch.where(removed & ~skip, 0.0, 1.0).to(a))
    else:
        problem = Problem(a, caps, None)
    solution = _solve_normalised(problem, skip, eps, max_iter)

    x, log_x, y, z, free, solved, residual, iterations = solution
    z, y = tau * z, tau * y + shift
    status = torch.where(solved, int(Status.SOLVED), int(Status.MAX_ITERATIONS))
    status = status.masked_fill((iterations < max_iter) & ~solved, int(Status.NUMERICAL_ERROR))
    free = torch.where(solved, free, 1)
    if some:
        x, log_x = torch.where(removed, 0, x), torch.where(removed, -torch.inf, log_x)
        z, free = torch.where(removed, 0, z), torch.where(removed | skip, 1, free)
        if caps is not None:
            shut = (caps == 0) & (theta > -torch.inf)
            z, free = torch.where(shut, torch.inf, z), torch.where(shut & ~skip, 0, free)
        x, log_x, y, z, residual = (t.masked_fill(skip, torch.nan) for t in (x, log_x, y, z, residual))
        iterations = iterations.masked_fill(skip, 0)
        status = status.masked_fill(lost, int(Status.NUMERICAL_ERROR))
        status = status.masked_fill(infeasible, int(Status.PRIMAL_INFEASIBLE))
        status = status.masked_fill(invalid, int(Status.INVALID_DATA))
    return Columns(x, log_x, y, z, free, status, iterations, residual)


def _solve_normalised(problem: Problem, skip: Tensor, eps: float, max_iter: int) -> Solution:
    """By the compiled engine for entropic programs, where it fits; by the method written in torch what it leaves."""
    a, u, c = problem
    n = a.shape[0]
    if n > LARGEST or not native.takes("auto", None, a.T, 1):
        return interior_point.solve(problem, skip, eps, max_iter)
    one = a.new_ones(1)
    row = one.expand(1, n) if c is None else c.T.unsqueeze(1)
    found = native.qp(None, -a.T, None, None, row, one, None, None if u is None else u.T, one, eps, eps, max_iter, True)
    x, y, status, iterations = found[0].T, found[1].squeeze(-1), found[6], found[7]
    # no slacks and no multipliers: where the central share of a cap is asked for, it is not a number
    x, none = (x, x) if u is None else (torch.cat([x, torch.zeros_like(x)]), x.new_zeros(2 * n, 1))
    solution = interior_point.close(problem, Point(x, none, y), skip, eps, status == Status.SOLVED, iterations)
    rest = (~skip & ~(solution.solved & solution.free.isfinite().all(0))).nonzero().squeeze(-1)
    if rest.numel():
        part = Problem(*(None if t is None else t[:, rest] for t in problem))  # type: ignore[arg-type]
        for whole, piece in zip(solution, interior_point.solve(part, skip[rest], eps, max_iter), strict=True):
            whole[..., rest] = piece
    return solution


def _report(status: Tensor) -> str:
    """Which elements failed and how, in one sentence or two."""
    failed = (status != Status.SOLVED).nonzero()
    first = Status(int(status[tuple(failed[0])]))
    where = f"element {tuple(failed[0].tolist())} of the batch" if status.dim() else "the problem"
    more = "" if len(failed) == 1 else f" {len(failed)} of {status.numel()} elements failed."
    diagnosis, advice = WORDS[first]
    return f"{where} ended with {first.name}: {diagnosis} {advice}{more}"


def _fake(
    theta: Tensor, temperature: Tensor, upper: Tensor | None, eps: float, max_iter: int, on_failure: str
) -> tuple[Tensor, ...]:
    batch, n = _batch(theta, temperature, upper), theta.shape[-1]
    vector, scalar = theta.new_empty(*batch, n), theta.new_empty(batch)
    count = torch.empty_like(scalar, dtype=torch.int64)
    like = (vector, vector, scalar, vector, vector, count, count, scalar)
    return tuple(torch.empty_like(t) for t in like)


def _vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return ops.map_batch(entropic_softmax, CORES, in_dims, args)


for _key in ("CPU", "CUDA"):
    library.impl("entropic_softmax", _kernel, _key)
torch.library.register_fake("optlayer::entropic_softmax", _fake, lib=library)
torch.library.register_vmap("optlayer::entropic_softmax", _vmap, lib=library)
