// SPDX-License-Identifier: Apache-2.0
// One quadratic program (for a pack: W of them side by side) in equilibrated units, and a point of its interior.
//
//     min 1/2 x'Px + q'x   s.t.  C x = d on the first p rows (A, b),  C x <= d on the other m (G, h),  lo <= x <= hi
//
// The units D (variables), E (rows) and c (objective) are powers of two. So the scaled data are exact: a residual in
// scaled units is the residual of the data as given, in other units, to the last bit, and no second copy is kept.
//
//     P = c D P0 D,  q = c D q0,  C = E C0 D,  d = E d0;     x0 = D x,  v0 = E v / c  (v = [y; z]),  z_box0 = z_box / (c D)
//
// What differs from lane to lane is a number 0 or 1, not a shape: rows with h = inf (zeroed and not `live`), absent
// bounds (zero and not there), fixed variables (lb = ub: they keep their value and no step moves them).
#pragma once

#include <initializer_list>

#include "../linalg/matrix.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct Program {
  int n, m, p, r;  // r = p + m rows of C
  int ld;          // leading dimension of P and C
  bool boxes;      // some lane has a bound
  V *P, *C;        // (n, n) symmetric, both triangles; (r, n)
  V *q, *d;        // (n), (r)
  V *lo, *hi;      // (n), 0 where absent
  V *D, *E, c;     // (n), (r)
  V* live;         // (r) 1 or 0; equalities are live
  V *has_lo, *has_hi, *fixed;  // (n) 1 or 0; of a fixed variable only `fixed` is 1, and lo = hi = its value

  // live, has_lo and has_hi follow each other in memory: together they tell which of all T = r + 2 n rows are there.
  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int m_, int p_) {
    n = n_, m = m_, p = p_, r = m_ + p_, ld = leading<V>(n_), boxes = false;
    P = arena.take<V>((size_t)n * ld), C = arena.take<V>((size_t)r * ld);
    for (V** vector : {&q, &lo, &hi, &D, &fixed}) *vector = arena.take<V>(n);
    for (V** vector : {&d, &E}) *vector = arena.take<V>(r);
    live = arena.take<V>(r + 2 * n), has_lo = live + r, has_hi = has_lo + n;
  }

  // Rows of C and, where there are any, bounds.
  OPTLAYER_METHOD int rows() const { return boxes ? r + 2 * n : r; }
};

// x, multipliers v = [y; z] and slacks s of all rows (s of equalities and dead rows is 1, z of dead rows 0), multipliers
// and slacks of the bounds (absent: multiplier 0, slack 1).
//
// v, z_lo, z_hi follow each other in memory, and so do s, s_lo, s_hi: in one loop they are the T rows [C; -I; I].
template <class V>
struct Point {
  V *x, *v, *s, *z_lo, *s_lo, *z_hi, *s_hi;

  // `most` is r where there are no bounds at all, else T.
  OPTLAYER_METHOD void lay_out(Arena& arena, int n, int r, int most) {
    x = arena.take<V>(n);
    v = arena.take<V>(most), z_lo = v + r, z_hi = z_lo + n;
    s = arena.take<V>(most), s_lo = s + r, s_hi = s_lo + n;
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
