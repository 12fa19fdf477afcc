# SPDX-License-Identifier: Apache-2.0
"""A user's function as a function of explicit tensors, which is all that can be differentiated without surprises.

    F(z, *theta)   becomes   F(z, *tensors),      z (*batch, n),   F (*batch, n)

The tensors are those of theta and, where F is a module or a method of one, the module's parameters.  Everything else
in theta is a constant.  Tensors that F takes from its surroundings are constants too, so a derivative with respect to
them would be missing without a word: `Mapping.check` refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..derivative.tracing import bare, watched
from ..errors import ProblemError

DTYPES = (torch.float64, torch.float32)


class _Method(Module):
    """A method of a module as a module."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.module, self.method = method.__self__, method.__func__

    def forward(self, *args: Any) -> Any:
        return self.method(self.module, *args)


def owned(function: Any) -> Any:
    """The function; a method of a module as the module that owns its parameters."""
    return _Method(function) if isinstance(getattr(function, "__self__", None), Module) else function


class Mapping:
    """A function of z and explicit tensors.

    Attributes:
        tensors: the tensors among theta, then the parameters of the module; these receive derivatives.
        name: what messages call it.
    """

    def __init__(self, function: Any, theta: Sequence[Any], name: str = "F") -> None:
        if not callable(function):
            raise ProblemError(f"{name} is {type(function).__qualname__}, expected a function or a torch.nn.Module")
        function = owned(function)
        parameters = dict(function.named_parameters()) if isinstance(function, Module) else {}
        self.function, self.name, self.names = function, name, list(parameters)
        self.places = [i for i, t in enumerate(theta) if isinstance(t, Tensor)]
        self.constants = [None if isinstance(t, Tensor) else t for t in theta]  # theta itself would keep graphs alive
        self.tensors: list[Tensor] = [t for t in theta if isinstance(t, Tensor)] + list(parameters.values())

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """F(z, *theta) with other tensors in the place of its own."""
        args = list(self.constants)
        for i, t in zip(self.places, tensors, strict=False):
            args[i] = t
        if not self.names:
            value: Tensor = self.function(z, *args)
            return value
        parameters = dict(zip(self.names, tensors[len(self.places) :], strict=True))
        called: Tensor = torch.func.functional_call(self.function, parameters, (z, *args))
        return called

    def check(self, z: Tensor, shape: Sequence[int]) -> None:
        """Evaluate once on constants, and refuse what could only give wrong derivatives later.

        Raises:
            ProblemError: the value is no tensor of the dtype and device of z and of this shape, or it depends on a
                tensor that is differentiated or mapped but is not an argument.
        """
        value = self(bare(z), *map(bare, self.tensors))
        if not isinstance(value, Tensor):
            raise ProblemError(f"{self.name} returns {type(value).__qualname__}, expected one tensor")
        if watched(value):
            raise ProblemError(
                f"{self.name} depends on a tensor that requires grad, or that torch.func differentiates or maps, and "
                f"that is none of its arguments, so its derivative would be lost: pass the tensor as one of theta, or "
                f"let {self.name} be the torch.nn.Module that owns it"
            )
        if value.shape != torch.Size(shape):
            raise ProblemError(f"{self.name} returns shape {tuple(value.shape)}, expected {tuple(shape)}")
        if value.dtype is not z.dtype or value.device != z.device:
            raise ProblemError(
                f"{self.name} returns {value.dtype} on {value.device}, expected {z.dtype} on {z.device} as in z"
            )


def flat(function: Callable[..., Tensor], batch: Sequence[int], event: Sequence[int]) -> Callable[..., Tensor]:
    """A function of z with z and its value as vectors, (*batch, n), in place of (*batch, *event)."""
    if len(event) == 1:
        return function
    return lambda z, *tensors: function(z.reshape((*batch, *event)), *tensors).reshape(z.shape)


def unflattened(function: Callable[..., Tensor], batch: Sequence[int], event: Sequence[int]) -> Callable[..., Tensor]:
    """A function of z with z alone as vectors."""
    return lambda z, *tensors: function(z.reshape((*batch, *event)), *tensors)


def check_point(name: str, z: Any, batch_dims: Any) -> None:
    """Refuse what cannot be a point.

    Raises:
        ProblemError: it is no float64 or float32 tensor, or has fewer than `batch_dims` dimensions.
    """
    if not isinstance(z, Tensor):
        raise ProblemError(f"{name} is {type(z).__qualname__}, expected a torch.Tensor")
    if z.dtype not in DTYPES:
        raise ProblemError(f"{name} is {z.dtype}, expected torch.float64 or torch.float32")
    if not isinstance(batch_dims, int) or isinstance(batch_dims, bool) or not 0 <= batch_dims <= z.dim():
        raise ProblemError(
            f"batch_dims is {batch_dims!r}, expected an integer between 0 and {z.dim()}, the dimensions of {name}"
        )


def vector(z: Tensor, batch: torch.Size, event: torch.Size) -> Tensor:
    """A point (*batch, *event) as (*batch, n)."""
    return z.reshape(*batch, math.prod(event))
