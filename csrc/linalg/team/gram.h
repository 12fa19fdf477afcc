// SPDX-License-Identifier: Apache-2.0
// Products of a matrix with its own transpose, by a team of threads.
//
// Indices 0 .. n-1 are cut into T classes, i = I + r T with r < R. A thread has pairs of classes (I, J), J <= I, each a
// tile of R x R sums in registers: sum (r, s) belongs to the indices I + r T and J + s T, whichever is the row. So every
// sum below the diagonal is in one tile and hardly any other is, and neighbours read consecutive rows (without bank
// conflicts where the leading dimension is odd) or consecutive columns.
#pragma once

#include "../../common/team.h"
#include "../tile.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace team {

// Pairs (I, J), J <= I, one after the other.
struct Pair {
  int I, J;
  OPTLAYER_MEMBER explicit Pair(int number) : I(0), J(number) { settle(); }
  OPTLAYER_MEMBER void advance(int by) { J += by, settle(); }

 private:
  OPTLAYER_MEMBER void settle() {
    while (J > I) J -= ++I;
  }
};

// f(r, s, row, column) for the sums of a tile that lie in the lower triangle.
template <int R, class F>
OPTLAYER_INLINE void for_entries(Pair pair, int classes, int n, F f) {
  OPTLAYER_UNROLL for (int r = 0; r < R; r++)
    OPTLAYER_UNROLL for (int s = 0; s < R; s++) {
      const int i = pair.I + r * classes, j = pair.J + s * classes;
      if (i < n && j < n && (r >= s || pair.I > pair.J)) f(r, s, i > j ? i : j, i > j ? j : i);
    }
}

// K = start + SIGN A diag(w) A' in the lower triangle, A (n, depth) with the given strides: finish(i, j, sum).
template <int SIGN, int R, class V, class Weight, class Start, class Finish>
OPTLAYER_INLINE void gram_tiles(const V* A, int row, int column, int n, int depth, Weight weight, Start start,
                                Finish finish) {
  const int classes = (n + R - 1) / R;
  for (Pair pair(rank()); pair.I < classes; pair.advance(TEAM)) {
    V c[R][R];
    int left[R], right[R];
    OPTLAYER_UNROLL for (int r = 0; r < R; r++) {
      const int i = pair.I + r * classes, j = pair.J + r * classes;
      left[r] = (i < n ? i : n - 1) * row, right[r] = (j < n ? j : n - 1) * row;
      OPTLAYER_UNROLL for (int s = 0; s < R; s++) c[r][s] = V(0);
    }
    for_entries<R>(pair, classes, n, [&](int r, int s, int i, int j) { c[r][s] = start(i, j); });
    for (int k = 0; k < depth; k++) {
      const V w = weight(k);
      if (w == V(0)) continue;
      V a[R], b[R];
      OPTLAYER_UNROLL for (int r = 0; r < R; r++) a[r] = w * A[left[r] + k * column], b[r] = A[right[r] + k * column];
      OPTLAYER_UNROLL for (int r = 0; r < R; r++)
        OPTLAYER_UNROLL for (int s = 0; s < R; s++) {
          if constexpr (SIGN > 0)
            add_product(c[r][s], a[r], b[s]);
          else
            subtract_product(c[r][s], a[r], b[s]);
        }
    }
    for_entries<R>(pair, classes, n, [&](int r, int s, int i, int j) { finish(i, j, c[r][s]); });
  }
}

// What tiles of this size cost: rounds of the team times products and, dearer, reads of a step.
OPTLAYER_INLINE int gram_cost(int size, int n) {
  const int classes = (n + size - 1) / size, tiles = classes * (classes + 1) / 2;
  return (tiles + TEAM - 1) / TEAM * (size * size + 6 * size);
}
template <int SIGN, class V, class Weight, class Start, class Finish>
OPTLAYER_INLINE void gram(const V* A, int row, int column, int n, int depth, Weight weight, Start start,
                          Finish finish) {
  if (gram_cost(4, n) <= gram_cost(2, n))
    gram_tiles<SIGN, 4>(A, row, column, n, depth, weight, start, finish);
  else
    gram_tiles<SIGN, 2>(A, row, column, n, depth, weight, start, finish);
  sync();
}

template <class V>
OPTLAYER_FUNCTION void row_products(const V* R, int ldr, int rows, int n, V* K, int ldk) {
  gram<1>(
      R, ldr, 1, rows, n, [](int) { return V(1); }, [](int, int) { return V(0); },
      [&](int i, int j, V sum) { K[i * ldk + j] = K[j * ldk + i] = sum; });
}

template <class V>
OPTLAYER_FUNCTION void weighted_gram(const V* P, int ldp, const V* C, int ldc, const V* g, int rows, int n, V* H,
                                     int ldh) {
  gram<1>(
      C, 1, ldc, n, rows, [&](int k) { return g[k]; }, [&](int i, int j) { return P[i * ldp + j]; },
      [&](int i, int j, V sum) { H[i * ldh + j] = sum; });
}

// The lower triangle of C -= A A', A (rows, n).
template <class V>
OPTLAYER_FUNCTION void subtract_row_products(const V* A, int lda, int rows, int n, V* C, int ldc) {
  gram<-1>(
      A, lda, 1, rows, n, [](int) { return V(1); }, [&](int i, int j) { return C[i * ldc + j]; },
      [&](int i, int j, V sum) { C[i * ldc + j] = sum; });
}

}  // namespace team
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
