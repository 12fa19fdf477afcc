# SPDX-License-Identifier: Apache-2.0
"""The program itself, and what its arguments must look like:

    minimise  1/2 x'Px + q'x    subject to   Gx <= h,   Ax = b,   lb <= x <= ub

or, with an entropy tau > 0, the same with tau_i x_i log x_i added for each variable, which keeps x >= 0 by itself.
Only the symmetric part of P counts.  Bounds and entries of h of magnitude 1e20 or more are none at all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import ProblemError

HUGE = 1e20
NAMES = ("P", "q", "G", "h", "A", "b", "lb", "ub")
CORES = {"P": 2, "q": 1, "G": 2, "h": 1, "A": 2, "b": 1, "lb": 1, "ub": 1, "entropy": 1}
FULL = (torch.float64, torch.float32)
HALF = (torch.float16, torch.bfloat16)
STRIDED = torch.strided
Record = TypeVar("Record")
Tensors = tuple[
    Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


def fill(record_type: type[Record], fields: dict[str, Any]) -> Record:
    """A frozen dataclass from its fields; its own constructor takes three times as long, which shows in one solve.

    Not for functions that are compiled.
    """
    record = object.__new__(record_type)
    object.__setattr__(record, "__dict__", fields)
    return record


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """The tensors of a quadratic program that :func:`validate` found in order; absent ones are ``None``.

    Attributes:
        P: (*batch, n, n); with an entropy it may be (*batch, 1, n), the diagonal of a diagonal matrix.
        q: (*batch, n).
        G, h: (*batch, m, n) and (*batch, m).
        A, b: (*batch, p, n) and (*batch, p).
        lb, ub: (*batch, n).
        entropy: tau, (*batch, n) or (*batch, 1), > 0.

    The batch shapes of the tensors broadcast to ``batch``, but need not be equal to it.
    """

    P: Tensor | None
    q: Tensor
    G: Tensor | None
    h: Tensor | None
    A: Tensor | None
    b: Tensor | None
    lb: Tensor | None
    ub: Tensor | None
    entropy: Tensor | None = None

    @property
    def tensors(self) -> Tensors:
        """(P, q, G, h, A, b, lb, ub), without the entropy."""
        return self.P, self.q, self.G, self.h, self.A, self.b, self.lb, self.ub

    @property
    def batch(self) -> torch.Size:
        """The batch shape that all tensors broadcast to."""
        return _batch(zip(CORES, (*self.tensors, self.entropy), strict=True))

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.q.shape[-1]

    @property
    def m(self) -> int:
        """Number of rows of G."""
        return 0 if self.h is None else self.h.shape[-1]

    @property
    def p(self) -> int:
        """Number of rows of A."""
        return 0 if self.b is None else self.b.shape[-1]

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "Problem":
        """This problem in another dtype and, unless ``None``, on another device."""
        tensors: list[Any] = [None if t is None else t.to(device, dtype) for t in (*self.tensors, self.entropy)]
        return Problem(*tensors)

    def __repr__(self) -> str:
        named = zip(CORES, (*self.tensors, self.entropy), strict=True)
        shapes = ", ".join(f"{k}={tuple(t.shape)}" for k, t in named if t is not None)
        return f"Problem({shapes}, dtype={self.q.dtype}, device={self.q.device})"


def validate(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lb: Tensor | float | None = None,
    ub: Tensor | float | None = None,
    entropy: Tensor | float | None = None,
) -> Problem:
    """Check that the arguments describe one quadratic program, before any work and without a look at their values.

    ``lb``, ``ub`` and ``entropy`` may also be one number, or a tensor without dimensions, for all variables.  float16
    and bfloat16 pass where autocast is on for their device; they count as float32 then.

    Raises:
        ProblemError: a type, dtype, device, layout or shape is wrong, ``G`` comes without ``h`` or ``A`` without ``b``,
            a number for the entropy is not positive and finite, one for a bound is NaN, or two for the bounds are in
            the wrong order.  The message names the argument, what was found and what was expected.
    """
    if entropy is None and _in_order(P, q, G, h, A, b, lb, ub):
        return Problem(P, q, G, h, A, b, lb, ub)  # type: ignore[arg-type]  # the bounds are tensors here
    if not isinstance(q, Tensor):
        raise ProblemError(f"q is {kind(q)}, expected a torch.Tensor of shape (*batch, n)")
    if q.ndim == 0 or q.shape[-1] == 0:
        raise ProblemError(f"q has shape {tuple(q.shape)}, expected (*batch, n) with n >= 1")
    n, dtype = q.shape[-1], working_dtype(q)
    for matrix, M, side, v in (("G", G, "h", h), ("A", A, "b", b)):
        if (M is None) is not (v is None):
            found, missing = (matrix, side) if v is None else (side, matrix)
            raise ProblemError(f"{found} is given without {missing}: expected both or neither")
    _check_numbers(lb, ub)
    if lb is not None:
        lb = _bound("lb", lb, q, dtype)
    if ub is not None:
        ub = _bound("ub", ub, q, dtype)
    if entropy is not None:
        entropy = _entropy(entropy, q, dtype)

    lead, device, alike = q.shape[:-1], q.device, True
    for (name, core), t in zip(CORES.items(), (P, q, G, h, A, b, lb, ub, entropy), strict=True):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise ProblemError(f"{name} is {kind(t)}, expected a torch.Tensor or None")
        if t.dtype is not dtype and working_dtype(t, name) is not dtype:
            raise ProblemError(f"{name} has dtype {t.dtype} but q has {q.dtype}: expected one dtype for all arguments")
        if t.device != device:
            raise ProblemError(f"{name} is on {t.device} but q is on {device}: expected one device for all arguments")
        if t.layout is not STRIDED:
            raise ProblemError(f"{name} has layout {t.layout}, expected a dense tensor (torch.strided)")
        shape = t.shape
        rank = len(shape) - core
        if rank < 0 or (shape[-1] != n and name not in ("h", "b")) or (name == "P" and shape[-2] != n):
            diagonal = name == "P" and rank >= 0 and shape[-1] == n and shape[-2] == 1 and entropy is not None
            alone = name == "entropy" and rank >= 0 and shape[-1] == 1
            if not diagonal and not alone:
                raise _misshapen(name, t, q, entropy is not None)
        alike = alike and (rank == 0 or shape[:rank] == lead)
    for matrix, M, side, v in (("G", G, "h", h), ("A", A, "b", b)):
        if M is not None and v is not None and v.shape[-1] != M.shape[-2]:
            raise ProblemError(
                f"{side} has shape {tuple(v.shape)}, expected (*batch, {M.shape[-2]}) "
                f"because {matrix} has shape {tuple(M.shape)}"
            )
    problem = Problem(P, q, G, h, A, b, lb, ub, entropy)
    if not alike:
        _batch(zip(CORES, (*problem.tensors, entropy), strict=True))
    return problem


def _in_order(P: Any, q: Any, G: Any, h: Any, A: Any, b: Any, lb: Any, ub: Any) -> bool:
    """Whether all are tensors of one kind and of full shape: the usual case, told quickly; others get a closer look."""
    if not isinstance(q, Tensor):
        return False
    dtype, device = q.dtype, q.device
    for t in (P, q, G, h, A, b, lb, ub):
        if t is not None and not (
            isinstance(t, Tensor) and t.dtype is dtype and t.device == device and t.layout is STRIDED
        ):
            return False
    vector = q.shape
    return (
        dtype in FULL
        and len(vector) > 0
        and vector[-1] > 0
        and (P is None or P.shape == (*vector, vector[-1]))
        and _rows_in_order(G, h, vector)
        and _rows_in_order(A, b, vector)
        and (lb is None or lb.shape == vector)
        and (ub is None or ub.shape == vector)
    )


def _rows_in_order(M: Tensor | None, v: Tensor | None, vector: torch.Size) -> bool:
    if M is None or v is None:
        return M is v
    sides = v.shape
    return len(sides) == len(vector) and sides[:-1] == vector[:-1] and M.shape == (*sides, vector[-1])


def working_dtype(t: Tensor, name: str = "q") -> torch.dtype:
    """The dtype that a tensor is solved in: its own, or float32 for a half precision one under autocast."""
    dtype = t.dtype
    if dtype in FULL:
        return dtype
    if dtype in HALF:
        if autocast_on(t.device.type):
            return torch.float32
        raise ProblemError(
            f"{name} has dtype {dtype}, expected torch.float64 or torch.float32; "
            "half precision is accepted under torch.autocast only"
        )
    raise ProblemError(f"{name} has dtype {dtype}, expected torch.float64 or torch.float32")


def autocast_on(device: str) -> bool:
    """Whether autocast is active for a device type; false for those, as meta, that have no autocast."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _check_numbers(lb: Any, ub: Any) -> None:
    """Refuse bounds that are numbers and leave no x; as tensors they may fail later."""
    numbers = {
        name: bound
        for name, bound in (("lb", lb), ("ub", ub))
        if isinstance(bound, (int, float, torch.SymInt, torch.SymFloat))
    }
    for name, bound in numbers.items():
        if bound != bound:
            raise ProblemError(f"{name} is {bound!r}, expected a number or None")
    if len(numbers) == 2 and lb > ub:
        raise ProblemError(f"lb is {lb!r} and ub is {ub!r}, expected lb <= ub")


def _bound(name: str, bound: Tensor | float, q: Tensor, dtype: torch.dtype) -> Tensor:
    """A bound as a tensor (*batch, n); one number stands for all variables."""
    if isinstance(bound, Tensor):
        return bound.expand(q.shape[-1]) if bound.ndim == 0 else bound
    if isinstance(bound, bool) or not isinstance(bound, (int, float, torch.SymInt, torch.SymFloat)):
        raise ProblemError(
            f"{name} is {kind(bound)}, expected a torch.Tensor of shape (*batch, {q.shape[-1]}), a number or None"
        )
    return torch.full((q.shape[-1],), bound, dtype=dtype, device=q.device)


def _entropy(entropy: Tensor | float, q: Tensor, dtype: torch.dtype) -> Tensor:
    """The entropy as a tensor (*batch, n) or (*batch, 1); a number must be positive here, a tensor may fail later."""
    if isinstance(entropy, Tensor):
        return entropy.expand(q.shape[-1]) if entropy.ndim == 0 else entropy
    if isinstance(entropy, bool) or not isinstance(entropy, (int, float, torch.SymInt, torch.SymFloat)):
        raise ProblemError(
            f"entropy is {kind(entropy)}, expected a torch.Tensor of shape (*batch, {q.shape[-1]}) or (*batch, 1), "
            "a number or None"
        )
    if not 0 < entropy < float("inf"):
        raise ProblemError(
            f"entropy is {entropy!r}, expected a finite number > 0; a problem without entropy has entropy=None"
        )
    return torch.full((q.shape[-1],), entropy, dtype=dtype, device=q.device)


def _misshapen(name: str, t: Tensor, q: Tensor, entropic: bool = False) -> ProblemError:
    n = q.shape[-1]
    expected = {"G": f"m, {n}", "A": f"p, {n}", "h": "m", "b": "p", "lb": f"{n}", "ub": f"{n}"}.get(name, f"{n}, {n}")
    if entropic and name in ("P", "entropy"):
        last = f"{n}, {n}) or (*batch, 1, {n})" if name == "P" else f"{n}) or (*batch, 1)"
        return ProblemError(
            f"{name} has shape {tuple(t.shape)}, expected (*batch, {last} because q has shape {tuple(q.shape)}"
        )
    because = "" if name in ("h", "b") else f" because q has shape {tuple(q.shape)}"
    if because and n == 1 and q.ndim > 1 and t.ndim and t.shape[-1] == q.shape[-2] > 1:
        because += " (is q a column? expected (*batch, n))"
    return ProblemError(f"{name} has shape {tuple(t.shape)}, expected (*batch, {expected}){because}")


def kind(value: object) -> str:
    """A type in words: 'a numpy.ndarray'."""
    found = type(value)
    name = found.__qualname__ if found.__module__ == "builtins" else f"{found.__module__}.{found.__qualname__}"
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def _batch(named: Iterable[tuple[str, Tensor | None]]) -> torch.Size:
    """The common batch shape; arguments that do not broadcast are named with their shapes."""
    seen: list[tuple[str, Tensor, torch.Size]] = []
    batch: list[int] = []
    for name, t in named:
        if t is None:
            continue
        lead = t.shape[: t.ndim - CORES[name]]
        batch = [1] * (len(lead) - len(batch)) + batch
        for i in range(1, len(lead) + 1):
            if lead[-i] != batch[-i]:
                if batch[-i] == 1:
                    batch[-i] = lead[-i]
                elif lead[-i] != 1:
                    other, o, its = next(known for known in seen if i <= len(known[2]) and known[2][-i] == batch[-i])
                    raise ProblemError(
                        f"{other} has shape {tuple(o.shape)} and {name} has shape {tuple(t.shape)}: "
                        f"expected batch shapes that broadcast, found {tuple(its)} and {tuple(lead)}"
                    )
        seen.append((name, t, lead))
    return torch.Size(batch)


def _flatten(problem: Problem) -> tuple[list[Any], tuple[bool, ...]]:
    tensors = (*problem.tensors, problem.entropy)
    given = [(core, t) for core, t in zip(CORES.values(), tensors, strict=True) if t is not None]
    leaves: list[Any] = [t for _, t in given]
    if all(isinstance(t, Tensor) for t in leaves):
        # Batch dimensions of size one are spelt out: vmap puts its dimension leftmost of each tensor, and what
        # broadcast before must still broadcast after.
        rank = max(t.ndim - core for core, t in given)
        leaves = [t if t.ndim - core == rank else t[(None,) * (rank + core - t.ndim)] for core, t in given]
    return leaves, tuple(t is not None for t in tensors)


def _unflatten(leaves: Iterable[Any], present: tuple[bool, ...]) -> Problem:
    given = iter(leaves)
    tensors: list[Any] = [next(given) if here else None for here in present]
    return Problem(*tensors)


pytree.register_pytree_node(Problem, _flatten, _unflatten, serialized_type_name="optlayer.Problem")


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """The shape that some broadcast to, RuntimeError if there is none.

    That is ``torch.broadcast_shapes``, whose first call imports sympy: seconds, which only symbolic sizes are worth.
    """
    if torch.compiler.is_compiling() or any(type(size) is not int for shape in shapes for size in shape):
        joint: torch.Size = torch.broadcast_shapes(*shapes)
        return joint
    sizes = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for i, size in enumerate(reversed(shape), 1):
            if size != 1 and sizes[-i] not in (1, size):
                raise RuntimeError(f"shapes {', '.join(str(tuple(s)) for s in shapes)} do not broadcast")
            sizes[-i] = size if size != 1 else sizes[-i]
    return torch.Size(sizes)
