# SPDX-License-Identifier: Apache-2.0
"""A problem with a row of each kind and a bound of each kind."""

from optlayer.instance import INF, Instance

# min x1^2 + x1 x2 + x2^2 + 3 x1 - 4 x2 + x3 + 7
P = [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
Q = [3.0, -4.0, 1.0]
C = [[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 2.0], [1.0, 2.0, 3.0]]
L = [2.0, -INF, -1.0, -3.0, -INF]
U = [2.0, 4.0, INF, 5.0, INF]
LB = [-INF, 0.0, -2.0]
UB = [INF, INF, 2.0]
R = 7.0


def stated(**changes: object) -> Instance:
    """The problem above as an instance."""
    return Instance.from_rows("mixed", P, Q, C, L, U, LB, UB, **{"r": R, **changes})
