# SPDX-License-Identifier: Apache-2.0
"""What an import costs and shows: no optional package, no output, a table of contents; and no import goes in a circle.

The order of the rooms is the subject of test_rooms.py.
"""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optlayer

PACKAGE = Path(optlayer.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
OPTIONAL = ("numpy", "scipy", "highspy", "sklearn", "matplotlib", "tqdm", "cvxpy", "qpth", "pytest", "hypothesis")


def run(code: str) -> str:
    """What a fresh process prints, which has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_optlayer_brings_no_optional_package() -> None:
    """torch itself brings numpy; its compiler, which takes longer to import than all of this, is not asked for."""
    packages = "{name.split('.')[0] for name in sys.modules}"
    brought = run(
        f"import sys, torch; before = {packages}; import optlayer; print(*{packages} - before); "
        "print('torch._dynamo' in sys.modules)"
    ).split()
    assert "optlayer" in brought and brought[-1] == "False"
    assert not set(brought) & set(OPTIONAL)


def test_importing_optlayer_prints_nothing_and_leaves_the_state_of_torch_alone() -> None:
    state = (
        "torch.random.get_rng_state().sum().item(), torch.get_default_dtype(), torch.get_num_threads(), "
        "torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()"
    )
    code = f"import torch; torch.manual_seed(7); before = {state}; import optlayer; assert before == ({state})"
    assert run(code) == ""


def test_the_top_is_a_table_of_contents() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    docstring, *rest = tree.body
    assert isinstance(docstring, ast.Expr)
    names = set()
    for node in rest:
        if isinstance(node, ast.Assign):
            assert [ast.unparse(target) for target in node.targets] in (["__version__"], ["__all__"])
            ast.literal_eval(node.value)
        else:
            assert isinstance(node, ast.ImportFrom), ast.unparse(node)
            assert all(alias.name != "*" for alias in node.names)
            names |= {alias.asname or alias.name for alias in node.names}
    assert names == set(optlayer.__all__)
    assert all(hasattr(optlayer, name) for name in optlayer.__all__)


def test_public_names_have_one_home() -> None:
    """An object of the table of contents is defined below the package, and no two names mean the same one."""
    objects = [getattr(optlayer, name) for name in optlayer.__all__]
    assert len({id(thing) for thing in objects}) == len(objects)
    for thing in objects:
        home = getattr(thing, "__module__", None) or thing.__name__
        assert home.startswith("optlayer.")


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_import_goes_in_a_circle() -> None:
    """Each module depends on the modules that it names at its top: an order exists, or graphlib says where not."""
    modules = {module_of(file): file for file in FILES}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.ImportFrom) or (
                node.level == 0 and not (node.module or "").startswith("optlayer")
            ):
                continue
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{source}.{alias.name}"
                graph[name].add(target if target in modules else source)
        # `from . import __version__` asks for a name that the package sets, not for what the package imports
        graph[name] -= {name, "optlayer"}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(modules)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_file_states_licence_and_purpose(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))
    assert text.isascii(), "names and texts of the source are ASCII"


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_torch_is_new_enough() -> None:
    assert tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 10)
