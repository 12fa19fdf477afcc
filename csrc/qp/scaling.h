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
static constexpr double SETTLED = 1.2;                     // a sweep that changes no unit by more is the last

template <class V>
OPTLAYER_INLINE V clipped(V a) {
  return smaller(select(a < V(SMALLEST), V(1), a), V(LARGEST));
}

// The largest |P_ij| D_j of each row, times D_i.
template <class V>
static void row_maxima(const Program<V>& Q, V* most) {
  for (int i = 0; i < Q.n; i++) {
    V row(0);
    for (int j = 0; j < Q.n; j++) row = larger(absolute(Q.P[i * Q.ld + j]) * Q.D[j], row);
    most[i] = row * Q.D[i];
  }
}

// Find D, E and c for the unscaled data in Q. Where matrices are shared by the batch, c must not depend on q (`with_q`
// false). Scratch: most_P (n), column (n), row (r).
template <class V>
static void equilibrate(Program<V>& Q, bool with_q, V* most_P, V* column, V* row) {
  const int n = Q.n, r = Q.r;
  for (int j = 0; j < n; j++) Q.D[j] = V(1);
  for (int i = 0; i < r; i++) Q.E[i] = V(1);
  Q.c = V(1);
  row_maxima(Q, most_P);
  Mask<V> going(true);
  for (int sweep = 0; sweep < SWEEPS && any(going); sweep++) {
    for (int j = 0; j < n; j++) column[j] = Q.c * most_P[j];
    for (int i = 0; i < r; i++) {
      V most(0);
      for (int j = 0; j < n; j++) {
        const V entry = absolute(Q.C[i * Q.ld + j]) * Q.D[j];
        most = larger(entry, most);
        column[j] = larger(entry * Q.E[i], column[j]);
      }
      row[i] = most * Q.E[i];
    }
    V change(1);
    for (int j = 0; j < n; j++) {
      const V root = square_root(clipped(column[j])), unit = V(1) / root;
      change = larger(larger(root, unit), change);
      Q.D[j] = select(going, Q.D[j] * unit, Q.D[j]);
    }
    for (int i = 0; i < r; i++) {
      const V root = square_root(clipped(row[i])), unit = V(1) / root;
      change = larger(larger(root, unit), change);
      Q.E[i] = select(going, Q.E[i] * unit, Q.E[i]);
    }
    row_maxima(Q, most_P);
    V mean(0), cost(0);
    for (int j = 0; j < n; j++) {
      mean += most_P[j];
      if (with_q) cost = larger(absolute(Q.q[j]) * Q.D[j], cost);
    }
    const V k = V(1) / clipped(Q.c * larger(mean * V(1.0 / n), cost));
    change = larger(larger(k, V(1) / k), change);
    Q.c = select(going, Q.c * k, Q.c);
    going = going && change > V(SETTLED);
  }
  for (int j = 0; j < n; j++) Q.D[j] = power_of_two(Q.D[j]);
  for (int i = 0; i < r; i++) Q.E[i] = power_of_two(Q.E[i]);
  Q.c = power_of_two(Q.c);
}

// Bring the matrices to the units found.
template <class V>
static void scale_matrices(Program<V>& Q) {
  for (int i = 0; i < Q.n; i++) {
    const V unit = Q.c * Q.D[i];
    for (int j = 0; j < Q.n; j++) Q.P[i * Q.ld + j] *= unit * Q.D[j];
  }
  for (int i = 0; i < Q.r; i++)
    for (int j = 0; j < Q.n; j++) Q.C[i * Q.ld + j] *= Q.E[i] * Q.D[j];
}

// Bring the vectors to the units found.
template <class V>
static void scale_vectors(Program<V>& Q) {
  for (int j = 0; j < Q.n; j++) {
    const V unit = V(1) / Q.D[j];
    Q.q[j] *= Q.c * Q.D[j];
    Q.lo[j] *= unit;
    Q.hi[j] *= unit;
  }
  for (int i = 0; i < Q.r; i++) Q.d[i] *= Q.E[i];
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
