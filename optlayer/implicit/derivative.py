# SPDX-License-Identifier: Apache-2.0
"""The derivative of a root, whatever found it, at every order.

At a root of F(z, *theta) = 0 with a regular J = dF/dz, the implicit function theorem gives

    tangent     J dz = -(dF/dtheta) dtheta
    cotangent   J'u = z_bar,      theta_bar = -(dF/dtheta)'u

Each is one linear system (system.py), and system and products are themselves differentiable in theta and in z, which
is the root and knows its own derivative.  So all orders follow from these two lines, as for the quadratic program in
optlayer.derivative, where F is the KKT residual and J = K.

Constants, by definition: the point a solver starts from.  Near z the root does not depend on it, so that its derivative
is zero, not approximately but exactly; whoever wants one differentiates the iterations instead of their limit.

An element without a root has no derivative: a cotangent that is exactly zero there gives exactly zero, any other NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..derivative.tracing import alive, apply, bare, eager, forward_mode, full_precision, primals, save
from ..status import Status
from .factor import factorise
from .jacobian import adjoint_product, jacobian, pull, push
from .mapping import Mapping, check_point, flat, unflattened, vector
from .solution import DIRECT, ImplicitSolution, LinearSettings, Report, announce, concrete, linear_settings
from .system import Dense, MatrixFree, linear

LARGEST = 256  # unknowns whose Jacobian "auto" forms

# (equation, start, tensors) -> z, status, iterations, residual: z is (*batch, n) and finite, the others are (*batch)
Solver = Callable[["Equation", Tensor, Sequence[Tensor]], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Equation:
    """F(z, *tensors) = 0 with z (*batch, n), how to solve it, and how to solve the linear systems behind it.

    Where F is the gradient of a function, (*batch), that is `potential`.
    """

    F: Callable[..., Tensor]
    potential: Callable[..., Tensor] | None
    solver: Solver
    settings: LinearSettings
    report: Report
    on_failure: str
    what: str

    def solve(self, r: Tensor, z: Tensor, tensors: Sequence[Tensor], transposed: bool) -> Tensor:
        """J^-1 r, or J^-T r if `transposed`, differentiable in r, z and the tensors."""
        if z.shape[-1] == 0:
            return r
        settings = concrete(self.settings, "lu" if z.shape[-1] <= LARGEST else "gmres")
        if settings.method in DIRECT:
            J = jacobian(self.F, z, tensors)
            dense = Dense(settings, self.report, f"the derivative of {self.what}", transposed)
            return linear(dense, r, J, *factorise(J.detach(), settings.method))[0]
        adjoint = MatrixFree(
            lambda u, z, *tensors: adjoint_product(self.F, z, tensors)(u),
            z.shape[-1],
            settings,
            self.report,
            f"the derivative of {self.what}",
            not transposed,  # what it knows the products of is J'
            lambda z, *tensors: adjoint_product(self.F, z, tensors),
        )
        return linear(adjoint, r, z, *tensors)[0]


class Root(Function):
    """The root of an equation with its derivative; arguments (equation, start, *tensors).

    Returns the root, NaN where there is none; status, iterations, residual; and a finite point of each element, where
    F is evaluated in place of NaN: the last iterate, or (*batch, 0) if the root holds no NaN.
    """

    @staticmethod
    def forward(equation: Equation, start: Tensor, *tensors: Tensor) -> Any:
        with full_precision(start.device.type):
            solver = equation.solver if start.shape[-1] else given
            point, status, iterations, residual = solver(equation, start, tensors)
        announce(status, equation.on_failure, equation.what)
        kept = status != Status.INVALID_DATA if equation.on_failure == "ignore" else status == Status.SOLVED
        if kept.all():
            return point, status, iterations, residual, point.new_empty(*point.shape[:-1], 0)
        return torch.where(kept.unsqueeze(-1), point, torch.nan), status, iterations, residual, point

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        equation, _, *tensors = inputs
        value, status, iterations, residual, point = output
        ctx.mark_non_differentiable(status, iterations, residual, point)
        ctx.equation = equation
        save(ctx, [True] * (3 + len(tensors)), value, status, point, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        g, value, status, point, *tensors = alive((cotangents[0], *ctx.saved_tensors))
        equation, wants = ctx.equation, ctx.needs_input_grad
        if g is None or not any(wants[2:]):
            return (None,) * len(wants)
        with full_precision(value.device.type):
            failed = (status != Status.SOLVED).unsqueeze(-1)
            z = torch.where(failed, point, value) if point.shape[-1] else value
            u = equation.solve(torch.where(failed, 0, g), z, tensors, True)
            u = torch.where(failed & (g != 0).any(-1, keepdim=True), torch.nan, u)
            return None, None, *pull(equation.F, z, tensors, wants[2:], -u)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        value, status, point, *tensors = alive(primals(ctx))
        equation, changes = ctx.equation, alive(tangents[2:])
        if all(dt is None for dt in changes):
            return (None,) * 5
        with full_precision(value.device.type), forward_mode():
            failed = (status != Status.SOLVED).unsqueeze(-1)
            z = torch.where(failed, point, value) if point.shape[-1] else value
            r = -push(equation.F, z, tensors, changes)
            dz = equation.solve(torch.where(failed, 0, r), z, tensors, False)
            dz = torch.where(failed & (r != 0).any(-1, keepdim=True), torch.nan, dz)
            return dz, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, equation: Equation, start: Tensor, *tensors: Tensor) -> Any:
        size, place, dims = info.batch_size, in_dims[1], in_dims[2:]
        start = start.expand(size, *start.shape) if place is None else start.movedim(place, 0)
        moved = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
        over = (0, *(None if d is None else 0 for d in dims))
        F = torch.func.vmap(equation.F, over)
        potential = None if equation.potential is None else torch.func.vmap(equation.potential, over)
        return apply(Root, replace(equation, F=F, potential=potential), start, *moved), (0,) * 5


def attach(equation: Equation, z: Tensor, batch_dims: int, tensors: Sequence[Tensor]) -> ImplicitSolution:
    """Solve an equation from the start z and attach the derivative of the root.

    F and the potential of the equation take z as it is; here they come to take vectors.
    """
    batch, event = z.shape[:batch_dims], z.shape[batch_dims:]
    equation = replace(equation, F=flat(equation.F, batch, event))
    if equation.potential is not None:
        equation = replace(equation, potential=unflattened(equation.potential, batch, event))
    value, status, iterations, residual, _ = apply(Root, equation, vector(z.detach(), batch, event), *tensors)
    return ImplicitSolution(value.reshape(z.shape), status, iterations, residual, equation.report)


def given(equation: Equation, z: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The solver of a problem that is solved already; elements that are not finite have no root."""
    ok = z.isfinite().all(-1)
    status = torch.where(ok, int(Status.SOLVED), int(Status.INVALID_DATA))
    point = torch.where(ok.unsqueeze(-1), z, 1.0)
    return point, status, torch.zeros_like(status), z.new_zeros(z.shape[:-1])


@eager
def implicit(
    F: Any,
    z: Tensor,
    *theta: Any,
    batch_dims: int = 0,
    linsolve: str | LinearSettings = "auto",
    report: Report | None = None,
) -> Tensor:
    """A root z of F(z, *theta) = 0, found by whatever means, with its derivative in theta attached.

        dz = -(dF/dz)^-1 (dF/dtheta) dtheta

    The result has the values of ``z`` and is differentiable in ``theta`` at every order, in reverse and forward mode
    and under ``torch.func``.  It holds as far as the three conditions of the implicit function theorem do: F(z) = 0 (an
    error e of z makes one of the order of e in the derivative), F continuously differentiable there, and dF/dz regular;
    :func:`conditions` checks them.  How z came about plays no part: z itself gets no gradient.

    ``torch.compile`` calls this and the solvers of this module as they are, between two graphs: F is a function, and an
    iteration decides for itself when to stop, neither of which a graph holds.  ``fullgraph=True`` raises.

    Args:
        F: a function or ``torch.nn.Module`` (or a method of one) called as ``F(z, *theta)``, returning the shape of z.
            The parameters of a module receive gradients.  Whatever else it closes over is constant; a closure over a
            tensor that requires grad, or that ``torch.func`` maps or differentiates, is refused.  F is evaluated
            several times and must not depend on a random state.
        z: (*batch, ...), float64 or float32.  Elements that hold NaN or inf have no derivative: a zero cotangent gives
            zero there, any other NaN.
        *theta: whatever F takes besides.  Tensors receive derivatives, alone or in lists, tuples and dictionaries (of
            any nesting, and whatever else is registered as a pytree), and so do the parameters of modules there;
            integer tensors and all else are constant.
        batch_dims: how many leading dimensions of z are batch.  F must treat the elements of the batch as independent
            of each other: each is then a system of its own.  0: all of z is one system.
        linsolve: the method for the linear systems, or :class:`LinearSettings`.  ``"auto"``: ``"lu"`` up to 256
            unknowns an element, else ``"gmres"``, which needs products with the Jacobian only.
        report: a :class:`Report` to be filled by the linear solves of the derivative.

    Returns:
        A tensor with the shape and values of z.  Where the Jacobian is singular, or an iterative solve stagnates, the
        derivative is NaN, and the report says which.

    Raises:
        ProblemError: a wrong type, dtype or shape, or a closure over a tensor that is differentiated.
        SettingsError: an unknown linsolve.
        SolverError: a derivative's linear solve failed and its ``on_failure`` is ``"raise"``.

    Example:
        The square root as a root of z^2 - theta = 0: its derivative is 1 / (2 z).

        >>> import torch
        >>> from optlayer.implicit import implicit
        >>> theta = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        >>> z = implicit(lambda z, theta: z**2 - theta, theta.detach().sqrt(), theta)
        >>> z.backward()
        >>> theta.grad.item()
        0.25
    """
    check_point("z", z, batch_dims)
    mapping = Mapping(F, theta)
    mapping.check(z, bare(z).shape)
    report = Report() if report is None else report
    equation = Equation(mapping, None, given, linear_settings(linsolve), report, "nan", "implicit")
    return attach(equation, z, batch_dims, mapping.tensors).value
