# SPDX-License-Identifier: Apache-2.0
"""What the kernels of a GPU do not decide: an engine on the CPU that tells as late as a GPU does stands in for them.
And the GPUs that they are not for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import optlayer
from optlayer import Status
from optlayer.solvers import choose, native
from optlayer.testing import random_qp

pytestmark = pytest.mark.skipif(not native.available(), reason="there is no compiled engine")
LEFT = [1, 4]


@pytest.fixture
def solve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A solve whose engine leaves some elements UNSOLVED and does not count them."""
    inner = native.qp

    def qp(*arguments: Any) -> tuple[tuple[Tensor, ...], int]:
        out, _ = inner(*arguments)
        out[0][LEFT], out[5][LEFT] = torch.nan, int(Status.UNSOLVED)
        return out, -1

    P, q, *rest = random_qp(n=6, m=8, p=2, batch=(5,), seed=1).tensors
    right = optlayer.solve_qp(P, q, *rest, backend="native")
    monkeypatch.setattr(native, "qp", qp)
    return right, lambda: optlayer.solve_qp(P, q, *rest, backend="native")


def test_the_reference_engine_solves_what_is_left(solve: Any) -> None:
    right, again = solve
    found = again()
    assert bool((found.status == Status.SOLVED).all())
    torch.testing.assert_close(found.x, right.x, rtol=0, atol=1e-7)


def test_while_a_graph_is_recorded_nothing_waits(solve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_recording", lambda t: True)
    right, again = solve
    found = again()
    others = [i for i in range(5) if i not in LEFT]
    assert found.status[LEFT].tolist() == [Status.INSUFFICIENT_PROGRESS] * len(LEFT)
    assert bool(found.x[LEFT].isnan().all())
    assert torch.equal(found.x[others], right.x[others])


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80, 90", (8, 0), True),
        ("80, 90", (8, 6), True),
        ("80, 90", (7, 5), False),
        ("75, 86, 100", (8, 0), False),
        ("75, 86, 100", (9, 0), False),
        ("90", (12, 0), True),  # from PTX
        ("90", (8, 9), False),
        ("75, 80, 90, 100, 120", (12, 1), True),
    ],
)
def test_the_engine_takes_the_gpus_that_it_was_compiled_for(
    architectures: str, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_loaded_cuda", native.CudaBuild("1, 8", architectures, "13.0"))
    monkeypatch.setattr(native, "_obstacle_on", native._obstacle_on.__wrapped__)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(native, "_driver", lambda: 13000)
    why = native.obstacle(torch.device("cuda", 0))
    if runs:
        assert why == ""
    else:
        has = ".".join(map(str, capability))
        assert why.startswith("it was compiled for the architectures ") and why.endswith(f", cuda:0 has {has}")


@pytest.mark.parametrize(
    ("capability", "driver", "runs"),
    [
        ((9, 0), 12090, False),
        ((9, 0), 13000, True),
        ((9, 0), 14010, True),
        ((10, 0), 13000, False),  # from PTX
        ((10, 0), 13020, True),
    ],
)
def test_the_engine_needs_a_driver_as_new_as_what_compiled_it(
    capability: tuple[int, int], driver: int, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_loaded_cuda", native.CudaBuild("1, 8", "90", "13.2"))
    monkeypatch.setattr(native, "_obstacle_on", native._obstacle_on.__wrapped__)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(native, "_driver", lambda: driver)
    why = native.obstacle(torch.device("cuda", 0))
    version = f"{driver // 1000}.{driver % 1000 // 10}"
    assert why == ("" if runs else f"it was compiled by CUDA 13.2, the driver is for CUDA {version}")
