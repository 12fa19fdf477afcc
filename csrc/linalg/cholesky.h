// SPDX-License-Identifier: Apache-2.0
// The Cholesky factorisation.
#pragma once

#include "plain.h"
#include "tile.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// A tile on the diagonal, rows and columns j .. j+S.
template <int S, class V>
OPTLAYER_INLINE void diagonal_tile(const V* K, int ldk, const V* add, V* L, int ldl, V* inv, int j, Mask<V>& ok) {
  V c[S][S];
  const V* row = L + j * ldl;
  OPTLAYER_UNROLL for (int r = 0; r < S; r++)
    OPTLAYER_UNROLL for (int s = 0; s <= r; s++) c[r][s] = K[(j + r) * ldk + j + s];
  if (add != nullptr) {
    OPTLAYER_UNROLL for (int r = 0; r < S; r++) c[r][r] += add[j + r];
  }
  for (int k = 0; k < j; k++) {
    V right[S];
    OPTLAYER_UNROLL for (int s = 0; s < S; s++) right[s] = row[s * ldl + k];
    OPTLAYER_UNROLL for (int r = 0; r < S; r++)
      OPTLAYER_UNROLL for (int s = 0; s <= r; s++) c[r][s] -= right[r] * right[s];
  }
  factor_tile<S>(c, inv + j, ok);
  OPTLAYER_UNROLL for (int r = 0; r < S; r++)
    OPTLAYER_UNROLL for (int s = 0; s <= r; s++) L[(j + r) * ldl + j + s] = c[r][s];
}

// A block of rows after the other: the rows of L above the block pass once by all of its tiles.
template <class V>
static Mask<V> cholesky_packed(const V* K, int ldk, const V* add, V* L, int ldl, V* inv, int n) {
  Mask<V> ok(true);
  for (int begin = 0; begin < n; begin += BLOCK) {
    const int end = begin + BLOCK < n ? begin + BLOCK : n;
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

// L L' = K + diag(add) from the lower triangle of K (n, n); `add` may be null and L may be K. inv = 1 / diag(L).
// Returns where all pivots are positive normal numbers; elsewhere L and inv are not to be used.
template <class V>
OPTLAYER_FUNCTION Mask<V> cholesky(const V* K, int ldk, const V* add, V* L, int ldl, V* inv, int n) {
#if !defined(__CUDACC__)
  if constexpr (lanes<V> > 1) return cholesky_packed(K, ldk, add, L, ldl, inv, n);
#endif
  return plain::cholesky(K, ldk, add, L, ldl, inv, n);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
