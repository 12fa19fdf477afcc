// SPDX-License-Identifier: Apache-2.0
// From the caller's arrays to programs in lanes: load, symmetrise, judge, mask (optlayer/solvers/standard.py).
#pragma once

#include "lanes.h"
#include "program.h"
#include "rules.h"

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr double UNLIMITED = 1e20;  // entries of h, lb and ub of this magnitude are none at all

// The problems that a pack works on; a pack with too few repeats its last one, and `used` lanes are written.
template <class V>
struct Elements {
  int64_t at[lanes<V>];
  int used;

  OPTLAYER_METHOD Elements(int64_t begin, int64_t end) {
    used = end - begin < lanes<V> ? (int)(end - begin) : lanes<V>;
    for (int l = 0; l < lanes<V>; l++) at[l] = begin + (l < used ? l : used - 1);
  }
};

// `count` values of an argument for each lane; `fill` where it is absent.
template <class V>
OPTLAYER_FUNCTION void load_vector(const Input& from, bool single, const Elements<V>& elements, int count, double fill,
                                   V* to) {
  if (from.data == nullptr) {
    for (int i = own(0); i < count; i += TEAM) to[i] = V(fill);
    return;
  }
  int64_t offsets[lanes<V>];
  for (int l = 0; l < lanes<V>; l++) offsets[l] = from.offset(elements.at[l]);
  load(from.data, single, offsets, count, to);
}

template <class V>
OPTLAYER_FUNCTION void load_matrix(const Input& from, bool single, const Elements<V>& elements, int rows, int cols,
                                   int ld, V* to) {
  if (from.data == nullptr) {
    for (int i = own(0); i < rows * ld; i += TEAM) to[i] = V(0);
    return;
  }
  int64_t offsets[lanes<V>];
  for (int l = 0; l < lanes<V>; l++) offsets[l] = from.offset(elements.at[l]);
  load_rows(from.data, single, offsets, rows, cols, ld, to);
}

// NaN where some value is not finite, else 0.
template <class V>
OPTLAYER_FUNCTION V unsound(const V* values, int rows, int cols, int ld) {
  V sums[4] = {V(0), V(0), V(0), V(0)};  // none waits for the one before
  for (int i = 0; i < rows; i++) {
    const V* row = values + (size_t)i * ld;
    int j = own(0);
    for (; j + 3 * TEAM < cols; j += 4 * TEAM)
      OPTLAYER_UNROLL for (int k = 0; k < 4; k++) sums[k] += row[j + k * TEAM] * V(0);
    for (; j < cols; j += TEAM) sums[0] += row[j] * V(0);
  }
  return team_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// P = (P + P') / 2 and C = [A; G] in the caller's units. Returns the lanes that hold a NaN or an infinity.
template <class V>
OPTLAYER_FUNCTION Mask<V> load_matrices(const SolveCall& call, const Elements<V>& elements, Program<V>& Q) {
  const int n = Q.n, ld = Q.ld;
  load_matrix(call.P, call.single, elements, n, n, ld, Q.P);
  load_matrix(call.A, call.single, elements, Q.p, n, ld, Q.C);
  load_matrix(call.G, call.single, elements, Q.m, n, ld, Q.C + (size_t)Q.p * ld);
  sync();
  const V sum = unsound(Q.P, n, n, ld) + unsound(Q.C, Q.r, n, ld);
  sync();
  for (int i = 0; i < n; i++)
    for (int j = own(0); j < i; j += TEAM) Q.P[i * ld + j] = Q.P[j * ld + i] = V(0.5) * (Q.P[i * ld + j] + Q.P[j * ld + i]);
  sync();
  return sum != V(0);
}


// q, d = [b; h] and the bounds in the caller's units, and what is there of rows and bounds. `invalid` are lanes with a
// NaN, or an infinity where none may be; `crossed` those with lb > ub.
template <class V>
OPTLAYER_FUNCTION void load_vectors(const SolveCall& call, const Elements<V>& elements, Program<V>& Q,
                                    Mask<V>& invalid, Mask<V>& crossed) {
  const int n = Q.n, m = Q.m, p = Q.p;
  load_vector(call.q, call.single, elements, n, 0, Q.q);
  load_vector(call.b, call.single, elements, p, 0, Q.d);
  load_vector(call.h, call.single, elements, m, 0, Q.d + p);
  invalid = unsound(Q.q, 1, n, n) + unsound(Q.d, 1, p, p) != V(0);
  sync();
  for (int i = own(0); i < p; i += TEAM) Q.live[i] = V(1);
  for (int i = own(p); i < Q.r; i += TEAM) {
    const Mask<V> open = Q.d[i] >= V(UNLIMITED);
    invalid = invalid || Q.d[i] <= V(-UNLIMITED) || Q.d[i] != Q.d[i];
    Q.live[i] = select(open, V(0), V(1));
    Q.d[i] = select(open, V(0), Q.d[i]);
  }
  crossed = Mask<V>(false);
  Q.boxes = false;
  const bool bounds = call.lb.data != nullptr || call.ub.data != nullptr;
  load_vector(call.lb, call.single, elements, n, -INFINITY, Q.lo);
  load_vector(call.ub, call.single, elements, n, INFINITY, Q.hi);
  for (int j = own(0); j < n; j += TEAM) {
    Q.fixed[j] = Q.has_lo[j] = Q.has_hi[j] = V(0);
    if (!bounds) {
      Q.lo[j] = Q.hi[j] = V(0);
      continue;
    }
    const V lo = Q.lo[j], hi = Q.hi[j];
    invalid = invalid || lo != lo || hi != hi || lo >= V(UNLIMITED) || hi <= V(-UNLIMITED);
    crossed = crossed || lo > hi;
    const Mask<V> fixed = lo == hi;
    Q.fixed[j] = select(fixed, V(1), V(0));
    Q.has_lo[j] = select(lo > V(-UNLIMITED) && !fixed, V(1), V(0));
    Q.has_hi[j] = select(hi < V(UNLIMITED) && !fixed, V(1), V(0));
    Q.lo[j] = select(lo > V(-UNLIMITED), lo, V(0));
    Q.hi[j] = select(hi < V(UNLIMITED), hi, V(0));
    Q.boxes = Q.boxes || any(Q.has_lo[j] + Q.has_hi[j] + Q.fixed[j] > V(0));
  }
  Q.boxes = team_any(Q.boxes), invalid = team_any(invalid);
  crossed = team_any(crossed) && !invalid;
}

// Rows with h = inf do not shape the scaling.
template <class V>
OPTLAYER_FUNCTION void mask_rows(Program<V>& Q) {
  for (int i = Q.p; i < Q.r; i++)
    if (!all(Q.live[i] > V(0)))
      for (int j = own(0); j < Q.n; j += TEAM) Q.C[i * Q.ld + j] *= Q.live[i];
}

// Lanes whose data are of no use get a harmless problem instead, so that their values disturb nobody's speed.
template <class V>
OPTLAYER_FUNCTION void replace(Program<V>& Q, Mask<V> bad, bool matrices) {
  V* const vectors[] = {Q.q, Q.lo, Q.hi, Q.has_lo, Q.has_hi, Q.fixed};
  for (int j = own(0); j < Q.n; j += TEAM)
    for (V* vector : vectors) vector[j] = select(bad, V(0), vector[j]);
  for (int i = own(0); i < Q.r; i += TEAM) Q.d[i] = select(bad, V(0), Q.d[i]);
  if (!matrices) return;
  for (int i = 0; i < Q.n; i++)
    for (int j = own(0); j < Q.n; j += TEAM) Q.P[i * Q.ld + j] = select(bad, V(i == j), Q.P[i * Q.ld + j]);
  for (int i = 0; i < Q.r; i++)
    for (int j = own(0); j < Q.n; j += TEAM) Q.C[i * Q.ld + j] = select(bad, V(0), Q.C[i * Q.ld + j]);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
