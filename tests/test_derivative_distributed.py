# SPDX-License-Identifier: Apache-2.0
"""Data parallel training: two processes with half a batch each have the gradients of one process with all of it."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the processes are started without pytest's path

import dense_engine
from processes import join_group, spawn
from regular import outputs, regular
from torch.nn.parallel import DistributedDataParallel

WAYS = {
    "DDP": DistributedDataParallel,
    "static graph": lambda module: DistributedDataParallel(module, static_graph=True),
    "compiled": lambda module: torch.compile(DistributedDataParallel(module), backend="aot_eager"),
}


class Layer(torch.nn.Module):
    def __init__(self, program):
        super().__init__()
        self.P, self.G = (torch.nn.Parameter(t.clone()) for t in (program.P, program.G))

    def forward(self, *rest):
        q, h, A, b, lb, ub = rest
        return torch.cat([t for t in outputs(self.P, q, self.G, h, A, b, lb, ub) if t.shape[-1] > 1], -1)


def work(rank, folder):
    join_group(rank, folder)
    torch.set_num_threads(1)
    program, _ = regular(8, shared=("P", "G"))
    rest = [program[i] for i in (1, 3, 4, 5, 6, 7)]
    mine = [t[4 * rank : 4 * rank + 4] for t in rest]

    def value(out):
        return torch.where(out.isfinite(), out, 0).pow(2).sum(-1).mean()

    errors = {}
    with dense_engine.installed():
        layer = Layer(program)
        expected = torch.autograd.grad(value(layer(*rest)), list(layer.parameters()))
        for name, way in WAYS.items():
            layer = Layer(program)
            parallel = way(layer)
            for _ in range(2):
                layer.zero_grad()
                value(parallel(*mine)).backward()
            gradients = [p.grad for p in layer.parameters()]
            errors[name] = max(float((a - b).abs().max()) for a, b in zip(gradients, expected, strict=True))
    if rank == 0:
        torch.save(errors, f"{folder}/errors")


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed package")
def test_two_processes_equal_one(tmp_path):
    spawn(work, tmp_path)
    errors = torch.load(tmp_path / "errors")
    assert set(errors) == set(WAYS)
    assert max(errors.values()) < 1e-12, errors  # sums in another order
