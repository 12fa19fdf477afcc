# SPDX-License-Identifier: Apache-2.0
"""Tests that start processes of their own, which end within a limit whatever becomes of them, and tests that share a
folder with the other processes of a run."""

import contextlib
import faulthandler
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing

LIMIT = 120  # seconds; about 20 are needed where this was written

COMPILERS = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="inductor needs a C++ compiler: neither CXX, g++ nor clang++ is found"
)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it no other process of a run is at work in this folder, which comes into being."""
    import fcntl  # not on every system

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def spawn(work: Callable[..., None], folder: Path, count: int = 2, limit: float = LIMIT) -> None:
    """Run work(rank, folder) in `count` processes; the test fails where one does, or where they are not done in time.

    The time goes from the call; none of the processes outlives it.
    """
    context = torch.multiprocessing.spawn(_run, (work, str(folder)), nprocs=count, join=False)
    end = time.monotonic() + limit
    try:
        while not context.join(timeout=max(0.0, min(1.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                pytest.fail(f"{count} processes were not done after {limit:g} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _run(rank: int, work: Callable[..., None], folder: str) -> None:
    """Do the work and leave at once: threads of gloo may hang a group or an interpreter that shuts down in order.

    A process that is not done in time says where it stands.
    """
    faulthandler.dump_traceback_later(0.9 * LIMIT)
    work(rank, folder)
    os._exit(0)


def join_group(rank: int, folder: str, count: int = 2) -> None:
    """Join the group of the processes that `spawn` started; they meet in a file, so that no port can be taken."""
    timeout = timedelta(seconds=LIMIT / 2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count, timeout=timeout)
