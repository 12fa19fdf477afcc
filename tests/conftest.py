# SPDX-License-Identifier: Apache-2.0
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _same_world_afterwards() -> Iterator[None]:
    """Each test starts from the same random state and leaves torch's global state as it found it."""
    dtype, grad, deterministic = torch.get_default_dtype(), torch.is_grad_enabled(), torch.random.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(deterministic)
    assert torch.get_default_dtype() == dtype, "the test changed the default dtype"
    assert torch.is_grad_enabled() == grad, "the test changed whether gradients are recorded"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real problems; a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("OPTLAYER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no problems in {folder} (OPTLAYER_TEST_DATA)")
    return folder
