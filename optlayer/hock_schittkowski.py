# SPDX-License-Identifier: Apache-2.0
"""The convex quadratic programs of Hock and Schittkowski's collection, with their known optima.

W. Hock and K. Schittkowski, Test Examples for Nonlinear Programming Codes, Lecture Notes in Economics and Mathematical
Systems 187, Springer, 1981 (HS268: K. Schittkowski, More Test Examples, volume 282 of the same series, 1987).  Each
function below states its problem as these books do; sums of squares |Dx - d|^2 are expanded to P = 2D'D, q = -2D'd,
r = d'd.  They need no file and no package, and their optima are fractions or zero, save that of HS118.
"""

from collections.abc import Sequence

import torch

from .instance import INF, Instance


def problems(*names: str) -> list[Instance]:
    """The problems of these names, or all of them in the order of their numbers.

    Example:
        >>> from optlayer.hock_schittkowski import problems
        >>> problems("HS35", "HS53")
        [Instance('HS35', n=3, m=1, p=0), Instance('HS53', n=5, m=0, p=3)]
    """
    return [COLLECTION[name]() for name in names or COLLECTION]


def hs21() -> Instance:
    """min 0.01 x1^2 + x2^2 - 100;  10 x1 - x2 >= 10, 2 <= x1 <= 50, |x2| <= 50.  x* = (2, 0)."""
    P, C = [[0.02, 0], [0, 2]], [[10, -1]]
    return Instance.from_rows(
        "HS21", P, [0.0, 0.0], C, l=[10.0], lb=[2.0, -50.0], ub=[50.0, 50.0], r=-100.0, optimum=-99.96
    )


def hs28() -> Instance:
    """min (x1 + x2)^2 + (x2 + x3)^2;  x1 + 2 x2 + 3 x3 = 1.  x* = (1/2, -1/2, 1/2)."""
    return _squares("HS28", [[1, 1, 0], [0, 1, 1]], [0, 0], [[1, 2, 3]], [1], optimum=0.0)


def hs35() -> Instance:
    """min 9 - 8 x1 - 6 x2 - 4 x3 + 2 x1^2 + 2 x2^2 + x3^2 + 2 x1 x2 + 2 x1 x3;  x1 + x2 + 2 x3 <= 3, x >= 0.

    x* = (4/3, 7/9, 4/9).
    """
    P = [[4, 2, 2], [2, 4, 0], [2, 0, 2]]
    return Instance.from_rows("HS35", P, [-8, -6, -4], [[1, 1, 2]], u=[3.0], lb=[0.0, 0.0, 0.0], r=9.0, optimum=1 / 9)


def hs48() -> Instance:
    """min (x1 - 1)^2 + (x2 - x3)^2 + (x4 - x5)^2;  x1 + ... + x5 = 5, x3 - 2 (x4 + x5) = -3.  x* = (1, 1, 1, 1, 1)."""
    D = [[1, 0, 0, 0, 0], [0, 1, -1, 0, 0], [0, 0, 0, 1, -1]]
    return _squares("HS48", D, [1, 0, 0], [[1, 1, 1, 1, 1], [0, 0, 1, -2, -2]], [5, -3], optimum=0.0)


def hs51() -> Instance:
    """min (x1 - x2)^2 + (x2 + x3 - 2)^2 + (x4 - 1)^2 + (x5 - 1)^2;  CHAIN x = (4, 0, 0).  x* = (1, 1, 1, 1, 1)."""
    return _squares("HS51", _chain_objective(1), CHAIN_TARGET, CHAIN, [4, 0, 0], optimum=0.0)


def hs52() -> Instance:
    """min (4 x1 - x2)^2 + (x2 + x3 - 2)^2 + (x4 - 1)^2 + (x5 - 1)^2;  CHAIN x = 0.

    x* = (-33, 11, 180, -158, 11)/349.
    """
    return _squares("HS52", _chain_objective(4), CHAIN_TARGET, CHAIN, [0, 0, 0], optimum=1859 / 349)


def hs53() -> Instance:
    """The objective of HS51;  CHAIN x = 0, |xi| <= 10.  x* = (-33, 11, 27, -5, 11)/43."""
    bounds = ([-10] * 5, [10] * 5)
    return _squares("HS53", _chain_objective(1), CHAIN_TARGET, CHAIN, [0, 0, 0], *bounds, optimum=176 / 43)


def hs76() -> Instance:
    """min x1^2 + x2^2/2 + x3^2 + x4^2/2 - x1 x3 + x3 x4 - x1 - 3 x2 + x3 - x4;  three rows, x >= 0.

    x1 + 2 x2 + x3 + x4 <= 5,  3 x1 + x2 + 2 x3 - x4 <= 4,  x2 + 4 x3 >= 3/2.  x* = (3, 23, 0, 6)/11.
    """
    P = [[2, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 2, 1], [0, 0, 1, 1]]
    C = [[1, 2, 1, 1], [3, 1, 2, -1], [0, 1, 4, 0]]
    l, u = [-INF, -INF, 1.5], [5.0, 4.0, INF]
    return Instance.from_rows("HS76", P, [-1, -3, 1, -1], C, l, u, lb=[0.0] * 4, optimum=-103 / 22)


def hs118() -> Instance:
    """Five periods of three quantities (a, b, c) with nearly linear costs:

    min sum_k 2.3 a_k + 1.7 b_k + 2.2 c_k + 1e-4 (a_k^2 + b_k^2 + 1.5 c_k^2)
    -7 <= a_k - a_(k-1) <= 6,  -7 <= b_k - b_(k-1) <= 7,  -7 <= c_k - c_(k-1) <= 6        (k = 2 ... 5)
    a_k + b_k + c_k >= 60, 50, 70, 85, 100                                               (k = 1 ... 5)
    8 <= a_1 <= 21, 43 <= b_1 <= 57, 3 <= c_1 <= 16;  0 <= (a_k, b_k, c_k) <= (90, 120, 60) afterwards
    """
    P = torch.diag(torch.tensor([2e-4, 2e-4, 3e-4], dtype=torch.float64).repeat(5))
    q = torch.tensor([2.3, 1.7, 2.2], dtype=torch.float64).repeat(5)
    unit = torch.eye(15, dtype=torch.float64)
    change, total = unit[3:] - unit[:-3], unit.reshape(5, 3, 15).sum(1)
    l = [-7.0] * 12 + [60.0, 50.0, 70.0, 85.0, 100.0]
    u = [6.0, 7.0, 6.0] * 4 + [INF] * 5
    lb, ub = [8.0, 43.0, 3.0] + [0.0] * 12, [21.0, 57.0, 16.0] + [90.0, 120.0, 60.0] * 4
    return Instance.from_rows("HS118", P, q, torch.cat([change, total]), l, u, lb, ub, optimum=664.82045)


def hs268() -> Instance:
    """min |Dx - d|^2 = x'Mx - 2v'x + d'd, five rows.  x* = (1, 2, -1, 3, -4), with value zero; cond(M) is 1e6."""
    M = [
        [10197, -12454, -1013, 1948, 329],
        [-12454, 20909, -1733, -4914, -186],
        [-1013, -1733, 1755, 1089, -174],
        [1948, -4914, 1089, 1515, -22],
        [329, -186, -174, -22, 27],
    ]
    v = [-9170, 17099, -2271, -4336, -43]
    C = [[-1, -1, -1, -1, -1], [10, 10, -3, 5, 4], [-8, 1, -2, -5, 3], [8, -1, 2, 5, -3], [-4, -2, 3, -5, 1]]
    P, q = 2 * torch.tensor(M), -2 * torch.tensor(v)
    return Instance.from_rows("HS268", P, q, C, l=[-5, 20, -40, 11, -30], r=14463.0, optimum=0.0)


# The constraints that HS51, HS52 and HS53 share: x1 + 3 x2, x3 + x4 - 2 x5, x2 - x5.
CHAIN = [[1, 3, 0, 0, 0], [0, 0, 1, 1, -2], [0, 1, 0, 0, -1]]
CHAIN_TARGET = [0, 2, 1, 1]


def _chain_objective(slope: int) -> list[list[int]]:
    return [[slope, -1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def _squares(
    name: str,
    D: Sequence[Sequence[int]],
    d: Sequence[int],
    A: Sequence[Sequence[int]],
    b: Sequence[int],
    lb: Sequence[int] | None = None,
    ub: Sequence[int] | None = None,
    *,
    optimum: float,
) -> Instance:
    """min |Dx - d|^2;  Ax = b, lb <= x <= ub."""
    Dt, dt = torch.tensor(D, dtype=torch.float64), torch.tensor(d, dtype=torch.float64)
    return Instance.from_rows(name, 2 * Dt.T @ Dt, -2 * Dt.T @ dt, A, b, b, lb, ub, r=float(dt @ dt), optimum=optimum)


COLLECTION = {
    "HS21": hs21,
    "HS28": hs28,
    "HS35": hs35,
    "HS48": hs48,
    "HS51": hs51,
    "HS52": hs52,
    "HS53": hs53,
    "HS76": hs76,
    "HS118": hs118,
    "HS268": hs268,
}
