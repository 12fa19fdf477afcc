# SPDX-License-Identifier: Apache-2.0
"""The examples of the docstrings run and print what they say; every public object has a docstring."""

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest

import optlayer

MODULES = ["optlayer", *(m.name for m in pkgutil.walk_packages(optlayer.__path__, "optlayer."))]
# one is a program; the other, where it was compiled, is a library that torch loads
MODULES = [name for name in MODULES if name not in ("optlayer.__main__", "optlayer._native", "optlayer._cuda")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


@pytest.mark.parametrize("name", optlayer.__all__)
def test_every_public_object_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(optlayer, name))
