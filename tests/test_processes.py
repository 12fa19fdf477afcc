# SPDX-License-Identifier: Apache-2.0
"""A test that starts processes ends, with a reason."""

import os
import time
from pathlib import Path

import pytest
from processes import spawn


def _sleep(rank: int, folder: str) -> None:
    (Path(folder) / str(rank)).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.slow
def test_processes_that_hang_are_killed(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="2 processes were not done after 10 s"):
        spawn(_sleep, tmp_path, limit=10)
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
