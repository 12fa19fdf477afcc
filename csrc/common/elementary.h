// SPDX-License-Identifier: Apache-2.0
// The exponential and the natural logarithm: of a number those of the mathematical library, of packs our own, each off by
// less than one unit in the last place, also where they underflow. Infinities, zeros and NaN give what they should.
//
//     exp x = 2^k e^r,    k = round(x / log 2),  r = x - k log 2 in [-0.35, 0.35],   e^r = 1 + r + r^2 Q(r)
//     log x = k log 2 + log(1 + f),  1 + f = x / 2^k in [sqrt(1/2), sqrt 2),  log(1 + f) = 2 atanh(f / (2 + f))
//
// The polynomials are the minimax ones of degree 9 and 6; log 2 is a sum of two numbers, of which the first has 32 bits,
// so that its products with k are exact.
#pragma once

#include "pack.h"

namespace optlayer {
namespace OPTLAYER_ISA {

OPTLAYER_INLINE double exponential(double a) { return ::exp(a); }
OPTLAYER_INLINE double logarithm(double a) { return ::log(a); }

#if !defined(__CUDACC__)

static constexpr double LOG_2_HIGH = 0.6931471803691238, LOG_2_LOW = 1.9082149292705877e-10;
static constexpr double ROUNDER = 6755399441055744.0;  // 1.5 2^52: added, it leaves the nearest integer in the last bits

// The polynomial with these coefficients, the constant one first.
template <class V, int N>
OPTLAYER_INLINE V polynomial(const double (&c)[N], V x) {
  V sum(c[N - 1]);
  OPTLAYER_UNROLL for (int i = N - 2; i >= 0; i--) {
    V next(c[i]);
    add_product(next, sum, x);
    sum = next;
  }
  return sum;
}

// 2^k for an integer k, -1022 <= k <= 1023, of which `shifted` is the sum with ROUNDER.
template <int W>
OPTLAYER_INLINE Pack<double, W> two_to(Pack<double, W> shifted) {
  using Bits = typename Vector<double, W>::Bits;
  return {(typename Pack<double, W>::Raw)((((Bits)shifted.v & 0xfff) + 1023) << 52)};  // without an overflow, of NaN too
}

template <int W>
OPTLAYER_INLINE Pack<double, W> exponential(Pack<double, W> a) {
  using V = Pack<double, W>;
  constexpr double Q[] = {0.5000000000000012,     0.166666666666667,      0.041666666666515424,  0.008333333333307184,
                          0.0013888888947014531,  0.0001984126991744931,  2.4801489943274236e-05, 2.7557216232382135e-06,
                          2.763128008838966e-07,  2.5117884147660557e-08};
  const V x = larger(V(-746), smaller(V(710), a));  // NaN passes
  const V k = (x * V(1.4426950408889634) + V(ROUNDER)) - V(ROUNDER);
  V high = x;
  subtract_product(high, k, V(LOG_2_HIGH));
  const V low = k * V(LOG_2_LOW), r = high - low;
  V rest_of_sum = (high - r) - low;  // what the rounding of r left
  add_product(rest_of_sum, r * r, polynomial(Q, r));
  const V sum = r + rest_of_sum;
  const V half = k * V(0.5) + V(ROUNDER), rest = (k - (half - V(ROUNDER))) + V(ROUNDER);
  return (sum + V(1)) * two_to(half) * two_to(rest);  // 2^k itself may be out of range
}

template <int W>
OPTLAYER_INLINE Pack<double, W> logarithm(Pack<double, W> a) {
  using V = Pack<double, W>;
  using Raw = typename V::Raw;
  using Bits = typename Vector<double, W>::Bits;
  constexpr double R[] = {0.6666666666666731,  0.3999999999943656,  0.28571428738249255, 0.2222219894812282,
                          0.18183546710709236, 0.15314464624478463, 0.14792098252221494};
  constexpr int64_t ROOT_HALF = 0x3fe6a09e667f3bcdll, ONE = 0x3ff0000000000000ll, MANTISSA = 0x000fffffffffffffll;
  const Mask<V> small = a < V(2.2250738585072014e-308), finite = a < V(INFINITY);
  const Bits moved = (Bits)select(finite, select(small, a * V(18014398509481984.0), a), V(1)).v + (ONE - ROOT_HALF);
  const V exponent = V((Raw)((moved >> 52) | 0x4330000000000000ll)) - V(4503599627370496.0 + 1023);
  const V k = exponent - select(small, V(54), V(0));
  const V f = V((Raw)((moved & MANTISSA) + ROOT_HALF)) - V(1), s = f / (V(2) + f), half = V(0.5) * f * f;
  const V z = s * s;
  V low = k * V(LOG_2_LOW);
  add_product(low, s, half + z * polynomial(R, z));
  V result = k * V(LOG_2_HIGH) - ((half - low) - f);
  result = select(finite, result, a);  // infinity and NaN
  return select(a > V(0), result, select(a == V(0), V(-INFINITY), V(NAN)));
}

#endif

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
