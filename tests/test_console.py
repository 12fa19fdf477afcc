# SPDX-License-Identifier: Apache-2.0
import io
import sys

import pytest

from optlayer import console
from optlayer.console import progress, table


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    lines = table(["name", "value"], [["a", 1], ["long", -12.5], ["none", float("nan")], ["text", "1e-9"]]).splitlines()
    assert lines == ["name  value", "-----------", "a         1", "long  -12.5", "none", "text   1e-9"]


def test_a_table_may_have_no_rows() -> None:
    assert table(["a", "b"], []).splitlines()[0] == "a  b"


def test_progress_passes_every_item_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    found = capsys.readouterr()
    assert found.out == found.err == ""  # standard error is no terminal here


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    assert "letters:" in terminal.getvalue() and "0/3" in terminal.getvalue()


def test_progress_is_a_line_now_and_then_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(console, "QUIET", 0.0)
    for stream, expected in ((Terminal(), "letters: 1 of 3\n"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]
        assert expected in stream.getvalue() and bool(stream.getvalue()) == bool(expected)
