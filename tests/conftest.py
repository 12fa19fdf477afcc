# SPDX-License-Identifier: Apache-2.0
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from optlayer.solvers import native


@pytest.fixture(autouse=True)
def _same_world_afterwards() -> Iterator[None]:
    """Each test starts from the same random state and leaves torch's global state as it found it."""
    dtype, grad, deterministic = torch.get_default_dtype(), torch.is_grad_enabled(), torch.random.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(deterministic)
    assert torch.get_default_dtype() == dtype, "the test changed the default dtype"
    assert torch.is_grad_enabled() == grad, "the test changed whether gradients are recorded"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `cuda` skip where there is no GPU, and fail where OPTLAYER_REQUIRE_CUDA=1 says that there is one."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        if os.environ.get("OPTLAYER_REQUIRE_CUDA") == "1":
            pytest.fail("there is no CUDA device, and OPTLAYER_REQUIRE_CUDA is 1", pytrace=False)
        pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real problems; a test that needs it is skipped where it is absent."""
    root = os.environ.get("OPTLAYER_TEST_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip(f"no folder of problems: OPTLAYER_TEST_DATA is {root or 'not set'}")
    return Path(root)


@pytest.fixture(params=["native", "reference"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine behind the backend "auto"; "reference" stands for an installation without the compiled engine."""
    name: str = request.param
    if name == "native" and not native.available():
        pytest.skip(f"there is no compiled engine: {native.why_not()}")
    if name == "reference":
        monkeypatch.setattr(native, "available", lambda: False)
    return name
