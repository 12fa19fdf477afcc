// SPDX-License-Identifier: Apache-2.0
// One matrix in vector registers: a strip holds some of its rows transposed, so that each row is a lane and the kernels
// of tile.h apply, whose other factor is then read number by number and broadcast. There are no remainders along a row,
// and a triangular solve needs nothing from another lane.
#pragma once

#include "tile.h"

namespace optlayer {
namespace OPTLAYER_ISA {

#if !defined(OPTLAYER_DEVICE)

#if defined(__AVX512F__)
constexpr int WIDTH = 8;
#elif defined(__AVX__)
constexpr int WIDTH = 4;
#else
constexpr int WIDTH = 2;
#endif
using Wide = Pack<double, WIDTH>;

// Vectors and rows of a strip. STRIP_ROWS is a multiple of TILE_COLUMNS. STRIP_COLUMNS of them fit the nearest cache.
#if defined(__AVX__)
constexpr int STRIP = 3;
#else
constexpr int STRIP = TILE_ROWS == 4 ? 4 : 2;
#endif
constexpr int STRIP_ROWS = STRIP * WIDTH;
constexpr int STRIP_COLUMNS = 192;

// The vectors that so many rows need.
OPTLAYER_INLINE int vectors(int rows) { return (rows + WIDTH - 1) / WIDTH; }

OPTLAYER_INLINE Wide load(const double* a) {
  Wide w;
  memcpy(&w.v, a, sizeof w);
  return w;
}
OPTLAYER_INLINE void store(double* a, Wide w) { memcpy(a, &w.v, sizeof w); }

#if defined(__AVX512F__)
OPTLAYER_INLINE Wide load_some(const double* a, int count) {
  return {(Wide::Raw)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), a)};
}
OPTLAYER_INLINE void store_some(double* a, Wide w, int count) {
  _mm512_mask_storeu_pd(a, (__mmask8)((1u << count) - 1), w.v);
}
#elif defined(__AVX__)
OPTLAYER_INLINE __m256i first_lanes(int count) {
  static const int64_t ones_and_zeros[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones_and_zeros + 4 - count));
}
OPTLAYER_INLINE Wide load_some(const double* a, int count) {
  return {(Wide::Raw)_mm256_maskload_pd(a, first_lanes(count))};
}
OPTLAYER_INLINE void store_some(double* a, Wide w, int count) { _mm256_maskstore_pd(a, first_lanes(count), w.v); }
#else
OPTLAYER_INLINE Wide load_some(const double* a, int count) {
  Wide w(0);
  if (count > 0) w.v[0] = a[0];
  if (count > 1) w.v[1] = a[1];
  return w;
}
OPTLAYER_INLINE void store_some(double* a, Wide w, int count) {
  if (count > 0) a[0] = w.v[0];
  if (count > 1) a[1] = w.v[1];
}
#endif

// The first `count` numbers (any int) into the first lanes, 0 in the others; and back.
OPTLAYER_INLINE Wide load_first(const double* a, int count) {
  return count >= WIDTH ? load(a) : count > 0 ? load_some(a, count) : Wide(0);
}
OPTLAYER_INLINE void store_first(double* a, Wide w, int count) {
  if (count >= WIDTH)
    store(a, w);
  else if (count > 0)
    store_some(a, w, count);
}

#if defined(__AVX512F__)
OPTLAYER_INLINE void transpose(Wide* w) {
  __m512d pairs[8], quads[8];
  OPTLAYER_UNROLL for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_maskz_unpacklo_pd((__mmask8)-1, w[i].v, w[i + 1].v);
    pairs[i + 1] = _mm512_maskz_unpackhi_pd((__mmask8)-1, w[i].v, w[i + 1].v);
  }
  OPTLAYER_UNROLL for (int i = 0; i < 8; i += 4) {
    OPTLAYER_UNROLL for (int j = 0; j < 2; j++) {
      quads[i + j] = _mm512_maskz_shuffle_f64x2((__mmask8)-1, pairs[i + j], pairs[i + j + 2], 0x88);
      quads[i + j + 2] = _mm512_maskz_shuffle_f64x2((__mmask8)-1, pairs[i + j], pairs[i + j + 2], 0xdd);
    }
  }
  OPTLAYER_UNROLL for (int j = 0; j < 4; j++) {
    w[j].v = (Wide::Raw)_mm512_maskz_shuffle_f64x2((__mmask8)-1, quads[j], quads[j + 4], 0x88);
    w[j + 4].v = (Wide::Raw)_mm512_maskz_shuffle_f64x2((__mmask8)-1, quads[j], quads[j + 4], 0xdd);
  }
}
#elif defined(__AVX__)
OPTLAYER_INLINE void transpose(Wide* w) {
  const __m256d a = _mm256_unpacklo_pd(w[0].v, w[1].v), b = _mm256_unpackhi_pd(w[0].v, w[1].v);
  const __m256d c = _mm256_unpacklo_pd(w[2].v, w[3].v), d = _mm256_unpackhi_pd(w[2].v, w[3].v);
  w[0].v = (Wide::Raw)_mm256_permute2f128_pd(a, c, 0x20);
  w[1].v = (Wide::Raw)_mm256_permute2f128_pd(b, d, 0x20);
  w[2].v = (Wide::Raw)_mm256_permute2f128_pd(a, c, 0x31);
  w[3].v = (Wide::Raw)_mm256_permute2f128_pd(b, d, 0x31);
}
#else
OPTLAYER_INLINE void transpose(Wide* w) {
  const Wide::Raw a = {w[0].v[0], w[1].v[0]}, b = {w[0].v[1], w[1].v[1]};
  w[0].v = a, w[1].v = b;
}
#endif

// Lane l of the result is the sum of the lanes of w[l].
OPTLAYER_INLINE Wide lane_sums(Wide* w) {
  transpose(w);
  OPTLAYER_UNROLL for (int step = WIDTH / 2; step > 0; step /= 2)
    OPTLAYER_UNROLL for (int i = 0; i < step; i++) w[i] += w[i + step];
  return w[0];
}
OPTLAYER_INLINE double lane_sum(Wide w) {
  double lanes[WIDTH];
  store(lanes, w);
  OPTLAYER_UNROLL for (int step = WIDTH / 2; step > 0; step /= 2)
    OPTLAYER_UNROLL for (int i = 0; i < step; i++) lanes[i] += lanes[i + step];
  return lanes[0];
}

// The strip T of `rows` rows of M: row r, column k is lane r % WIDTH of T[k * VECTORS + r / WIDTH]. Lanes without a row
// repeat the last one.
template <int VECTORS>
OPTLAYER_INLINE void load_strip(Wide* T, const double* M, ptrdiff_t ld, int rows, int cols) {
  OPTLAYER_UNROLL for (int v = 0; v < VECTORS; v++) {
    const double* row[WIDTH];
    OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) {
      const int r = v * WIDTH + l;
      row[l] = M + (r < rows ? r : rows - 1) * ld;
    }
    int k = 0;
    for (; k + WIDTH <= cols; k += WIDTH) {
      Wide w[WIDTH];
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) w[l] = load(row[l] + k);
      transpose(w);
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) T[(k + l) * VECTORS + v] = w[l];
    }
    if (k < cols) {
      Wide w[WIDTH];
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) w[l] = load_some(row[l] + k, cols - k);
      transpose(w);
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++)
        if (k + l < cols) T[(k + l) * VECTORS + v] = w[l];
    }
  }
}

// Back to M; of row r only the columns below limit + r where the strip reaches past the diagonal.
template <int VECTORS>
OPTLAYER_INLINE void store_strip(const Wide* T, double* M, ptrdiff_t ld, int rows, int cols, int limit) {
  OPTLAYER_UNROLL for (int v = 0; v < VECTORS; v++)
    for (int k = 0; k < cols; k += WIDTH) {
      Wide w[WIDTH];
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) w[l] = T[(k + l < cols ? k + l : k) * VECTORS + v];
      transpose(w);
      OPTLAYER_UNROLL for (int l = 0; l < WIDTH; l++) {
        const int r = v * WIDTH + l, bound = limit + r < cols ? limit + r : cols;
        if (r < rows) store_first(M + r * ld + k, w[l], bound - k);
      }
    }
}

#endif

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
