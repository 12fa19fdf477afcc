// SPDX-License-Identifier: Apache-2.0
// Products of a matrix and a vector, and inner products.
#pragma once

#include "plain.h"
#include "tile.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// So many rows of the matrix are read side by side: as many sums keep the multipliers busy.
constexpr int PRODUCT_ROWS = 8;

template <class V>
static void product_packed(const V* M, int ld, int rows, int cols, const V* x, V* y, bool add) {
  for (int i = 0; i < rows; i += PRODUCT_ROWS)
    with_size<PRODUCT_ROWS>(rows - i, [&](auto R) __attribute__((always_inline)) {
      const V* row = M + i * ld;
      V sum[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) sum[r] = add ? y[i + r] : V(0);
      for (int k = 0; k < cols; k++) {
        const V xk = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) sum[r] += row[r * ld + k] * xk;
      }
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) y[i + r] = sum[r];
    });
}

template <class V>
static void product_transposed_packed(const V* M, int ld, int rows, int cols, const V* y, V* x) {
  for (int i = 0; i < rows; i += PRODUCT_ROWS)
    with_size<PRODUCT_ROWS>(rows - i, [&](auto R) __attribute__((always_inline)) {
      const V* row = M + i * ld;
      V factor[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) factor[r] = y[i + r];
      for (int k = 0; k < cols; k++) {
        V sum = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) sum += row[r * ld + k] * factor[r];
        x[k] = sum;
      }
    });
}

// y = M x (or y += M x with `add`), M (rows, cols).
template <class V>
OPTLAYER_FUNCTION void product(const V* M, int ld, int rows, int cols, const V* x, V* y, bool add = false) {
#if !defined(__CUDACC__)
  if constexpr (lanes<V> > 1) return product_packed(M, ld, rows, cols, x, y, add);
#endif
  return plain::product(M, ld, rows, cols, x, y, add);
}

// x += M' y, M (rows, cols).
template <class V>
OPTLAYER_FUNCTION void product_transposed(const V* M, int ld, int rows, int cols, const V* y, V* x) {
#if !defined(__CUDACC__)
  if constexpr (lanes<V> > 1) return product_transposed_packed(M, ld, rows, cols, y, x);
#endif
  return plain::product_transposed(M, ld, rows, cols, y, x);
}

template <class V>
OPTLAYER_FUNCTION V dot(const V* a, const V* b, int n) {
  V sum(0), other(0);
  int i = 0;
  for (; i + 2 <= n; i += 2) sum += a[i] * b[i], other += a[i + 1] * b[i + 1];
  if (i < n) sum += a[i] * b[i];
  return sum + other;
}

// The largest magnitude, 0 for none; NaN does not show.
template <class V>
OPTLAYER_FUNCTION V norm(const V* a, int n) {
  return plain::norm(a, n);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
