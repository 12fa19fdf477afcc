# SPDX-License-Identifier: Apache-2.0
"""What four ways to differentiate an iteration keep for backward, and how good their gradients are.

    python -m benchmarks.memory

The iteration z <- tanh(Wz + x) of examples/memory.py and examples/reversible.py, whose functions are measured here for
more numbers of iterations. What is kept from forward to backward is counted, each storage once; not what backward needs
while it runs: sqrt(K) iterates for checkpoints, the Jacobians of the rows (n^2 numbers each) for implicit().
"""

from __future__ import annotations

import contextlib
import io
import runpy
from pathlib import Path
from typing import Any

from benchmarks import plots, report
from benchmarks.clock import one_thread

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ITERATIONS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


def example(name: str) -> dict[str, Any]:
    """What a run of an example defines."""
    with contextlib.redirect_stdout(io.StringIO()):
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def draw(path: Path, figures: dict[str, list[tuple[float, float]]]) -> None:
    """KiB on the left, errors on the right, over the iterations."""
    figure, axes = plots.panels(2, 4.5)
    titles = ("KiB kept for backward", "relative error of the gradient")
    for i, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for (name, values), style in zip(figures.items(), ("-", "--", "-.", ":"), strict=True):
            axis.plot(ITERATIONS, [value[i] for value in values], style, marker="o", ms=4, label=name)
        axis.set(xscale="log", yscale="log", xlabel="iterations", title=title)
        axis.grid(True, which="major", alpha=0.4)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run from the command line."""
    one_thread()
    memory, reversible = example("memory"), example("reversible")
    methods = {
        "unrolled": memory["unrolled"],
        "checkpointed": memory["checkpointed"],
        "reversible": reversible["Reversible"].apply,
        "implicit": memory["at_the_end"],
    }
    exact, figures = memory["exact"], {}
    for name, method in methods.items():
        measured = [memory["measure"](method, K) for K in ITERATIONS]
        figures[name] = [(kib, ((g - exact).norm() / exact.norm()).item()) for kib, g in measured]
    header = ["iterations", *methods]
    parts = {
        title: (header, [[K, *(figures[name][j][i] for name in methods)] for j, K in enumerate(ITERATIONS)])
        for i, title in enumerate(("KiB kept for backward", "relative error of the gradient"))
    }
    parts["plot"] = "![KiB and errors over the iterations](memory.png)"
    report.write("memory", "python -m benchmarks.memory", "float64, n = 64, 32 rows", ["matplotlib"], parts)
    draw(report.RESULTS / "memory.png", figures)


if __name__ == "__main__":
    main()
