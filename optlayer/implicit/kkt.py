# SPDX-License-Identifier: Apache-2.0
"""The optimality conditions of a smooth convex program as an equation, for `implicit` and `root`.

    minimise  f(x, theta)   subject to   e(x, theta) = 0,   g(x, theta) <= 0

    F(w) = ( grad f + (de/dx)'y + (dg/dx)'z ;  e ;  min(z, -g) ) = 0,      w = (x, y, z)

The last row is zero exactly where z >= 0, g <= 0 and z g = 0: a root of F is optimal and feasible.  (The product z g
alone would have roots that are neither.)  Its derivative is dz on the rows that are inactive and -dg on the active
ones, which makes dF/dw the KKT matrix of the active set; where a row is weakly active, z = g = 0, it is the mean of
both, one of the derivatives that lie between the one-sided ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..errors import ProblemError
from .mapping import owned


class KKT(Module):
    """The KKT residual F(w, *theta), :func:`kkt`; a module, so that the parameters of f, e and g are its own."""

    def __init__(self, objective: Any, eq: Any, ineq: Any, n: int, p: int) -> None:
        super().__init__()
        self.objective, self.eq, self.ineq = owned(objective), owned(eq), owned(ineq)
        self.n, self.p = n, p

    def forward(self, w: Tensor, *theta: Any) -> Tensor:
        """F(w, *theta), of the shape of w."""
        x, y, z = self.split(w)

        def lagrangian(x: Tensor) -> tuple[Tensor, list[Tensor]]:
            total, rows = self.objective(x, *theta).sum(), []
            if self.eq is not None:
                e = self._rows("eq", self.eq(x, *theta), y)
                total, rows = total + (y * e).sum(), [e]
            if self.ineq is not None:
                g = self._rows("ineq", self.ineq(x, *theta), z)
                total, rows = total + (z * g).sum(), [*rows, torch.minimum(z, -g)]
            return total, rows

        slope, rows = torch.func.grad(lagrangian, has_aux=True)(x)
        return torch.cat([slope, *rows], -1)

    def split(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (*batch, n), y (*batch, p) and z (*batch, m) of a point w (*batch, n + p + m)."""
        m = w.shape[-1] - self.n - self.p
        if m < 0 or (m > 0 and self.ineq is None):
            raise ProblemError(
                f"w has {w.shape[-1]} entries, expected n + p + m with n = {self.n}, p = {self.p} and m rows of ineq"
            )
        x, y, z = w.split([self.n, self.p, m], -1)
        return x, y, z

    def pack(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """w of its parts; the multipliers of constraints that are absent are left out."""
        return torch.cat([part for part in (x, y, z) if part is not None], -1)

    def _rows(self, name: str, value: Tensor, multiplier: Tensor) -> Tensor:
        if value.shape != multiplier.shape:
            raise ProblemError(
                f"{name} returns shape {tuple(value.shape)}, but w leaves multipliers of shape "
                f"{tuple(multiplier.shape)} to it: expected w of n + p + m entries, one multiplier a row"
            )
        return value


def kkt(objective: Any, eq: Any = None, ineq: Any = None, *, n: int, p: int = 0) -> KKT:
    """The KKT residual of a smooth convex program, to be used with :func:`implicit` or :func:`root`.

        minimise  objective(x, *theta)   subject to   eq(x, *theta) = 0,   ineq(x, *theta) <= 0

    Multipliers have the signs of :func:`optlayer.solve_qp`: the Lagrangian is objective + y'eq + z'ineq, z >= 0.

    Args:
        objective: (*batch, n) -> (*batch), convex in x, a function or module of ``(x, *theta)``.
        eq: (*batch, n) -> (*batch, p), affine in x, or ``None``.
        ineq: (*batch, n) -> (*batch, m), convex in x, or ``None``.
        n: the number of variables.
        p: the number of equalities.

    Returns:
        F, a module called as ``F(w, *theta)`` with w = ``F.pack(x, y, z)``, (*batch, n + p + m); ``F.split(w)`` takes a
        point apart again.  F = 0 means that x is optimal with multipliers y and z.  Its Jacobian is regular where the
        gradients of the active constraints are independent and the Hessian of the Lagrangian is positive definite along
        them; where a multiplier and its slack are both zero, x has one-sided derivatives only and an element between
        them comes out.

    Raises:
        ProblemError: n or p is no count, or p > 0 contradicts eq.  Shapes are checked when F is called.

    Example:
        The point of the half-plane x1 + x2 <= 1 nearest to theta, and its derivative.

        >>> import torch
        >>> from optlayer.implicit import kkt, root
        >>> F = kkt(lambda x, t: (x - t).square().sum() / 2, ineq=lambda x, t: x.sum(-1, keepdim=True) - 1, n=2)
        >>> theta = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> x, y, z = F.split(root(F, torch.ones(3, dtype=torch.float64), theta).value)
        >>> x.tolist(), z.tolist()
        ([0.0, 1.0], [1.0])
        >>> x[0].backward()
        >>> theta.grad.tolist()
        [0.5, -0.5]
    """
    for name, value in (("n", n), ("p", p)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ProblemError(f"{name} is {value!r}, expected a count")
    if (eq is None) != (p == 0):
        raise ProblemError(f"p is {p} and eq is {'not ' if eq is None else ''}given: expected p = the rows of eq")
    return KKT(objective, eq, ineq, n, p)
