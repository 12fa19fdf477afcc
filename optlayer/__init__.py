# SPDX-License-Identifier: Apache-2.0
"""Batches of quadratic programs as a differentiable PyTorch layer."""

from . import implicit, io, nn, testing
from .entropic import softmax, solve_softmax
from .errors import OptlayerError, ProblemError, SettingsError, SolverError
from .qp import solve_qp
from .settings import Settings
from .solution import Point, Solution
from .status import Status

__version__ = "0.1.0"
__all__ = [
    "solve_qp",
    "softmax",
    "solve_softmax",
    "implicit",
    "nn",
    "io",
    "testing",
    "Solution",
    "Point",
    "Settings",
    "Status",
    "OptlayerError",
    "ProblemError",
    "SettingsError",
    "SolverError",
]
