// SPDX-License-Identifier: Apache-2.0
// The Cholesky factorisation by a team of threads.
//
// The matrix stays in registers: every thread has one tile of gram.h, R x R entries of the classes (I, J). Column after
// column is shown to the team, which subtracts
//
//     a_ij -= c_i c_j / d        c the column as it is, d its pivot
//
// so that only a reciprocal lies between one pivot and the next; the square roots are taken by all threads at the end.
// Larger matrices are factorised block after block.
#pragma once

#include "gram.h"
#include "triangular.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace team {

constexpr int most_classes(int classes = 1) {
  return (classes + 1) * (classes + 2) / 2 > TEAM ? classes : most_classes(classes + 1);
}
// So many classes have a thread for each of their pairs; so many entries of a tile stay in registers.
constexpr int CLASSES = most_classes(), MOST_ENTRIES = 5;

template <int R, class V>
OPTLAYER_INLINE bool factor_block(const V* K, int ldk, const V* add, V* L, int ldl, V* inv, int n) {
  const int classes = (n + R - 1) / R;
  Pair pair(rank());
  if (pair.I >= classes) pair.I = pair.J = n;  // a thread without a tile
  const int I = pair.I, J = pair.J;
  V a[R][R];
  OPTLAYER_UNROLL for (int r = 0; r < R; r++)
    OPTLAYER_UNROLL for (int s = 0; s < R; s++) a[r][s] = V(0);
  for_entries<R>(pair, classes, n, [&](int r, int s, int i, int j) {
    a[r][s] = K[i * ldk + j];
    if (i == j && add != nullptr) a[r][s] += add[i];
  });
  OPTLAYER_UNROLL for (int b = 0; b < R; b++)
    for (int c = 0; c < classes; c++) {
      const int k = b * classes + c;
      if (k >= n) break;
      V* column = L + k;
      if (J == c) {
        OPTLAYER_UNROLL for (int r = b; r < R; r++)
          if (I + r * classes < n) column[(I + r * classes) * ldl] = a[r][b];
      } else if (I == c) {
        OPTLAYER_UNROLL for (int s = b + 1; s < R; s++)
          if (J + s * classes < n) column[(J + s * classes) * ldl] = a[b][s];
      }
      if (I == c && J == c) inv[k] = V(1) / a[b][b];
      if (k == n - 1) break;
      sync();
      const V reciprocal = inv[k];
      V left[R], right[R];  // 0 for what is finished
      OPTLAYER_UNROLL for (int r = b; r < R; r++) {
        const int i = I + r * classes, j = J + r * classes;
        left[r] = i > k && i < n ? column[i * ldl] : V(0);
        right[r] = j > k && j < n ? column[j * ldl] * reciprocal : V(0);
      }
      OPTLAYER_UNROLL for (int r = b; r < R; r++)
        OPTLAYER_UNROLL for (int s = b; s < R; s++) subtract_product(a[r][s], left[r], right[s]);
    }
  sync();
  bool ok = true;
  for (int k = rank(); k < n; k += TEAM) {
    const V pivot = L[k * ldl + k], reciprocal = inv[k];
    ok = ok && pivot > V(0) && finite(pivot) && finite(reciprocal);
  }
  ok = team_all(ok);
  for (int k = rank(); k < n; k += TEAM) {
    const V root = square_root(L[k * ldl + k]);
    L[k * ldl + k] = root, inv[k] *= root;
  }
  sync();
  for_entries<R>(pair, classes, n, [&](int r, int s, int i, int j) {
    if (i > j) L[i * ldl + j] = a[r][s] * inv[j];
  });
  sync();
  return ok;
}

template <class V>
OPTLAYER_FUNCTION bool cholesky(const V* K, int ldk, const V* add, V* L, int ldl, V* inv, int n) {
  constexpr int BLOCK_ROWS = CLASSES * MOST_ENTRIES;
  if (n > BLOCK_ROWS && (L != K || add != nullptr)) {
    for (int i = 0; i < n; i++)
      for (int j = rank(); j <= i; j += TEAM) L[i * ldl + j] = K[i * ldk + j] + (i == j && add != nullptr ? add[i] : V(0));
    sync();
    K = L, ldk = ldl, add = nullptr;
  }
  bool ok = true;
  for (int begin = 0; begin < n; begin += BLOCK_ROWS) {
    const int size = n - begin < BLOCK_ROWS ? n - begin : BLOCK_ROWS, rest = n - begin - size;
    V *corner = L + begin * ldl + begin, *below = corner + size * ldl;
    with_size<MOST_ENTRIES>((size + CLASSES - 1) / CLASSES, [&](auto R) {
      const bool done = factor_block<R.value>(K + begin * ldk + begin, ldk, add, corner, ldl, inv + begin, size);
      ok = done && ok;
    });
    if (rest == 0) break;
    solve_rows(corner, ldl, inv + begin, size, below, ldl, rest);
    subtract_row_products(below, ldl, rest, size, below + size, ldl);
  }
  return ok;
}

}  // namespace team
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
