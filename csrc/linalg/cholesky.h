// SPDX-License-Identifier: Apache-2.0
// The Cholesky factorisation.
#pragma once

#include "gram.h"
#include "plain.h"
#include "strip.h"
#include "team/cholesky.h"
#include "triangular.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// A tile on the diagonal, rows and columns j .. j+S.
template <int S, class V>
OPTLAYER_INLINE void diagonal_tile(const V* K, ptrdiff_t ldk, const V* add, V* L, ptrdiff_t ldl, V* inv, int j,
                                   Mask<V>& ok) {
  V c[S][S];
  const V* row = L + j * ldl;
  OPTLAYER_UNROLL for (int r = 0; r < S; r++)
    OPTLAYER_UNROLL for (int s = 0; s <= r; s++) c[r][s] = K[(j + r) * ldk + j + s];
  if (add != nullptr) {
    OPTLAYER_UNROLL for (int r = 0; r < S; r++) c[r][r] += add[j + r];
  }
  for (int k = 0; k < j; k++) {
    V right[S];
    OPTLAYER_UNROLL for (int s = 0; s < S; s++) {
      V value = row[s * ldl + k];
      in_register(value);
      right[s] = value;
    }
    OPTLAYER_UNROLL for (int r = 0; r < S; r++)
      OPTLAYER_UNROLL for (int s = 0; s <= r; s++) subtract_product(c[r][s], right[r], right[s]);
  }
  factor_tile<S>(c, inv + j, ok);
  OPTLAYER_UNROLL for (int r = 0; r < S; r++)
    OPTLAYER_UNROLL for (int s = 0; s <= r; s++) L[(j + r) * ldl + j + s] = c[r][s];
}

// A block of rows after the other: the rows of L above the block pass once by all of its tiles. A small matrix is one
// block, so that every pivot has all the rows below it to hide behind.
template <class V>
static Mask<V> cholesky_packed(const V* K, ptrdiff_t ldk, const V* add, V* L, ptrdiff_t ldl, V* inv, int n) {
  Mask<V> ok(true);
  const int block = n <= 2 * BLOCK ? 2 * BLOCK : BLOCK;
  for (int begin = 0; begin < n; begin += block) {
    const int end = begin + block < n ? begin + block : n;
    for (int j = 0; j < end; j += TILE_COLUMNS) {
      if (j >= begin)
        with_size<TILE_COLUMNS>(end - j, [&](auto S) __attribute__((always_inline)) {
          diagonal_tile<S.value>(K, ldk, add, L, ldl, inv, j, ok);
        });
      for_tiles(j < begin ? begin : j + TILE_COLUMNS, end, [&](int i, auto R) __attribute__((always_inline)) {
        V c[R.value][TILE_COLUMNS];
        load_tile(c, K + i * ldk + j, ldk, 1);
        add_products<-1>(c, L + i * ldl, ldl, 1, L + j * ldl, ldl, 1, j);
        solve_tile(c, L + j * ldl + j, ldl, inv + j);
        store_tile(c, L + i * ldl + j, ldl, 1);
      });
    }
  }
  return ok;
}

#if !defined(OPTLAYER_DEVICE)

// Columns [begin, end) of L for rows begin .. end, whose strip is T (end columns, those below begin finished).
template <int VECTORS>
OPTLAYER_INLINE bool diagonal_strip(Wide* T, double* inv, int begin, int end) {
  constexpr int ROWS = VECTORS * WIDTH;
  bool ok = true;
  for (int j = begin; j < end; j += TILE_COLUMNS)
    with_size<TILE_COLUMNS>(end - j, [&](auto S) __attribute__((always_inline)) {
      with_size<VECTORS>(VECTORS - (j - begin) / WIDTH, [&](auto U) __attribute__((always_inline)) {
        constexpr int COLUMNS = S.value, ABOVE = VECTORS - U.value;  // vectors of rows above the diagonal
        Wide c[U.value][COLUMNS], *tile = T + j * VECTORS + ABOVE;
        load_tile(c, tile, 1, VECTORS);
        add_products<-1>(c, T + ABOVE, 1, VECTORS, reinterpret_cast<const double*>(T) + (j - begin), 1, ROWS, j);
        store_tile(c, tile, 1, VECTORS);
        double square[COLUMNS][COLUMNS], lower[COLUMNS * COLUMNS];
        const double* corner = reinterpret_cast<const double*>(T + j * VECTORS) + (j - begin);
        OPTLAYER_UNROLL for (int r = 0; r < COLUMNS; r++)
          OPTLAYER_UNROLL for (int s = 0; s <= r; s++) square[r][s] = corner[s * ROWS + r];
        factor_tile(square, inv + j, ok);
        OPTLAYER_UNROLL for (int r = 0; r < COLUMNS; r++)
          OPTLAYER_UNROLL for (int s = 0; s <= r; s++) lower[r * COLUMNS + s] = square[r][s];
        solve_tile(c, lower, COLUMNS, inv + j);
        store_tile(c, tile, 1, VECTORS);
      });
    });
  return ok;
}

// Strip after strip, n <= STRIP_COLUMNS.
OPTLAYER_FUNCTION bool cholesky_strips(const double* K, ptrdiff_t ldk, const double* add, double* L, ptrdiff_t ldl,
                                       double* inv, int n) {
  Wide T[STRIP_COLUMNS * STRIP];
  bool ok = true;
  for (int begin = 0; begin < n; begin += STRIP_ROWS) {
    const int rows = n - begin < STRIP_ROWS ? n - begin : STRIP_ROWS, end = begin + rows;
    with_size<STRIP>(vectors(rows), [&](auto V) __attribute__((always_inline)) {
      load_strip<V.value>(T, K + begin * ldk, ldk, rows, end);
      double* diagonal = reinterpret_cast<double*>(T + begin * V.value);
      for (int r = 0; add != nullptr && r < rows; r++) diagonal[r * (V.value * WIDTH + 1)] += add[begin + r];
      solve_strip<V.value>(L, ldl, inv, begin, T);
      ok = diagonal_strip<V.value>(T, inv, begin, end) && ok;
      store_strip<V.value>(T, L + begin * ldl, ldl, rows, end, begin + 1);
    });
  }
  return ok;
}

// In halves where a strip would leave the cache.
OPTLAYER_FUNCTION bool cholesky_halves(double* L, ptrdiff_t ldl, double* inv, int n) {
  if (n <= STRIP_COLUMNS) return cholesky_strips(L, ldl, nullptr, L, ldl, inv, n);
  const int half = n / 2 / STRIP_ROWS * STRIP_ROWS, rest = n - half;
  double *below = L + half * ldl, *corner = below + half;
  const bool ok = cholesky_halves(L, ldl, inv, half);
  solve_rows_strips(L, ldl, inv, half, below, ldl, rest);
  add_row_products<-1>(below, ldl, rest, below, ldl, rest, half, corner, ldl, true);
  return cholesky_halves(corner, ldl, inv + half, rest) && ok;
}

// Up to here numbers one by one are faster than strips.
constexpr int SMALL_FACTOR = 14;

OPTLAYER_FUNCTION bool cholesky_single(const double* K, ptrdiff_t ldk, const double* add, double* L, ptrdiff_t ldl,
                                       double* inv, int n) {
  if (n <= SMALL_FACTOR) return cholesky_packed(K, ldk, add, L, ldl, inv, n);
  if (n <= STRIP_COLUMNS) return cholesky_strips(K, ldk, add, L, ldl, inv, n);
  for (int i = 0; i < n; i++) {
    if (L != K) memcpy(L + i * ldl, K + i * ldk, (size_t)(i + 1) * sizeof(double));
    if (add != nullptr) L[i * ldl + i] += add[i];
  }
  return cholesky_halves(L, ldl, inv, n);
}

#endif

// L L' = K + diag(add) from the lower triangle of K (n, n); `add` may be null and L may be K. inv = 1 / diag(L).
// Returns where all pivots are positive normal numbers; elsewhere L and inv are not to be used.
template <class V>
OPTLAYER_FUNCTION Mask<V> cholesky(const V* K, int ldk, const V* add, V* L, int ldl, V* inv, int n) {
  if constexpr (TEAM > 1) return sync(), team::cholesky(K, ldk, add, L, ldl, inv, n);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return cholesky_packed(K, ldk, add, L, ldl, inv, n);
  if constexpr (is_double<V>) return cholesky_single(K, ldk, add, L, ldl, inv, n);
#endif
  return plain::cholesky(K, ldk, add, L, ldl, inv, n);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
