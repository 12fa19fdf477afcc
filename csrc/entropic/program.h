// SPDX-License-Identifier: Apache-2.0
// One entropic program (for a pack: W of them side by side) in standard form, and a point of its interior
// (optlayer/entropic/program/standard.py).
//
//     min 1/2 x'Px + 1/2 sum curvature_i x_i^2 + q'x + sum tau_i x_i log x_i
//     s.t.  Cx = d on the first p rows (A, b),  Cx <= d on the other m (G, h),  lb <= x <= ub
//
// Rows have unit norm. What differs from lane to lane is a number 0 or 1, not a shape: rows with h = inf are zero rows,
// 0 <= 1; only a positive lb is a bound; a variable with lb = ub is not free: its column is zero, and d and q bear what
// its value contributes.
#pragma once

#include <initializer_list>

#include "../common/elementary.h"
#include "../linalg/matrix.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double NONZERO = 1e-300;  // the floor of a divisor that may vanish
static constexpr double EPS = 2.220446049250313e-16;

template <class V>
struct Program {
  int n, m, p, k;  // k = p + m rows of C
  int ld;          // leading dimension of P and C
  bool full;       // there is a P, of (n, n) entries
  bool curved;     // there is a diagonal one
  bool lowers, uppers, fixes;  // some lane has a lower bound, an upper bound, a fixed variable
  V *P, *row_size;             // (n, n) symmetric; (n) sums of the magnitudes in its rows
  V *C, *d;                    // (k, n), (k)
  V *curvature, *q, *tau;      // (n)
  V *lb, *ub;                  // (n), 0 and 1 where there is none
  V *lower, *upper, *free;     // (n) 1 or 0
  V* value;                    // (n), of the fixed variables, else 0
  V* unit;                     // (k): rows are this many times those given
  V* given;                    // (k): d with a contradiction that may be rounding, which d is rid of; certificates use it
  V* contradiction;            // (p): the part of b that hardly any x reaches, where it is not rounding
  V* size;                     // (k): of the terms that d is the sum of, whose rounding it bears

  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int m_, int p_, bool full_, bool curved_) {
    n = n_, m = m_, p = p_, k = m_ + p_, ld = leading<V>(n_), full = full_, curved = curved_;
    lowers = uppers = fixes = false;
    P = arena.take<V>(full ? (size_t)n * ld : 0), row_size = arena.take<V>(full ? n : 0);
    C = arena.take<V>((size_t)k * ld);
    for (V** vector : {&curvature, &q, &tau, &lb, &ub, &lower, &upper, &free, &value}) *vector = arena.take<V>(n);
    for (V** vector : {&d, &given, &unit, &size}) *vector = arena.take<V>(k);
    contradiction = arena.take<V>(p);
  }

  // y = (P + diag(curvature)) x. Of y a thread reads its own entries only.
  OPTLAYER_METHOD void times_P(const V* x, V* y) const {
    if (full) product(P, ld, n, n, x, y);
    for (int j = own(0); !full && j < n; j += TEAM) y[j] = curved ? curvature[j] * x[j] : V(0);
  }
};

// x and its multiplier v, multipliers of all rows (y and z), slacks s (of rows p ..), slacks and multipliers of the upper
// and of the lower bounds; where there is no bound, the multiplier is 0 and the slack 1.
template <class V>
struct Point {
  V *x, *v, *rows, *s, *s_upper, *z_upper, *s_lower, *z_lower;

  OPTLAYER_METHOD void lay_out(Arena& arena, int n, int k) {
    for (V** vector : {&x, &v, &s_upper, &z_upper, &s_lower, &z_lower}) *vector = arena.take<V>(n);
    for (V** vector : {&rows, &s}) *vector = arena.take<V>(k);
  }

  // Another point in some lanes.
  OPTLAYER_METHOD void take(const Program<V>& Q, Mask<V> which, const Point<V>& other) {
    for (int j = own(0); j < Q.n; j += TEAM) {
      x[j] = select(which, other.x[j], x[j]), v[j] = select(which, other.v[j], v[j]);
      if (Q.uppers) {
        s_upper[j] = select(which, other.s_upper[j], s_upper[j]);
        z_upper[j] = select(which, other.z_upper[j], z_upper[j]);
      }
      if (Q.lowers) {
        s_lower[j] = select(which, other.s_lower[j], s_lower[j]);
        z_lower[j] = select(which, other.z_lower[j], z_lower[j]);
      }
    }
    for (int i = own(0); i < Q.k; i += TEAM) {
      rows[i] = select(which, other.rows[i], rows[i]), s[i] = select(which, other.s[i], s[i]);
    }
  }
};

// The plain numbers that steer the method.
struct Rules {
  double eps_abs, eps_rel;
  double eps;    // the accuracy at which the closing takes over
  double proof;  // what contradicts at all, relative to the terms
  double least;  // the smallest normal number of the dtype of the answer
  int max_iter;
  bool single;   // the answer is rounded to float32 before it is judged

  template <class Call>
  OPTLAYER_METHOD explicit Rules(const Call& call)
      : eps_abs(call.eps_abs), eps_rel(call.eps_rel), max_iter(call.max_iter), single(call.single) {
    const double tenth = 0.1 * (eps_abs > eps_rel ? eps_abs : eps_rel), rounding = single ? 5e-7 : 1e-9;
    eps = tenth < 1e-11 ? 1e-11 : tenth > 1e-7 ? 1e-7 : tenth;
    proof = tenth > rounding ? tenth : rounding;
    least = single ? 1.1754943508222875e-38 : 2.2250738585072014e-308;
  }
};

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
