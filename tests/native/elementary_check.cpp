// SPDX-License-Identifier: Apache-2.0
// The exponential and the logarithm of packs against those of the mathematical library in a wider type, over the whole
// range of float64.
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include "common/elementary.h"

using namespace optlayer::OPTLAYER_ISA;

namespace {

constexpr double UNIT = 1.0;  // in the last place: what is promised
int failures = 0;

uint64_t seed = 1;
uint64_t random_bits() {
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return seed ^ seed >> 29;
}
double uniform(double low, double high) { return low + (high - low) * ((double)(random_bits() >> 11) / 9007199254740992.0); }

// |found - exact| in units of the last place of the result; subnormal numbers have the unit of the smallest.
double units(double found, long double exact) {
  if (isnan(exact)) return isnan(found) ? 0 : INFINITY;
  if ((double)exact == found) return 0;
  if (!isfinite(found) || !isfinite((double)exact)) return INFINITY;
  int exponent;
  frexpl(exact, &exponent);
  return (double)fabsl((found - exact) / ldexpl(1.0L, exponent - 53 < -1074 ? -1074 : exponent - 53));
}

template <int W>
void check(const char* name, Pack<double, W> (*f)(Pack<double, W>), long double (*exact)(long double), const double* x) {
  Pack<double, W> in;
  for (int l = 0; l < W; l++) lane(in, l) = x[l];
  const Pack<double, W> out = f(in);
  for (int l = 0; l < W; l++) {
    const double error = units(lane(out, l), exact(x[l]));
    if (!(error < UNIT) && failures++ < 20) printf("%s(%a) = %a, off by %g\n", name, x[l], lane(out, l), error);
  }
}

template <int W>
Pack<double, W> exponential_of(Pack<double, W> a) {
  return exponential(a);
}
template <int W>
Pack<double, W> logarithm_of(Pack<double, W> a) {
  return logarithm(a);
}

template <int W>
void check_all() {
  const double special[] = {0.0,     -0.0,     1.0,    -1.0,     INFINITY, -INFINITY, NAN,     DBL_MIN, DBL_MAX,   -DBL_MAX, DBL_TRUE_MIN,
                            709.782, 709.7828, -708.4, -745.133, -745.134, -746.0,    710.0,   1e-300,  -1e-300,   0.5,      2.0,
                            -744.44, 708.396,  1e-17,  -1e-17,   1e300,    -1e300,    DBL_MIN / 2, 3 * DBL_TRUE_MIN, 1 + DBL_EPSILON, 1 - DBL_EPSILON / 2};
  const int count = sizeof special / sizeof *special;
  double x[W], y[W];
  for (int i = 0; i < count; i++) {
    for (int l = 0; l < W; l++) x[l] = special[(i + l) % count];
    check<W>("exp", exponential_of<W>, expl, x);
    check<W>("log", logarithm_of<W>, logl, x);
  }
  for (int i = 0; i < 2000000 / W; i++) {
    const int kind = i % 4;
    for (int l = 0; l < W; l++) {
      const uint64_t bits = random_bits() & 0x7fffffffffffffffull;  // every exponent alike, subnormals too
      double any;
      memcpy(&any, &bits, sizeof any);
      x[l] = kind == 0 ? uniform(-746, 710) : kind == 1 ? uniform(-1, 1) : kind == 2 ? uniform(-745.2, -708) : -any;
      y[l] = kind == 0 ? any : kind == 1 ? uniform(0.5, 2) : kind == 2 ? uniform(0.99, 1.01) : uniform(0, 100);
    }
    check<W>("exp", exponential_of<W>, expl, x);
    check<W>("log", logarithm_of<W>, logl, y);
  }
}

}  // namespace

int main() {
  if (LDBL_MANT_DIG < 64) return puts("no wider type to compare with"), 0;
  check_all<2>();
#if defined(__AVX2__)
  check_all<4>();
#endif
#if defined(__AVX512F__)
  check_all<8>();
#endif
  if (failures > 0) printf("%d failures\n", failures);
  return failures > 0;
}
