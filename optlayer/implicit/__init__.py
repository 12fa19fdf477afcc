# SPDX-License-Identifier: Apache-2.0
"""Roots of equations as differentiable functions of their parameters."""

from .argmin import argmin
from .conditions import Conditions, conditions
from .derivative import implicit
from .fixed_point import fixed_point
from .kkt import KKT, kkt
from .linear import linear_solve
from .root import root
from .solution import ImplicitSolution, LinearSettings, Report

__all__ = [
    "implicit",
    "root",
    "fixed_point",
    "argmin",
    "linear_solve",
    "kkt",
    "conditions",
    "ImplicitSolution",
    "LinearSettings",
    "KKT",
    "Conditions",
    "Report",
]
