// SPDX-License-Identifier: Apache-2.0
// Solves with a triangular factor.
#pragma once

#include "gram.h"
#include "plain.h"
#include "product.h"
#include "strip.h"
#include "team/triangular.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
static void solve_rows_packed(const V* L, ptrdiff_t ldl, const V* inv, int n, V* X, ptrdiff_t ldx, int rows) {
  for (int begin = 0; begin < rows; begin += BLOCK) {
    const int end = begin + BLOCK < rows ? begin + BLOCK : rows;
    for (int j = 0; j < n; j += TILE_COLUMNS)
      with_size<TILE_COLUMNS>(n - j, [&](auto S) __attribute__((always_inline)) {
        for_tiles(begin, end, [&](int i, auto R) __attribute__((always_inline)) {
          V c[R.value][S.value];
          load_tile(c, X + i * ldx + j, ldx, 1);
          add_products<-1>(c, X + i * ldx, ldx, 1, L + j * ldl, ldl, 1, j);
          solve_tile(c, L + j * ldl + j, ldl, inv + j);
          store_tile(c, X + i * ldx + j, ldx, 1);
        });
      });
  }
}

#if !defined(OPTLAYER_DEVICE)

// T L^-T for the first n columns of a strip.
template <int VECTORS>
OPTLAYER_INLINE void solve_strip(const double* L, ptrdiff_t ldl, const double* inv, int n, Wide* T) {
  for (int j = 0; j < n; j += TILE_COLUMNS)
    with_size<TILE_COLUMNS>(n - j, [&](auto S) __attribute__((always_inline)) {
      Wide c[VECTORS][S.value];
      load_tile(c, T + j * VECTORS, 1, VECTORS);
      add_products<-1>(c, T, 1, VECTORS, L + j * ldl, ldl, 1, j);
      solve_tile(c, L + j * ldl + j, ldl, inv + j);
      store_tile(c, T + j * VECTORS, 1, VECTORS);
    });
}

// In halves where a strip would leave the cache.
OPTLAYER_FUNCTION void solve_rows_strips(const double* L, ptrdiff_t ldl, const double* inv, int n, double* R,
                                         ptrdiff_t ldr, int rows) {
  if (n > STRIP_COLUMNS) {
    const int half = n / 2 / STRIP_ROWS * STRIP_ROWS;
    solve_rows_strips(L, ldl, inv, half, R, ldr, rows);
    add_row_products<-1>(R, ldr, rows, L + half * ldl, ldl, n - half, half, R + half, ldr, false);
    return solve_rows_strips(L + half * ldl + half, ldl, inv + half, n - half, R + half, ldr, rows);
  }
  Wide T[STRIP_COLUMNS * STRIP];
  for (int i = 0; i < rows; i += STRIP_ROWS) {
    const int left = rows - i < STRIP_ROWS ? rows - i : STRIP_ROWS;
    with_size<STRIP>(vectors(left), [&](auto V) __attribute__((always_inline)) {
      load_strip<V.value>(T, R + i * ldr, ldr, left, n);
      solve_strip<V.value>(L, ldl, inv, n, T);
      store_strip<V.value>(T, R + i * ldr, ldr, left, n, n);
    });
  }
}

#endif

template <class V>
static void lower_solve_packed(const V* L, ptrdiff_t ldl, const V* inv, int n, V* x) {
  for (int i = 0; i < n; i += SOLVE_ROWS)
    with_size<SOLVE_ROWS>(n - i, [&](auto R) __attribute__((always_inline)) {
      const V* row = L + i * ldl;
      V sum[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) sum[r] = x[i + r];
      for (int k = 0; k < i; k++) {
        const V xk = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) subtract_product(sum[r], row[r * ldl + k], xk);
      }
      lower_solve_tile(row + i, ldl, inv + i, sum);
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) x[i + r] = sum[r];
    });
}

template <class V>
static void lower_solve_transposed_packed(const V* L, ptrdiff_t ldl, const V* inv, int n, V* x) {
  for (int i = (n + SOLVE_ROWS - 1) / SOLVE_ROWS * SOLVE_ROWS - SOLVE_ROWS; i >= 0; i -= SOLVE_ROWS)
    with_size<SOLVE_ROWS>(n - i, [&](auto R) __attribute__((always_inline)) {
      const V* row = L + i * ldl;
      V xi[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) xi[r] = x[i + r];
      lower_solve_transposed_tile(row + i, ldl, inv + i, xi);
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) x[i + r] = xi[r];
      for (int k = 0; k < i; k++) {
        V sum = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) subtract_product(sum, row[r * ldl + k], xi[r]);
        x[k] = sum;
      }
    });
}

#if !defined(OPTLAYER_DEVICE)

OPTLAYER_FUNCTION void lower_solve_single(const double* L, ptrdiff_t ldl, const double* inv, int n, double* x) {
  for (int i = 0; i < n; i += SOLVE_ROWS)
    with_size<SOLVE_ROWS>(n - i, [&](auto R) __attribute__((always_inline)) {
      constexpr int GROUPS = (R.value + WIDTH - 1) / WIDTH;
      const double* row = L + i * ldl;
      double xi[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) xi[r] = x[i + r];
      if (i > 0) {
        Wide sum[GROUPS * WIDTH];
        OPTLAYER_UNROLL for (int r = 0; r < GROUPS * WIDTH; r++) sum[r] = Wide(0);
        for (int k = 0; k < i; k += WIDTH) {  // i is a multiple of WIDTH
          const Wide xk = load(x + k);
          OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) add_product(sum[r], load(row + r * ldl + k), xk);
        }
        OPTLAYER_UNROLL for (int group = 0; group < GROUPS; group++) {
          const Wide total = lane_sums(sum + group * WIDTH);
          OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++)
            if (group * WIDTH + l < R.value) xi[group * WIDTH + l] -= total.v[l];
        }
      }
      lower_solve_tile(row + i, ldl, inv + i, xi);
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) x[i + r] = xi[r];
    });
}

OPTLAYER_FUNCTION void lower_solve_transposed_single(const double* L, ptrdiff_t ldl, const double* inv, int n,
                                                     double* x) {
  for (int i = (n + SOLVE_ROWS - 1) / SOLVE_ROWS * SOLVE_ROWS - SOLVE_ROWS; i >= 0; i -= SOLVE_ROWS)
    with_size<SOLVE_ROWS>(n - i, [&](auto R) __attribute__((always_inline)) {
      const double* row = L + i * ldl;
      double xi[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) xi[r] = x[i + r];
      lower_solve_transposed_tile(row + i, ldl, inv + i, xi);
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) x[i + r] = xi[r];
      add_rows<-1>(row, ldl, i, xi, x);
    });
}

#endif

#if !defined(OPTLAYER_DEVICE)

// Up to here numbers one by one are faster than strips.
constexpr int SMALL_SOLVE = 6;

OPTLAYER_FUNCTION void solve_rows_single(const double* L, ptrdiff_t ldl, const double* inv, int n, double* R,
                                         ptrdiff_t ldr, int rows) {
  if (n <= SMALL_SOLVE) return solve_rows_packed(L, ldl, inv, n, R, ldr, rows);
  if (rows > 2) return solve_rows_strips(L, ldl, inv, n, R, ldr, rows);
  for (int i = 0; i < rows; i++) lower_solve_single(L, ldl, inv, n, R + i * ldr);
}

#endif

// Rows r of R (rows, n) become L^-1 r.
template <class V>
OPTLAYER_FUNCTION void solve_rows(const V* L, int ldl, const V* inv, int n, V* R, int ldr, int rows) {
  if constexpr (TEAM > 1) return sync(), team::solve_rows(L, ldl, inv, n, R, ldr, rows);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return solve_rows_packed(L, ldl, inv, n, R, ldr, rows);
  if constexpr (is_double<V>) return solve_rows_single(L, ldl, inv, n, R, ldr, rows);
#endif
  return plain::solve_rows(L, ldl, inv, n, R, ldr, rows);
}

// x = L^-1 x.
template <class V>
OPTLAYER_FUNCTION void lower_solve(const V* L, int ldl, const V* inv, int n, V* x) {
  if constexpr (TEAM > 1) return sync(), team::lower_solve(L, ldl, inv, n, x);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return lower_solve_packed(L, ldl, inv, n, x);
  if constexpr (is_double<V>) return lower_solve_single(L, ldl, inv, n, x);
#endif
  return plain::lower_solve(L, ldl, inv, n, x);
}

// x = L^-T x.
template <class V>
OPTLAYER_FUNCTION void lower_solve_transposed(const V* L, int ldl, const V* inv, int n, V* x) {
  if constexpr (TEAM > 1) return sync(), team::lower_solve_transposed(L, ldl, inv, n, x);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return lower_solve_transposed_packed(L, ldl, inv, n, x);
  if constexpr (is_double<V>) return lower_solve_transposed_single(L, ldl, inv, n, x);
#endif
  return plain::lower_solve_transposed(L, ldl, inv, n, x);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
