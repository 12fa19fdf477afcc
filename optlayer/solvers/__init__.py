# SPDX-License-Identifier: Apache-2.0
"""Engines that solve quadratic programs behind the operators of optlayer.ops."""

from . import choose as choose
