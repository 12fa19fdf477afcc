// SPDX-License-Identifier: Apache-2.0
// What the fast kernels are made of: a tile of a matrix that stays in vector registers while products are added to it.
//
// A tile has R x S values X, each a vector register. Its rows come from an array of X, its columns from an array of V,
// which is X itself (packs: every lane has its own matrix) or double (one matrix, whose rows lie in the lanes).
#pragma once

#include "../common/pack.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// Rows of a tile, columns of a tile: so many registers are in use at once as there are, TILE_ROWS * TILE_COLUMNS sums,
// TILE_ROWS factors and one more. BLOCK rows (a multiple of both) share what is read from the other matrix.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 4;
#else
constexpr int TILE_ROWS = 3;
#endif
constexpr int TILE_COLUMNS = 4;
constexpr int BLOCK = 12;

// One problem in numbers, where strip.h makes vectors of a matrix.
template <class V>
constexpr bool is_double = false;
template <>
constexpr bool is_double<double> = true;

// A size known to the compiler.
template <int N>
struct Size {
  static constexpr int value = N;
};

// f(Size<size>()) for 1 <= size <= MOST.
template <int MOST, class F>
OPTLAYER_INLINE void with_size(int size, F&& f) {
  if constexpr (MOST == 1) {
    f(Size<1>());
  } else {
    if (size >= MOST)
      f(Size<MOST>());
    else
      with_size<MOST - 1>(size, f);
  }
}

// The rows of the next tile where `left` are left: MOST of them, the last ones in equal parts.
template <int MOST>
OPTLAYER_INLINE int next_rows(int left) {
  return left >= 2 * MOST ? MOST : left > MOST ? (left + 1) / 2 : left;
}

// f(i, Size<R>()) for the tiles that rows [begin, end) are cut into.
template <class F>
OPTLAYER_INLINE void for_tiles(int begin, int end, F&& f) {
  for (int i = begin; i < end;) {
    int size = next_rows<TILE_ROWS>(end - i);
    with_size<TILE_ROWS>(size, [&](auto R) __attribute__((always_inline)) { f(i, R); });
    i += size;
  }
}

// c += sign A B', A (R, depth) with strides ra from row to row and ka from column to column, B (S, depth).
template <int SIGN, int R, int S, class X, class V>
OPTLAYER_INLINE void add_products(X (&c)[R][S], const X* a, ptrdiff_t ra, ptrdiff_t ka, const V* b, ptrdiff_t sb,
                                  ptrdiff_t kb, int depth) {
  for (int k = 0; k < depth; k++) {
    X left[R];
    OPTLAYER_UNROLL for (int r = 0; r < R; r++) {
      X value(a[r * ra + k * ka]);
      if (S > 1) in_register(value);
      left[r] = value;
    }
    OPTLAYER_UNROLL for (int s = 0; s < S; s++) {
      X right(b[s * sb + k * kb]);
      if (R > 1) in_register(right);
      OPTLAYER_UNROLL for (int r = 0; r < R; r++) {
        if constexpr (SIGN > 0)
          add_product(c[r][s], left[r], right);
        else
          subtract_product(c[r][s], left[r], right);
      }
    }
  }
}

template <int R, int S, class X>
OPTLAYER_INLINE void load_tile(X (&c)[R][S], const X* a, ptrdiff_t ra, ptrdiff_t ka) {
  OPTLAYER_UNROLL for (int r = 0; r < R; r++)
    OPTLAYER_UNROLL for (int s = 0; s < S; s++) c[r][s] = (a + r * ra)[s * ka];
}

template <int R, int S, class X>
OPTLAYER_INLINE void store_tile(const X (&c)[R][S], X* a, ptrdiff_t ra, ptrdiff_t ka) {
  OPTLAYER_UNROLL for (int r = 0; r < R; r++)
    OPTLAYER_UNROLL for (int s = 0; s < S; s++) (a + r * ra)[s * ka] = c[r][s];
}

// c = c L^-T, L (S, S) lower.
template <int R, int S, class X, class V>
OPTLAYER_INLINE void solve_tile(X (&c)[R][S], const V* L, ptrdiff_t ldl, const V* inv) {
  OPTLAYER_UNROLL for (int s = 0; s < S; s++) {
    OPTLAYER_UNROLL for (int t = 0; t < s; t++) {
      X factor((L + s * ldl)[t]);
      if (R > 1) in_register(factor);
      OPTLAYER_UNROLL for (int r = 0; r < R; r++) subtract_product(c[r][s], c[r][t], factor);
    }
    X factor(inv[s]);
    if (R > 1) in_register(factor);
    OPTLAYER_UNROLL for (int r = 0; r < R; r++) c[r][s] *= factor;
  }
}

// Positive normal numbers.
template <class V>
constexpr double LEAST_PIVOT = sizeof(Scalar<V>) == 8 ? 2.3e-308 : 1.2e-38;
template <class V>
constexpr double LARGEST_PIVOT = sizeof(Scalar<V>) == 8 ? 1.7e308 : 3.4e38;

// The Cholesky factor of the lower triangle of c in its place, and the reciprocals of the diagonal. What a pivot takes
// from the rows below needs its reciprocal only: the square root is off the critical path.
template <int S, class V>
OPTLAYER_INLINE void factor_tile(V (&c)[S][S], V* inv, Mask<V>& ok) {
  OPTLAYER_UNROLL for (int s = 0; s < S; s++) {
    const V pivot = c[s][s], reciprocal = V(1) / pivot, root = square_root(pivot);
    ok = ok && pivot >= V(LEAST_PIVOT<V>) && pivot <= V(LARGEST_PIVOT<V>);
    OPTLAYER_UNROLL for (int t = s + 1; t < S; t++) {
      const V factor = c[t][s] * reciprocal;
      OPTLAYER_UNROLL for (int r = t; r < S; r++) subtract_product(c[r][t], c[r][s], factor);
    }
    const V inverse = root * reciprocal;
    inv[s] = inverse;
    c[s][s] = root;
    OPTLAYER_UNROLL for (int r = s + 1; r < S; r++) c[r][s] *= inverse;
  }
}

// So many rows of the factor are read side by side in a solve: as many sums keep the multipliers busy.
constexpr int SOLVE_ROWS = 8;

// a b, rounded before it meets a sum. The compiler would fuse it with that sum in one tile and not in another, and the
// bits of a lane would depend on the size of its neighbours' factors.
template <class V>
OPTLAYER_INLINE V rounded_product(V a, V b) {
  return a * b;
}
#if !defined(__CUDACC__)
template <class S, int W>
OPTLAYER_INLINE Pack<S, W> rounded_product(Pack<S, W> a, Pack<S, W> b) {
#if defined(__clang__)
#pragma clang fp contract(off)
  return a.v * b.v;
#elif __GNUC__ >= 12
  return __builtin_assoc_barrier(a.v * b.v);
#else
  return a.v * b.v;
#endif
}
#endif

// x = L^-1 x, L (R, R). Between one x and the next is one multiply-add: rows are divided by their pivots beforehand.
template <int R, class V>
OPTLAYER_INLINE void lower_solve_tile(const V* L, ptrdiff_t ldl, const V* inv, V (&x)[R]) {
  OPTLAYER_UNROLL for (int r = 0; r < R; r++) x[r] = rounded_product(x[r], inv[r]);
  OPTLAYER_UNROLL for (int s = 0; s < R; s++)
    OPTLAYER_UNROLL for (int r = s + 1; r < R; r++) subtract_product(x[r], (L + r * ldl)[s] * inv[r], x[s]);
}

// x = L^-T x.
template <int R, class V>
OPTLAYER_INLINE void lower_solve_transposed_tile(const V* L, ptrdiff_t ldl, const V* inv, V (&x)[R]) {
  OPTLAYER_UNROLL for (int r = 0; r < R; r++) x[r] = rounded_product(x[r], inv[r]);
  OPTLAYER_UNROLL for (int s = R - 1; s >= 0; s--)
    OPTLAYER_UNROLL for (int r = 0; r < s; r++) subtract_product(x[r], (L + s * ldl)[r] * inv[r], x[s]);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
