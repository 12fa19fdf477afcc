// SPDX-License-Identifier: Apache-2.0
// The value types of the kernels. The algorithm is written once for a type V that is either
//
//   double, float          one problem at a time (a CPU core, or a thread of a GPU)
//   Pack<S, W>             W problems side by side, one to a SIMD lane: every operation acts on all lanes at once
//
// and never branches on a value of V: it selects by masks. A lane's arithmetic does not depend on its neighbours.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define OPTLAYER_MEMBER __host__ __device__ __forceinline__
#define OPTLAYER_INLINE __host__ __device__ __forceinline__
#define OPTLAYER_UNROLL _Pragma("unroll")
#else
#define OPTLAYER_MEMBER __attribute__((always_inline)) inline
#define OPTLAYER_INLINE static inline __attribute__((always_inline))
#define OPTLAYER_UNROLL _Pragma("GCC unroll 16")
#endif

// Every instruction set has its own copy of the kernels, in a namespace of its own.
#ifndef OPTLAYER_ISA
#define OPTLAYER_ISA baseline
#endif

namespace optlayer {
namespace OPTLAYER_ISA {

// ---- one problem -----------------------------------------------------------------------------------------------------

template <class V>
struct Traits {
  using Scalar = V;
  using Mask = bool;
  static constexpr int lanes = 1;
};

OPTLAYER_INLINE double select(bool m, double a, double b) { return m ? a : b; }
OPTLAYER_INLINE float select(bool m, float a, float b) { return m ? a : b; }
OPTLAYER_INLINE bool any(bool m) { return m; }
OPTLAYER_INLINE double square_root(double a) { return ::sqrt(a); }
OPTLAYER_INLINE float square_root(float a) { return ::sqrtf(a); }
OPTLAYER_INLINE double absolute(double a) { return ::fabs(a); }
OPTLAYER_INLINE float absolute(float a) { return ::fabsf(a); }

// The power of two nearest to a > 0 (a mantissa below 1.5 rounds down): scaling by it is exact.
OPTLAYER_INLINE double power_of_two(double a) {
  uint64_t bits;
  memcpy(&bits, &a, 8);
  bits = (bits + 0x0008000000000000ull) & 0x7ff0000000000000ull;
  memcpy(&a, &bits, 8);
  return a;
}

// ---- one problem a lane ----------------------------------------------------------------------------------------------

#if !defined(__CUDACC__)

// The compiler's own vector types; it wants each spelt out.
template <class S, int W>
struct Vector;
#define OPTLAYER_VECTOR(S, I, W)                          \
  template <>                                             \
  struct Vector<S, W> {                                   \
    typedef S Raw __attribute__((vector_size(W * sizeof(S)))); \
    typedef I Bits __attribute__((vector_size(W * sizeof(S)))); \
    typedef I Bit;                                        \
  };
OPTLAYER_VECTOR(double, int64_t, 2)
OPTLAYER_VECTOR(double, int64_t, 4)
OPTLAYER_VECTOR(double, int64_t, 8)
OPTLAYER_VECTOR(float, int32_t, 4)
OPTLAYER_VECTOR(float, int32_t, 8)
OPTLAYER_VECTOR(float, int32_t, 16)
#undef OPTLAYER_VECTOR

template <class S, int W>
struct LaneMask {
  using Raw = typename Vector<S, W>::Bits;
  Raw m;
  OPTLAYER_MEMBER LaneMask() {}
  OPTLAYER_MEMBER LaneMask(Raw raw) : m(raw) {}
  OPTLAYER_MEMBER LaneMask(bool b) : m(Raw{} - (typename Vector<S, W>::Bit)b) {}
  OPTLAYER_MEMBER bool operator[](int lane) const { return m[lane] != 0; }
  OPTLAYER_MEMBER friend LaneMask operator&&(LaneMask a, LaneMask b) { return a.m & b.m; }
  OPTLAYER_MEMBER friend LaneMask operator||(LaneMask a, LaneMask b) { return a.m | b.m; }
  OPTLAYER_MEMBER friend LaneMask operator!(LaneMask a) { return ~a.m; }
};

template <class S, int W>
struct Pack {
  using Raw = typename Vector<S, W>::Raw;
  Raw v;
  OPTLAYER_MEMBER Pack() {}
  OPTLAYER_MEMBER Pack(Raw raw) : v(raw) {}
  OPTLAYER_MEMBER Pack(S s) : v(Raw{} + s) {}
  OPTLAYER_MEMBER Pack(int s) : v(Raw{} + (S)s) {}
  OPTLAYER_MEMBER friend Pack operator+(Pack a, Pack b) { return a.v + b.v; }
  OPTLAYER_MEMBER friend Pack operator-(Pack a, Pack b) { return a.v - b.v; }
  OPTLAYER_MEMBER friend Pack operator*(Pack a, Pack b) { return a.v * b.v; }
  OPTLAYER_MEMBER friend Pack operator/(Pack a, Pack b) { return a.v / b.v; }
  OPTLAYER_MEMBER friend Pack operator-(Pack a) { return -a.v; }
  OPTLAYER_MEMBER Pack& operator+=(Pack o) { return v += o.v, *this; }
  OPTLAYER_MEMBER Pack& operator-=(Pack o) { return v -= o.v, *this; }
  OPTLAYER_MEMBER Pack& operator*=(Pack o) { return v *= o.v, *this; }
  OPTLAYER_MEMBER friend LaneMask<S, W> operator<(Pack a, Pack b) { return {a.v < b.v}; }
  OPTLAYER_MEMBER friend LaneMask<S, W> operator>(Pack a, Pack b) { return {a.v > b.v}; }
  OPTLAYER_MEMBER friend LaneMask<S, W> operator<=(Pack a, Pack b) { return {a.v <= b.v}; }
  OPTLAYER_MEMBER friend LaneMask<S, W> operator>=(Pack a, Pack b) { return {a.v >= b.v}; }
  OPTLAYER_MEMBER friend LaneMask<S, W> operator==(Pack a, Pack b) { return {a.v == b.v}; }
  OPTLAYER_MEMBER friend LaneMask<S, W> operator!=(Pack a, Pack b) { return {a.v != b.v}; }
};

template <class S, int W>
struct Traits<Pack<S, W>> {
  using Scalar = S;
  using Mask = LaneMask<S, W>;
  static constexpr int lanes = W;
};

template <class S, int W>
OPTLAYER_INLINE Pack<S, W> select(LaneMask<S, W> m, Pack<S, W> a, Pack<S, W> b) {
  return {m.m ? a.v : b.v};
}
template <class S, int W>
OPTLAYER_INLINE bool any(LaneMask<S, W> m) {
  typename Vector<S, W>::Bit some = 0;
  OPTLAYER_UNROLL for (int l = 0; l < W; l++) some |= m.m[l];
  return some != 0;
}
template <class S, int W>
OPTLAYER_INLINE Pack<S, W> square_root(Pack<S, W> a) {
  OPTLAYER_UNROLL for (int l = 0; l < W; l++) a.v[l] = square_root((S)a.v[l]);
  return a;
}
template <class S, int W>
OPTLAYER_INLINE Pack<S, W> absolute(Pack<S, W> a) {
  using Raw = typename LaneMask<S, W>::Raw;
  const Raw sign = Raw{} + ((typename Vector<S, W>::Bit)1 << (8 * sizeof(S) - 1));
  return {(typename Pack<S, W>::Raw)((Raw)a.v & ~sign)};
}
template <int W>
OPTLAYER_INLINE Pack<double, W> power_of_two(Pack<double, W> a) {
  using Raw = typename LaneMask<double, W>::Raw;
  const Raw half = Raw{} + 0x0008000000000000ll, exponent = Raw{} + 0x7ff0000000000000ll;
  return {(typename Pack<double, W>::Raw)(((Raw)a.v + half) & exponent)};
}

#endif

// ---- either ----------------------------------------------------------------------------------------------------------

template <class V>
using Scalar = typename Traits<V>::Scalar;
template <class V>
using Mask = typename Traits<V>::Mask;
template <class V>
constexpr int lanes = Traits<V>::lanes;

// As the instruction does it: the second argument where either is NaN.
template <class V>
OPTLAYER_INLINE V smaller(V a, V b) {
  return select(a < b, a, b);
}
template <class V>
OPTLAYER_INLINE V larger(V a, V b) {
  return select(a > b, a, b);
}
template <class V>
OPTLAYER_INLINE V positive(V a) {
  return larger(a, V(0));
}
// Neither NaN nor infinite.
template <class V>
OPTLAYER_INLINE Mask<V> finite(V a) {
  return a - a == V(0);
}
template <class M>
OPTLAYER_INLINE bool all(M m) {
  return !any(!m);
}
// One lane of a value in memory.
template <class V>
OPTLAYER_INLINE Scalar<V>& lane(V& v, int l) {
  return reinterpret_cast<Scalar<V>*>(&v)[l];
}
template <class V>
OPTLAYER_INLINE const Scalar<V>& lane(const V& v, int l) {
  return reinterpret_cast<const Scalar<V>*>(&v)[l];
}
OPTLAYER_INLINE bool lane_of(bool m, int) { return m; }
#if !defined(__CUDACC__)
template <class S, int W>
OPTLAYER_INLINE bool lane_of(LaneMask<S, W> m, int l) {
  return m[l];
}
#endif

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
