# SPDX-License-Identifier: Apache-2.0
"""Text for a person at a terminal: tables, and the progress of long work."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
QUIET = 2.0  # seconds between two lines of progress where there is no bar


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell: columns of numbers to the right, the others to the left.

    Example:
        >>> print(table(["name", "n", "gap"], [["HS21", 2, 1.5e-10], ["HS118", 15, 0.0]]))
        name    n      gap
        ------------------
        HS21    2  1.5e-10
        HS118  15        0
    """
    cells = [list(header), *([_cell(v) for v in row] for row in rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(map(_is_number, column[1:])) for column in columns]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


def _is_number(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with progress on standard error if that is a terminal: a bar of tqdm, or a line every few seconds."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _lines(items, total, what)
    else:
        yield from tqdm(items, total=total, desc=what, file=sys.stderr, leave=False, disable=None)


def _lines(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if sys.stderr.isatty() and time.monotonic() - said > QUIET:
            said = time.monotonic()
            sys.stderr.write(f"{what}: {done} of {total}\n")
        yield item
