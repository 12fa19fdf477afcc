// SPDX-License-Identifier: Apache-2.0
// From the caller's arrays to programs in standard form, in lanes: load, judge, mask, bring rows to unit norm
// (optlayer/entropic/program/standard.py).
#pragma once

#include "../qp/load.h"
#include "call.h"
#include "system.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double CONVEXITY = 3e-5;  // of max |P|: below it a negative eigenvalue is a rounded datum
static constexpr double REDUNDANT = 1e-11; // a squared pivot of AA' below this: perhaps a redundant row
static constexpr double OUTSIDE = 1e-12;   // an eigenvalue of AA' below this, times the number of rows, is zero

// P, symmetric or the diagonal of a diagonal one, and C = [A; G] as given.
template <class V, class Call>
OPTLAYER_FUNCTION void load_matrices(const Call& call, const Elements<V>& elements, int ld, V* P, V* C) {
  const int n = call.n;
  load_matrix(call.A, call.single, elements, call.p, n, ld, C);
  load_matrix(call.G, call.single, elements, call.m, n, ld, C + (size_t)call.p * ld);
  if (call.diagonal) return load_vector(call.P, call.single, elements, n, 0, P);
  if (call.P.data == nullptr) return;
  load_matrix(call.P, call.single, elements, n, n, ld, P);
  sync();
  for (int i = 0; i < n; i++)
    for (int j = own(0); j < i; j += TEAM) {
      V &low = P[(size_t)i * ld + j], &high = P[(size_t)j * ld + i];
      low = high = V(0.5) * (low + high);
    }
  sync();
}

template <class V>
OPTLAYER_INLINE V reciprocal_length(V length) {
  return select(length > V(0), V(1) / larger(length, V(NONZERO)), V(1));
}

// The length of a row, which is brought to unit norm unless it is zero.
template <class V>
OPTLAYER_FUNCTION V to_unit_norm(V* row, int n) {
  V most(0), squares(0);
  for (int j = own(0); j < n; j += TEAM) most = larger(absolute(row[j]), most);
  most = team_max(most);
  const V scale = V(1) / larger(most, V(NONZERO));  // in these units squares neither overflow nor vanish
  for (int j = own(0); j < n; j += TEAM) squares += (row[j] * scale) * (row[j] * scale);
  const V length = square_root(team_sum(squares)) * most, unit = reciprocal_length(length);
  for (int j = own(0); j < n; j += TEAM) row[j] *= unit;
  return length;
}

// The data as given, for the standard form and once more for the verdict.
template <class V>
struct Data {
  int n, p, k, ld;
  V *P, *C;            // (n, n) symmetric, or (n) the diagonal of a diagonal one; (k, n)
  V *q, *tau, *lb, *ub, *d;
  const optlayer::entropic::SolveCall* call;

  OPTLAYER_METHOD void lay_out(Arena& arena, const optlayer::entropic::SolveCall& given) {
    call = &given, n = given.n, p = given.p, k = given.m + given.p, ld = leading<V>(given.n);
    for (V** vector : {&q, &tau, &lb, &ub}) *vector = arena.take<V>(n);
    d = arena.take<V>(k);
  }

  // The matrices lie where there is room at the time.
  OPTLAYER_METHOD void read_matrices(const Elements<V>& elements, V* P_, V* C_) {
    P = P_, C = C_;
    load_matrices(*call, elements, ld, P, C);
  }

  OPTLAYER_METHOD void read_vectors(const Elements<V>& elements) {
    const bool single = call->single;
    load_vector(call->q, single, elements, n, 0, q);
    load_vector(call->tau, single, elements, n, 1, tau);
    load_vector(call->lb, single, elements, n, -INFINITY, lb);
    load_vector(call->ub, single, elements, n, INFINITY, ub);
    load_vector(call->b, single, elements, p, 0, d);
    load_vector(call->h, single, elements, k - p, 0, d + p);
  }

  // Lanes with a NaN, with an infinity where none may be, or with an entropy that is not positive; and those with lb > ub.
  OPTLAYER_METHOD void judge(Mask<V>& invalid, Mask<V>& crossed) const {
    V sum = unsound(C, k, n, ld);
    if (call->P.data != nullptr) sum += unsound(P, call->diagonal ? 1 : n, n, ld);
    invalid = sum != V(0), crossed = Mask<V>(false);
    for (int j = own(0); j < n; j += TEAM) {
      const V low = lb[j], high = ub[j];
      invalid = invalid || !finite(q[j]) || !finite(tau[j]) || tau[j] <= V(0);
      invalid = invalid || low != low || high != high || low == V(INFINITY) || high == V(-INFINITY);
      crossed = crossed || lower_bound(j) > upper_bound(j);
    }
    for (int i = own(0); i < k; i += TEAM)
      invalid = invalid || !(d[i] > V(-INFINITY)) || (i < p ? d[i] == V(INFINITY) : Mask<V>(false));
    invalid = team_any(invalid), crossed = team_any(crossed) && !invalid;
  }

  // The bounds that count: lb >= 0, and infinities for sizes that stand for none.
  OPTLAYER_METHOD V lower_bound(int j) const { return larger(select(lb[j] <= V(-UNLIMITED), V(0), lb[j]), V(0)); }
  OPTLAYER_METHOD V upper_bound(int j) const { return select(ub[j] >= V(UNLIMITED), V(INFINITY), ub[j]); }

  // Lanes whose data are of no use get a harmless problem instead.
  OPTLAYER_METHOD void replace(Mask<V> bad) {
    for (int j = own(0); j < n; j += TEAM) {
      q[j] = select(bad, V(0), q[j]), tau[j] = select(bad, V(1), tau[j]);
      lb[j] = select(bad, V(0), lb[j]), ub[j] = select(bad, V(INFINITY), ub[j]);
    }
    for (int i = own(0); i < k; i += TEAM) d[i] = select(bad, V(0), d[i]);
    for (int i = 0; i < k; i++)
      for (int j = own(0); j < n; j += TEAM) C[(size_t)i * ld + j] = select(bad, V(0), C[(size_t)i * ld + j]);
    const int rows = call->P.data == nullptr ? 0 : call->diagonal ? 1 : n;
    for (int i = 0; i < rows; i++)
      for (int j = own(0); j < n; j += TEAM) P[(size_t)i * ld + j] = select(bad, V(0), P[(size_t)i * ld + j]);
    sync();
  }
};

// Whether P has no negative eigenvalue but for rounding; of a full one the factor that proves it overwrites the scratch.
template <class V>
OPTLAYER_FUNCTION Mask<V> convex(const Data<V>& data, System<V>& scratch) {
  const int n = data.n, ld = data.ld;
  if (data.call->P.data == nullptr) return Mask<V>(true);
  V most(0);
  if (data.call->diagonal) {
    V least(0);
    for (int j = own(0); j < n; j += TEAM) most = larger(absolute(data.P[j]), most), least = smaller(data.P[j], least);
    return team_min(least) + V(CONVEXITY) * team_max(most) >= V(0);
  }
  for (int i = 0; i < n; i++)
    for (int j = own(0); j <= i; j += TEAM) most = larger(absolute(data.P[(size_t)i * ld + j]), most);
  most = team_max(most);
  for (int j = own(0); j < n; j += TEAM) scratch.t[j] = V(CONVEXITY) * most + V(NONZERO);
  return cholesky(data.P, ld, scratch.t, scratch.L, ld, scratch.L_inv, n);
}

template <class V>
OPTLAYER_FUNCTION void size_rows_of_P(Program<V>& Q) {
  for (int j = own(0); j < Q.n && Q.full; j += TEAM) {
    V sum(0);
    for (int i = 0; i < Q.n; i++) sum += absolute(Q.P[(size_t)i * Q.ld + j]);
    Q.row_size[j] = sum;
  }
}

// Masks and units for valid data whose matrices lie in the program's own memory; `proof` is what counts as a violation,
// relative to the terms of a row.
template <class V>
OPTLAYER_FUNCTION void standardise(const Data<V>& data, double proof, Program<V>& Q, System<V>& scratch) {
  const int n = Q.n, p = Q.p, k = Q.k, ld = Q.ld;
  Mask<V> lowers(false), uppers(false), fixes(false);
  for (int j = own(0); j < n; j += TEAM) {
    const V low = data.lower_bound(j), high = data.upper_bound(j);
    const Mask<V> fixed = low == high, above = low > V(0) && !fixed, below = high < V(INFINITY) && !fixed;
    Q.q[j] = data.q[j], Q.tau[j] = data.tau[j];
    Q.free[j] = select(fixed, V(0), V(1)), Q.value[j] = select(fixed, low, V(0));
    Q.lb[j] = select(fixed, V(0), low), Q.ub[j] = select(below, high, V(1));
    Q.lower[j] = select(above, V(1), V(0)), Q.upper[j] = select(below, V(1), V(0));
    Q.curvature[j] = Q.curved ? positive(Q.curvature[j]) : V(0);
    lowers = lowers || above, uppers = uppers || below, fixes = fixes || fixed;
  }
  Q.lowers = team_any(any(lowers)), Q.uppers = team_any(any(uppers)), Q.fixes = team_any(any(fixes));
  sync();
  for (int i = own(0); i < k; i += TEAM) {
    const Mask<V> live = data.d[i] < V(UNLIMITED);
    Q.d[i] = select(live, data.d[i], V(1)), Q.size[i] = absolute(Q.d[i]), Q.unit[i] = select(live, V(1), V(0));
  }
  sync();
  if (Q.fixes) {
    for (int i = own(0); i < k; i += TEAM) {
      V moved(0), size(0);
      for (int j = 0; j < n; j++) {
        const V term = Q.C[(size_t)i * ld + j] * Q.value[j] * Q.unit[i];
        moved += term, size += absolute(term);
      }
      Q.d[i] -= moved, Q.size[i] += size;
    }
    if (Q.full) product(Q.P, ld, n, n, Q.value, Q.q, true);
    for (int j = own(0); j < n; j += TEAM) Q.q[j] *= Q.free[j], Q.curvature[j] *= Q.free[j];
    for (int i = 0; i < n && Q.full; i++)
      for (int j = own(0); j < n; j += TEAM) Q.P[(size_t)i * ld + j] *= Q.free[i] * Q.free[j];
  }
  sync();
  size_rows_of_P(Q);
  sync();
  for (int i = 0; i < k; i++) {
    V* row = Q.C + (size_t)i * ld;
    for (int j = own(0); j < n; j += TEAM) row[j] *= Q.unit[i] * Q.free[j];
    const V length = to_unit_norm(row, n), unit = reciprocal_length(length);
    if (!owns(i)) continue;
    const Mask<V> idle = length == V(0) && Q.d[i] >= V(-proof) * Q.size[i];
    Q.d[i] = i < p ? Q.d[i] * unit : select(idle, V(1), Q.d[i] * unit);
    Q.size[i] *= unit;
    scratch.e[i] = unit;
  }
  sync();
  for (int i = own(0); i < k; i += TEAM) Q.unit[i] = scratch.e[i];
  sync();
}

// Lanes with a row that forces variables to zero: nothing is to be left for a sum of them with positive weights.
template <class V>
OPTLAYER_FUNCTION Mask<V> forces(const Program<V>& Q) {
  Mask<V> found(false);
  for (int i = own(0); i < Q.k; i += TEAM) {
    const Mask<V> empty = absolute(Q.d[i]) <= V(shift(Q.n)) * Q.size[i];
    if (!any(empty)) continue;
    V highest(0), lowest(0), bounded(0);
    for (int j = 0; j < Q.n; j++) {
      const V weight = Q.C[(size_t)i * Q.ld + j];
      highest = larger(weight, highest), lowest = smaller(weight, lowest);
      bounded = larger(absolute(weight) * Q.lower[j], bounded);
    }
    const Mask<V> up = highest > V(0) && lowest == V(0), down = highest == V(0) && lowest < V(0);
    found = found || (empty && bounded == V(0) && (i < Q.p ? up || down : up));
  }
  return team_any(found);
}

// The part of b along the eigenvalues of AA' near zero. Up to `proof` of the terms it is what rounding leaves of redundant
// rows, and d is rid of it. More of it is kept, and may be a certificate y, or not: nearly parallel rows have a part,
// too, whose A'y is small but not zero.
template <class V>
OPTLAYER_FUNCTION void take_contradiction(Program<V>& Q, double proof, System<V>& scratch) {
  const int p = Q.p, ld = scratch.ldk;
  for (int i = own(0); i < Q.k; i += TEAM) Q.given[i] = Q.d[i];
  if (p == 0) return;
  V* out = Q.contradiction;
  row_products(Q.C, Q.ld, p, Q.n, scratch.S, ld);
  for (int i = own(0); i < p; i += TEAM) scratch.e[i] = V(shift(p)), out[i] = V(0);
  Mask<V> sound = cholesky(scratch.S, ld, scratch.e, scratch.F, ld, scratch.F_inv, p);
  V least(1);
  for (int i = own(0); i < p; i += TEAM) least = smaller(scratch.F[(size_t)i * ld + i], least);
  least = team_min(least);
  sound = sound && least * least > V(REDUNDANT);
  if (all(sound)) return;
  const V small(OUTSIDE * (p > 10 ? p : 10));
  for (int i = own(0); i < p; i += TEAM) scratch.e[i] = small;
  const Mask<V> found = !sound && cholesky(scratch.S, ld, scratch.e, scratch.F, ld, scratch.F_inv, p);
  deflate(scratch.F, ld, scratch.F_inv, p, small, found, scratch.m, Q.d);
  V outside(0), size(0);
  for (int i = own(0); i < p; i += TEAM) {
    out[i] = Q.given[i] - Q.d[i];
    outside += out[i] * out[i], size += Q.size[i] * Q.size[i];
  }
  const Mask<V> rounding = team_sum(outside) <= V(proof * proof) * team_sum(size);
  for (int i = own(0); i < p; i += TEAM) {
    Q.d[i] = select(rounding, Q.d[i], Q.given[i]);
    out[i] = select(rounding, V(0), out[i]);
  }
  inverse_iteration(scratch.F, ld, scratch.F_inv, p, small, out);  // the difference had the rounding of all of b
  sync();
}

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
