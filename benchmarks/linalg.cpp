// SPDX-License-Identifier: Apache-2.0
// GFLOP/s of every kernel of csrc/linalg on one core, by size, beside the peak of multiply-adds in registers.
// `python -m benchmarks.kernels` compiles and runs it.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <initializer_list>

#include "linalg/matrix.h"

using namespace optlayer::OPTLAYER_ISA;

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// The shortest of several times of one call, in seconds.
template <class F>
double seconds(F&& f) {
  int repeats = 1;
  for (;; repeats *= 2) {
    double start = now();
    for (int i = 0; i < repeats; i++) f();
    if (now() - start > 5e-4) break;
  }
  double best = INFINITY;
  for (int trial = 0; trial < 40; trial++) {
    double start = now();
    for (int i = 0; i < repeats; i++) f();
    double time = (now() - start) / repeats;
    best = time < best ? time : best;
  }
  return best;
}

#if defined(__AVX512F__)
constexpr int NATIVE = 8;
#elif defined(__AVX__)
constexpr int NATIVE = 4;
#else
constexpr int NATIVE = 2;
#endif

volatile double sink;

// Twelve independent chains of multiply-adds.
double peak() {
  using V = Pack<double, NATIVE>;
  const int steps = 10000;
  double time = seconds([&] {
    V sum[12], a(1 + 1e-9), b(1e-9);
    OPTLAYER_UNROLL for (int i = 0; i < 12; i++) sum[i] = V(i);
    for (int k = 0; k < steps; k++) {
      OPTLAYER_UNROLL for (int i = 0; i < 12; i++) {
        sum[i] = sum[i] * a + b;
      }
    }
    V total(0);
    for (int i = 0; i < 12; i++) total += sum[i];
    sink = lane(total, 0);
  });
  return 24.0 * NATIVE * steps / time * 1e-9;
}

template <class V>
V* array(size_t count) {
  V* data = static_cast<V*>(aligned_alloc(64, (count * sizeof(V) + 127) / 64 * 64));
  for (size_t i = 0; i < count; i++) data[i] = V(0);
  return data;
}

template <class V>
void row(int n) {
  const int ld = leading<V>(n), W = lanes<V>;
  const size_t size = (size_t)n * ld;
  V *K = array<V>(size), *L = array<V>(size), *R = array<V>(size), *H = array<V>(size), *inv = array<V>(n);
  V *x = array<V>(n), *y = array<V>(n), *add = array<V>(n);
  for (int i = 0; i < n; i++) {
    x[i] = V(1.0 / (i + 1)), y[i] = V(1e-3 * i), add[i] = V(1);
    for (int j = 0; j < n; j++) K[i * ld + j] = V(i == j ? 0.0 : 1e-30), R[i * ld + j] = V(1.0 / (i + j + 1));
  }
  const double c = (double)n * n * n, s = (double)n * n;
  auto gflops = [&](double flops, double time) { printf(" %9.1f", flops * W / time * 1e-9); };
  printf("%6d", n);
  double time = seconds([&] { sink = all(cholesky<V>(K, ld, add, L, ld, inv, n)); });
  gflops(c / 3, time);
  gflops(c, seconds([&] { solve_rows<V>(L, ld, inv, n, R, ld, n); }));
  gflops(c, seconds([&] { row_products<V>(R, ld, n, n, H, ld); }));
  gflops(c, seconds([&] { weighted_gram<V>(K, ld, R, ld, add, n, n, H, ld); }));
  gflops(s, seconds([&] { lower_solve<V>(L, ld, inv, n, x); }));
  gflops(s, seconds([&] { lower_solve_transposed<V>(L, ld, inv, n, x); }));
  gflops(2 * s, seconds([&] { product<V>(K, ld, n, n, x, y); }));
  gflops(2 * s, seconds([&] { product_transposed<V>(K, ld, n, n, x, y); }));
  gflops(4 * s, seconds([&] { product_pair<V>(K, ld, n, n, x, y, add, inv); }));
  printf("   %9.3f\n", time * 1e6);
  fflush(stdout);
  for (V* data : {K, L, R, H, inv, x, y, add}) free(data);
}

template <class V>
void table(const char* title, std::initializer_list<int> sizes) {
  printf("\n%s\n%6s %9s %9s %9s %9s %9s %9s %9s %9s %9s   %9s\n", title, "n", "cholesky", "rows", "R R'", "C'gC",
         "L^-1 x", "L^-T x", "M x", "M' y", "both", "chol us");
  for (int n : sizes) row<V>(n);
}

}  // namespace

// With an argument, the peak alone.
int main(int count, char**) {
  printf("multiply-adds in registers: %.1f GFLOP/s\n", peak());
  if (count > 1) return 0;
  char title[64];
  snprintf(title, sizeof title, "%d problems, one to a lane", NATIVE);
  table<Pack<double, NATIVE>>(title, {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 64, 80, 100, 128});
  table<double>("one problem", {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32, 50, 64, 100, 128, 200, 300, 500});
}
