# SPDX-License-Identifier: Apache-2.0
"""torch.compile of the program and of its derivatives, without graph breaks, equals eager; the cases are in
compiled_cases.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import needs_compiler

HERE = Path(__file__).resolve().parent

REVERSE = (
    "forward backward kept_factor absent_blocks dynamic_batch gradient mapped per_sample_gradient reverse_jacobian "
    "gradient_of_gradient checkpointed element_gradients autocast double_backward_is_refused "
    "arguments_changed_before_backward outputs_changed_before_backward gradients_taken_inside transforms_around"
)
FORWARD = (
    "tangent forward_jacobian second_derivative tangent_of_tangent third_derivative dual_numbers_inside "
    "dual_numbers_around_are_refused"
)
# Each process compiles its cases in turn.  After an error in a forward mode case the later ones of it may fail too.
# Inductor takes those whose graphs differ in more than the order of the same calls.
PROCESSES = {
    "aot_eager, reverse mode": ("aot_eager", REVERSE),
    "aot_eager, forward mode": ("aot_eager", FORWARD),
    "inductor, reverse mode": ("inductor", "backward dynamic_batch per_sample_gradient reverse_jacobian"),
    "inductor, forward mode": ("inductor", "tangent second_derivative dual_numbers_around_are_refused"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "cases"),
    [
        pytest.param(backend, cases, id=name, marks=needs_compiler if backend == "inductor" else ())
        for name, (backend, cases) in PROCESSES.items()
    ],
)
def test_compiled_equals_eager(backend, cases, tmp_path):
    search = os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, str(HERE / "compiled_cases.py"), backend, *cases.split()],
        # torch's cache of compiled graphs does not see a change of an operator's fake kernel
        env={
            **os.environ,
            "PYTHONPATH": search,
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # a pool of compilers takes longer to start than it saves here
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
