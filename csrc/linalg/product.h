// SPDX-License-Identifier: Apache-2.0
// Products of a matrix and a vector, and inner products.
#pragma once

#include "plain.h"
#include "strip.h"
#include "team/product.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// So many rows of the matrix are read side by side: as many sums keep the multipliers busy.
constexpr int PRODUCT_ROWS = 8;

template <class V>
static void product_packed(const V* M, ptrdiff_t ld, int rows, int cols, const V* x, V* y, bool add) {
  for (int i = 0; i < rows; i += PRODUCT_ROWS)
    with_size<PRODUCT_ROWS>(rows - i, [&](auto R) __attribute__((always_inline)) {
      const V* row = M + i * ld;
      V sum[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) sum[r] = add ? y[i + r] : V(0);
      for (int k = 0; k < cols; k++) {
        const V xk = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) add_product(sum[r], row[r * ld + k], xk);
      }
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) y[i + r] = sum[r];
    });
}

template <class V>
static void product_transposed_packed(const V* M, ptrdiff_t ld, int rows, int cols, const V* y, V* x) {
  for (int i = 0; i < rows; i += PRODUCT_ROWS)
    with_size<PRODUCT_ROWS>(rows - i, [&](auto R) __attribute__((always_inline)) {
      const V* row = M + i * ld;
      V factor[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) factor[r] = y[i + r];
      for (int k = 0; k < cols; k++) {
        V sum = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) add_product(sum, row[r * ld + k], factor[r]);
        x[k] = sum;
      }
    });
}

// So many rows of the matrix are read side by side where each number is used twice.
constexpr int PAIR_ROWS = 4;

template <class V>
static void product_pair_packed(const V* M, ptrdiff_t ld, int rows, int cols, const V* x, V* y, const V* v, V* u) {
  for (int i = 0; i < rows; i += PAIR_ROWS)
    with_size<PAIR_ROWS>(rows - i, [&](auto R) __attribute__((always_inline)) {
      const V* row = M + i * ld;
      V sum[R.value], factor[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) sum[r] = V(0), factor[r] = v[i + r];
      for (int k = 0; k < cols; k++) {
        const V xk = x[k];
        V uk = u[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) {
          V entry = row[r * ld + k];
          in_register(entry);
          add_product(sum[r], entry, xk), add_product(uk, entry, factor[r]);
        }
        u[k] = uk;
      }
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) y[i + r] = sum[r];
    });
}

#if !defined(OPTLAYER_DEVICE)

OPTLAYER_FUNCTION void product_pair_single(const double* M, ptrdiff_t ld, int rows, int cols, const double* x,
                                           double* y, const double* v, double* u) {
  constexpr int ROWS = WIDTH < PAIR_ROWS ? PAIR_ROWS : WIDTH;
  for (int i = 0; i < rows; i += ROWS) {
    const int left = rows - i;
    const double* row[ROWS];  // where there is none, the last one again, with the factor 0
    Wide sum[ROWS], factor[ROWS];
    OPTLAYER_UNROLL for (int r = 0; r < ROWS; r++) {
      row[r] = M + (i + (r < left ? r : left - 1)) * ld;
      sum[r] = Wide(0), factor[r] = Wide(r < left ? v[i + r] : 0);
    }
    for (int k = 0; k < cols; k += WIDTH) {
      const Wide xk = load_first(x + k, cols - k);
      Wide uk = load_first(u + k, cols - k);
      OPTLAYER_UNROLL for (int r = 0; r < ROWS; r++) {
        Wide entry = load_first(row[r] + k, cols - k);
        in_register(entry);
        add_product(sum[r], entry, xk), add_product(uk, entry, factor[r]);
      }
      store_first(u + k, uk, cols - k);
    }
    OPTLAYER_UNROLL for (int r = 0; r < ROWS; r += WIDTH) store_first(y + i + r, lane_sums(sum + r), left - r);
  }
}

OPTLAYER_FUNCTION void product_single(const double* M, ptrdiff_t ld, int rows, int cols, const double* x, double* y,
                                      bool add) {
  const int whole = cols / WIDTH * WIDTH;
  for (int i = 0; i < rows; i += PRODUCT_ROWS)
    with_size<PRODUCT_ROWS / WIDTH>(vectors(rows - i), [&](auto G) __attribute__((always_inline)) {
      constexpr int ROWS = G.value * WIDTH;
      const int left = rows - i;
      const double* row[ROWS];  // the last one again where there is none
      Wide sum[ROWS];
      OPTLAYER_UNROLL for (int r = 0; r < ROWS; r++) {
        row[r] = M + (i + (r < left ? r : left - 1)) * ld;
        sum[r] = Wide(0);
      }
      for (int k = 0; k < whole; k += WIDTH) {
        const Wide xk = load(x + k);
        OPTLAYER_UNROLL for (int r = 0; r < ROWS; r++) add_product(sum[r], load(row[r] + k), xk);
      }
      if (whole < cols) {
        const Wide xk = load_some(x + whole, cols - whole);
        OPTLAYER_UNROLL for (int r = 0; r < ROWS; r++) add_product(sum[r], load_some(row[r] + whole, cols - whole), xk);
      }
      OPTLAYER_UNROLL for (int group = 0; group < G.value; group++) {
        const Wide total = lane_sums(sum + group * WIDTH);
        const int place = i + group * WIDTH;
        store_first(y + place, add ? load_first(y + place, rows - place) + total : total, rows - place);
      }
    });
}

// x -= or += the rows [0, R) of M (R, cols) times the factors.
template <int SIGN, int R>
OPTLAYER_INLINE void add_rows(const double* M, ptrdiff_t ld, int cols, const double (&factor)[R], double* x) {
  Wide wide[R];
  OPTLAYER_UNROLL for (int r = 0; r < R; r++) wide[r] = Wide(SIGN * factor[r]);
  int k = 0;
  for (; k + WIDTH <= cols; k += WIDTH) {
    Wide sum = load(x + k);
    OPTLAYER_UNROLL for (int r = 0; r < R; r++) add_product(sum, load(M + r * ld + k), wide[r]);
    store(x + k, sum);
  }
  if (k < cols) {
    Wide sum = load_some(x + k, cols - k);
    OPTLAYER_UNROLL for (int r = 0; r < R; r++) add_product(sum, load_some(M + r * ld + k, cols - k), wide[r]);
    store_some(x + k, sum, cols - k);
  }
}

OPTLAYER_FUNCTION void product_transposed_single(const double* M, ptrdiff_t ld, int rows, int cols, const double* y,
                                                 double* x) {
  for (int i = 0; i < rows; i += PRODUCT_ROWS)
    with_size<PRODUCT_ROWS>(rows - i, [&](auto R) __attribute__((always_inline)) {
      double factor[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) factor[r] = y[i + r];
      add_rows<1>(M + i * ld, ld, cols, factor, x);
    });
}

OPTLAYER_FUNCTION double dot_single(const double* a, const double* b, int n) {
  Wide sum(0), other(0);
  int i = 0;
  for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
    add_product(sum, load(a + i), load(b + i)), add_product(other, load(a + i + WIDTH), load(b + i + WIDTH));
  for (; i < n; i += WIDTH) add_product(sum, load_first(a + i, n - i), load_first(b + i, n - i));
  return lane_sum(sum + other);
}

OPTLAYER_FUNCTION double norm_single(const double* a, int n) {
  Wide most(0);
  for (int i = 0; i < n; i += WIDTH) most = larger(absolute(load_first(a + i, n - i)), most);
  double result = 0;
  OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) result = larger((double)most.v[l], result);
  return result;
}

#endif

// y = M x (or y += M x with `add`), M (rows, cols).
template <class V>
OPTLAYER_FUNCTION void product(const V* M, int ld, int rows, int cols, const V* x, V* y, bool add = false) {
  if constexpr (TEAM > 1) return sync(), team::product(M, ld, rows, cols, x, y, add);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return product_packed(M, ld, rows, cols, x, y, add);
  if constexpr (is_double<V>) return product_single(M, ld, rows, cols, x, y, add);
#endif
  return plain::product(M, ld, rows, cols, x, y, add);
}

// x += M' y, M (rows, cols).
template <class V>
OPTLAYER_FUNCTION void product_transposed(const V* M, int ld, int rows, int cols, const V* y, V* x) {
  if constexpr (TEAM > 1) return sync(), team::product_transposed(M, ld, rows, cols, y, x);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return product_transposed_packed(M, ld, rows, cols, y, x);
  if constexpr (is_double<V>) return product_transposed_single(M, ld, rows, cols, y, x);
#endif
  return plain::product_transposed(M, ld, rows, cols, y, x);
}

// y = M x and u += M' v, M (rows, cols), which is read once: a large matrix waits for memory, not for arithmetic.
template <class V>
OPTLAYER_FUNCTION void product_pair(const V* M, int ld, int rows, int cols, const V* x, V* y, const V* v, V* u) {
  if constexpr (TEAM > 1) return sync(), team::product_pair(M, ld, rows, cols, x, y, v, u);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return product_pair_packed(M, ld, rows, cols, x, y, v, u);
  if constexpr (is_double<V>) return product_pair_single(M, ld, rows, cols, x, y, v, u);
#endif
  plain::product(M, ld, rows, cols, x, y, false);
  plain::product_transposed(M, ld, rows, cols, v, u);
}

// Two packs at a time: the sum of a lane must not wait for itself.
template <class V>
OPTLAYER_FUNCTION V dot(const V* a, const V* b, int n) {
  if constexpr (TEAM > 1) return team::dot(a, b, n);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (is_double<V>) return dot_single(a, b, n);
#endif
  V sum(0), other(0);
  for (int i = 0; i + 2 <= n; i += 2) add_product(sum, a[i], b[i]), add_product(other, a[i + 1], b[i + 1]);
  if (n % 2 == 1) add_product(sum, a[n - 1], b[n - 1]);
  return sum + other;
}

// The largest magnitude, 0 for none; NaN does not show.
template <class V>
OPTLAYER_FUNCTION V norm(const V* a, int n) {
  if constexpr (TEAM > 1) return team::norm(a, n);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (is_double<V>) return norm_single(a, n);
#endif
  return plain::norm(a, n);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
