// SPDX-License-Identifier: Apache-2.0
// Products of a matrix with its own transpose.
#pragma once

#include "plain.h"
#include "strip.h"
#include "team/gram.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
static void row_products_packed(const V* R, ptrdiff_t ldr, int rows, int n, V* K, ptrdiff_t ldk) {
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
static void weighted_gram_packed(const V* P, ptrdiff_t ldp, const V* C, ptrdiff_t ldc, const V* g, int rows, int n,
                                 V* H, ptrdiff_t ldh) {
  constexpr int CHUNK = 18432 / (BLOCK * (int)sizeof(V));
  V weighted[CHUNK * BLOCK];
  ptrdiff_t offset[CHUNK];
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

#if !defined(OPTLAYER_DEVICE)

// C += SIGN A B' (or C = A B' without `add`), A (rows, n), B (cols, n); with `lower` only the lower triangle. Strips
// of B are columns of C, rows of A are broadcast.
template <int SIGN>
OPTLAYER_FUNCTION void add_row_products(const double* A, ptrdiff_t lda, int rows, const double* B, ptrdiff_t ldb,
                                        int cols, int n, double* C, ptrdiff_t ldc, bool lower, bool add = true) {
  Wide T[STRIP_COLUMNS * STRIP];
  for (int first = 0; first < n || !add; first += STRIP_COLUMNS) {
    const int depth = n - first < STRIP_COLUMNS ? n - first : STRIP_COLUMNS;
    for (int j = 0; j < cols; j += STRIP_ROWS) {
      const int width = cols - j < STRIP_ROWS ? cols - j : STRIP_ROWS;
      with_size<STRIP>(vectors(width), [&](auto V) __attribute__((always_inline)) {
        constexpr int VECTORS = V.value;
        load_strip<VECTORS>(T, B + j * ldb + first, ldb, width, depth);
        for (int i = lower ? j : 0; i < rows; i += TILE_COLUMNS)
          with_size<TILE_COLUMNS>(rows - i, [&](auto S) __attribute__((always_inline)) {
            Wide c[VECTORS][S.value];
            double* corner = C + i * ldc + j;
            const bool whole = width == VECTORS * WIDTH && (!lower || i >= j + width - 1);
            OPTLAYER_UNROLL for (int s = 0; s < S.value; s++)
              OPTLAYER_UNROLL for (int v = 0; v < VECTORS; v++) {
                const int left = lower && i + s - j + 1 < width ? i + s - j + 1 : width;
                c[v][s] = !add ? Wide(0)
                               : whole ? load(corner + s * ldc + v * WIDTH)
                                       : load_first(corner + s * ldc + v * WIDTH, left - v * WIDTH);
              }
            add_products<SIGN>(c, T, 1, VECTORS, A + i * lda + first, lda, 1, depth);
            OPTLAYER_UNROLL for (int s = 0; s < S.value; s++)
              OPTLAYER_UNROLL for (int v = 0; v < VECTORS; v++) {
                const int left = lower && i + s - j + 1 < width ? i + s - j + 1 : width;
                if (whole)
                  store(corner + s * ldc + v * WIDTH, c[v][s]);
                else
                  store_first(corner + s * ldc + v * WIDTH, c[v][s], left - v * WIDTH);
              }
          });
      });
    }
    add = true;
  }
}

// The upper triangle of K becomes that of K'.
OPTLAYER_FUNCTION void mirror(double* K, ptrdiff_t ldk, int n) {
  for (int i = 0; i < n; i += WIDTH)
    for (int j = 0; j <= i; j += WIDTH) {
      Wide w[WIDTH];
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++)
        w[l] = i + l < n ? load_first(K + (i + l) * ldk + j, i + l - j + 1) : Wide(0);
      transpose(w);
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) {
        const int begin = j + l > i ? j + l - i : 0;  // on the diagonal a row of the triangle begins inside the vector
        for (int k = begin; k < WIDTH && i + k < n && begin > 0; k++) K[(j + l) * ldk + i + k] = w[l].v[k];
        if (begin == 0) store_first(K + (j + l) * ldk + i, w[l], n - i);
      }
    }
}

// Up to here numbers one by one are faster than strips.
constexpr int SMALL_PRODUCTS = 8;

OPTLAYER_FUNCTION void row_products_single(const double* R, ptrdiff_t ldr, int rows, int n, double* K, ptrdiff_t ldk) {
  if (rows <= SMALL_PRODUCTS) return row_products_packed(R, ldr, rows, n, K, ldk);
  add_row_products<1>(R, ldr, rows, R, ldr, rows, n, K, ldk, true, false);
  mirror(K, ldk, rows);
}

OPTLAYER_FUNCTION void weighted_gram_single(const double* P, ptrdiff_t ldp, const double* C, ptrdiff_t ldc,
                                            const double* g, int rows, int n, double* H, ptrdiff_t ldh) {
  constexpr int CHUNK = STRIP_COLUMNS;
  Wide T[CHUNK * STRIP];
  ptrdiff_t offset[CHUNK];
  for (int k = 0; k < rows || P != nullptr;) {
    int depth = 0;
    for (; k < rows && depth < CHUNK; k++)
      if (g[k] != 0) offset[depth++] = k * ldc;
    for (int j = 0; j < n; j += STRIP_ROWS) {
      const int width = n - j < STRIP_ROWS ? n - j : STRIP_ROWS;
      with_size<STRIP>(vectors(width), [&](auto V) __attribute__((always_inline)) {
        constexpr int VECTORS = V.value;
        for (int d = 0; d < depth; d++) {
          const Wide weight(g[offset[d] / ldc]);
          OPTLAYER_UNROLL for (int v = 0; v < VECTORS; v++)
            T[d * VECTORS + v] = weight * load_first(C + offset[d] + j + v * WIDTH, width - v * WIDTH);
        }
        for (int i = j; i < n; i += TILE_COLUMNS)
          with_size<TILE_COLUMNS>(n - i, [&](auto S) __attribute__((always_inline)) {
            Wide c[VECTORS][S.value];
            const double* from = P != nullptr ? P + i * ldp + j : H + i * ldh + j;
            const ptrdiff_t ld = P != nullptr ? ldp : ldh;
            double* corner = H + i * ldh + j;
            const bool whole = width == VECTORS * WIDTH && i >= j + width - 1;
            OPTLAYER_UNROLL for (int s = 0; s < S.value; s++)
              OPTLAYER_UNROLL for (int v = 0; v < VECTORS; v++) {
                const int left = i + s - j + 1 < width ? i + s - j + 1 : width;
                c[v][s] = whole ? load(from + s * ld + v * WIDTH)
                                : load_first(from + s * ld + v * WIDTH, left - v * WIDTH);
              }
            for (int d = 0; d < depth; d++) add_products<1>(c, T + d * VECTORS, 1, 0, C + offset[d] + i, 1, 0, 1);
            OPTLAYER_UNROLL for (int s = 0; s < S.value; s++)
              OPTLAYER_UNROLL for (int v = 0; v < VECTORS; v++) {
                const int left = i + s - j + 1 < width ? i + s - j + 1 : width;
                if (whole)
                  store(corner + s * ldh + v * WIDTH, c[v][s]);
                else
                  store_first(corner + s * ldh + v * WIDTH, c[v][s], left - v * WIDTH);
              }
          });
      });
    }
    P = nullptr;
  }
}

#endif

// K = R R', both triangles, R (rows, n), K (rows, rows).
template <class V>
OPTLAYER_FUNCTION void row_products(const V* R, int ldr, int rows, int n, V* K, int ldk) {
  if constexpr (TEAM > 1) return sync(), team::row_products(R, ldr, rows, n, K, ldk);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return row_products_packed(R, ldr, rows, n, K, ldk);
  if constexpr (is_double<V>) return row_products_single(R, ldr, rows, n, K, ldk);
#endif
  return plain::row_products(R, ldr, rows, n, K, ldk);
}

// The lower triangle of H = P + C' diag(g) C, P (n, n), C (rows, n), g (rows). Rows that have no weight in any lane are
// skipped. H may be P.
template <class V>
OPTLAYER_FUNCTION void weighted_gram(const V* P, int ldp, const V* C, int ldc, const V* g, int rows, int n, V* H,
                                     int ldh) {
  if constexpr (TEAM > 1) return sync(), team::weighted_gram(P, ldp, C, ldc, g, rows, n, H, ldh);
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return weighted_gram_packed(P, ldp, C, ldc, g, rows, n, H, ldh);
  if constexpr (is_double<V>) return weighted_gram_single(P, ldp, C, ldc, g, rows, n, H, ldh);
#endif
  return plain::weighted_gram(P, ldp, C, ldc, g, rows, n, H, ldh);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
