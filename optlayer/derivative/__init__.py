# SPDX-License-Identifier: Apache-2.0
"""The derivative of a quadratic program, stated once for every engine and every order.

At a solution w = (x, y, z, z_box) the active constraints satisfy K w = r, with

    K = [ P  A'  G'  I ;  A  0  0  0 ;  G  0  -D  0 ;  I  0  0  -D_box ],      r = (-q, b, h, bounds),

where K runs over the active rows and bounds and D is zero but for weakly active ones.  Differentiating K w = r,

    tangent      K dw = dr - dK w                      push forms -dK w
    cotangent    K u = w_bar,  r_bar = u,  K_bar = -u w'      pull forms -u w' on P, G and A

and u is again the solution of a system with the same K.  So the derivative of the program (program.py) and the
derivative of a linear solve with K (linear.py) are made of the same two pieces and of each other: derivatives of
every order cost solves with the factorisation that the forward pass left behind, never another factorisation.

Two things lie outside the system.  The slack is s = h - Gx, hence ds = dh - dG x - G dx.  An active bound is the
lower one by the share `lower_share`, hence d(bound) = lower_share dlb + (1 - lower_share) dub.

Constants, by definition: the active set and its weights (locally constant where the solution is differentiable), warm
starts (the solution does not depend on them), status, iterations, certificates and the engine's own state.

An element without a solution has no derivative.  A cotangent that is exactly zero there yields exactly zero, whatever
its data and outputs hold, so that a masked loss trains on; any other yields NaN in the gradients of that element.  Rows
with h = +inf and infinite bounds have gradient zero.
"""

from .linear import linear
from .program import Options, Raw, adjoint, solve, solve_at_once

__all__ = ["Options", "Raw", "adjoint", "linear", "solve", "solve_at_once"]
