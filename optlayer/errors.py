# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, by who can mend it: the caller's problem, the caller's settings, or the solve itself."""

import os
import sys
import warnings

import torch

INSIDE = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, torch.__file__))


class OptlayerError(Exception):
    """Base class of every exception that optlayer raises on purpose."""


class ProblemError(OptlayerError, ValueError):
    """The arguments do not describe a quadratic program: a shape, dtype, device or type is wrong.

    Raised before any work.  Wrong *values* (NaN, lb > ub, a non-convex P) are no exception but the status of the batch
    element that holds them, see :class:`optlayer.Status`.
    """


class SettingsError(OptlayerError, ValueError):
    """A setting has an unknown name, a wrong type or a value out of its range."""


class SolverError(OptlayerError, RuntimeError):
    """A batch element was not solved and ``on_failure="raise"`` asked to be told."""


def warn(message: str) -> None:
    """Warn of a solve that failed, at the line outside of this library and of torch that asked for it."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
