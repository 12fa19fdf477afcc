# SPDX-License-Identifier: Apache-2.0
"""The benchmark for GPUs, on the CPU: what it measures and which answers it counts."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from optlayer.solvers import native

pytest.importorskip("piqp")
from benchmarks import cuda
from benchmarks.workloads import Workload

pytestmark = pytest.mark.skipif(not native.available(), reason="there is no compiled engine")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backward", [False, True], ids=cuda.PASSES)
def test_only_right_answers_count(dtype: str, backward: bool) -> None:
    """Five problems seven times over; a solver whose every third x, or gradient, is a hundredth off."""
    facts = cuda.Facts.of(5, 5, dtype, "cpu")
    data = facts.data(35, "cpu")
    assert torch.equal(data[0][3], data[0][33])
    ours, shift = cuda.by("native"), torch.arange(35) % 3 == 0

    def wrong_x(w: Workload, data: cuda.Data) -> Tensor:
        return ours(w, data) + 0.01 * shift[:, None]

    def wrong_gradient(w: Workload, data: cuda.Data) -> Tensor:
        x = ours(w, data)
        return x + 0.01 * shift[:, None] * (x - x.detach())

    bench = cuda.Bench("cpu", 0.0)
    shares = [bench.rate("native", solve, facts, data, backward)[1] for solve in (ours, wrong_x, wrong_gradient)]
    known = float((~torch.from_numpy(facts.truth.optimum).isnan()).double().mean())
    assert known == 1.0
    assert shares[0] == 1.0
    assert shares[1] == 1 - float(shift.double().mean())
    assert shares[2] == (1.0 if not backward else shares[1])


def test_ours_must_satisfy_the_referee_with_its_multipliers() -> None:
    facts = cuda.Facts.of(5, 4, "float64", "cpu")
    facts.ours[1] = False
    x = cuda.by("native")(facts.w, facts.data(8, "cpu"))
    assert facts.right(x, None, ours=True) == 0.75 and facts.right(x, None, ours=False) == 1.0


def test_it_runs_and_stops_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--device", "cpu", "--quick", "--sizes", "3", "--solvers", "native,reference,native@8/80"]
    assert cuda.main([*options, "--batches", "6,1", "--seconds", "0"]) == 0
    assert "OPTLAYER_TEAM" not in os.environ and "OPTLAYER_FAST" not in os.environ
    found = json.loads((tmp_path / "out" / "cuda.json").read_text())
    lines = [(line["what"], line["batch"]) for line in found["measures"]]
    assert lines == [(what, batch) for batch in (6, 1) for what in cuda.PASSES]
    for line in found["measures"]:
        assert line["right"] == {"native": 1.0, "reference": 1.0, "native@8/80": 1.0}
        assert all(rate > 0 and math.isfinite(rate) for rate in line["rates"].values())
    assert cuda.main([*options, "--within", "0"]) == 0
    assert json.loads((tmp_path / "out" / "cuda.json").read_text())["measures"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main([]) == 1
    assert capsys.readouterr().out == "there is no CUDA device\n"
