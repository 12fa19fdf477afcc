# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs with an entropy: solver, KKT system and derivative."""

from .derivative import Options, Raw, System, adjoint, linear, log_e, solve

__all__ = ["Options", "Raw", "System", "adjoint", "linear", "log_e", "solve"]
