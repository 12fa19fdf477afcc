# SPDX-License-Identifier: Apache-2.0
"""The plots beside the tables: rates of many workloads as dots, growth of cost as lines; log axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "optlayer": "#d62728",
    "qpth": "#1f77b4",
    "PIQP loop": "#2ca02c",
    "ProxQP batch": "#ff7f0e",
    "ProxQP layer": "#ffbb78",
    "Moreau": "#9467bd",
    "cvxpylayers": "#8c564b",
}
"""A solver has the same colour in every plot."""


def panels(count: int, height: float) -> tuple[Any, Any]:
    """A figure that needs no screen, with panels side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(6.5 * count, height), layout="constrained", squeeze=False)
    return figure, axes[0]


def dots(path: Path, rows: Sequence[str], content: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> None:
    """A panel for each pass, a row for each workload, a dot for each solver; rates of zero are left out."""
    figure, axes = panels(len(content), 1.2 + 0.28 * len(rows))
    for axis, (title, solvers) in zip(axes, content.items(), strict=True):
        for name, rates in reversed(solvers.items()):
            shown = [(rate, -i) for i, rate in enumerate(rates) if rate > 0]
            if shown:
                size = 60 if name == "optlayer" else 30
                axis.scatter(*zip(*shown, strict=True), s=size, color=COLOURS[name], label=name, zorder=3)
        axis.set(
            xscale="log", xlabel=label, title=title, yticks=[-i for i in range(len(rows))], ylim=(0.6 - len(rows), 0.6)
        )
        axis.set_yticklabels(rows if axis is axes[0] else [])
        axis.grid(True, which="major", alpha=0.4)
    known = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [name for name in COLOURS if name in known]
    figure.legend([known[name] for name in names], names, loc="outside upper center", ncols=len(names))
    figure.savefig(path, dpi=110)


def lines(
    path: Path, content: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], xlabels: Sequence[str]
) -> None:
    """A panel for each title: microseconds over a size, a line for each solver, dashed with a backward pass."""
    figure, axes = panels(len(content), 5.0)
    for axis, (title, curves), xlabel in zip(axes, content.items(), xlabels, strict=True):
        for name, points in curves.items():
            solver, _, what = name.partition(", ")
            style = "--" if what else "-"
            if points:
                axis.plot(*zip(*points, strict=True), style, marker="o", ms=3, color=COLOURS[solver], label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel=xlabel, ylabel="microseconds per problem")
        axis.grid(True, which="major", alpha=0.4)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
