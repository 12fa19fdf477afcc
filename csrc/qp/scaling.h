// SPDX-License-Identifier: Apache-2.0
// Ruiz equilibration: units D, E, c, powers of two, in which the data are of order one (optlayer/kkt/scaling.py).
//
// D. Ruiz, A scaling algorithm to equilibrate both rows and columns norms in matrices, RAL-TR-2001-034 (2001).
#pragma once

#include "program.h"

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr int SWEEPS = 4;
static constexpr double SMALLEST = 1e-12, LARGEST = 1e12;  // smaller rows and columns are zero and keep their unit
static constexpr double ENOUGH = 8;                        // data whose maxima lie within this factor of 1 are left alone
static constexpr double SETTLED = 1.2;                     // a sweep that changes no unit by more is the last

template <class V>
OPTLAYER_INLINE V clipped(V a) {
  return smaller(select(a < V(SMALLEST), V(1), a), V(LARGEST));
}

// The largest |P_ij| D_j of each row, times D_i.
template <class V>
OPTLAYER_FUNCTION void row_maxima(const Program<V>& Q, V* most) {
  for (int i = own(0); i < Q.n; i += TEAM) {
    const V* P = Q.P + (size_t)i * Q.ld;
    V row(0);
    for (int j = 0; j < Q.n; j++) row = larger(absolute(P[j]) * Q.D[j], row);
    most[i] = row * Q.D[i];
  }
}

// The maxima of the columns of [c P; C] and of the rows of C, in the units so far.
template <class V>
OPTLAYER_FUNCTION void maxima(const Program<V>& Q, const V* most_P, V* column, V* row) {
  for (int j = own(0); j < Q.n; j += TEAM) column[j] = Q.c * most_P[j];
  for (int i = 0; i < Q.r; i++) {
    const V* C = Q.C + (size_t)i * Q.ld;
    const V unit = Q.E[i];
    V most(0);
    for (int j = own(0); j < Q.n; j += TEAM) {
      const V entry = absolute(C[j]) * Q.D[j];
      most = larger(entry, most);
      column[j] = larger(entry * unit, column[j]);
    }
    most = team_max(most);
    if (owns(i)) row[i] = most * unit;
  }
}

// The factor that brings the objective to order one.
template <class V>
OPTLAYER_FUNCTION V cost_factor(const Program<V>& Q, bool with_q, const V* most_P) {
  V mean(0), cost(0);
  for (int j = own(0); j < Q.n; j += TEAM) {
    mean += most_P[j];
    if (with_q) cost = larger(absolute(Q.q[j]) * Q.D[j], cost);
  }
  mean = team_sum(mean), cost = team_max(cost);
  return V(1) / clipped(Q.c * larger(mean * V(1.0 / Q.n), cost));
}

// The largest factor by which entries differ from 1; those that keep their unit do not count.
template <class V>
OPTLAYER_FUNCTION V spread(const V* entries, int count) {
  V most(1), least(1);
  for (int i = own(0); i < count; i += TEAM) most = larger(clipped(entries[i]), most), least = smaller(clipped(entries[i]), least);
  return team_max(larger(most, V(1) / least));
}

// Find D, E and c for the unscaled data in Q; fixed variables, whose unit is 1, take no part. A large q shrinks the
// objective in the end, and shapes no other unit. Where matrices are shared by the batch, c must not depend on q
// (`with_q` false). Scratch: most_P (n), column (n), row (r). Returns whether D and E are 1 in all lanes.
template <class V>
OPTLAYER_FUNCTION bool equilibrate(Program<V>& Q, bool with_q, V* most_P, V* column, V* row) {
  const int n = Q.n, r = Q.r;
  for (int j = own(0); j < n; j += TEAM) Q.D[j] = V(1) - Q.fixed[j];
  for (int i = own(0); i < r; i += TEAM) Q.E[i] = V(1);
  Q.c = V(1);
  sync();
  row_maxima(Q, most_P);
  const V factor = cost_factor(Q, false, most_P);
  Q.c = factor;
  maxima(Q, most_P, column, row);
  Mask<V> going = larger(spread(column, n), spread(row, r)) > V(ENOUGH);
  if (!any(going)) {
    Q.c *= cost_factor(Q, with_q, most_P);
    sync();
    for (int j = own(0); j < n; j += TEAM) Q.D[j] = V(1);
    sync();
    Q.c = power_of_two(Q.c);
    return true;
  }
  Q.c = select(going, V(1), factor);
  for (int sweep = 0; sweep < SWEEPS && any(going); sweep++) {
    maxima(Q, most_P, column, row);
    V change(1);
    for (int j = own(0); j < n; j += TEAM) {
      const V root = square_root(clipped(column[j])), unit = V(1) / root;
      change = larger(larger(root, unit), change);
      Q.D[j] = select(going, Q.D[j] * unit, Q.D[j]);
    }
    for (int i = own(0); i < r; i += TEAM) {
      const V root = square_root(clipped(row[i])), unit = V(1) / root;
      change = larger(larger(root, unit), change);
      Q.E[i] = select(going, Q.E[i] * unit, Q.E[i]);
    }
    sync();
    row_maxima(Q, most_P);
    const V k = cost_factor(Q, false, most_P);
    change = larger(larger(k, V(1) / k), team_max(change));
    Q.c = select(going, Q.c * k, Q.c);
    going = going && change > V(SETTLED);
  }
  Q.c *= cost_factor(Q, with_q, most_P);
  for (int j = own(0); j < n; j += TEAM) Q.D[j] = select(Q.fixed[j] > V(0), V(1), power_of_two(Q.D[j]));
  for (int i = own(0); i < r; i += TEAM) Q.E[i] = power_of_two(Q.E[i]);
  sync();
  Q.c = power_of_two(Q.c);
  return false;
}

// Bring the matrices to the units found; `plain`: D and E are 1.
template <class V>
OPTLAYER_FUNCTION void scale_matrices(Program<V>& Q, bool plain) {
  for (int i = 0; i < Q.n; i++) {
    V* P = Q.P + (size_t)i * Q.ld;
    const V unit = Q.c * Q.D[i];
    for (int j = own(0); j < Q.n; j += TEAM) P[j] *= unit * Q.D[j];
  }
  for (int i = 0; i < Q.r && !plain; i++) {
    V* C = Q.C + (size_t)i * Q.ld;
    for (int j = own(0); j < Q.n; j += TEAM) C[j] *= Q.E[i] * Q.D[j];
  }
}

// Bring the vectors to the units found.
template <class V>
OPTLAYER_FUNCTION void scale_vectors(Program<V>& Q) {
  for (int j = own(0); j < Q.n; j += TEAM) {
    const V unit = V(1) / Q.D[j];
    Q.q[j] *= Q.c * Q.D[j];
    Q.lo[j] *= unit;
    Q.hi[j] *= unit;
  }
  for (int i = own(0); i < Q.r; i += TEAM) Q.d[i] *= Q.E[i];
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
