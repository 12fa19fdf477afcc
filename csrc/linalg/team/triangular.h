// SPDX-License-Identifier: Apache-2.0
// Solves with a triangular factor, by a team of threads.
#pragma once

#include "../../common/team.h"
#include "../tile.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace team {

// SOLVE_ROWS unknowns at a time: every thread solves for them, then takes them out of its share of what is left.
template <class V>
OPTLAYER_FUNCTION void lower_solve(const V* L, int ldl, const V* inv, int n, V* x) {
  for (int i = 0; i < n; i += SOLVE_ROWS)
    with_size<SOLVE_ROWS>(n - i, [&](auto R) {
      V xi[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) xi[r] = x[i + r];
      lower_solve_tile(L + i * ldl + i, ldl, inv + i, xi);
      for (int k = i + R.value + rank(); k < n; k += TEAM) {
        V sum = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) subtract_product(sum, L[k * ldl + i + r], xi[r]);
        x[k] = sum;
      }
      sync();
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++)
        if (rank() == r % TEAM) x[i + r] = xi[r];
    });
  sync();
}

template <class V>
OPTLAYER_FUNCTION void lower_solve_transposed(const V* L, int ldl, const V* inv, int n, V* x) {
  for (int i = (n + SOLVE_ROWS - 1) / SOLVE_ROWS * SOLVE_ROWS - SOLVE_ROWS; i >= 0; i -= SOLVE_ROWS)
    with_size<SOLVE_ROWS>(n - i, [&](auto R) {
      const V* row = L + i * ldl;
      V xi[R.value];
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) xi[r] = x[i + r];
      lower_solve_transposed_tile(row + i, ldl, inv + i, xi);
      for (int k = rank(); k < i; k += TEAM) {
        V sum = x[k];
        OPTLAYER_UNROLL for (int r = 0; r < R.value; r++) subtract_product(sum, row[r * ldl + k], xi[r]);
        x[k] = sum;
      }
      sync();
      OPTLAYER_UNROLL for (int r = 0; r < R.value; r++)
        if (rank() == r % TEAM) x[i + r] = xi[r];
    });
  sync();
}

// A thread solves for whole rows: no other thread needs what it writes.
template <class V>
OPTLAYER_INLINE void solve_own_rows(const V* L, int ldl, const V* inv, int n, V* X, int ldx, int rows) {
  for (int i = rank(); i < rows; i += TEAM)
    for (int j = 0; j < n; j += TILE_COLUMNS)
      with_size<TILE_COLUMNS>(n - j, [&](auto S) {
        V c[1][S.value];
        load_tile(c, X + i * ldx + j, 0, 1);
        add_products<-1>(c, X + i * ldx, 0, 1, L + j * ldl, ldl, 1, j);
        solve_tile(c, L + j * ldl + j, ldl, inv + j);
        store_tile(c, X + i * ldx + j, 0, 1);
      });
}

// TILE_COLUMNS neighbours share a row, each with one column of a tile; rows <= TEAM / TILE_COLUMNS.
template <class V>
OPTLAYER_INLINE void solve_shared_rows(const V* L, int ldl, const V* inv, int n, V* X, int ldx, int rows) {
  const int i = rank() / TILE_COLUMNS, own = rank() % TILE_COLUMNS, first = rank() % NEIGHBOURS - own;
  V* row = X + i * ldx;
  for (int j = 0; j < n; j += TILE_COLUMNS)
    with_size<TILE_COLUMNS>(n - j, [&](auto S) {
      V sum(0), other(0), c[1][S.value];
      if (i < rows && own < S.value) {
        const V* factor = L + (j + own) * ldl;
        sum = row[j + own];
        for (int k = 0; k < j; k += 2) {  // j is even
          subtract_product(sum, row[k], factor[k]);
          subtract_product(other, row[k + 1], factor[k + 1]);
        }
      }
      sum += other;
      OPTLAYER_UNROLL for (int s = 0; s < S.value; s++) c[0][s] = neighbour(sum, first + s);
      solve_tile(c, L + j * ldl + j, ldl, inv + j);
      OPTLAYER_UNROLL for (int s = 0; s < S.value; s++)
        if (i < rows && own == s) row[j + s] = c[0][s];
      sync();
    });
}

template <class V>
OPTLAYER_FUNCTION void solve_rows(const V* L, int ldl, const V* inv, int n, V* X, int ldx, int rows) {
  if (rows <= 2) {
    for (int i = 0; i < rows; i++) lower_solve(L, ldl, inv, n, X + i * ldx);
  } else if (rows * TILE_COLUMNS <= TEAM) {
    solve_shared_rows(L, ldl, inv, n, X, ldx, rows);
  } else {
    solve_own_rows(L, ldl, inv, n, X, ldx, rows);
    sync();
  }
}

}  // namespace team
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
