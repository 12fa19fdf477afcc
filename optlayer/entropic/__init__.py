# SPDX-License-Identifier: Apache-2.0
"""Problems with an entropy, solved as optimisation problems through their KKT systems."""

from .simplex import SoftmaxSolution, softmax, solve_softmax

__all__ = ["softmax", "solve_softmax", "SoftmaxSolution"]
