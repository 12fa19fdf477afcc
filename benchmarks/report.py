# SPDX-License-Identifier: Apache-2.0
"""What every figure is printed with: the machine, the versions, the precision, and the command that reproduces it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package, "absent" where there is none."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def machine() -> str:
    """The processor in words, with the cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def cell(value: Any) -> str:
    """A value as a table shows it: floats with two or three digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value and not 0.01 <= abs(value) < 1e5:
            return f"{value:.1e}"
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with columns of even width."""
    lines = [[str(h) for h in header], *[[cell(v) for v in row] for row in rows]]
    widths = [max(len(line[j]) for line in lines) for j in range(len(header))]
    text = ["| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def write(
    name: str,
    command: str,
    precision: str,
    packages: Sequence[str],
    parts: dict[str, Any],
    raw: dict[str, Any] | None = None,
    folder: Path = RESULTS,
) -> None:
    """Print the figure and write it to results/NAME.md and results/NAME.json.

    ``parts`` maps each title to a text, or to (header, rows) of a table; ``raw`` goes into the second file only.
    """
    facts = {
        "command": command,
        "machine": machine(),
        "python": platform.python_version(),
        "versions": versions("torch", "numpy", *packages),
        "precision": precision,
        "date": date.today().isoformat(),
    }
    lines = [f"# {name}", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key != "versions"]
    lines += ["- versions: " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items())]
    for title, part in parts.items():
        lines += ["", f"## {title}", "", part if isinstance(part, str) else table(*part)]
    text = "\n".join(lines) + "\n"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps({**facts, **parts, **(raw or {})}, indent=1, default=str) + "\n")
    print(text)
