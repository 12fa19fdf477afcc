// SPDX-License-Identifier: Apache-2.0
// The contract of a solution, which decides whatever the method says of itself (optlayer/residuals.py): primal residual,
// dual residual and duality gap, each against its tolerance, on the data as given.
#pragma once

#include "../common/team.h"
#include "program.h"
#include "rules.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// The largest residual of a point in units of its tolerance max(eps_abs, eps_rel scale), on the data as given
// (optlayer/residuals.py): x, v, z_box and their products P x, A'y, G'z, C x in scaled units. Infinite for NaN.
template <class V>
OPTLAYER_FUNCTION V contract_merit(const Program<V>& Q, const Rules& rules, const V* x, const V* v, const V* z_box,
                                   const V* Px, const V* Aty, const V* Gtz, const V* Cx) {
  const V cost = V(1) / Q.c;
  V xPx(0), qx(0), support(0), sum(0), primal(0), primal_scale(0), dual(0), dual_scale(0), x_size(0), bounds(0);
  for (int j = own(0); j < Q.n; j += TEAM) {
    const V unit = cost / Q.D[j];  // of forces
    const V z = z_box[j], lower = smaller(z, V(0)), upper = positive(z);
    const V left = Px[j] + Q.q[j] + z + (Aty[j] + Gtz[j]);
    V force = larger(absolute(Px[j]), absolute(Q.q[j])), wrong = absolute(left);
    force = larger(larger(force, absolute(z)), larger(absolute(Aty[j]), absolute(Gtz[j])));
    xPx += x[j] * Px[j], qx += Q.q[j] * x[j];
    support += Q.lo[j] * lower + Q.hi[j] * upper;
    if (Q.boxes) {
      const V low = Q.has_lo[j] + Q.fixed[j], high = Q.has_hi[j] + Q.fixed[j];
      bounds += low + high;
      const V violation = larger(low * (Q.lo[j] - x[j]), high * (x[j] - Q.hi[j]));
      primal = larger(violation * Q.D[j], primal);
      wrong = larger(wrong, larger((low - V(1)) * lower, (V(1) - high) * upper));
    }
    dual = larger(wrong * unit, dual);
    dual_scale = larger(force * unit, dual_scale);
    x_size = larger(absolute(x[j]) * Q.D[j], x_size);
    sum += left + x[j];
  }
  for (int i = own(0); i < Q.r; i += TEAM) {
    const V unit = V(1) / Q.E[i], violation = Cx[i] - Q.d[i];
    support += Q.d[i] * v[i];
    primal = larger((i < Q.p ? absolute(violation) : violation * Q.live[i]) * unit, primal);
    primal_scale = larger(larger(absolute(Cx[i]) * Q.live[i], absolute(Q.d[i])) * unit, primal_scale);
    if (i >= Q.p) dual = larger(select(Q.live[i] > V(0), -v[i], absolute(v[i])) * Q.E[i] * cost, dual);
    sum += violation + v[i];
  }
  x_size = select(team_sum(bounds) > V(0), team_max(x_size), V(0));
  primal = team_max(primal), primal_scale = larger(team_max(primal_scale), x_size);
  dual = team_max(dual), dual_scale = team_max(dual_scale), sum = team_sum(sum);
  xPx = team_sum(xPx) * cost, qx = team_sum(qx) * cost, support = team_sum(support) * cost;
  const V objective = absolute(V(0.5) * xPx + qx), dual_objective = absolute(V(0.5) * xPx + support);
  const V gap = absolute(xPx + qx + support), gap_scale = smaller(objective, dual_objective);
  const V least(larger(rules.eps_abs, 1e-300)), relative(rules.eps_rel);
  const V merit = larger(larger(primal / larger(relative * primal_scale, least), dual / larger(relative * dual_scale, least)),
                         gap / larger(relative * gap_scale, least));
  return select(finite(sum) && gap < V(INFINITY), merit, V(INFINITY));
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
