// SPDX-License-Identifier: Apache-2.0
// Every kernel of csrc/linalg against its plain form (csrc/linalg/plain.h), for packs and scalars and many sizes.
//
// A kernel may add in another order than the plain form, so results may differ by rounding: TOLERANCE times the size,
// on numbers of size one. What must not be read is NaN, and what must not be written holds numbers that are compared.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <initializer_list>

#include "linalg/matrix.h"

using namespace optlayer::OPTLAYER_ISA;

namespace {

constexpr double TOLERANCE = 1e-14;
int failures = 0;

void expect(bool condition, const char* what, int lanes, int rows, int n) {
  if (condition) return;
  if (failures++ < 20) printf("%d lanes, %d rows, n = %d: %s\n", lanes, rows, n, what);
}

uint64_t seed = 1;
double uniform() {  // in [-1, 1)
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return (double)(int64_t)seed / 9223372036854775808.0;
}

// Values in lanes, 64-byte aligned, NaN until set.
template <class V>
struct Array {
  V* data;
  size_t size;
  explicit Array(size_t count) : size(count) {
    data = static_cast<V*>(aligned_alloc(64, (count * sizeof(V) + 127) / 64 * 64));
    for (size_t i = 0; i < count; i++) data[i] = V(NAN);
  }
  Array(const Array& other) : Array(other.size) {
    for (size_t i = 0; i < size; i++) data[i] = other.data[i];
  }
  Array& operator=(const Array&) = delete;
  ~Array() { free(data); }
  operator V*() { return data; }

  void fill(int rows, int cols, int ld) {
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < cols; j++)
        for (int l = 0; l < lanes<V>; l++) lane(data[i * ld + j], l) = uniform();
  }
};

// The largest difference, with NaN equal to NaN only; infinite where one is NaN.
template <class V>
double distance(const Array<V>& a, const Array<V>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size; i++)
    for (int l = 0; l < lanes<V>; l++) {
      double u = lane(a.data[i], l), v = lane(b.data[i], l);
      if (u != u && v != v) continue;
      if (!(fabs(u - v) <= most)) most = u == u && v == v ? fabs(u - v) : INFINITY;
    }
  return most;
}

template <class V>
void expect_close(const Array<V>& found, const Array<V>& plain, const char* what, int rows, int n) {
  expect(distance(found, plain) <= TOLERANCE * (1 + rows + n), what, lanes<V>, rows, n);
}

template <class V>
void check_products(int rows, int n) {
  const int ld = leading<V>(n) + n % 2, ldk = leading<V>(rows) + rows % 3;
  Array<V> M((size_t)rows * ld), x(n), y(rows);
  M.fill(rows, n, ld), x.fill(1, n, n), y.fill(1, rows, rows);

  for (bool add : {false, true}) {
    Array<V> found(y), expected(y);
    product<V>(M, ld, rows, n, x, found, add);
    plain::product<V>(M, ld, rows, n, x, expected, add);
    expect_close(found, expected, add ? "product, added" : "product", rows, n);
  }
  {
    Array<V> found(x), expected(x);
    product_transposed<V>(M, ld, rows, n, y, found);
    plain::product_transposed<V>(M, ld, rows, n, y, expected);
    expect_close(found, expected, "product_transposed", rows, n);
  }
  {
    Array<V> found(y), expected(y), found_transposed(x), expected_transposed(x);
    product_pair<V>(M, ld, rows, n, x, found, y, found_transposed);
    plain::product<V>(M, ld, rows, n, x, expected, false);
    plain::product_transposed<V>(M, ld, rows, n, y, expected_transposed);
    expect_close(found, expected, "product_pair", rows, n);
    expect_close(found_transposed, expected_transposed, "product_pair, transposed", rows, n);
  }
  {
    Array<V> found((size_t)rows * ldk);
    found.fill(rows, ldk, ldk);
    Array<V> expected(found);
    row_products<V>(M, ld, rows, n, found, ldk);
    plain::row_products<V>(M, ld, rows, n, expected, ldk);
    expect_close(found, expected, "row_products", rows, n);
    bool symmetric = true;
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < i; j++) symmetric = symmetric && all(found[i * ldk + j] == found[j * ldk + i]);
    expect(symmetric, "row_products is symmetric to the last bit", lanes<V>, rows, n);
  }
  for (int weights = 0; weights < 4; weights++) {  // all, some, one in three, none
    Array<V> P((size_t)n * ld), g(rows);
    P.fill(n, n, ld);
    for (int k = 0; k < rows; k++)
      for (int l = 0; l < lanes<V>; l++) {
        bool drop = weights == 1 ? uniform() > 0 : weights == 2 ? k % 3 != 0 : weights == 3;
        lane(g[k], l) = drop ? 0 : uniform() + 1;
      }
    Array<V> found((size_t)n * ld);
    found.fill(n, ld, ld);
    Array<V> expected(found);
    weighted_gram<V>(P, ld, M, ld, g, rows, n, found, ld);
    plain::weighted_gram<V>(P, ld, M, ld, g, rows, n, expected, ld);
    expect_close(found, expected, "weighted_gram", rows, n);
    weighted_gram<V>(P, ld, M, ld, g, rows, n, P, ld);
    bool same = true;
    for (int i = 0; i < n; i++)
      for (int j = 0; j <= i; j++) same = same && all(P[i * ld + j] == found[i * ld + j]);
    expect(same, "weighted_gram in place", lanes<V>, rows, n);
  }
}

template <class V>
void check_vectors(int n) {
  Array<V> a(n), b(n);
  a.fill(1, n, n), b.fill(1, n, n);
  Array<V> found(2), expected(2);
  found[0] = dot<V>(a, b, n), expected[0] = plain::dot<V>(a, b, n);
  found[1] = norm<V>(a, n), expected[1] = plain::norm<V>(a, n);
  expect_close(found, expected, "dot and norm", 0, n);
}

// A positive definite matrix with eigenvalues between 1 and about 3: solves do not magnify rounding.
template <class V>
void definite(Array<V>& K, int n, int ld) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j <= i; j++)
      for (int l = 0; l < lanes<V>; l++)
        lane(K[i * ld + j], l) = i == j ? 2 + uniform() / 2 : uniform() / (1 + sqrt((double)n)) / 2;
}

template <class V>
void check_factor(int n) {
  const int ld = leading<V>(n) + n % 2;
  Array<V> K((size_t)n * ld), add(n);
  definite(K, n, ld), add.fill(1, n, n);
  for (int i = 0; i < n; i++) add[i] = absolute(add[i]);
  Array<V> L((size_t)n * ld), inv(n);
  for (bool diagonal : {false, true}) {
    Array<V> place((size_t)n * ld), found((size_t)n * ld), expected_inv(n), place_inv(n), found_inv(n);
    place.fill(n, ld, ld), found.fill(n, ld, ld);
    for (int i = 0; i < n; i++)
      for (int j = 0; j <= i; j++) place[i * ld + j] = K[i * ld + j];
    Array<V> expected(found), expected_place(place);
    V* d = diagonal ? (V*)add : nullptr;
    bool ok = all(plain::cholesky<V>(K, ld, d, expected, ld, expected_inv, n));
    ok = ok && all(cholesky<V>(K, ld, d, found, ld, found_inv, n));
    ok = ok && all(cholesky<V>(place, ld, d, place, ld, place_inv, n));
    plain::cholesky<V>(expected_place, ld, d, expected_place, ld, expected_inv, n);
    expect(ok, "a positive definite matrix has a factor", lanes<V>, n, n);
    expect_close(found, expected, "cholesky", n, n);
    expect_close(place, expected_place, "cholesky in place", n, n);
    expect_close(found_inv, expected_inv, "reciprocals of the diagonal", n, n);
    expect_close(place_inv, expected_inv, "reciprocals of the diagonal, in place", n, n);
    if (diagonal)
      for (int i = 0; i < n; i++) {
        inv[i] = found_inv[i];
        for (int j = 0; j <= i; j++) L[i * ld + j] = found[i * ld + j];
      }
  }
  for (int rows : {0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 25, 40}) {
    Array<V> found((size_t)rows * ld);
    found.fill(rows, n, ld);
    Array<V> expected(found);
    solve_rows<V>(L, ld, inv, n, found, ld, rows);
    plain::solve_rows<V>(L, ld, inv, n, expected, ld, rows);
    expect_close(found, expected, "solve_rows", rows, n);
  }
  Array<V> found(n);
  found.fill(1, n, n);
  Array<V> expected(found);
  lower_solve<V>(L, ld, inv, n, found);
  plain::lower_solve<V>(L, ld, inv, n, expected);
  expect_close(found, expected, "lower_solve", 1, n);
  lower_solve_transposed<V>(L, ld, inv, n, found);
  plain::lower_solve_transposed<V>(L, ld, inv, n, expected);
  expect_close(found, expected, "lower_solve_transposed", 1, n);
}

// A bad pivot (0, negative, NaN, infinite) at any place is seen, in its own lane only, and the bits of the other lanes
// do not change.
template <class V>
void check_breakdown(int n) {
  const int ld = leading<V>(n);
  Array<V> K((size_t)n * ld), L((size_t)n * ld), inv(n);
  definite(K, n, ld);
  expect(all(cholesky<V>(K, ld, nullptr, L, ld, inv, n)), "cholesky", lanes<V>, n, n);
  int trial = 0;
  for (double bad : {-1.0, (double)NAN, -(double)INFINITY, (double)INFINITY, 0.0})
    for (int place = 0; place < n; place += 1 + n / 5) {
      const int l = trial++ % lanes<V>;
      Array<V> broken(K), found((size_t)n * ld), found_inv(n);
      lane(broken[place * ld + place], l) = bad;
      Mask<V> ok = cholesky<V>(broken, ld, nullptr, found, ld, found_inv, n);
      bool seen = true, same = true;
      for (int other = 0; other < lanes<V>; other++) {
        seen = seen && lane_of(ok, other) == (other != l);
        for (int i = 0; i < n && other != l; i++)
          for (int j = 0; j <= i; j++) same = same && lane(found[i * ld + j], other) == lane(L[i * ld + j], other);
      }
      expect(seen, "a bad pivot is seen in its lane", lanes<V>, place, n);
      expect(same, "a bad pivot leaves other lanes alone", lanes<V>, place, n);
    }
}

template <class V>
void check() {
  const int sizes[] = {64, 65, 100, 128, 129, 200};
  for (int n = 0; n <= 40; n++) {
    check_vectors<V>(n), check_factor<V>(n), check_breakdown<V>(n);
    for (int rows : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 23, 24, 25, 31, 40}) check_products<V>(rows, n);
  }
  for (int n : sizes) {
    check_vectors<V>(n), check_factor<V>(n), check_breakdown<V>(n);
    for (int rows : {1, 10, 50, 129}) check_products<V>(rows, n);
  }
}

}  // namespace

int main() {
  check<double>();
  check<Pack<double, WIDTH>>();
  printf("%d failures\n", failures);
  return failures != 0;
}
