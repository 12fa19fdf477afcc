# SPDX-License-Identifier: Apache-2.0
"""A user's function as a function of explicit tensors, which is all that can be differentiated without surprises.

    F(z, *theta)   becomes   F(z, *tensors),      z (*batch, n),   F (*batch, n)

The tensors are those of theta, in lists, tuples and dictionaries nested anyhow, and the parameters of the modules
there and of F, where that is a module or a method of one.  Everything else in theta is a constant.  Tensors that F
takes from its surroundings are constants too, so a derivative with respect to them would be missing without a word:
`Mapping.check` refuses them.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleList
from torch.utils import _pytree as pytree

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


class _Together(Module):
    """A function and the modules among its arguments as one module."""

    def __init__(self, function: Any, modules: Sequence[Module]) -> None:
        super().__init__()
        self.function, self.arguments = function, ModuleList(modules)

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class Mapping:
    """A function of z and explicit tensors.

    Attributes:
        tensors: the tensors among theta, then the parameters of the modules; these receive derivatives.
        name: what messages call it.
    """

    def __init__(self, function: Any, theta: Sequence[Any], name: str = "F") -> None:
        if not callable(function):
            raise ProblemError(f"{name} is {type(function).__qualname__}, expected a function or a torch.nn.Module")
        leaves, spec = pytree.tree_flatten(tuple(theta))
        alike = len(leaves) == len(theta) and all(a is b for a, b in zip(leaves, theta, strict=True))
        self.spec = None if alike else spec
        function, modules = owned(function), [leaf for leaf in leaves if isinstance(leaf, Module)]
        if modules:
            function = _Together(function, modules)
        parameters = dict(function.named_parameters()) if isinstance(function, Module) else {}
        self.function, self.name, self.names = function, name, list(parameters)
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.tensors: list[Tensor] = [_ordinary(t) for t in (*(leaves[i] for i in self.places), *parameters.values())]
        self.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]  # tensors would keep graphs

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """F(z, *theta) with other tensors in the place of its own."""
        leaves = list(self.constants)
        for i, t in zip(self.places, tensors, strict=False):
            leaves[i] = t
        args = leaves if self.spec is None else pytree.tree_unflatten(leaves, self.spec)
        if not self.names:
            value: Tensor = self.function(z, *args)
            return value
        parameters = dict(zip(self.names, tensors[len(self.places) :], strict=True))
        called: Tensor = torch.func.functional_call(self.function, parameters, (z, *args))
        return called

    def check(self, z: Tensor, shape: Sequence[int]) -> Tensor:
        """Evaluate once on constants, and refuse what could only give wrong derivatives later.

        Returns: the value.
        Raises:
            ProblemError: the value is no tensor of the dtype and device of z and of this shape, or it depends on a
                tensor that is differentiated or mapped but is not an argument; z or a tensor of theta is changed in
                place, or such a tensor is on the device meta.
        """
        point, tensors = bare(z).clone(), list(map(bare, self.tensors))
        for t in tensors:
            check_values("a tensor among theta", t)
        fresh = [_version(t) for t in (point, *tensors)]  # 1 already, if it was made in inference mode
        value = self(point, *tensors)
        for i, (t, version) in enumerate(zip((point, *tensors), fresh, strict=True)):
            if _version(t) != version:
                what = f"a tensor of shape {tuple(t.shape)} among theta" if i else "its argument"
                raise ProblemError(f"{self.name} changes {what} in place, expected a function that leaves it alone")
        if not isinstance(value, Tensor):
            raise ProblemError(f"{self.name} returns {type(value).__qualname__}, expected one tensor")
        if watched(value):
            found = dict.fromkeys((*_hidden(self.function), *_opaque(self.constants)))
            raise ProblemError(
                f"{self.name} depends on {' and '.join(found) or 'a tensor'} that requires grad, or that torch.func "
                f"differentiates or maps, and that is none of its arguments, so its derivative would be lost: pass it "
                f"as one of theta, by itself, in a list, tuple or dictionary, or with the torch.nn.Module that owns "
                f"it; or let {self.name} be that module; or detach it, if it is a constant"
            )
        if value.shape != torch.Size(shape):
            raise ProblemError(f"{self.name} returns shape {tuple(value.shape)}, expected {tuple(shape)}")
        if value.dtype is not z.dtype or value.device != z.device:
            raise ProblemError(
                f"{self.name} returns {value.dtype} on {value.device}, expected {z.dtype} on {z.device} as in z"
            )
        return bare(value)


def _version(t: Tensor) -> int | None:
    """How often a tensor has been changed in place; of those made in inference mode nobody counts."""
    return None if t.is_inference() else t._version


def _ordinary(t: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode and that no graph could keep."""
    return t.clone() if t.is_inference() and not torch.is_inference_mode_enabled() else t


def _surroundings(function: Any) -> dict[str, Any]:
    """What a function takes from elsewhere, by name: from its closure, its module, or the object that it belongs to."""
    if isinstance(function, functools.partial):
        bound = {f"argument {i} of a partial": thing for i, thing in enumerate(function.args)}
        return {**bound, **function.keywords, "its function": function.func}
    if inspect.isfunction(function):
        try:
            seen = inspect.getclosurevars(function)
        except ValueError:  # one of its variables has no value yet
            return {}
        return {**seen.globals, **seen.nonlocals}
    owner = getattr(function, "__self__", function)
    owners = owner.modules() if isinstance(owner, Module) else [owner]
    return {name: thing for owner in owners for name, thing in getattr(owner, "__dict__", {}).items()}


def _hidden(function: Any, direct: bool = True) -> Iterator[str]:
    """What is differentiated among the surroundings of a function, and of the functions that it names."""
    for name, thing in _surroundings(function).items():
        if isinstance(thing, Tensor) and watched(thing):
            yield f"{name}, a tensor of shape {tuple(thing.shape)}"
        elif isinstance(thing, Module) and any(map(watched, thing.parameters())):
            yield f"{name}, a {type(thing).__qualname__} with parameters"
        elif direct and (inspect.isfunction(thing) or isinstance(thing, functools.partial)):
            yield from _hidden(thing, False)


def _opaque(constants: Sequence[Any]) -> Iterator[str]:
    """What is among theta and may hold tensors that nobody else can find."""
    for thing in constants:
        if hasattr(thing, "__dict__") and not isinstance(thing, (Module, type)) and not callable(thing):
            yield f"a {type(thing).__qualname__} among theta"


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
        ProblemError: it is no float64 or float32 tensor, holds no values, or has fewer than `batch_dims` dimensions.
    """
    if not isinstance(z, Tensor):
        raise ProblemError(f"{name} is {type(z).__qualname__}, expected a torch.Tensor")
    if z.dtype not in DTYPES:
        raise ProblemError(f"{name} is {z.dtype}, expected torch.float64 or torch.float32")
    check_values(name, z)
    if not isinstance(batch_dims, int) or isinstance(batch_dims, bool) or not 0 <= batch_dims <= z.dim():
        raise ProblemError(
            f"batch_dims is {batch_dims!r}, expected an integer between 0 and {z.dim()}, the dimensions of {name}"
        )


def check_values(name: str, t: Tensor) -> None:
    """Refuse a tensor on the device meta: how often a solver iterates depends on values.

    Raises:
        ProblemError: it is such a tensor.
    """
    if t.device.type == "meta":
        raise ProblemError(f"{name} is on the device meta, where tensors hold no values; expected one that holds some")


def vector(z: Tensor, batch: torch.Size, event: torch.Size) -> Tensor:
    """A point (*batch, *event) as (*batch, n)."""
    return z.reshape(*batch, math.prod(event))
