# SPDX-License-Identifier: Apache-2.0
"""An independent solver of the same standard form: PIQP's dense interior point method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import piqp as package

from benchmarks.referee import HUGE, Array, Problem, Verdict, judge


@dataclass(frozen=True)
class PeerAnswer:
    """What a peer says of one problem."""

    status: str
    solved: bool
    iterations: int
    x: Array
    y: Array
    z: Array
    z_box: Array

    def verdict(self, problem: Problem) -> Verdict:
        """The referee's residuals."""
        return judge(problem, self.x, self.y, self.z, self.z_box)


def piqp(problem: Problem, absolute: float, relative: float) -> PeerAnswer:
    """One solve by PIQP at these tolerances of residuals and gap; rows without a finite h are left out."""
    solver = package.DenseSolver()
    settings = solver.settings
    settings.eps_abs = settings.eps_duality_gap_abs = absolute
    settings.eps_rel = settings.eps_duality_gap_rel = relative
    settings.check_duality_gap, settings.max_iter = True, 200
    rows = problem.h < HUGE
    G, h = (np.asfortranarray(problem.G[rows]), problem.h[rows]) if rows.any() else (None, None)
    A, b = (np.asfortranarray(problem.A), problem.b) if len(problem.b) else (None, None)
    solver.setup(np.asfortranarray(problem.P), problem.q, A, b, G, None, h, problem.lb, problem.ub)
    status, found = solver.solve(), solver.result
    z = np.zeros(len(problem.h))
    if rows.any():
        z[rows] = found.z_u
    return PeerAnswer(
        status=status.name,
        solved=status == package.PIQP_SOLVED,
        iterations=int(found.info.iter),
        x=np.array(found.x),
        y=np.array(found.y) if len(problem.b) else np.zeros(0),
        z=z,
        z_box=np.array(found.z_bu) - np.array(found.z_bl),
    )
