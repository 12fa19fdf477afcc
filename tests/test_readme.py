# SPDX-License-Identifier: Apache-2.0
"""The README never lies: its code runs and prints what the block after it shows, and the commands it names exist."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from optlayer import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_code_prints_what_the_readme_shows() -> None:
    namespace: dict[str, object] = {}
    printed = ""
    ran = 0
    for language, text in BLOCKS:
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, "README.md", "exec"), namespace)
            printed = out.getvalue()
            ran += 1
        elif language == "text":
            assert printed == text
    assert ran >= 3


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)", README))))
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m optlayer (\w+)", README))))
def test_a_command_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http|#)([^)]+)\)", README))))
def test_a_linked_file_exists(path: str) -> None:
    assert (ROOT / path).exists()
