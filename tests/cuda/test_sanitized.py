# SPDX-License-Identifier: Apache-2.0
"""All kernels of the engine for CUDA once, small: for compute-sanitizer, under which they are slow."""

from __future__ import annotations

import pytest
import torch
from device_cases import on_device
from entropic_cases import entropic

import optlayer
from benchmarks.cuda_without_gpu import TEAMS

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("name", ["tiny", "everything", "lp"])
def test_all_kernels_run(name: str, team: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTLAYER_TEAM", str(team))
    tensors = on_device(name, (5,), 3)
    for keep in (True, False):
        *out, _ = torch.ops.optlayer_native.qp(*tensors, 1e-9, 1e-9, 200, 0, True, keep)
        r = [torch.ones_like(t) for t in out[:4]]
        u = torch.ops.optlayer_native.kkt_solve(tensors[0], tensors[2], tensors[4], *out[10:13], *r)
        assert bool(u[0].isfinite().all())
        gradients = (tensors[0], tensors[2], tensors[4], *out[10:13], *r, *out[:3])
        torch.ops.optlayer_native.kkt_pull(*gradients, 1, 2, 1)
    torch.ops.optlayer_native.pull(*out[:3], *u[:3], 1, 2, 1)
    torch.cuda.synchronize()


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("kind", ["softmax", "moment and rows"])
def test_all_entropic_kernels_run(kind: str, team: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTLAYER_TEAM", str(team))
    given = {name: t if t is None else t.cuda() for name, t in entropic(kind, 9, batch=5, curvature="full").items()}
    q = given["q"].requires_grad_()
    solution = optlayer.solve_qp(**{**given, "q": q}, backend="native")
    (gradient,) = torch.autograd.grad(solution.x.square().sum(), q)
    assert bool(gradient.isfinite().all())
    torch.cuda.synchronize()
