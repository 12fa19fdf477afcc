# SPDX-License-Identifier: Apache-2.0
"""Right answers per second on a GPU, forward and forward + backward, beside the peers and the limits of the machine.

    python -m benchmarks.cuda [--quick] [--sizes 4,10] [--batches 128,4096] [--solvers native,qpth]
                              [--seconds 0.3] [--within 480] [--device cuda]

OptNet's problems (workloads.py), n = m, at most 512 different ones, repeated to the batch: so many that each answer of
every solver can be verified before it counts (audit.py), a right gradient by q included where there is a backward pass.
That goes by P, q, G and h. A rate is the right answers of a batch over the best of three measured means; the clock
stops when the GPU has finished. Each solver is asked for 1e-8, absolute (float32: 1e-5, absolute and relative), but for
cuPIQP, which has 1e-8 absolute and 1e-9 relative; what that allocates for a shape is not part of its time. The solver
native@8 is ours with teams of 8 threads a problem, native@8/80 with 80 % of the shared memory besides.

The limits are measured in the same run: the bandwidth of a copy and the rate of a matrix product bound the rate from
above by bytes (what has to be read and written once) and by operations (those of the method at full accuracy,
7.2 n^3 + 28 n^2; they are done in float64 whatever the data are).

It needs piqp, the judge. What matters most comes first, and --within stops in time to report what is there by then.
On the CPU, --device cpu shows that all of this works; its figures are those of the engine for CPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import optlayer
from benchmarks import audit, report
from benchmarks.referee import Array
from benchmarks.workloads import Workload, optnet
from optlayer.solvers import native

SIZES = (10, 20, 50, 100, 4, 32, 64, 150)
BATCHES = (4096, 128, 1, 65536)
QUICK = (10, 50, 100), (4096, 128)
AIMS = {(10, 128): 5e6, (10, 4096): 50e6, (20, 4096): 15e6, (50, 4096): 2.5e6, (100, 4096): 0.5e6}
"""Forward, float64, problems a second on an H200."""
PASSES = {"forward": False, "forward + backward": True}

Data = tuple[Tensor, Tensor, Tensor, Tensor]
"""P, q, G, h."""
Solve = Callable[[Workload, Data], Tensor]
"""x for the data of a workload, of which there may be more than one copy."""


def by(backend: str) -> Solve:
    """This library."""

    def solve(w: Workload, data: Data) -> Tensor:
        P, q, G, h = data
        return optlayer.solve_qp(P, q, G, h, backend=backend, eps_abs=w.eps, eps_rel=w.relative).x

    return solve


@contextlib.contextmanager
def teams_of(name: str) -> Iterator[None]:
    """Within it our kernels work with the teams, and the shared memory, that are part of a solver's name, if any."""
    before = dict(os.environ)
    team, _, fast = name.partition("@")[2].partition("/")
    try:
        os.environ.update({key: v for key, v in (("OPTLAYER_TEAM", team), ("OPTLAYER_FAST", fast)) if v})
        yield
    finally:
        for key in ("OPTLAYER_TEAM", "OPTLAYER_FAST"):
            os.environ.pop(key, None)
        os.environ.update(before)


def qpth() -> Solve:
    """OptNet's layer."""
    from qpth.qp import QPFunction

    def solve(w: Workload, data: Data) -> Tensor:
        nothing = torch.empty(0, device=data[1].device, dtype=data[1].dtype)
        x: Tensor = QPFunction(eps=w.eps, verbose=-1, check_Q_spd=False)(*data, nothing, nothing)
        return x

    return solve


def cupiqp() -> Solve:
    """The layer of PIQP's port to GPUs, one for each shape."""
    from cupiqp.torch import DenseSolverLayer

    layers: dict[tuple[torch.Size, torch.dtype], torch.nn.Module] = {}

    def solve(w: Workload, data: Data) -> Tensor:
        P, q, G, h = data
        key = q.shape, q.dtype
        if key not in layers:
            layers.clear()
            layers[key] = DenseSolverLayer(dtype=q.dtype)
            layers[key].setup(P=P, c=q, G=G, h_u=h)
        x: Tensor = layers[key](P=P, c=q, G=G, h_u=h)
        return x

    return solve


PEERS = {"qpth": qpth, "cuPIQP": cupiqp}


def solvers(names: list[str]) -> dict[str, Solve]:
    """Those that are installed."""
    found: dict[str, Solve] = {}
    for name in names:
        try:
            found[name] = PEERS[name]() if name in PEERS else by(name.split("@")[0])
        except ImportError as error:
            print(f"no {name}: {error}")
    return found


def finish(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str, shortest: float) -> float:
    """The best of three means over calls that last so long together."""

    def mean(count: int) -> float:
        finish(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        finish(device)
        return (time.perf_counter() - start) / count

    mean(2)  # what happens once
    count = max(1, int(shortest / 3 / mean(1)))
    return min(mean(count) for _ in range(3))


def different(n: int) -> int:
    """How many problems of a size are made, and verified one by one."""
    return 512 if n <= 20 else 128 if n <= 64 else 64


@dataclass(frozen=True)
class Facts:
    """A workload of different problems, their truth, and which of them our solution with its multipliers solves."""

    w: Workload
    truth: audit.Truth
    ours: Array

    @classmethod
    def of(cls, n: int, batch: int, dtype: str, device: str) -> Facts:
        """OptNet's problems of this size, no more than `batch`."""
        w = optnet(n, min(batch, different(n)), "float32" if dtype == "float32" else "")
        return cls(w, audit.truth(w), audit.ours(w, device, backend="native"))

    def first(self, batch: int) -> Facts:
        """The first problems, as many as a batch holds."""
        few = slice(min(batch, self.w.batch))
        return Facts(self.w.first(few.stop), self.truth.take(few), self.ours[few])

    def data(self, batch: int, device: str) -> Data:
        """P, q, G and h on the device, the problems one after the other and over again."""
        index = torch.arange(batch, device=device) % self.w.batch
        dtype = getattr(torch, self.w.dtype)
        P, q, G, h = (torch.tensor(self.w.blocks[k], dtype=dtype, device=device)[index] for k in ("P", "q", "G", "h"))
        return P, q, G, h

    def right(self, x: Tensor, gradient: Tensor | None, ours: bool) -> float:
        """The share of a batch's answers that are right."""
        good = np.zeros(len(x), dtype=bool)
        for start in range(0, len(x), self.w.batch):
            part = slice(start, min(len(x), start + self.w.batch))
            facts = self.first(part.stop - start)
            answer = audit.right(facts.w, x[part].double().cpu().numpy(), facts.truth)
            if gradient is not None:
                error = audit.errors(gradient[part].double().cpu().numpy(), facts.truth)
                answer &= ~(error > audit.GRADIENT)
            good[part] = answer & facts.ours if ours else answer
        return float(good.mean())


def roofline(limits: dict[str, float], n: int, size: int, backward: bool) -> float:
    """The most problems a second that the machine permits."""
    numbers = (2 * n * n + 2 * n) + 6 * n  # P, G, q, h; x, z, s, ...
    numbers += 4 * n * n + 6 * n if backward else 0  # the matrices once more, and the gradients
    kept = n * (n + 1) * 8 * (2 if backward else 0)  # the factors, triangles, written and read
    flops = 7.2 * n**3 + 28 * n**2 + (12 * n * n if backward else 0)
    return min(limits["bandwidth"] / (numbers * size + kept), limits["operations"] / flops)


@dataclass(frozen=True)
class Record:
    """A line of the table: what each solver did, as right answers per second and their share."""

    dtype: str
    what: str
    n: int
    batch: int
    roofline: float
    rates: dict[str, float] = field(default_factory=dict)
    right: dict[str, float] = field(default_factory=dict)

    def cells(self, methods: Iterable[str]) -> list[str]:
        """As the table shows it; a star where some answers are not right."""
        own = self.rates.get("native", 0.0)
        stars = {name: "*" * (share < 1) for name, share in self.right.items()}
        ratios = [
            f"{own / self.rates[name]:.1f}{stars[name]}" if self.rates.get(name) else "-"
            for name in methods
            if name != "native"
        ]
        aim = AIMS.get((self.n, self.batch)) if (self.dtype, self.what) == ("float64", "forward") else None
        first = [self.dtype, self.what, str(self.n), str(self.batch), f"{own:,.0f}{stars.get('native', '')}"]
        return [*first, *ratios, f"{own / self.roofline:.1%}", f"{aim:,.0f}" if aim else ""]


@dataclass(frozen=True)
class Bench:
    """Where and how long is measured."""

    device: str
    shortest: float

    def rate(self, name: str, solve: Solve, facts: Facts, data: Data, backward: bool) -> tuple[float, float]:
        """Right answers a second, and their share."""
        w = facts.w
        leaves = tuple(t.detach().requires_grad_() for t in data)

        def both() -> tuple[Tensor, Tensor]:
            x = solve(w, leaves)
            return x.detach(), torch.autograd.grad(x.sum(), leaves)[1]

        def forward() -> tuple[Tensor, None]:
            with torch.no_grad():
                return solve(w, data), None

        call = both if backward else forward
        with teams_of(name):
            share = facts.right(*call(), name.startswith("native"))
            return share * len(data[1]) / seconds(call, self.device, self.shortest), share

    def machine(self) -> dict[str, float]:
        """Bytes a second of a copy, read and written, and operations a second of matrix products in float64."""
        numbers, n = (1 << 28, 4096) if self.device == "cuda" else (1 << 22, 512)
        a = torch.empty(numbers, device=self.device)
        b = torch.empty_like(a)
        moved = 2 * a.nbytes / seconds(lambda: b.copy_(a), self.device, self.shortest)
        c = torch.randn(n, n, device=self.device, dtype=torch.float64)
        return {"bandwidth": moved, "operations": 2 * n**3 / seconds(lambda: c @ c, self.device, self.shortest)}

    def fits(self, n: int, batch: int, size: int) -> bool:
        """Whether the data of a batch, the factors and the gradients take no more than half of the memory."""
        needed = batch * (4 * n * n * size + 6 * n * n * 8)
        return self.device == "cpu" or needed <= 0.5 * torch.cuda.mem_get_info()[0]


def records(
    bench: Bench, dtypes: Iterable[str], sizes: Iterable[int], batches: list[int], methods: dict[str, Solve], end: float
) -> Iterator[tuple[Record, list[str]]]:
    """One after the other, with notes on what was not measured and on what was wrong; none begins after the end."""
    limits = bench.machine()
    moved, multiplied = limits["bandwidth"] / 1e12, limits["operations"] / 1e12
    print(f"copies {moved:.2f} TB/s, multiplies {multiplied:.2f} TFLOP/s in float64\n", flush=True)
    for dtype, n in itertools.product(dtypes, sizes):
        if time.perf_counter() > end:
            return
        whole = Facts.of(n, max(batches), dtype, bench.device)
        size = torch.finfo(getattr(torch, dtype)).bits // 8
        for B in batches:
            if not bench.fits(n, B, size):
                continue
            facts = whole.first(B)
            data = facts.data(B, bench.device)
            for what, backward in PASSES.items():
                record = Record(dtype, what, n, B, roofline(limits, n, size, backward))
                notes = []
                for name, solve in methods.items():
                    if time.perf_counter() > end:
                        notes.append("no time was left")
                        break
                    try:
                        rate, share = bench.rate(name, solve, facts, data, backward)
                    except Exception as reason:  # out of memory, or whatever a peer raises
                        notes.append(f"{name}: {type(reason).__name__}: {reason}".splitlines()[0][:120])
                        continue
                    record.rates[name], record.right[name] = rate, share
                    if share < 1:
                        notes.append(f"{name}: {share:.2%} of the answers are right")
                yield record, [f"- {dtype}, {what}, n = {n}, B = {B}: {note}" for note in notes]
            del data
            if bench.device == "cuda":
                torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three sizes, two batches, float64; writes to out/")
    parser.add_argument("--sizes", default="", help="comma-separated")
    parser.add_argument("--batches", default="", help="comma-separated")
    parser.add_argument("--solvers", default="native,reference,qpth,cuPIQP", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="for one measure (default: %(default)s)")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds after which no measure begins")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device")
        return 1
    usual = QUICK if options.quick else (SIZES, BATCHES)
    given = ([int(v) for v in text.split(",") if v] for text in (options.sizes, options.batches))
    sizes, batches = (own or list(some) for own, some in zip(given, usual, strict=True))
    dtypes = ["float64"] if options.quick else ["float64", "float32"]
    name = torch.cuda.get_device_name() if device == "cuda" else report.machine()
    engine = native.cuda_build() or native.why_not_cuda() if device == "cuda" else native.build() or native.why_not()
    print(f"{name}; torch {torch.__version__}; engine {engine}")
    methods = solvers(options.solvers.split(","))
    heads = ["dtype", "what", "n = m", "batch", "native, right/s"]
    heads += [f"times {method}" for method in methods if method != "native"] + ["of the roofline", "aim"]
    found, notes = [], []
    bench = Bench(device, options.seconds)
    for record, remarks in records(bench, dtypes, sizes, batches, methods, start + options.within):
        found.append(record)
        notes += remarks
        print("  ".join(record.cells(methods)), *remarks, sep="\n", flush=True)
    report.write(
        "cuda",
        "python -m benchmarks.cuda" + " --quick" * options.quick + f" --device {device}" * (device != "cuda"),
        "1e-8 absolute; float32: 1e-5 absolute and relative",
        ("qpth", "cupiqp", "piqp"),
        {
            "device": f"{name}, {time.perf_counter() - start:.0f} s",
            "right answers per second": (heads, [record.cells(methods) for record in found]),
            "notes": "\n".join(notes) or "none",
        },
        {"measures": [asdict(record) for record in found]},
        Path("out") if options.quick or device == "cpu" else report.RESULTS,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
