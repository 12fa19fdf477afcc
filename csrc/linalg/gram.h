// SPDX-License-Identifier: Apache-2.0
// Products of a matrix with its own transpose.
#pragma once

#include "plain.h"
#include "tile.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
static void row_products_packed(const V* R, int ldr, int rows, int n, V* K, int ldk) {
  for (int begin = 0; begin < rows; begin += BLOCK) {
    const int end = begin + BLOCK < rows ? begin + BLOCK : rows;
    for (int j = 0; j < end; j += TILE_COLUMNS)
      with_size<TILE_COLUMNS>(end - j, [&](auto S) __attribute__((always_inline)) {
        for_tiles(begin, end, [&](int i, auto T) __attribute__((always_inline)) {
          if (j >= i + T.value) return;  // above the diagonal
          V c[T.value][S.value];
          OPTLAYER_UNROLL for (int r = 0; r < T.value; r++)
            OPTLAYER_UNROLL for (int s = 0; s < S.value; s++) c[r][s] = V(0);
          add_products<1>(c, R + i * ldr, ldr, 1, R + j * ldr, ldr, 1, n);
          store_tile(c, K + i * ldk + j, ldk, 1);
          store_tile(c, K + j * ldk + i, 1, ldk);
        });
      });
  }
}

// Rows of C are taken in chunks: for BLOCK columns of H, a chunk of those columns times its weights is kept in the
// nearest cache (18 KB), and the other columns pass by.
template <class V>
static void weighted_gram_packed(const V* P, int ldp, const V* C, int ldc, const V* g, int rows, int n, V* H, int ldh) {
  constexpr int CHUNK = 18432 / (BLOCK * (int)sizeof(V));
  V weighted[CHUNK * BLOCK];
  int offset[CHUNK];
  for (int k = 0; k < rows || P != nullptr;) {
    int depth = 0;
    for (; k < rows && depth < CHUNK; k++)
      if (any(g[k] != V(0))) offset[depth++] = k * ldc;
    for (int begin = 0; begin < n; begin += BLOCK) {
      const int end = begin + BLOCK < n ? begin + BLOCK : n;
      for (int d = 0; d < depth; d++) {
        const V weight = g[offset[d] / ldc];
        for (int i = begin; i < end; i++) weighted[d * BLOCK + i - begin] = weight * C[offset[d] + i];
      }
      for (int j = 0; j < end; j += TILE_COLUMNS)
        with_size<TILE_COLUMNS>(end - j, [&](auto S) __attribute__((always_inline)) {
          for_tiles(begin, end, [&](int i, auto T) __attribute__((always_inline)) {
            if (j >= i + T.value) return;  // above the diagonal
            V c[T.value][S.value];
            if (P != nullptr)
              OPTLAYER_UNROLL for (int r = 0; r < T.value; r++)
                OPTLAYER_UNROLL for (int s = 0; s < S.value; s++) c[r][s] = P[(i + r) * ldp + j + s];
            else
              load_tile(c, H + i * ldh + j, ldh, 1);
            for (int d = 0; d < depth; d++)
              add_products<1>(c, weighted + d * BLOCK + i - begin, 1, 0, C + offset[d] + j, 1, 0, 1);
            OPTLAYER_UNROLL for (int r = 0; r < T.value; r++)
              OPTLAYER_UNROLL for (int s = 0; s < S.value; s++)
                if (j + s <= i + r) H[(i + r) * ldh + j + s] = c[r][s];
          });
        });
    }
    P = nullptr;
  }
}

// K = R R', both triangles, R (rows, n), K (rows, rows).
template <class V>
OPTLAYER_FUNCTION void row_products(const V* R, int ldr, int rows, int n, V* K, int ldk) {
#if !defined(__CUDACC__)
  if constexpr (lanes<V> > 1) return row_products_packed(R, ldr, rows, n, K, ldk);
#endif
  return plain::row_products(R, ldr, rows, n, K, ldk);
}

// The lower triangle of H = P + C' diag(g) C, P (n, n), C (rows, n), g (rows). Rows that have no weight in any lane are
// skipped. H may be P.
template <class V>
OPTLAYER_FUNCTION void weighted_gram(const V* P, int ldp, const V* C, int ldc, const V* g, int rows, int n, V* H,
                                     int ldh) {
#if !defined(__CUDACC__)
  if constexpr (lanes<V> > 1) return weighted_gram_packed(P, ldp, C, ldc, g, rows, n, H, ldh);
#endif
  return plain::weighted_gram(P, ldp, C, ldc, g, rows, n, H, ldh);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
