# SPDX-License-Identifier: Apache-2.0
"""One quadratic program as its author stated it, and many of them, of any shapes, as one batch.

Authors state rows with two limits, a constant, known optima,

    minimise  1/2 x'Px + q'x + r    subject to   l <= Cx <= u,   lb <= x <= ub,

and an :class:`Instance` is the standard form of that: a row with l = u becomes a row of Ax = b, any other row becomes
a row Cx <= u of Gx <= h, a row -Cx <= -l, or both.  Numbers of magnitude 1e20 or more are infinite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from .errors import ProblemError
from .problem import HUGE, Problem
from .solution import Rule, Solution

INF = float("inf")
NAN = float("nan")
EQUAL = 1e-12  # rows with |u - l| at most this are equalities, as in the tools that write such files


@dataclass(frozen=True, eq=False)
class Instance:
    """One quadratic program as a file states it, in float64 on the CPU.

        minimise  1/2 x'Px + q'x    subject to   Gx <= h,   Ax = b,   lb <= x <= ub

    Attributes:
        name: what the file calls the problem, else the name of the file.
        P, q: (n, n) and (n).
        G, h: (m, n) and (m): the rows with an upper limit, ``above``, then those with a lower one, negated, ``below``.
        A, b: (p, n) and (p): the rows whose limits are equal, ``equal``.
        lb, ub: (n), -inf and +inf where there is no bound.
        r: the constant of the objective.
        sense: 1 where the file minimises, -1 where it maximises and the blocks minimise the negative.
        optimum: the optimal objective that the file claims, NaN if it claims none.
        above, below, equal: (...) int64, for each row of G and A the row of the file that it came from.
        rows: how many rows the file has; rows without limits are no constraints.

    Example:
        >>> import torch
        >>> from optlayer import solve_qp
        >>> from optlayer.instance import Instance
        >>> one = torch.ones(1, 2, dtype=torch.float64)
        >>> instance = Instance.from_rows("simplex", torch.eye(2), torch.zeros(2), one, l=[1.0], u=[1.0], lb=[0.0, 0.0])
        >>> instance
        Instance('simplex', n=2, m=0, p=1)
        >>> solve_qp(**instance.blocks).x.tolist()
        [0.5, 0.5]
    """

    name: str
    P: Tensor
    q: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor
    lb: Tensor
    ub: Tensor
    r: float
    sense: int
    optimum: float
    above: Tensor
    below: Tensor
    equal: Tensor
    rows: int

    @classmethod
    def from_rows(
        cls,
        name: str,
        P: Any,
        q: Any,
        C: Any = None,
        l: Any = None,
        u: Any = None,
        lb: Any = None,
        ub: Any = None,
        *,
        r: float = 0.0,
        sense: int = 1,
        optimum: float = NAN,
    ) -> "Instance":
        """From two-sided rows: arrays, sequences or tensors; a limit or bound that is ``None`` is infinite.

        One number as a limit or bound stands for all.

        Raises:
            ProblemError: the shapes do not fit; the message names the block.
        """
        q = as_float64(q).reshape(-1)
        n = q.shape[0]
        P = torch.zeros(n, n, dtype=torch.float64) if P is None else as_float64(P)
        C = torch.zeros(0, n, dtype=torch.float64) if C is None else as_float64(C)
        rows = C.shape[0]
        l, u = _limits(l, rows, -INF), _limits(u, rows, INF)
        lb, ub = _limits(lb, n, -INF), _limits(ub, n, INF)
        shapes = {"P": (n, n), "A": (rows, n), "l": (rows,), "u": (rows,), "lb": (n,), "ub": (n,)}
        _check_shapes(name, dict(zip(shapes, (P, C, l, u, lb, ub), strict=True)), shapes)
        # Written so that a NaN stays a limit: the solver then says that the data are invalid.
        same = (u - l).abs() <= EQUAL
        equal = same.nonzero().reshape(-1)
        above = (~same & (u != INF)).nonzero().reshape(-1)
        below = (~same & (l != -INF)).nonzero().reshape(-1)
        G, h = torch.cat([C[above], -C[below]]), torch.cat([u[above], -l[below]])
        return cls(name, P, q, G, h, C[equal], u[equal], lb, ub, r, sense, optimum, above, below, equal, rows)

    @classmethod
    def from_blocks(
        cls,
        name: str,
        P: Any,
        q: Any,
        G: Any = None,
        h: Any = None,
        A: Any = None,
        b: Any = None,
        lb: Any = None,
        ub: Any = None,
        *,
        r: float = 0.0,
        optimum: float = NAN,
    ) -> "Instance":
        """From the arguments of :func:`optlayer.solve_qp`, as arrays, sequences or tensors without batch dimensions.

        The rows of the file are those of G, then those of A.

        Raises:
            ProblemError: the shapes do not fit, or G comes without h or A without b; the message names the block.
        """
        q = as_float64(q).reshape(-1)
        n = q.shape[0]
        for matrix, M, side, v in (("G", G, "h", h), ("A", A, "b", b)):
            if (M is None) is not (v is None):
                found, missing = (matrix, side) if v is None else (side, matrix)
                raise ProblemError(f"{name}: {found} is given without {missing}, expected both or neither")
        P = torch.zeros(n, n, dtype=torch.float64) if P is None else as_float64(P)
        G, A = (torch.zeros(0, n, dtype=torch.float64) if M is None else as_float64(M) for M in (G, A))
        h, b = (torch.zeros(0, dtype=torch.float64) if v is None else as_float64(v).reshape(-1) for v in (h, b))
        m, p = (M.shape[0] if M.ndim else 0 for M in (G, A))
        h, lb, ub = _limits(h, h.shape[0], INF), _limits(lb, n, -INF), _limits(ub, n, INF)
        shapes = {"P": (n, n), "G": (m, n), "h": (m,), "A": (p, n), "b": (p,), "lb": (n,), "ub": (n,)}
        _check_shapes(name, dict(zip(shapes, (P, G, h, A, b, lb, ub), strict=True)), shapes)
        none, above, equal = torch.arange(0), torch.arange(m), torch.arange(m, m + p)
        return cls(name, P, q, G, h, A, b, lb, ub, r, 1, optimum, above, none, equal, m + p)

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.q.shape[0]

    @property
    def m(self) -> int:
        """Number of rows of G."""
        return self.h.shape[0]

    @property
    def p(self) -> int:
        """Number of rows of A."""
        return self.b.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, m, p): instances of one shape stack into a batch without padding."""
        return self.n, self.m, self.p

    @property
    def blocks(self) -> dict[str, Any]:
        """The arguments of :func:`optlayer.solve_qp`; blocks that say nothing are ``None``."""
        return _without_idle(self.P, self.q, self.G, self.h, self.A, self.b, self.lb, self.ub)

    def objective(self, value: float) -> float:
        """The objective of the file where 1/2 x'Px + q'x of the blocks is ``value``."""
        return self.sense * value + self.r

    def row_multipliers(self, y: Tensor, z: Tensor) -> Tensor:
        """(rows): a multiplier per row of the file, > 0 where its upper limit is active, < 0 where its lower one is."""
        multipliers = y.new_zeros(self.rows)
        multipliers[self.equal] = y
        multipliers[self.above] = z[: len(self.above)]
        multipliers[self.below] -= z[len(self.above) :]
        return multipliers

    def __repr__(self) -> str:
        return f"Instance({self.name!r}, n={self.n}, m={self.m}, p={self.p})"


def stack(instances: Sequence[Instance]) -> dict[str, Any]:
    """The arguments of :func:`optlayer.solve_qp` that solve all instances as one batch, whatever their shapes.

    A smaller instance is filled up with variables fixed at zero, rows 0'x <= inf and rows 0'x = 0, which change
    nothing.  :func:`unstack` takes the solution of each instance out again.

    Example:
        >>> from optlayer import solve_qp
        >>> from optlayer.hock_schittkowski import problems
        >>> from optlayer.instance import stack
        >>> batch = problems("HS21", "HS35", "HS76")
        >>> solve_qp(**stack(batch)).x.shape
        torch.Size([3, 4])
    """
    if not instances:
        raise ProblemError("there is no instance to stack, expected at least one")
    n, m, p = (max(i.shape[k] for i in instances) for k in range(3))
    shapes = {"P": (n, n), "q": (n,), "G": (m, n), "h": (m,), "A": (p, n), "b": (p,), "lb": (n,), "ub": (n,)}
    blocks = []
    for name, shape in shapes.items():
        full = torch.full((len(instances), *shape), INF if name == "h" else 0.0, dtype=torch.float64)
        for row, instance in zip(full, instances, strict=True):
            t: Tensor = getattr(instance, name)
            row[tuple(slice(size) for size in t.shape)] = t
        blocks.append(full)
    return _without_idle(*blocks)


def unstack(solution: Solution, instances: Sequence[Instance]) -> list[Solution]:
    """The solution of each instance that :func:`stack` put into the batch, in its own shape.

    All of its values are those of the instance.  Only ``kkt`` and ``jacobian`` stay with the solution of the batch,
    whose factorisation they use; here they raise :class:`optlayer.ProblemError`.
    """
    alone = []
    for i, instance in enumerate(instances):
        cut = {"n": instance.n, "m": instance.m, "p": instance.p}
        parts = {k: getattr(solution, k)[i, : cut[size]] for k, size in SIZES.items()}
        certificate = solution.certificate
        ray = torch.cat([getattr(certificate, k)[i, : cut[SIZES[k]]] for k in certificate._fields])
        counts = {k: getattr(solution, k)[i] for k in ("status", "iterations", "weakly_active")}
        problem = Problem(**instance.blocks)
        alone.append(replace(solution, **parts, **counts, ray=ray, problem=problem, rule=BATCH_ONLY))
    return alone


def _refuse(*_: Any) -> NoReturn:
    raise ProblemError("the factorisation is that of the batch: ask the solution of the batch for kkt and jacobian")


BATCH_ONLY = Rule(_refuse, _refuse)
SIZES = {"x": "n", "y": "p", "z": "m", "z_box": "n", "s": "m"}


def as_float64(values: Any) -> Tensor:
    """Numbers of any kind as float64, none of them rounded on the way."""
    return torch.as_tensor(values, dtype=torch.float64)


def _limits(values: Any, size: int, default: float) -> Tensor:
    t = as_float64(default if values is None else values)
    t = t.reshape(-1) if t.ndim else t.expand(size)
    t = torch.where(t >= HUGE, INF, t)
    return torch.where(t <= -HUGE, -INF, t)


def _check_shapes(name: str, blocks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for block, t in blocks.items():
        if t.shape != shapes[block]:
            raise ProblemError(f"{name}: {block} has shape {tuple(t.shape)}, expected {shapes[block]}")


def _without_idle(
    P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor, lb: Tensor, ub: Tensor
) -> dict[str, Any]:
    rows, equalities = h.shape[-1] > 0, b.shape[-1] > 0
    return {
        "P": P if bool((P != 0).any()) else None,
        "q": q,
        "G": G if rows else None,
        "h": h if rows else None,
        "A": A if equalities else None,
        "b": b if equalities else None,
        "lb": lb if bool((lb != -INF).any()) else None,
        "ub": ub if bool((ub != INF).any()) else None,
    }
