# SPDX-License-Identifier: Apache-2.0
"""Building the compiled engine, doing without it, and choosing an instruction set."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from optlayer.solvers import native

ROOT = Path(__file__).parent.parent
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
compiled = pytest.mark.skipif(not native.available(), reason="there is no compiled engine")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is built."""
    copy = tmp_path / "optlayer-source"
    copy.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "optlayer"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_native*", "_cuda*"))
    return copy


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A compiler that writes empty files and keeps a record of what it was asked for."""
    path = tmp_path / "compiler"
    path.write_text('#!/bin/sh\necho "$@" >> "$0.log"\nfor last; do :; done\n: > "$last"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def setup(source: Path, *arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OPTLAYER_")}
    command = [sys.executable, "setup.py", "-q", *arguments]
    variables = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        command, cwd=source, env={**clean, "OPTLAYER_CUDA": "0", **variables}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "/nonexistent"}, "there is no C++ compiler /nonexistent"),
        ({"CXX": "false"}, "false failed on "),
        ({"OPTLAYER_NATIVE": "0"}, "OPTLAYER_NATIVE is 0"),
    ],
    ids=str,
)
def test_without_a_compiler_one_line_says_so(source: Path, environment: dict[str, str], reason: str) -> None:
    done = setup(source, "build_ext", "--inplace", **environment)
    assert done.returncode == 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("optlayer:"))
    assert reason in line and line.endswith("the reference engine will run")
    assert not list(source.rglob("*.so"))
    done = setup(source, "build_ext", "--inplace", OPTLAYER_REQUIRE_NATIVE=1, **environment)
    assert done.returncode != 0 and reason in done.stderr


def test_a_wheel_without_the_engine_is_for_any_system(source: Path) -> None:
    assert setup(source, "bdist_wheel", CXX="/nonexistent").returncode == 0
    (wheel,) = (source / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")


def test_a_wheel_with_the_engine_is_for_every_python(source: Path, compiler: Path) -> None:
    done = setup(source, "bdist_wheel", CXX=compiler)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").iterdir()
    assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "optlayer/_native.abi3.so" in names
    assert not [name for name in names if name.startswith(("csrc", "tests", "build"))]


def test_only_what_changed_is_compiled_again(source: Path, compiler: Path) -> None:
    log = Path(f"{compiler}.log")
    setup(source, "build_ext", "--inplace", CXX=compiler)
    first = log.read_text().splitlines()
    assert len(first) >= 3  # at least an engine, the operators and the link
    log.write_text("")
    setup(source, "build_ext", "--inplace", CXX=compiler)
    assert log.read_text() == ""
    (source / "csrc" / "library.cpp").touch()
    setup(source, "build_ext", "--inplace", CXX=compiler)
    assert len(log.read_text().splitlines()) == 2  # the operators and the link


def test_the_source_distribution_holds_the_sources(source: Path) -> None:
    done = setup(source, "sdist", "--formats=zip")
    assert done.returncode == 0, done.stderr
    (archive,) = (source / "dist").iterdir()
    names = {name.partition("/")[2] for name in zipfile.ZipFile(archive).namelist()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names and "setup.py" in names


@compiled
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not there")
def test_instruction_sets_share_no_code() -> None:
    """A symbol that two copies of the kernels define would be linked from either: it might not run everywhere."""
    folder = ROOT / "build" / "native"
    objects = sorted([*folder.glob("engine_*.o"), *folder.glob("entropic_*.o")])
    if not objects:
        pytest.skip("the engine was compiled elsewhere")
    for path in objects:
        listing = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True)
        kind, name = path.stem.split("_")
        symbols = [line.split(maxsplit=2)[1:] for line in listing.stdout.splitlines()]
        outside = [symbol for kind, symbol in symbols if kind not in "tdrb" and f"optlayer::{name}::" not in symbol]
        room = "" if kind == "engine" else f"{kind}::"
        assert outside == [f"optlayer::{room}engine_{name}()"]


def tell(code: str, **environment: str) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-c", f"from optlayer.solvers import native; {code}"]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


@compiled
def test_any_instruction_set_that_runs_here_can_be_chosen() -> None:
    build = native.build()
    assert build is not None
    names = build.built.split(", ")
    for name in names[names.index(build.runs) :]:
        assert tell("print(native.build().runs)", OPTLAYER_ISA=name) == name


@compiled
def test_an_unknown_instruction_set_is_no_engine() -> None:
    assert "OPTLAYER_ISA is vliw, expected one of" in tell("print(native.why_not())", OPTLAYER_ISA="vliw")


def test_the_engine_can_be_left_alone() -> None:
    assert tell("print(native.available(), native.why_not())", OPTLAYER_NATIVE="0") == "False OPTLAYER_NATIVE is 0"


def test_info_tells_what_was_compiled_or_why_nothing() -> None:
    text = tell("from optlayer.cli import main; main(['info'])")
    build = native.build()
    if build is None:
        assert f"compiled engine: none, {native.why_not()}" in text
    else:
        assert f"compiled engine: {build.built}; by {build.compiler}" in text and f"native, {build.runs}" in text
    none = tell("from optlayer.cli import main; main(['info'])", OPTLAYER_NATIVE="0")
    assert "compiled engine: none, OPTLAYER_NATIVE is 0" in none


def test_without_an_engine_the_choice_of_it_is_an_error() -> None:
    code = (
        "import torch, optlayer; q = torch.ones(2)\n"
        "try: optlayer.solve_qp(None, q, lb=0.0, backend='native')\n"
        "except optlayer.SettingsError as error: print(error)"
    )
    expected = "backend is 'native', but the compiled engine cannot be used: OPTLAYER_NATIVE is 0"
    assert tell(code, OPTLAYER_NATIVE="0") == expected
