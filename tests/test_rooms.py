# SPDX-License-Identifier: Apache-2.0
"""Imports run one way, and torch is the only package that the library needs."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import optlayer

PACKAGE = Path(optlayer.__file__).parent
# Each room may import from the rooms before it.
ROOMS = [
    "errors",
    "status",
    "settings",
    "problem",
    "residuals",
    "solution",
    "ops",
    "kkt",
    "solvers",
    "derivative",
    "entropic",
    "qp",
    "implicit",
    "nn",
    "testing",
    "instance",
    "io",
    "hock_schittkowski",
    "console",
    "verify",
    "demo",
    "cli",
    "__main__",
]
# These rooms may import further packages, where they are needed and not before.
GUESTS = {
    "io": {"numpy", "scipy", "highspy"},
    "console": {"tqdm"},
    "demo": {"sklearn", "matplotlib"},
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """The full dotted name of everything that a file imports, as a tuple."""
    here = ("optlayer", *file.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, *module, alias.name) for alias in node.names)


def test_every_file_has_its_room() -> None:
    assert {room(file) for file in FILES} <= set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    here = room(file)
    for name in imports(file):
        if name[0] == "optlayer":
            # `from . import __version__` asks the package itself.
            below = name[1] == "__version__" or name[1] == here or ROOMS.index(name[1]) < ROOMS.index(here)
            assert below, f"{here} imports {'.'.join(name)}, which stands above it"
        else:
            known = name[0] == "torch" or name[0] in sys.stdlib_module_names
            assert known or name[0] in GUESTS.get(here, ()), f"{here} imports {name[0]}"
