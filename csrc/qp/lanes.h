// SPDX-License-Identifier: Apache-2.0
// Between arrays of the caller, one element after the other, and values V, one element to a lane: a transpose.
//
// `offsets` holds for every lane the index of its element's first value; to lanes where that is negative nothing is
// stored. Arrays are float64, or float32 where `single`.
// `step` is the distance in values V from one to the next: 1 for a vector, the leading dimension for a column.
#pragma once

#include "../common/team.h"
#include "call.h"

namespace optlayer {
namespace OPTLAYER_ISA {

OPTLAYER_INLINE double value(const void* data, bool single, int64_t i) {
  return single ? (double)static_cast<const float*>(data)[i] : static_cast<const double*>(data)[i];
}
OPTLAYER_INLINE void assign(void* data, bool single, int64_t i, double a) {
  if (single)
    static_cast<float*>(data)[i] = (float)a;
  else
    static_cast<double*>(data)[i] = a;
}

template <class V>
OPTLAYER_INLINE bool alike(const int64_t* offsets) {
  bool same = true;
  for (int l = 1; l < lanes<V>; l++) same = same && offsets[l] == offsets[0];
  return same;
}

#if !defined(__CUDACC__)

// W rows of W values, transposed in registers: stage by stage the blocks off the diagonal change places.
template <int W>
struct Square;

#define OPTLAYER_SWAP(a, b, low, high)                   \
  {                                                      \
    const Raw x = a, y = b;                              \
    a = __builtin_shufflevector(x, y, OPTLAYER_LIST low);  \
    b = __builtin_shufflevector(x, y, OPTLAYER_LIST high); \
  }
#define OPTLAYER_LIST(...) __VA_ARGS__

template <>
struct Square<2> {
  using Raw = Vector<double, 2>::Raw;
  typedef float Half __attribute__((vector_size(8)));
  static OPTLAYER_MEMBER void transpose(Raw* t) { OPTLAYER_SWAP(t[0], t[1], (0, 2), (1, 3)) }
};

template <>
struct Square<4> {
  using Raw = Vector<double, 4>::Raw;
  typedef float Half __attribute__((vector_size(16)));
  static OPTLAYER_MEMBER void transpose(Raw* t) {
    OPTLAYER_UNROLL for (int i = 0; i < 4; i += 2) OPTLAYER_SWAP(t[i], t[i + 1], (0, 4, 2, 6), (1, 5, 3, 7))
    OPTLAYER_UNROLL for (int i = 0; i < 2; i++) OPTLAYER_SWAP(t[i], t[i + 2], (0, 1, 4, 5), (2, 3, 6, 7))
  }
};

template <>
struct Square<8> {
  using Raw = Vector<double, 8>::Raw;
  typedef float Half __attribute__((vector_size(32)));
  static OPTLAYER_MEMBER void transpose(Raw* t) {
    OPTLAYER_UNROLL for (int i = 0; i < 8; i += 2)
      OPTLAYER_SWAP(t[i], t[i + 1], (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15))
    OPTLAYER_UNROLL for (int i = 0; i < 8; i++)
      if ((i & 2) == 0) OPTLAYER_SWAP(t[i], t[i + 2], (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
    OPTLAYER_UNROLL for (int i = 0; i < 4; i++)
      OPTLAYER_SWAP(t[i], t[i + 4], (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
  }
};

#undef OPTLAYER_LIST
#undef OPTLAYER_SWAP

// W consecutive values of type S.
template <class S, int W>
OPTLAYER_INLINE typename Square<W>::Raw consecutive(const S* data) {
  if constexpr (sizeof(S) == sizeof(float)) {
    typename Square<W>::Half half;
    memcpy(&half, data, sizeof half);
    return __builtin_convertvector(half, typename Square<W>::Raw);
  } else {
    typename Square<W>::Raw raw;
    memcpy(&raw, data, sizeof raw);
    return raw;
  }
}
template <class S, int W>
OPTLAYER_INLINE void assign_consecutive(S* data, typename Square<W>::Raw raw) {
  if constexpr (sizeof(S) == sizeof(float)) {
    const typename Square<W>::Half half = __builtin_convertvector(raw, typename Square<W>::Half);
    memcpy(data, &half, sizeof half);
  } else {
    memcpy(data, &raw, sizeof raw);
  }
}

// Whole squares; the last one overlaps the one before it. Returns how many values that were: all, or none if they are
// fewer than W.
template <class S, int W>
OPTLAYER_INLINE int64_t load_squares(const S* data, const int64_t* offsets, int64_t count, Pack<double, W>* to,
                                     int64_t step) {
  if (count < W) return 0;
  for (int64_t i = 0; i < count; i += W) {
    if (i + W > count) i = count - W;
    typename Square<W>::Raw t[W];
    OPTLAYER_UNROLL for (int l = 0; l < W; l++) t[l] = consecutive<S, W>(data + offsets[l] + i);
    Square<W>::transpose(t);
    OPTLAYER_UNROLL for (int l = 0; l < W; l++) to[(i + l) * step].v = t[l];
  }
  return count;
}
template <class S, int W>
OPTLAYER_INLINE int64_t store_squares(const Pack<double, W>* from, int64_t count, S* data, const int64_t* offsets,
                                      int used, int64_t step) {
  if (count < W) return 0;
  for (int64_t i = 0; i < count; i += W) {
    if (i + W > count) i = count - W;
    typename Square<W>::Raw t[W];
    OPTLAYER_UNROLL for (int l = 0; l < W; l++) t[l] = from[(i + l) * step].v;
    Square<W>::transpose(t);
    OPTLAYER_UNROLL for (int l = 0; l < W; l++)
      if (l < used && offsets[l] >= 0) assign_consecutive<S, W>(data + offsets[l] + i, t[l]);
  }
  return count;
}

// One lane from each of W values: lane l of base[index[l]].
template <class S, int W>
OPTLAYER_INLINE Pack<S, W> gathered(const Pack<S, W>* base, const int32_t* index) {
  typename Pack<S, W>::Raw raw = {};
  OPTLAYER_UNROLL for (int l = 0; l < W; l++) raw[l] = lane(base[index[l]], l);
  return raw;
}

// Rounded to float32 and back.
template <int W>
OPTLAYER_INLINE Pack<double, W> rounded(Pack<double, W> a) {
  return {__builtin_convertvector(__builtin_convertvector(a.v, typename Square<W>::Half), typename Square<W>::Raw)};
}

#endif

OPTLAYER_INLINE double gathered(const double* base, const int32_t* index) { return base[*index]; }
OPTLAYER_INLINE double rounded(double a) { return (double)(float)a; }

// Of a scalar there is nothing to transpose.
template <class S>
OPTLAYER_INLINE int64_t load_squares(const S*, const int64_t*, int64_t, double*, int64_t) {
  return 0;
}
template <class S>
OPTLAYER_INLINE int64_t store_squares(const double*, int64_t, S*, const int64_t*, int, int64_t) {
  return 0;
}

template <class S, class V>
OPTLAYER_INLINE void load_as(const S* data, const int64_t* offsets, int64_t count, V* to, int64_t step) {
  if (alike<V>(offsets)) {
    for (int64_t i = own(0); i < count; i += TEAM) to[i * step] = V((double)data[offsets[0] + i]);
    return;
  }
  for (int64_t i = own(load_squares(data, offsets, count, to, step)); i < count; i += TEAM)
    for (int l = 0; l < lanes<V>; l++) lane(to[i * step], l) = data[offsets[l] + i];
}
template <class S, class V>
OPTLAYER_INLINE void store_as(const V* from, int64_t count, S* data, const int64_t* offsets, int used, int64_t step) {
  for (int64_t i = own(store_squares(from, count, data, offsets, used, step)); i < count; i += TEAM)
    for (int l = 0; l < used; l++)
      if (offsets[l] >= 0) data[offsets[l] + i] = (S)lane(from[i * step], l);
}

// Zero bytes, a multiple of four of them.
OPTLAYER_FUNCTION void clear(void* to, size_t bytes) {
  if (TEAM == 1) {
    memset(to, 0, bytes);
  } else {
    for (size_t i = own(0); i < bytes / 4; i += TEAM) static_cast<uint32_t*>(to)[i] = 0;
  }
}

// to[i] = value i of the element in each lane.
template <class V>
OPTLAYER_FUNCTION void load(const void* data, bool single, const int64_t* offsets, int64_t count, V* to,
                            int64_t step = 1) {
  if (single)
    load_as(static_cast<const float*>(data), offsets, count, to, step);
  else
    load_as(static_cast<const double*>(data), offsets, count, to, step);
}

// The same for a matrix, row after row; columns beyond `cols` become zero.
template <class V>
OPTLAYER_FUNCTION void load_rows(const void* data, bool single, const int64_t* offsets, int rows, int cols, int ld,
                                 V* to) {
  if (ld == cols) {
    load(data, single, offsets, (int64_t)rows * cols, to);
    return;
  }
  int64_t at[lanes<V>];
  for (int l = 0; l < lanes<V>; l++) at[l] = offsets[l];
  for (int i = 0; i < rows; i++) {
    load(data, single, at, cols, to + (size_t)i * ld);
    for (int j = own(cols); j < ld; j += TEAM) to[(size_t)i * ld + j] = V(0);
    for (int l = 0; l < lanes<V>; l++) at[l] += cols;
  }
}

#if !defined(__CUDACC__)

OPTLAYER_INLINE void load_tile(const double* from, int ld, Square<4>::Raw* t) {
  OPTLAYER_UNROLL for (int k = 0; k < 4; k++) memcpy(t + k, from + (size_t)k * ld, sizeof *t);
}
OPTLAYER_INLINE void store_tile(const Square<4>::Raw* t, double* to, int ld) {
  OPTLAYER_UNROLL for (int k = 0; k < 4; k++) memcpy(to + (size_t)k * ld, t + k, sizeof *t);
}

// Tiles of one matrix across the diagonal; returns the rows and columns that were taken care of.
OPTLAYER_INLINE int symmetrise_tiles(double* M, int ld, int n) {
  const int whole = n / 4 * 4;
  for (int i = 0; i < whole; i += 4)
    for (int j = 0; j <= i; j += 4) {
      Square<4>::Raw a[4], b[4];
      double *low = M + (size_t)i * ld + j, *high = M + (size_t)j * ld + i;
      load_tile(low, ld, a), load_tile(high, ld, b);
      Square<4>::transpose(b);
      OPTLAYER_UNROLL for (int k = 0; k < 4; k++) a[k] = 0.5 * (a[k] + b[k]);
      store_tile(a, low, ld);
      Square<4>::transpose(a);
      store_tile(a, high, ld);
    }
  return whole;
}

template <int W>
OPTLAYER_INLINE int symmetrise_tiles(Pack<double, W>*, int, int) {
  return 0;
}

#else
OPTLAYER_INLINE int symmetrise_tiles(double*, int, int) { return 0; }
#endif

// M = (M + M') / 2.
template <class V>
OPTLAYER_FUNCTION void symmetrise(V* M, int ld, int n) {
  for (int i = symmetrise_tiles(M, ld, n); i < n; i++)
    for (int j = own(0); j < i; j += TEAM) {
      V &low = M[(size_t)i * ld + j], &high = M[(size_t)j * ld + i];
      low = high = V(0.5) * (low + high);
    }
}

// The first k rows of a lower triangle.
template <class V>
OPTLAYER_FUNCTION void load_lower(const double* data, const int64_t* offsets, int k, V* L, int ld) {
  int64_t row[lanes<V>];
  for (int i = 0; i < k; i++) {
    for (int l = 0; l < lanes<V>; l++) row[l] = offsets[l] + triangle(i);
    load(data, false, row, i + 1, L + (size_t)i * ld);
  }
}

// Value i of the element in each of the first `used` lanes = from[i].
template <class V>
OPTLAYER_FUNCTION void store(const V* from, int64_t count, void* data, bool single, const int64_t* offsets, int used,
                             int64_t step = 1) {
  if (single)
    store_as(from, count, static_cast<float*>(data), offsets, used, step);
  else
    store_as(from, count, static_cast<double*>(data), offsets, used, step);
}

// A lower triangle (rows, rows), of which L holds the first k rows and the identity is the rest.
template <class V>
OPTLAYER_FUNCTION void store_lower(const V* L, int ld, int k, int rows, double* data, const int64_t* offsets, int used) {
  int64_t row[lanes<V>];
  for (int i = 0; i < rows; i++) {
    for (int l = 0; l < used; l++) row[l] = offsets[l] + triangle(i);
    if (i < k) {
      store(L + (size_t)i * ld, i + 1, data, false, row, used);
      continue;
    }
    for (int l = 0; l < used; l++)
      for (int j = own(0); offsets[l] >= 0 && j <= i; j += TEAM) data[row[l] + j] = j == i;
  }
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
