# SPDX-License-Identifier: Apache-2.0
"""Optimisation problems as modules: some of their data are learned, some arrive as input."""

import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from torch.nn import functional

from .derivative.tracing import full_precision
from .entropic import softmax
from .errors import ProblemError, SettingsError
from .problem import FULL, HUGE, NAMES
from .qp import solve_qp
from .residuals import matvec
from .settings import Settings
from .solution import Solution
from .status import readable

RIGHT_HAND_SIDES = ("h", "b", "lb", "ub")
BLOCKS = (*NAMES, "entropy")
SHAPES = {"P": "nn", "q": "n", "G": "mn", "h": "m", "A": "pn", "b": "p", "lb": "n", "ub": "n", "entropy": "n"}
NUMBERS = ("lb", "ub", "entropy")  # blocks that may be one number
ONE = math.log(math.expm1(1.0))  # softplus(ONE) = 1


class QPLayer(nn.Module):
    """A quadratic or entropic program some of whose data are learned; the output is its minimiser.

        x = argmin 1/2 x'Px + q'x    subject to   Gx <= h,   Ax = b,   lb <= x <= ub

    Each block of the data is an input of ``forward``, a constant, or learned.  Learned blocks are parametrised so that
    the problem stays convex and its bounds in order:

        P = L L' + epsilon I      with L lower triangular
        ub = lb + softplus(.)      when both bounds are learned

    and with ``feasible=True`` so that it always has a feasible point z0, which is learned too (as in OptNet, Amos and
    Kolter 2017):

        h = G z0 + softplus(.),   b = A z0,   lb = z0 - softplus(.),   ub = z0 + softplus(.)

    Then every right-hand side must be learned, except bounds that are constants: z0 is parametrised to lie within.

    With an entropy tau among the blocks the objective has sum_i tau_i x_i log x_i besides, which keeps x > 0; z0 is
    positive then.  A learned entropy is one number for all variables, the exponential of ``log_entropy``.

    Args:
        n, m, p: number of variables, rows of G and rows of A.
        inputs: names of the blocks that ``forward`` takes, in its order.
        constants: blocks that stay as they are, tensors or for lb, ub and entropy also numbers; they are buffers.
            Tensors are taken to ``device`` and ``dtype`` where these are given, else they must have the parameters'
            dtype.
        learned: names of the blocks that are learned.  By default all of P, q, G, h, A and b that the problem has and
            that are neither input nor constant; bounds and an entropy are learned only on request.
        feasible: whether the problem is feasible by construction.
        epsilon: lower bound of the eigenvalues of a learned P, >= 0.
        settings: how to solve, see :class:`optlayer.Settings`; its fields may also be given by name, as to
            :func:`optlayer.solve_qp`.
        generator: source of the initial values; by default torch's, hence reproducible by ``torch.manual_seed``.
        device, dtype: of the parameters.
        **overrides: fields of ``settings``, such as ``eps_abs=1e-6``.

    Raises:
        ProblemError: the blocks do not make one problem, or one is given by its name as a setting is.
        SettingsError: ``settings`` is no :class:`optlayer.Settings`, or a setting is unknown or out of its range.

    Shapes:
        The inputs are those of :func:`optlayer.solve_qp`, the output is x, (*batch, n).

    Example:
        >>> import torch
        >>> from optlayer.nn import QPLayer
        >>> layer = QPLayer(3, m=2, feasible=True, dtype=torch.float64)
        >>> layer
        QPLayer(n=3, m=2, p=0, inputs=(q), learned=(P, G, h), feasible=True, epsilon=0.0001)
        >>> layer(torch.ones(5, 3, dtype=torch.float64)).shape
        torch.Size([5, 3])

        Shares of a budget, at a temperature that is learned; without P this is a softmax with any constraints.

        >>> one = torch.ones(1, 3, dtype=torch.float64)
        >>> shares = {"A": one, "b": one[0, :1], "ub": 0.5}
        >>> layer = QPLayer(3, p=1, constants=shares, learned=("entropy",), dtype=torch.float64)
        >>> layer
        QPLayer(n=3, m=0, p=1, inputs=(q), learned=(entropy), constants=(A, b, ub), feasible=False, epsilon=0.0001)
        >>> layer(torch.tensor([-3.0, -1.0, 0.0], dtype=torch.float64)).round(decimals=4).tolist()
        [0.5, 0.3655, 0.1345]
    """

    z0: Tensor

    def __init__(
        self,
        n: int,
        m: int = 0,
        p: int = 0,
        *,
        inputs: Iterable[str] = ("q",),
        constants: Mapping[str, Tensor | float] | None = None,
        learned: Iterable[str] | None = None,
        feasible: bool = False,
        epsilon: float = 1e-4,
        settings: Settings | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if settings is not None and not isinstance(settings, Settings):
            raise SettingsError(f"settings is {settings!r}, expected an optlayer.Settings")
        for name, value in overrides.items():
            if name in BLOCKS:
                shown = value if isinstance(value, (int, float)) else "..."
                raise ProblemError(
                    f'{name} is given by its name, expected constants={{"{name}": {shown}}} '
                    f"or {name!r} among inputs or learned"
                )
        if overrides:
            settings = (settings or Settings()).override(**overrides)
        constants = dict(constants or {})
        self.n, self.m, self.p = n, m, p = _sizes(n, m, p)
        self.inputs = _names(inputs)
        self.constants = tuple(name for name in BLOCKS if name in constants)
        if learned is None:
            present = ("P", "q", *(("G", "h") if m else ()), *(("A", "b") if p else ()))
            learned = [name for name in present if name not in self.inputs and name not in self.constants]
        learned = set(_names(learned))
        self.learned = tuple(name for name in BLOCKS if name in learned)
        self.feasible, self.epsilon, self.settings = feasible, epsilon, settings
        self.entropic = "entropy" in {*self.inputs, *constants, *learned}
        self._check_blocks({*self.inputs, *constants, *learned})

        for name in self.learned:
            if feasible and name == "b":
                continue
            shape = [] if name == "entropy" else [getattr(self, size) for size in SHAPES[name]]
            values = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(self._parameter_of(name), nn.Parameter(values))
        if feasible:
            self.register_parameter("z0", nn.Parameter(torch.empty(n, device=device, dtype=dtype)))
        for name in self.constants:
            self.register_buffer(name, self._constant(name, constants[name], device, dtype))
        self._check_bounds()
        self.reset_parameters(generator)

    def _check_blocks(self, present: set[str]) -> None:
        groups = (("inputs", self.inputs), ("constants", self.constants), ("learned", self.learned))
        for name in sorted(present - set(BLOCKS)):
            raise ProblemError(f"{name!r} is no block of the problem, expected one of {', '.join(BLOCKS)}")
        for name in BLOCKS:
            homes = [group for group, names in groups for found in names if found == name]
            if len(homes) > 1:
                raise ProblemError(f"{name} is listed in {' and in '.join(homes)}, expected in one place")
        if not 0 <= self.epsilon < math.inf:
            raise ProblemError(f"epsilon is {self.epsilon}, expected a finite number >= 0")
        if "q" not in present:
            raise ProblemError(
                "q is neither input nor constant nor learned, but it fixes the problem's dtype and device"
            )
        for matrix, side, rows, size in (("G", "h", "m", self.m), ("A", "b", "p", self.p)):
            found = sorted(present & {matrix, side})
            if size and len(found) < 2:
                raise ProblemError(f"{rows} is {size} but of {matrix} and {side} there is {found}: expected both")
            if not size and found:
                raise ProblemError(f"{rows} is 0 but there is {found}: expected neither {matrix} nor {side}")
        if self.feasible:
            if not set(RIGHT_HAND_SIDES) & set(self.learned):
                raise ProblemError("feasible=True needs a learned h, b, lb or ub, found none")
            for name in RIGHT_HAND_SIDES:
                allowed = self.learned if name in ("h", "b") else (*self.learned, *self.constants)
                if name in present and name not in allowed:
                    home = "an input" if name in self.inputs else "a constant"
                    raise ProblemError(f"feasible=True needs {name} to be learned, found it as {home}")

    def _constant(
        self, name: str, value: Tensor | float, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Tensor:
        """A constant block as the tensor that it will be a buffer of."""
        standard = dtype or torch.get_default_dtype()
        if not isinstance(value, Tensor):
            if name not in NUMBERS or isinstance(value, bool) or not isinstance(value, (int, float)):
                number = " or a number" if name in NUMBERS else ""
                raise ProblemError(f"constant {name} is a {type(value).__qualname__}, expected a torch.Tensor{number}")
            if name == "entropy" and not 0 < value < math.inf:
                raise ProblemError(f"constant entropy is {value!r}, expected a finite number > 0")
            return torch.tensor(value, device=device, dtype=standard)
        self._check_shape("constant", name, value)
        value = value.to(device=device, dtype=dtype)
        parametrised = bool(self.learned) or self.feasible
        if not value.is_floating_point() or (parametrised and {value.dtype, standard} == set(FULL)):
            raise ProblemError(f"constant {name} has dtype {value.dtype}, expected {standard}: give the layer a dtype")
        return value

    def _check_bounds(self) -> None:
        """Refuse constant bounds that leave no x: no call of the layer would have a solution."""
        lb, ub = self._buffers.get("lb"), self._buffers.get("ub")
        if lb is None or ub is None or not (readable(lb) and readable(ub)):
            return
        if bool((lb > ub).any()):
            most = float((lb - ub).nan_to_num().max())
            raise ProblemError(f"constants lb and ub: lb exceeds ub by up to {most:.4g}, expected lb <= ub")

    def _check_shape(self, home: str, name: str, t: Tensor) -> None:
        sizes = SHAPES[name]
        shape = tuple(getattr(self, size) for size in sizes)
        found = tuple(t.shape[-len(shape) :])
        if (t.ndim == 0 and name in NUMBERS) or found == shape:
            return
        if self.entropic and ((name == "entropy" and found == (1,)) or (name == "P" and found == (1, self.n))):
            return
        has = " and ".join(f"{size} = {getattr(self, size)}" for size in dict.fromkeys(sizes))
        expected = ", ".join(["*batch", *map(str, shape)])
        raise ProblemError(f"{home} {name} has shape {tuple(t.shape)}, expected ({expected}): this layer has {has}")

    def _parameter_of(self, name: str) -> str:
        """The name of the parameter behind a learned block: its own where the parameter is the block itself."""
        if name in ("P", "entropy"):
            return {"P": "L", "entropy": "log_entropy"}[name]
        if name in ("h", "lb", "ub") and (self.feasible or (name == "ub" and "lb" in self.learned)):
            return f"{name}_gap"
        return name

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the parameters anew: P = (1 + epsilon) I, q, G and A normal, gaps and tau 1, z0 amid constant bounds."""
        for name, parameter in self.named_parameters(recurse=False):
            if name == "L":
                nn.init.eye_(parameter)
            elif name in ("q", "G", "A"):
                nn.init.normal_(parameter, std=self.n**-0.5, generator=generator)
            elif name.endswith("_gap"):
                nn.init.constant_(parameter, ONE)
            else:
                nn.init.constant_(parameter, {"h": 1.0, "lb": -1.0, "ub": 1.0}.get(name, 0.0))

    def blocks(self, *args: Tensor, **named: Tensor) -> dict[str, Any]:
        """The data of the problem by name: the arguments of :func:`optlayer.solve_qp`.

        Inputs as in ``forward``; those that are not given are left out.  P is ``None`` where there is none.
        """
        blocks: dict[str, Any] = {} if "P" in self.inputs else {"P": None}
        blocks = {**blocks, **self._given(args, named), **{name: getattr(self, name) for name in self.constants}}
        own = dict(self.named_parameters(recurse=False))
        device = next((t.device.type for t in (*own.values(), *blocks.values()) if isinstance(t, Tensor)), "cpu")
        with full_precision(device):  # in half precision L L' may lose its positive eigenvalues, and G z0 its digits
            for name in self.learned:
                if self._parameter_of(name) == name and name in own:
                    blocks[name] = own[name]
            if "P" in self.learned:
                L = own["L"].tril()
                blocks["P"] = L @ L.mT + self.epsilon * torch.eye(self.n, dtype=L.dtype, device=L.device)
            if "entropy" in self.learned:
                blocks["entropy"] = own["log_entropy"].exp()
            if self.feasible:
                z0 = self.feasible_point()
                if "h" in self.learned:
                    blocks["h"] = matvec(blocks["G"].to(z0.dtype), z0) + functional.softplus(own["h_gap"])
                if "b" in self.learned:
                    blocks["b"] = matvec(blocks["A"].to(z0.dtype), z0)
                if "lb" in self.learned:
                    blocks["lb"] = z0 - functional.softplus(own["lb_gap"])
                if "ub" in self.learned:
                    blocks["ub"] = z0 + functional.softplus(own["ub_gap"])
            elif "ub_gap" in own:
                blocks["ub"] = blocks["lb"] + functional.softplus(own["ub_gap"])
        return blocks

    def feasible_point(self) -> Tensor:
        """(n,): the point that ``feasible=True`` keeps feasible, strictly within bounds that are constants.

        With an entropy it is positive.
        """
        z0 = self.z0
        if self.entropic or "lb" in self.constants or "ub" in self.constants:
            lower = self.get_buffer("lb") if "lb" in self.constants else torch.full_like(z0, -torch.inf)
            upper = self.get_buffer("ub") if "ub" in self.constants else torch.full_like(z0, torch.inf)
            return _between(z0, lower.clamp(min=0) if self.entropic else lower, upper)
        return z0

    def _given(self, args: Sequence[Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs by name, of those in their order and those by name."""
        if len(args) > len(self.inputs):
            raise ProblemError(f"{len(args)} inputs are given, expected {len(self.inputs)}: {', '.join(self.inputs)}")
        given = dict(zip(self.inputs, args, strict=False))
        for name in named:
            if name not in self.inputs or name in given:
                raise ProblemError(
                    f"input {name!r} is unknown or given twice, expected {', '.join(self.inputs)} once each"
                )
        return {**given, **named}

    def solve(
        self, *args: Tensor, warm_start: Solution | Sequence[Tensor | None] | None = None, **named: Tensor
    ) -> Solution:
        """As ``forward``, but returns the whole :class:`optlayer.Solution`; ``warm_start`` is that of ``solve_qp``."""
        given = self._given(args, named)
        if missing := [name for name in self.inputs if name not in given]:
            raise ProblemError(f"input {', '.join(missing)} is missing")
        own = next((t.dtype for t in (*self.parameters(False), *self.buffers(False))), None)
        for name, t in given.items():
            if isinstance(t, Tensor):  # of anything else solve_qp says what it is
                self._check_shape("input", name, t)
                if own is not None and own is not t.dtype and torch.float64 in (own, t.dtype):
                    raise ProblemError(f"input {name} has dtype {t.dtype}, expected {own}, the dtype of this layer")
        return solve_qp(**self.blocks(**given), warm_start=warm_start, settings=self.settings)

    def forward(self, *args: Tensor, **named: Any) -> Tensor:
        """The minimiser x, (*batch, n), for inputs in the order of ``inputs`` or by name; also ``warm_start``."""
        return self.solve(*args, **named).x

    def extra_repr(self) -> str:
        parts = [f"n={self.n}, m={self.m}, p={self.p}"]
        for group, names in (("inputs", self.inputs), ("learned", self.learned), ("constants", self.constants)):
            if names:
                parts.append(f"{group}=({', '.join(names)})")
        return ", ".join([*parts, f"feasible={self.feasible}", f"epsilon={self.epsilon}"])


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of blocks; a string is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _sizes(*sizes: int) -> tuple[int, ...]:
    """n, m and p as plain integers."""
    try:
        n, m, p = (operator.index(size) for size in sizes)
    except TypeError:
        n = m = p = -1
    if n < 1 or m < 0 or p < 0:
        found = ", ".join(map(repr, sizes))
        raise ProblemError(f"n, m, p are {found}, expected integers n >= 1, m >= 0 and p >= 0")
    return n, m, p


def _between(t: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """A smooth map of the real line into (lower, upper), one half-line or none of which may be infinite."""
    low, high = lower > -HUGE, upper < HUGE
    a, b = torch.where(low, lower, 0.0), torch.where(high, upper, 0.0)
    inside = a + (b - a) * torch.sigmoid(t)
    half = torch.where(low, a + functional.softplus(t), b - functional.softplus(-t))
    return torch.where(low & high, inside, torch.where(low | high, half, t))


def _temperature(value: SupportsFloat) -> float:
    """A temperature as a plain number."""
    if isinstance(value, Tensor):
        usable = value.dim() == 0 and value.dtype.is_floating_point and not value.requires_grad and not value.is_meta
    else:
        usable = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not usable or not 0 < float(value) < math.inf:
        raise ProblemError(
            f"temperature is {value!r} ({type(value).__qualname__}), expected a finite number > 0, or a tensor "
            "without dimensions that does not require grad"
        )
    return float(value)


class SoftmaxLayer(nn.Module):
    """Softmax, found as the solution of its optimisation problem (:func:`optlayer.softmax`).

        x = argmax theta'x - temperature * sum_i x_i log x_i    subject to   sum(x) = 1,   0 <= x <= upper

    Args:
        dim: the dimension that sums to one.
        temperature: > 0, a real number or a tensor of one that does not require grad; the initial value if it is
            learned.
        learned: whether the temperature is learned, as the exponential of the parameter ``log_temperature``.
        upper: bound of the probabilities, a number or a tensor that broadcasts to the input; ``None`` for none.
        device, dtype: of the parameter and of a tensor ``upper``.

    Raises:
        ProblemError: the temperature is no positive number.

    Example:
        >>> import torch
        >>> from optlayer.nn import SoftmaxLayer
        >>> SoftmaxLayer(temperature=0.5)(torch.zeros(2, dtype=torch.float64)).tolist()
        [0.5, 0.5]
    """

    def __init__(
        self,
        dim: int = -1,
        *,
        temperature: SupportsFloat = 1.0,
        learned: bool = False,
        upper: Tensor | float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.upper: Tensor | float | None
        self.dim, self.initial, self.learned = dim, _temperature(temperature), learned
        if learned:
            self.log_temperature = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        if isinstance(upper, Tensor):
            self.register_buffer("upper", upper.to(device=device, dtype=dtype))
        else:
            self.upper = upper
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set a learned temperature back to its initial value."""
        if self.learned:
            nn.init.constant_(self.log_temperature, math.log(self.initial))

    @property
    def temperature(self) -> Tensor | float:
        """The temperature now: a differentiable tensor if it is learned."""
        return self.log_temperature.exp() if self.learned else self.initial

    def forward(self, theta: Tensor) -> Tensor:
        """x, of the shape of ``theta``."""
        x: Tensor = softmax(theta, self.temperature, self.upper, self.dim)
        return x

    def extra_repr(self) -> str:
        upper = (
            ""
            if self.upper is None
            else ", upper=" + (f"{tuple(self.upper.shape)}" if isinstance(self.upper, Tensor) else f"{self.upper}")
        )
        temperature = f"{math.exp(float(self.log_temperature.detach())):.6g}" if self.learned else f"{self.initial:.6g}"
        return f"dim={self.dim}, temperature={temperature}, learned={self.learned}{upper}"
