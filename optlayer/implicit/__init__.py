# SPDX-License-Identifier: Apache-2.0
"""Roots of equations as differentiable functions of their parameters."""

from .derivative import implicit
from .linear import linear_solve
from .solution import ImplicitSolution, LinearSettings, Report

__all__ = ["implicit", "linear_solve", "ImplicitSolution", "LinearSettings", "Report"]
