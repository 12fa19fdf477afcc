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

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

// What is compiled for a GPU, or for its emulation on a CPU: one problem a team of threads, nothing for SIMD registers.
#if defined(__CUDACC__) || defined(OPTLAYER_EMULATE)
#define OPTLAYER_DEVICE
#endif

#if defined(__CUDACC__)
#define OPTLAYER_MEMBER __host__ __device__ __forceinline__
#define OPTLAYER_INLINE static __host__ __device__ __forceinline__
#define OPTLAYER_FUNCTION static __host__ __device__ __noinline__  // a quarter of the time to compile
#define OPTLAYER_METHOD __host__ __device__
#define OPTLAYER_UNROLL _Pragma("unroll")
#else
#define OPTLAYER_MEMBER __attribute__((always_inline)) inline
#define OPTLAYER_INLINE static inline __attribute__((always_inline))
#define OPTLAYER_FUNCTION [[maybe_unused]] static
#define OPTLAYER_METHOD
#if defined(__clang__)
#define OPTLAYER_UNROLL _Pragma("unroll")
#else
#define OPTLAYER_UNROLL _Pragma("GCC unroll 16")
#endif
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
// Bit l is lane l's.
OPTLAYER_INLINE unsigned bits(bool m) { return m; }
OPTLAYER_INLINE double square_root(double a) { return ::sqrt(a); }
OPTLAYER_INLINE float square_root(float a) { return ::sqrtf(a); }
OPTLAYER_INLINE double absolute(double a) { return ::fabs(a); }
OPTLAYER_INLINE float absolute(float a) { return ::fabsf(a); }

// c += a b and c -= a b, rounded once where the processor can. The kernels ask for it by name, because GCC takes chains
// of a * b + c apart again when it tunes for some processors.
template <class V>
OPTLAYER_INLINE void add_product(V& c, V a, V b) {
  c += a * b;
}
template <class V>
OPTLAYER_INLINE void subtract_product(V& c, V a, V b) {
  c -= a * b;
}

// The value stays in a register from here on: a compiler that knows where it came from may prefer to read it again for
// every use, and loads are what a kernel has too few of.
template <class V>
OPTLAYER_INLINE void in_register(V&) {}

// As the x86 instruction does it: the second argument where either is NaN.
template <class V>
OPTLAYER_INLINE V smaller(V a, V b) {
  return select(a < b, a, b);
}
template <class V>
OPTLAYER_INLINE V larger(V a, V b) {
  return select(a > b, a, b);
}

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
  // s - 0 is s, also for -0, and so costs nothing; 0 + s would be an addition.
  OPTLAYER_MEMBER Pack(double s) : v((S)s - Raw{}) {}
  OPTLAYER_MEMBER Pack(float s) : v((S)s - Raw{}) {}
  OPTLAYER_MEMBER Pack(int s) : v((S)s - Raw{}) {}
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
#if defined(__SSE2__) && !defined(__SSE4_1__)
  using Raw = typename LaneMask<S, W>::Raw;
  return {(typename Pack<S, W>::Raw)((m.m & (Raw)a.v) | (~m.m & (Raw)b.v))};
#else
  return {m.m ? a.v : b.v};
#endif
}
template <class S, int W>
OPTLAYER_INLINE unsigned bits(LaneMask<S, W> m) {
  unsigned set = 0;
  OPTLAYER_UNROLL for (int l = 0; l < W; l++) set |= (unsigned)(m.m[l] != 0) << l;
  return set;
}
template <class S, int W>
OPTLAYER_INLINE Pack<S, W> square_root(Pack<S, W> a) {
  OPTLAYER_UNROLL for (int l = 0; l < W; l++) a.v[l] = square_root((S)a.v[l]);
  return a;
}

// The instructions that a compiler does not find by itself.
#if defined(__SSE2__)
#define OPTLAYER_INSTRUCTIONS(S, W, SQRT, MIN, MAX, BITS)                                                       \
  OPTLAYER_INLINE Pack<S, W> square_root(Pack<S, W> a) { return {(Vector<S, W>::Raw)SQRT(a.v)}; }               \
  OPTLAYER_INLINE Pack<S, W> smaller(Pack<S, W> a, Pack<S, W> b) { return {(Vector<S, W>::Raw)MIN(a.v, b.v)}; } \
  OPTLAYER_INLINE Pack<S, W> larger(Pack<S, W> a, Pack<S, W> b) { return {(Vector<S, W>::Raw)MAX(a.v, b.v)}; }  \
  OPTLAYER_INLINE unsigned bits(LaneMask<S, W> m) { return (unsigned)BITS; }                                    \
  OPTLAYER_INLINE void in_register(Pack<S, W>& a) { asm("" : "+v"(a.v)); }
OPTLAYER_INSTRUCTIONS(double, 2, _mm_sqrt_pd, _mm_min_pd, _mm_max_pd, _mm_movemask_pd((__m128d)m.m))
OPTLAYER_INSTRUCTIONS(float, 4, _mm_sqrt_ps, _mm_min_ps, _mm_max_ps, _mm_movemask_ps((__m128)m.m))
#if defined(__AVX__)
OPTLAYER_INSTRUCTIONS(double, 4, _mm256_sqrt_pd, _mm256_min_pd, _mm256_max_pd, _mm256_movemask_pd((__m256d)m.m))
OPTLAYER_INSTRUCTIONS(float, 8, _mm256_sqrt_ps, _mm256_min_ps, _mm256_max_ps, _mm256_movemask_ps((__m256)m.m))
OPTLAYER_INLINE Pack<double, 4> select(LaneMask<double, 4> m, Pack<double, 4> a, Pack<double, 4> b) {
  return {(Vector<double, 4>::Raw)_mm256_blendv_pd(b.v, a.v, (__m256d)m.m)};
}
OPTLAYER_INLINE Pack<float, 8> select(LaneMask<float, 8> m, Pack<float, 8> a, Pack<float, 8> b) {
  return {(Vector<float, 8>::Raw)_mm256_blendv_ps(b.v, a.v, (__m256)m.m)};
}
#endif
#if defined(__AVX512F__)
// With a mask of ones, for the plain forms draw a false warning from GCC 12.
#define OPTLAYER_SQRT_PD(a) _mm512_maskz_sqrt_pd((__mmask8)-1, a)
#define OPTLAYER_MIN_PD(a, b) _mm512_maskz_min_pd((__mmask8)-1, a, b)
#define OPTLAYER_MAX_PD(a, b) _mm512_maskz_max_pd((__mmask8)-1, a, b)
#define OPTLAYER_SQRT_PS(a) _mm512_maskz_sqrt_ps((__mmask16)-1, a)
#define OPTLAYER_MIN_PS(a, b) _mm512_maskz_min_ps((__mmask16)-1, a, b)
#define OPTLAYER_MAX_PS(a, b) _mm512_maskz_max_ps((__mmask16)-1, a, b)
OPTLAYER_INSTRUCTIONS(double, 8, OPTLAYER_SQRT_PD, OPTLAYER_MIN_PD, OPTLAYER_MAX_PD,
                      _mm512_test_epi64_mask((__m512i)m.m, (__m512i)m.m))
OPTLAYER_INSTRUCTIONS(float, 16, OPTLAYER_SQRT_PS, OPTLAYER_MIN_PS, OPTLAYER_MAX_PS,
                      _mm512_test_epi32_mask((__m512i)m.m, (__m512i)m.m))
#endif
#undef OPTLAYER_INSTRUCTIONS
#endif

#if defined(__FMA__)
#define OPTLAYER_FUSED(S, W, ADD, SUBTRACT)                                              \
  OPTLAYER_INLINE void add_product(Pack<S, W>& c, Pack<S, W> a, Pack<S, W> b) {          \
    c.v = (Vector<S, W>::Raw)ADD(a.v, b.v, c.v);                                         \
  }                                                                                      \
  OPTLAYER_INLINE void subtract_product(Pack<S, W>& c, Pack<S, W> a, Pack<S, W> b) {     \
    c.v = (Vector<S, W>::Raw)SUBTRACT(a.v, b.v, c.v);                                    \
  }
OPTLAYER_FUSED(double, 2, _mm_fmadd_pd, _mm_fnmadd_pd)
OPTLAYER_FUSED(float, 4, _mm_fmadd_ps, _mm_fnmadd_ps)
OPTLAYER_FUSED(double, 4, _mm256_fmadd_pd, _mm256_fnmadd_pd)
OPTLAYER_FUSED(float, 8, _mm256_fmadd_ps, _mm256_fnmadd_ps)
#if defined(__AVX512F__)
OPTLAYER_FUSED(double, 8, _mm512_fmadd_pd, _mm512_fnmadd_pd)
OPTLAYER_FUSED(float, 16, _mm512_fmadd_ps, _mm512_fnmadd_ps)
#endif
#undef OPTLAYER_FUSED
OPTLAYER_INLINE void add_product(double& c, double a, double b) { c = __builtin_fma(a, b, c); }
OPTLAYER_INLINE void subtract_product(double& c, double a, double b) { c = __builtin_fma(-a, b, c); }
#endif

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

OPTLAYER_INLINE bool any(bool m) { return m; }
OPTLAYER_INLINE bool all(bool m) { return m; }
#if !defined(__CUDACC__)
template <class S, int W>
OPTLAYER_INLINE bool any(LaneMask<S, W> m) {
  return bits(m) != 0;
}
template <class S, int W>
OPTLAYER_INLINE bool all(LaneMask<S, W> m) {
  return bits(m) == (1u << W) - 1;
}
#endif
template <class V>
OPTLAYER_INLINE V positive(V a) {
  return larger(a, V(0));
}
// Neither NaN nor infinite.
template <class V>
OPTLAYER_INLINE Mask<V> finite(V a) {
  return a - a == V(0);
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
