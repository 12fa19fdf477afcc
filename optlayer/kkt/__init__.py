# SPDX-License-Identifier: Apache-2.0
"""The heart: the symmetric KKT system of a quadratic program, scaled, factorised, solved and kept."""
