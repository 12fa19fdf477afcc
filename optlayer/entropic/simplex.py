# SPDX-License-Identifier: Apache-2.0
"""The softmax problem as users meet it: two functions and a record."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import ProblemError, SettingsError
from ..problem import broadcast, working_dtype
from ..settings import DEFAULT_EPS, Settings
from ..status import Status, count, names
from .derivative import KKT, solve

PARAMETERS = ("theta", "temperature", "upper")


def softmax(
    theta: Tensor, temperature: Tensor | float = 1.0, upper: Tensor | float | None = None, dim: int = -1
) -> Tensor:
    """Softmax along one dimension, found as the solution of the optimisation problem that defines it.

        x = argmax  theta'x - temperature sum_i x_i log x_i    subject to   sum_i x_i = 1,   0 <= x <= upper

    The problem is solved through its optimality (KKT) conditions, and so is its derivative; without ``upper`` the
    result equals ``torch.softmax(theta / temperature, dim)``.  It is differentiable at every order, in reverse and
    forward mode, with respect to ``theta``, ``temperature`` and ``upper``.

    Args:
        theta: any shape with at least one dimension, float64 or float32.  Entries of -inf get x = 0 and gradient 0.
        temperature: > 0; a number, or a tensor that broadcasts to the shape of theta without ``dim``.
        upper: caps of x, >= 0; a number, or a tensor that broadcasts to the shape of theta.  +inf is no cap.
        dim: the dimension that sums to one.

    Returns:
        x, of the shape of theta; NaN for problems without a solution: caps that sum to less than one, a NaN or +inf in
        theta, a tensor's temperature that is not positive.  :func:`solve_softmax` tells which and why.

    Raises:
        ProblemError: a wrong type, dtype, device or shape, a number for the temperature that is not positive and
            finite, or a number for the cap that is negative or NaN.
        IndexError: theta has no dimension ``dim``.

    Example:
        >>> import torch
        >>> from optlayer.entropic import softmax
        >>> theta = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
        >>> softmax(theta).round(decimals=4).tolist()
        [0.6652, 0.2447, 0.09]
        >>> softmax(theta, upper=0.5).round(decimals=4).tolist()
        [0.5, 0.3655, 0.1345]
    """
    _check_tensor("theta", theta)
    if theta.dim() == 0:
        raise ProblemError("theta has shape (), expected at least one dimension")
    if not -theta.dim() <= dim < theta.dim():
        raise IndexError(
            f"dim is {dim}, expected -{theta.dim()} to {theta.dim() - 1} because theta has shape {tuple(theta.shape)}"
        )
    last = theta.movedim(dim, -1)
    temperature = _temperature(temperature, theta)
    _check_broadcast("temperature", temperature, last.shape[:-1], "the shape of theta without dim")
    if upper is not None:
        upper = _upper(upper, theta)
        _check_broadcast("upper", upper, theta.shape, "the shape of theta")
        upper = upper.expand(theta.shape).movedim(dim, -1)
    return solve_softmax(last, temperature, upper).x.movedim(-1, dim)


def solve_softmax(
    theta: Tensor,
    temperature: Tensor | float = 1.0,
    upper: Tensor | float | None = None,
    *,
    eps: float | None = None,
    max_iter: int = 200,
    on_failure: str = "nan",
) -> SoftmaxSolution:
    """Solve a batch of softmax problems; the solution with its multipliers and the status of each.

        maximise  theta'x - temperature sum_i x_i log x_i    subject to   sum_i x_i = 1,   0 <= x <= upper

    Args:
        theta: (*batch, n), float64 or float32.  Entries of -inf get x = 0 and gradient 0.
        temperature: (*batch), > 0; a number or a tensor.  It has no dimension for the variables: (*batch, 1) is
            refused.
        upper: (*batch, n), >= 0; a number, a tensor or ``None``.  +inf is no cap.
        eps: the accuracy at which the interior point method hands over to the closing Newton steps, which go on to the
            limits of rounding; also how small the multiplier of an active cap must be, relative to the temperature, to
            count as zero.  It is no bar for the residuals, as ``eps_abs`` and ``eps_rel`` of
            :func:`optlayer.solve_qp` are.  ``None``: 1e-9 for float64, 1e-5 for float32.
        max_iter: limit on the interior point iterations of each element.  An element whose iterations were cut off is
            solved nevertheless where the closing Newton steps get there.
        on_failure: what to do about elements that are not solved: "nan", "raise", "warn" or "ignore", as in
            :class:`optlayer.Settings`.

    Leading batch dimensions broadcast as in ``torch.linalg``; the gradient of what is shared is the sum over the batch.

    Returns:
        A :class:`SoftmaxSolution`.

    Raises:
        ProblemError: a wrong type, dtype, device or shape, a number for the temperature that is not positive and
            finite, or a number for the cap that is negative or NaN.
        SettingsError: an option out of its range.
        SolverError: an element failed and ``on_failure="raise"``.

    Example:
        >>> import torch
        >>> from optlayer.entropic import solve_softmax
        >>> theta = torch.tensor([[3.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
        >>> solution = solve_softmax(theta, temperature=2.0, upper=torch.tensor([0.6, 0.3], dtype=torch.float64))
        >>> solution.status.tolist()  # caps that sum to 0.9 leave no solution
        [2, 2]
        >>> solution = solve_softmax(theta, temperature=2.0, upper=0.6)
        >>> solution.x.round(decimals=4).tolist()
        [[0.6, 0.4], [0.5, 0.5]]
        >>> solution.z_upper.round(decimals=4).tolist()
        [[1.1891, 0.0], [0.0, 0.0]]
        >>> solution.jacobian("upper")[0].round(decimals=4).tolist()
        [[1.0, 0.0], [-1.0, 0.0]]
    """
    _check_tensor("theta", theta)
    if theta.dim() == 0 or theta.shape[-1] == 0:
        raise ProblemError(f"theta has shape {tuple(theta.shape)}, expected (*batch, n) with n >= 1")
    temperature = _temperature(temperature, theta)
    if 1 < theta.dim() <= temperature.dim():  # to broadcast it would pair every element with every other
        _check_broadcast("temperature", temperature, theta.shape[:-1], "the shape of theta without its last dimension")
    upper = None if upper is None else _upper(upper, theta)
    if upper is not None:
        upper = upper.expand(theta.shape[-1]) if upper.dim() == 0 else upper
        if upper.shape[-1] != theta.shape[-1]:
            raise ProblemError(
                f"upper has shape {tuple(upper.shape)}, expected (*batch, {theta.shape[-1]}) "
                f"because theta has shape {tuple(theta.shape)}"
            )
    upper_batch = () if upper is None else upper.shape[:-1]
    try:
        broadcast(theta.shape[:-1], temperature.shape, upper_batch)
    except RuntimeError:
        raise ProblemError(
            f"the batch dimensions of theta {tuple(theta.shape[:-1])}, temperature {tuple(temperature.shape)} "
            f"and upper {tuple(upper_batch)} do not broadcast"
        ) from None
    if eps is None:
        eps = DEFAULT_EPS[working_dtype(theta, "theta")]
    elif isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < math.inf:
        raise SettingsError(f"eps is {eps!r}, expected None or a finite number > 0")
    settings = Settings(max_iter=max_iter, on_failure=on_failure)  # type: ignore[arg-type]  # it checks
    raw = solve(theta, temperature, upper, eps, settings.max_iter, settings.on_failure)
    return SoftmaxSolution(*raw, temperature=temperature.expand(raw.status.shape))


@dataclass(frozen=True, eq=False, repr=False)
class SoftmaxSolution:
    """The solution of a batch of softmax problems, :func:`solve_softmax`.

    x, log_x, y and z_upper are differentiable in theta, temperature and upper at every order; they are NaN for elements
    that failed, unless ``on_failure="ignore"``.  The record is immutable, a pytree, and may be made inside
    ``torch.compile`` and ``torch.func.vmap``.

    Attributes:
        x: (*batch, n), the maximiser.
        log_x: (*batch, n), its logarithm, finite where x underflows to zero; -inf where theta is -inf or upper 0.
        y: (*batch), the multiplier of sum x = 1 in  theta = temperature (log x + 1) + y + z_upper;  without caps it is
            temperature (log sum exp(theta / temperature) - 1).
        z_upper: (*batch, n), the multipliers of x <= upper, >= 0; +inf at a cap of zero, where it has no derivative.
        free: (*batch, n), what share of each variable its cap leaves free: 1 below the cap, 0 at the cap, and between
            the two where the cap counts in `weakly_active`.
        status: (*batch) int64, an :class:`optlayer.Status` each.  PRIMAL_INFEASIBLE: the caps sum to less than one or
            one of them is negative, or theta is -inf throughout.  INVALID_DATA: a NaN, theta = +inf, or a temperature
            that is not positive and finite.
        iterations: (*batch) int64, interior point iterations, without the closing Newton steps.
        residual: (*batch), the largest violation of the optimality conditions, in units of x and of the temperature.
        temperature: (*batch).
    """

    x: Tensor
    log_x: Tensor
    y: Tensor
    z_upper: Tensor
    free: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
    temperature: Tensor

    @property
    def solved(self) -> Tensor:
        """(*batch) bool: whether each element is solved."""
        return self.status == Status.SOLVED

    def status_names(self) -> Any:
        """The names of ``status``, such as "SOLVED", in lists nested as the batch is; waits for the device."""
        return names(self.status)

    @property
    def weakly_active(self) -> Tensor:
        """(*batch) int64: how many caps are active with a multiplier of zero, or that may be chosen as zero.

        The latter is so where the caps sum to one: all of them are active then, and the multipliers are not unique.
        Where there are any, x has one-sided derivatives only, and those returned lie between them.
        """
        return ((self.free > 0) & (self.free < 1)).sum(-1)

    def jacobian(self, parameter: str) -> Tensor:
        """The Jacobian of x with respect to one parameter, from the KKT system, element by element of the batch.

        Args:
            parameter: "theta", "temperature" or "upper".

        Returns:
            (*batch, n, n) with entry (i, j) the derivative of x_i with respect to entry j of theta or upper, or
            (*batch, n) for the temperature; NaN for elements that failed.  Without caps the first is
            (diag x - x x') / temperature.

        Raises:
            ValueError: no parameter of that name.
        """
        if parameter not in PARAMETERS:
            raise ValueError(f"parameter is {parameter!r}, expected one of {', '.join(PARAMETERS)}")
        kkt = KKT(self.temperature.to(self.x.dtype), self.x, self.log_x, self.free, self.status)
        if parameter == "temperature":
            return kkt.solve(-kkt.slope, None, None)[0]
        n, rank = self.x.shape[-1], self.x.dim() - 1
        unit = torch.eye(n, dtype=self.x.dtype, device=self.x.device).reshape(n, *(1,) * rank, n)
        zero = torch.zeros_like(unit)
        ux = kkt.solve(unit, None, None)[0] if parameter == "theta" else kkt.solve(zero, None, unit)[0]
        return ux.movedim(0, -1)

    def __repr__(self) -> str:
        return (
            f"SoftmaxSolution({count(self.status)}batch={tuple(self.status.shape)}, n={self.x.shape[-1]}, "
            f"dtype={self.x.dtype}, device={self.x.device})"
        )


FIELDS = ("x", "log_x", "y", "z_upper", "free", "status", "iterations", "residual", "temperature")


def _flatten(solution: SoftmaxSolution) -> tuple[list[Any], None]:
    return [getattr(solution, name) for name in FIELDS], None


def _unflatten(parts: Iterable[Any], _: None) -> SoftmaxSolution:
    return SoftmaxSolution(*parts)


pytree.register_pytree_node(
    SoftmaxSolution, _flatten, _unflatten, serialized_type_name="optlayer.entropic.SoftmaxSolution"
)


# ---- what the arguments must look like -------------------------------------------------------------------------------


def _check_tensor(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise ProblemError(f"{name} is a {type(t).__qualname__}, expected a torch.Tensor")
    working_dtype(t, name)


def _as_tensor(name: str, value: Any, theta: Tensor) -> Tensor:
    """A number as a tensor like theta; a tensor must agree with theta in dtype and device."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
            raise ProblemError(f"{name} is a {type(value).__qualname__}, expected a torch.Tensor or a number")
        number: Any = value
        return torch.full((), number, dtype=working_dtype(theta, "theta"), device=theta.device)
    if value.dtype is not theta.dtype and working_dtype(value, name) is not working_dtype(theta, "theta"):
        raise ProblemError(f"{name} has dtype {value.dtype} but theta has {theta.dtype}: expected one dtype")
    if value.device != theta.device:
        raise ProblemError(f"{name} is on {value.device} but theta is on {theta.device}: expected one device")
    return value


def _temperature(value: Any, theta: Tensor) -> Tensor:
    """The temperature as a tensor; a number must be positive here, a tensor may fail later."""
    temperature = _as_tensor("temperature", value, theta)
    if not isinstance(value, Tensor) and not 0 < value < math.inf:
        raise ProblemError(f"temperature is {value!r}, expected a finite number > 0")
    return temperature


def _upper(value: Any, theta: Tensor) -> Tensor:
    """The caps as a tensor; a number must be no less than zero here, a tensor may fail later."""
    upper = _as_tensor("upper", value, theta)
    if not isinstance(value, Tensor) and not value >= 0:
        raise ProblemError(f"upper is {value!r}, expected a number >= 0")
    return upper


def _check_broadcast(name: str, t: Tensor, shape: torch.Size, what: str) -> None:
    lead = len(shape) - t.dim()
    if lead < 0 or any(a not in (1, b) for a, b in zip(t.shape, shape[lead:], strict=True)):
        raise ProblemError(f"{name} has shape {tuple(t.shape)}, expected one that broadcasts to {tuple(shape)}, {what}")
