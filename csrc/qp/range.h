// SPDX-License-Identifier: Apache-2.0
// The range space of a program with a well-conditioned positive definite P and no bounds: x is eliminated once and for
// all, and the interior point method runs on the multipliers alone.
//
//     x = -P^-1 (q + C'v)    =>    C x = -(g + K v),      K = C P^-1 C' = V'V,   g = V' L^-1 q,   V = L^-1 C'
//
// Stationarity then holds at every v, so primal and dual steps are of one length, and a Newton step is
//
//     (K + diag(1/w)) dv = C x - d + (slacks, complementarity)            one Cholesky factorisation of a (r, r) matrix
//
// Objective and gap need no x either: x'Px = g_0 + 2 g'v + v'Kv and q'x = -(g_0 + g'v) with g_0 = q'P^-1 q.
#pragma once

#include "split.h"

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr double PIVOT_RATIO = 1e-6;       // least admissible min L_ii^2 / max L_ii^2
static constexpr double DEFINITE_RATIO = 1e-12;   // below it rounding alone may have made P definite
static constexpr double ROWS_PER_VARIABLE = 1.6;  // where its cost meets the split's
template <class V>
constexpr double LARGEST_RECIPROCAL = sizeof(Scalar<V>) == 8 ? 1e60 : 1e30; // of a weight: a row of weight zero is not there

template <class V>
struct RangeSpace {
  int n, r, ld, ldk;
  V *L, *inv;  // (n, n) with L L' = P, (n)
  V* VT;       // (r, n): the rows of V'
  V* K;        // (r, r)
  V *lq, *g;   // L^-1 q (n), V' L^-1 q (r)
  V g0;        // q'P^-1 q

  // Beside the split's memory: a single problem takes one form or the other, a pack perhaps both.
  OPTLAYER_METHOD void lay_out(Arena& arena, const Split<V>& split, bool wanted) {
    n = split.n, r = split.r, ld = split.ld, ldk = leading<V>(r);
    const bool both = wanted && lanes<V> > 1;
    L = both ? arena.take<V>((size_t)n * ld) : split.L, inv = both ? arena.take<V>(n) : split.inv;
    if (!wanted) return;
    K = arena.take<V>((size_t)r * ldk), VT = arena.take<V>((size_t)r * ld);
    lq = arena.take<V>(n), g = arena.take<V>(r);
  }

  // L; returns the lanes that may take the shortcut as far as P is concerned, in `definite` where L exists. If it is
  // `asked` for, all may whose P is definite beyond rounding.
  OPTLAYER_METHOD Mask<V> admit(const Program<V>& Q, bool asked, Mask<V>& definite) {
    definite = cholesky(Q.P, Q.ld, (const V*)nullptr, L, ld, inv, n);
    V least = L[0], most = L[0];
    for (int i = own(0); i < n; i += TEAM) least = smaller(L[i * ld + i], least), most = larger(L[i * ld + i], most);
    least = team_min(least), most = team_max(most);
    return definite && least * least >= V(asked ? DEFINITE_RATIO : PIVOT_RATIO) * most * most;
  }

  // V and K from L and C, in the lanes of `which`; the others get a factor that harms nobody.
  OPTLAYER_METHOD void set_up(const Program<V>& Q, Mask<V> which) {
    for (int i = own(0); i < n && !all(which); i += TEAM) {
      for (int j = 0; j <= i; j++) L[i * ld + j] = select(which, L[i * ld + j], V(i == j));
      inv[i] = select(which, inv[i], V(1));
    }
    for (int i = 0; i < r; i++)
      for (int j = own(0); j < n; j += TEAM) VT[i * ld + j] = Q.C[i * Q.ld + j];
    solve_rows(L, ld, inv, n, VT, ld, r);
    row_products(VT, ld, r, n, K, ldk);
  }

  // What depends on q.
  OPTLAYER_METHOD void set_cost(const Program<V>& Q) {
    for (int j = own(0); j < n; j += TEAM) lq[j] = Q.q[j];
    lower_solve(L, ld, inv, n, lq);
    product(VT, ld, r, n, lq, g);
    g0 = dot(lq, lq, n);
  }

  // x = -L^-T (L^-1 q + V v).
  OPTLAYER_METHOD void primal(const V* v, V* x) const {
    for (int j = own(0); j < n; j += TEAM) x[j] = lq[j];
    product_transposed(VT, ld, r, n, v, x);
    for (int j = own(0); j < n; j += TEAM) x[j] = -x[j];
    lower_solve_transposed(L, ld, inv, n, x);
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
