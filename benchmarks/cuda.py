# SPDX-License-Identifier: Apache-2.0
"""Problems per second on a GPU, forward and forward + backward, beside the peers and the limits of the machine.

    python -m benchmarks.cuda [--quick] [--sizes 4,10] [--batches 128,4096] [--solvers native,qpth]

OptNet's problems (workloads.py), n = m, made on the device. A rate is the batch over the best of three measured means;
the clock stops when the GPU has finished. The limits are measured in the same run: the bandwidth of a copy and the rate
of a matrix product of the same dtype bound the rate from above by bytes (what has to be read and written once) and by
operations (those of the method at full accuracy, 7.2 n^3 + 28 n^2; they are done in float64 whatever the data are).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import optlayer
from benchmarks import report
from optlayer.solvers import native

SIZES = (4, 10, 20, 32, 50, 64, 100, 150)
BATCHES = (1, 128, 4096, 65536)
SECONDS = 0.3
AIMS = {(10, 128): 5e6, (10, 4096): 50e6, (20, 4096): 15e6, (50, 4096): 2.5e6, (100, 4096): 0.5e6}
"""Forward, float64, problems a second on an H200."""

Solve = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def optnet(n: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """P, q, G, h with P = LL' + 1e-3 I and a point inside."""
    torch.manual_seed(0)
    L = torch.rand(batch, n, n, device="cuda", dtype=dtype)
    P = L @ L.mT + 1e-3 * torch.eye(n, device="cuda", dtype=dtype)
    q, z = torch.randn(2, batch, n, device="cuda", dtype=dtype)
    G = torch.randn(batch, n, n, device="cuda", dtype=dtype)
    h = (G @ z.unsqueeze(-1)).squeeze(-1) + torch.rand(batch, n, device="cuda", dtype=dtype)
    return P, q, G, h


def by(backend: str) -> Solve:
    def solve(P: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
        eps = 1e-8 if q.dtype == torch.float64 else 1e-5
        return optlayer.solve_qp(P, q, G, h, backend=backend, eps_abs=eps, eps_rel=0.0 if eps < 1e-6 else eps).x

    return solve


def qpth() -> Solve:
    from qpth.qp import QPFunction

    def solve(P: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
        nothing = torch.empty(0, device=q.device, dtype=q.dtype)
        x: Tensor = QPFunction(verbose=-1, check_Q_spd=False)(P, q, G, h, nothing, nothing)
        return x

    return solve


def cupiqp() -> Solve:
    """At its own accuracy, 1e-8 absolute and 1e-9 relative; what it allocates for a shape is not part of the time."""
    from cupiqp.torch import DenseSolverLayer

    layers: dict[tuple[torch.Size, torch.dtype], torch.nn.Module] = {}

    def solve(P: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
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
    found: dict[str, Solve] = {}
    for name in names:
        try:
            found[name] = PEERS[name]() if name in PEERS else by(name)
        except ImportError as error:
            print(f"no {name}: {error}")
    return found


def seconds(call: Callable[[], object], shortest: float = SECONDS) -> float:
    """The best of three means over calls that last so long together."""

    def mean(count: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    mean(2)  # what happens once
    one = mean(1)
    count = max(1, int(shortest / 3 / one))
    return min(mean(count) for _ in range(3))


def rate(solve: Solve, data: tuple[Tensor, ...], backward: bool) -> float:
    """Problems a second."""
    if backward:
        leaves = [t.detach().requires_grad_() for t in data]
        return data[1].shape[0] / seconds(lambda: torch.autograd.grad(solve(*leaves).sum(), leaves))
    with torch.no_grad():
        return data[1].shape[0] / seconds(lambda: solve(*data))


def machine() -> dict[str, float]:
    """Bytes a second of a copy, read and written, and operations a second of matrix products in float64."""
    a = torch.empty(1 << 28, device="cuda")
    b = torch.empty_like(a)
    moved = 2 * a.nbytes / seconds(lambda: b.copy_(a))
    c = torch.randn(4096, 4096, device="cuda", dtype=torch.float64)
    return {"bandwidth": moved, "operations": 2 * 4096**3 / seconds(lambda: c @ c)}


def roofline(limits: dict[str, float], n: int, size: int, backward: bool) -> float:
    """The most problems a second that the machine permits."""
    numbers = (
        (2 * n * n + 2 * n) + 6 * n + (4 * n * n + 6 * n if backward else 0)
    )  # P, G, q, h; x, z, s, ...; gradients
    kept = 2 * n * n * 8 * (2 if backward else 0)  # the factors, written and read
    flops = 7.2 * n**3 + 28 * n**2 + (12 * n * n if backward else 0)
    return min(limits["bandwidth"] / (numbers * size + kept), limits["operations"] / flops)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three sizes, two batches, float64")
    parser.add_argument("--sizes", default="", help="comma-separated")
    parser.add_argument("--batches", default="", help="comma-separated")
    parser.add_argument("--solvers", default="native,reference,qpth,cuPIQP", help="(default: %(default)s)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device")
        return 1
    sizes = [int(n) for n in options.sizes.split(",") if n] or ([10, 50, 100] if options.quick else SIZES)
    batches = [int(B) for B in options.batches.split(",") if B] or ([128, 4096] if options.quick else BATCHES)
    dtypes = [torch.float64] if options.quick else [torch.float64, torch.float32]
    name = torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}; engine {native.cuda_build() or native.why_not_cuda()}")
    limits = machine()
    moved, multiplied = limits["bandwidth"] / 1e12, limits["operations"] / 1e12
    print(f"copies {moved:.2f} TB/s, multiplies {multiplied:.1f} TFLOP/s in float64\n")
    methods = solvers(options.solvers.split(","))
    rows, records = [], []
    for dtype in dtypes:
        for n in sizes:
            for B in batches:
                size = torch.finfo(dtype).bits // 8
                if B * (4 * n * n * size + 6 * n * n * 8) > 0.5 * torch.cuda.mem_get_info()[0]:
                    continue
                data = optnet(n, B, dtype)
                for backward in (False, True):
                    found: dict[str, float] = {}
                    for method, solve in methods.items():
                        try:
                            found[method] = rate(solve, data, backward)
                        except (RuntimeError, ValueError) as error:  # out of memory, or a peer that fails
                            warnings.warn(f"{method}, n = {n}, B = {B}: {str(error).splitlines()[0]}", stacklevel=1)
                    top = roofline(limits, n, size, backward)
                    ours = found.get("native", 0.0)
                    ratios = [
                        f"{ours / found[name]:.1f}" if found.get(name) else "-" for name in methods if name != "native"
                    ]
                    aim = AIMS.get((n, B)) if dtype == torch.float64 and not backward else None
                    what = "forward + backward" if backward else "forward"
                    rows.append(
                        [str(dtype)[6:], what, str(n), str(B), f"{ours:,.0f}", *ratios, f"{ours / top:.1%}"]
                        + [f"{aim:,.0f}" if aim else ""]
                    )
                    records.append({"dtype": rows[-1][0], "what": what, "n": n, "batch": B, "roofline": top, **found})
                    print("  ".join(rows[-1]), flush=True)
                del data
                torch.cuda.empty_cache()
    heads = ["dtype", "what", "n = m", "batch", "native, problems/s"]
    heads += [f"times {name}" for name in methods if name != "native"] + ["of the roofline", "aim"]
    device = {"device": name, **limits}
    precision = "1e-8 absolute; float32: 1e-5 absolute and relative"
    report.write(
        "cuda",
        "python -m benchmarks.cuda",
        precision,
        ("qpth", "cupiqp"),
        {"Machine": (list(device), [list(device.values())]), "Problems per second": (heads, rows)},
        {"measures": records},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
