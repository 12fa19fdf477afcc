// SPDX-License-Identifier: Apache-2.0
// Certificates that a problem has no solution, in the caller's units (optlayer/solvers/certificate.py).
//
// Farkas: y, z >= 0 and z_box with A'y + G'z + z_box = 0 and b'y + h'z + lb'z_box^- + ub'z_box^+ < 0.
// Ray:    d with Pd = 0, Ad = 0, Gd <= 0, d in the recession cone of the bounds and q'd < 0.
#pragma once

#include "program.h"
#include "rules.h"

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr double CERTAIN = 1e-10;  // the proven gap against the sum of the absolute values of its terms
static constexpr double SMALL = 1e-6;     // a residual against the multipliers or the direction, in scaled units

// Certificates found so far, normalised to a proven gap of 1 or a fall of 1.
template <class V>
struct Certificates {
  V *x, *v, *box;  // (n) a ray; (r), (n) of a Farkas certificate; in the caller's units
  V* Cv;           // scratch (n)

  OPTLAYER_METHOD void lay_out(Arena& arena, int n, int r) {
    for (V** vector : {&x, &box, &Cv}) *vector = arena.take<V>(n);
    v = arena.take<V>(r);
  }

  OPTLAYER_METHOD void clear(int n, int r) {
    for (int j = own(0); j < n; j += TEAM) x[j] = box[j] = V(0);
    for (int i = own(0); i < r; i += TEAM) v[i] = V(0);
  }

  // Try the multipliers `trial` (r, scaled, z >= 0) on the lanes of `which`. Returns where they prove that the constraints contradict each other.
  OPTLAYER_METHOD Mask<V> farkas(const Program<V>& Q, const Rules& rules, const V* trial, Mask<V> which) {
    const int n = Q.n, r = Q.r;
    for (int j = own(0); j < n; j += TEAM) Cv[j] = V(0);
    product_transposed(Q.C, Q.ld, r, n, trial, Cv);
    const V cost = V(1) / Q.c;
    V value(0), terms(0), mass(0), data(0), size(0), residual(0), residual_scaled(0);
    for (int i = own(0); i < r; i += TEAM) {
      const V v0 = trial[i] * Q.E[i] * cost, d0 = Q.d[i] / Q.E[i];
      value -= d0 * v0;
      terms += absolute(d0 * v0);
      mass += absolute(v0);
      data = larger(absolute(d0), data);
      size = larger(absolute(trial[i]), size);
    }
    for (int j = own(0); j < n; j += TEAM) {
      const V w = -Cv[j], unit = cost / Q.D[j];
      const Mask<V> upper = w > V(0);
      const Mask<V> bounded = select(upper, Q.has_hi[j], Q.has_lo[j]) + Q.fixed[j] > V(0);
      const V bound = select(bounded && w != V(0), select(upper, Q.hi[j], Q.lo[j]) * Q.D[j], V(0));
      const V z = select(bounded, w * unit, V(0)), left = select(bounded, V(0), absolute(w));
      value -= bound * z;
      terms += absolute(bound * z);
      mass += absolute(z);
      data = larger(absolute(bound), data);
      residual = larger(left * unit, residual);
      residual_scaled = larger(left, residual_scaled);
    }
    value = team_sum(value), terms = team_sum(terms), mass = team_sum(mass), data = team_max(data);
    size = team_max(size), residual = team_max(residual), residual_scaled = team_max(residual_scaled);
    const Mask<V> proven = value > V(CERTAIN) * terms && value > V(rules.proof) * smaller(data, V(1)) * mass &&
                           residual_scaled <= V(SMALL) * size && residual < V(rules.infeasible) * value;
    const Mask<V> found = which && proven && mass < V(INFINITY);
    if (!any(found)) return found;
    for (int i = own(0); i < r; i += TEAM) {
      v[i] = select(found, Q.live[i] * trial[i] * Q.E[i] * cost / value, v[i]);
    }
    for (int j = own(0); j < n; j += TEAM) {
      const V w = -Cv[j];
      const Mask<V> bounded = select(w > V(0), Q.has_hi[j], Q.has_lo[j]) + Q.fixed[j] > V(0);
      box[j] = select(found, select(bounded, w * cost / Q.D[j], V(0)) / value, box[j]);
    }
    return found;
  }

  // Try the direction (scaled) with its products Pd and Cd on the lanes of `which`. Returns where the objective falls
  // along it without end.
  OPTLAYER_METHOD Mask<V> ray(const Program<V>& Q, const Rules& rules, const V* direction, const V* Pd, const V* Cd,
                              Mask<V> which) {
    const int n = Q.n, r = Q.r, p = Q.p;
    const V cost = V(1) / Q.c;
    V fall(0), q_size(0), length(0), size(0), violation(0), scaled(0), recession(0);
    for (int j = own(0); j < n; j += TEAM) {
      const V x0 = direction[j] * Q.D[j], q0 = Q.q[j] * cost / Q.D[j];
      fall -= q0 * x0;
      q_size = larger(absolute(q0), q_size);
      length += absolute(x0);
      size = larger(absolute(direction[j]), size);
      const V left = absolute(Pd[j]);
      V row(0);
      for (int i = 0; i < n; i++) row = larger(absolute(Q.P[(size_t)j * Q.ld + i]), row);
      violation = larger(left * cost / Q.D[j], violation);
      scaled = larger(left / larger(row, V(1e-300)), scaled);
      recession = larger(larger(-x0 * Q.has_lo[j], x0 * Q.has_hi[j]), recession);
    }
    for (int i = own(0); i < r; i += TEAM) {
      const V left = (i < p ? absolute(Cd[i]) : positive(Cd[i])) * Q.live[i];
      violation = larger(left / Q.E[i], violation);
      scaled = larger(left, scaled);
    }
    fall = team_sum(fall), length = team_sum(length), q_size = team_max(q_size), size = team_max(size);
    violation = team_max(violation), scaled = team_max(scaled), recession = team_max(recession);
    const Mask<V> falls = fall > V(rules.proof) * q_size * length && scaled <= V(SMALL) * size;
    const Mask<V> found = which && falls && larger(violation, recession) < V(rules.infeasible) * fall;
    if (!any(found)) return found;
    for (int j = own(0); j < n; j += TEAM) x[j] = select(found, direction[j] * Q.D[j] / fall, x[j]);
    return found;
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
