# SPDX-License-Identifier: Apache-2.0
"""What all iterations over a batch have in common: each element begins, moves and ends by itself.

Vectors are (*batch, n), everything else that belongs to an element is (*batch, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kkt.algebra import norm
from ..status import Status

SUFFICIENT = 1e-4  # of the decrease that the slope promises
HALVINGS = 40

State = tuple[Tensor, ...]


def size(r: Tensor) -> Tensor:
    """The infinity norm, (*batch, 1)."""
    return norm(r).unsqueeze(-1)


class Run:
    """Where every element of the batch stands.

    Attributes:
        status: (*batch, 1) int64; UNSOLVED while the element is at work.
        count: (*batch, 1) int64, the iterations so far.
    """

    def __init__(self, *values: Tensor) -> None:
        """Elements of which one of the values, (*batch, k), is not finite have no business to begin."""
        finite = torch.cat([v.isfinite().all(-1, keepdim=True) for v in values], -1).all(-1, keepdim=True)
        self.status = torch.where(finite, int(Status.UNSOLVED), int(Status.INVALID_DATA))
        self.count = torch.zeros_like(self.status)

    @property
    def active(self) -> Tensor:
        """(*batch, 1) bool: who is at work."""
        return self.status == Status.UNSOLVED

    def end(self, where: Tensor, status: Status) -> None:
        """Those of the active elements that end here, and how."""
        self.status = torch.where(self.active & where, int(status), self.status)

    def step(self, where: Tensor) -> None:
        """One iteration more for some elements."""
        self.count = self.count + where

    def result(self, z: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a solver returns; whoever is still at work has reached the limit."""
        self.end(self.active, Status.MAX_ITERATIONS)
        return z, self.status.squeeze(-1), self.count.squeeze(-1), residual.squeeze(-1)


def sound(z: Tensor) -> Tensor:
    """z with ones in the place of elements that are not finite: functions are evaluated there all the same."""
    return torch.where(z.isfinite().all(-1, keepdim=True), z, 1.0)


def backtrack(
    evaluate: Callable[[Tensor], State],
    acceptable: Callable[[Tensor, State], Tensor],
    z: Tensor,
    state: State,
    step: Tensor,
    going: Tensor,
    halvings: int = HALVINGS,
    once: Tensor | None = None,
) -> tuple[Tensor, State, Tensor]:
    """For each element that is going the first acceptable of z + step, z + step / 2, z + step / 4, ...

    Args: `evaluate` gives the state at a point; `acceptable(t, state)` judges that of z + t step; the elements `once`,
    if any, try the whole step and no other.
    Returns: the new points with their states, and the elements among those going that found none and stayed.
    """
    trying = going if once is None else going | once
    start, t = z, torch.ones_like(z[..., :1])
    for _ in range(halvings):
        trial = start + t * step
        found = evaluate(trial)
        good = trying & acceptable(t, found)
        z = torch.where(good, trial, z)
        state = tuple(torch.where(good, new, old) for new, old in zip(found, state, strict=True))
        trying = going = going & ~good
        if not going.any():
            break
        t = torch.where(going, t / 2, t)
    return z, state, going
