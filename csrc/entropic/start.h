// SPDX-License-Identifier: Apache-2.0
// The first point (optlayer/entropic/program/interior_point.py): x of the size that the equalities ask for, or else the
// entropy's own; multipliers as large as the residual.
#pragma once

#include "load.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double LEAST = 1e-150;  // no slack or multiplier falls below it, so that products do not underflow

// x of each variable alone: without constraints, and with P's diagonal.
template <class V>
OPTLAYER_FUNCTION void start_alone(const Program<V>& Q, V* x) {
  for (int j = own(0); j < Q.n; j += TEAM) {
    const V exponent = -Q.q[j] / Q.tau[j] - V(1), slope = Q.full ? Q.P[(size_t)j * Q.ld + j] : Q.curvature[j];
    const V alone = exponential(larger(smaller(exponent, V(700)), V(-700)));
    const V capped = smaller(alone, (absolute(Q.q[j]) + Q.tau[j]) / larger(slope, V(NONZERO)));
    x[j] = select(slope > V(0), capped, alone);
  }
}

// x from the least-norm solution of the equalities, where they bear on it; the mean size that they ask for.
template <class V>
OPTLAYER_FUNCTION V start_from_equalities(const Program<V>& Q, System<V>& system, V* zero, V* found, V* x) {
  const int n = Q.n, p = Q.p;
  for (int j = own(0); j < n; j += TEAM) system.W[j] = Q.free[j], zero[j] = V(0);
  for (int i = own(0); i < p; i += TEAM) system.w[i] = V(INFINITY);
  system.factor(Q, p, false);
  system.solve(Q, zero, Q.d, found, system.unused);
  V sum(0), count(0);
  for (int j = own(0); j < n; j += TEAM) sum += absolute(found[j]), count += Q.free[j];
  const V mean = team_sum(sum) / larger(team_sum(count), V(1));
  for (int j = own(0); j < n; j += TEAM) {
    V bears(0);
    for (int i = 0; i < Q.k; i++) bears += absolute(Q.C[(size_t)i * Q.ld + j]);
    x[j] = select(bears > V(0) && mean > V(0), larger(absolute(found[j]), mean), larger(V(0.01) * mean, x[j]));
  }
  return mean;
}

// Each variable under its cap and its budgets, alone, and not below the least squares that a row asks for. The scratch
// is (k).
template <class V>
OPTLAYER_FUNCTION void start_under_caps(const Program<V>& Q, V* need, V* x) {
  for (int i = own(0); i < Q.k; i += TEAM) {
    V squares(0);
    for (int j = 0; j < Q.n; j++) {
      const V push = positive(-Q.C[(size_t)i * Q.ld + j]);
      squares += push * push;
    }
    need[i] = positive(-Q.d[i]) / larger(squares, V(NONZERO));
  }
  sync();
  for (int j = own(0); j < Q.n; j += TEAM) {
    V top = select(Q.upper[j] > V(0), V(0.5) * Q.ub[j], V(INFINITY));
    for (int i = 0; i < Q.k; i++) {
      const V entry = Q.C[(size_t)i * Q.ld + j];
      const V room = V(2) * Q.d[i] / larger(entry, V(NONZERO));
      top = select(entry > V(0) && Q.d[i] > V(0), smaller(room, top), top);
    }
    x[j] = smaller(x[j], top);
    x[j] = select(top < V(INFINITY), larger(x[j], V(1e-3) * top), x[j]);
    for (int i = 0; i < Q.k; i++) x[j] = larger(positive(-Q.C[(size_t)i * Q.ld + j]) * need[i], x[j]);
  }
}

// The first point. The scratch vectors are (n), (n).
template <class V>
OPTLAYER_FUNCTION void start(const Program<V>& Q, System<V>& system, V* gradient, V* other, Point<V>& at) {
  const int n = Q.n, p = Q.p, k = Q.k;
  V* x = at.x;
  start_alone(Q, x);
  V asked(0);
  if (p > 0)
    asked = start_from_equalities(Q, system, gradient, other, x);
  else
    start_under_caps(Q, system.e, x);
  V most(0), curved(0);
  for (int j = own(0); j < n; j += TEAM) {
    x[j] = select(Q.upper[j] > V(0), smaller(x[j], V(0.5) * Q.ub[j]), x[j]);
    x[j] = select(Q.lower[j] > V(0), larger(x[j], V(1.5) * Q.lb[j]), x[j]);
    most = larger(x[j], most), curved = larger(larger(Q.curvature[j], larger(Q.lower[j], Q.upper[j])), curved);
  }
  most = team_max(most), curved = team_max(curved);
  const Mask<V> loose = asked == V(0) && (curved > V(0) || Mask<V>(Q.full || k > 0));
  for (int j = own(0); j < n; j += TEAM) {
    x[j] = select(loose, larger(x[j], V(0.01) * most), x[j]);
    x[j] = select(Q.free[j] > V(0), x[j], V(1));
    other[j] = Q.free[j] * x[j];
  }
  sync();
  Q.times_P(other, gradient);
  for (int j = own(0); j < n; j += TEAM)
    gradient[j] = -Q.free[j] * (Q.q[j] + Q.tau[j] * (logarithm(x[j]) + V(1)) + gradient[j]);
  for (int i = own(0); i < k; i += TEAM) at.rows[i] = V(0);
  if (p > 0) {
    for (int i = own(0); i < p; i += TEAM) system.unused[i] = V(0);
    system.solve(Q, gradient, system.unused, other, at.rows);
    for (int i = own(0); i < p; i += TEAM) system.e[i] = -at.rows[i];
    product_transposed(Q.C, Q.ld, p, n, system.e, gradient);
  }
  V size(0);
  for (int j = own(0); j < n; j += TEAM) size = larger(larger(absolute(gradient[j]), Q.tau[j]), size);
  size = team_max(size);
  for (int j = own(0); j < n; j += TEAM) {
    at.v[j] = Q.free[j] * size;
    at.s_upper[j] = select(Q.upper[j] > V(0), larger(Q.ub[j] - x[j], V(0.1) * x[j]), V(1));
    at.s_lower[j] = select(Q.lower[j] > V(0), larger(x[j] - Q.lb[j], V(0.1) * x[j]), V(1));
    at.z_upper[j] = Q.upper[j] * size, at.z_lower[j] = Q.lower[j] * size;
  }
  for (int i = own(p); i < k; i += TEAM) {
    V inside(0), terms(0);
    for (int j = 0; j < n; j++) {
      const V term = Q.C[(size_t)i * Q.ld + j] * (Q.free[j] * x[j]);
      inside += term, terms += absolute(term);
    }
    at.s[i] = larger(larger(Q.d[i] - inside, V(0.1) * terms + V(1e-3) * absolute(Q.d[i])), V(LEAST));
    at.rows[i] = size;
  }
  for (int i = own(0); i < p; i += TEAM) at.s[i] = V(1);
  sync();
}

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
