// SPDX-License-Identifier: Apache-2.0
// Products of a matrix and a vector, and inner products, by a team of threads.
#pragma once

#include "../../common/team.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace team {

// So many neighbours share a sum where there are `sums`: a power of two, 1 where every thread has a sum of its own.
OPTLAYER_INLINE int sharing(int sums) {
  int ways = 1;
  while (2 * ways * sums <= TEAM && ways < NEIGHBOURS) ways *= 2;
  return ways;
}

// finish(i, sum over k < depth of term(i, k)) for i < sums, by one thread each. Two sums at a time: a sum must not wait
// for itself.
template <class V, class Term, class Finish>
OPTLAYER_INLINE void for_sums(int sums, int depth, Term term, Finish finish) {
  const int ways = sharing(sums), lines = TEAM / ways, first = rank() % ways;
  for (int begin = 0; begin < sums; begin += lines) {
    const int i = begin + rank() / ways;
    V sum(0), other(0);
    if (i < sums) {
      int k = first;
      for (; k + ways < depth; k += 2 * ways) {
        add_product(sum, term.left(i, k), term.right(k));
        add_product(other, term.left(i, k + ways), term.right(k + ways));
      }
      if (k < depth) add_product(sum, term.left(i, k), term.right(k));
    }
    sum += other;
    for (int step = 1; step < ways; step *= 2) sum += swapped(sum, step);
    if (i < sums && first == 0) finish(i, sum);
  }
}

// M and its transpose, times a vector.
template <class V>
struct RowTerm {
  const V* M;
  int ld;
  const V* x;
  OPTLAYER_MEMBER V left(int i, int k) const { return M[i * ld + k]; }
  OPTLAYER_MEMBER V right(int k) const { return x[k]; }
};
template <class V>
struct ColumnTerm {
  const V* M;
  int ld;
  const V* y;
  OPTLAYER_MEMBER V left(int j, int k) const { return M[k * ld + j]; }
  OPTLAYER_MEMBER V right(int k) const { return y[k]; }
};

template <class V>
OPTLAYER_FUNCTION void product(const V* M, int ld, int rows, int cols, const V* x, V* y, bool add) {
  for_sums<V>(rows, cols, RowTerm<V>{M, ld, x}, [&](int i, V sum) { y[i] = add ? y[i] + sum : sum; });
  sync();
}

template <class V>
OPTLAYER_FUNCTION void product_transposed(const V* M, int ld, int rows, int cols, const V* y, V* x) {
  for_sums<V>(cols, rows, ColumnTerm<V>{M, ld, y}, [&](int j, V sum) { x[j] += sum; });
  sync();
}

template <class V>
OPTLAYER_FUNCTION void product_pair(const V* M, int ld, int rows, int cols, const V* x, V* y, const V* v, V* u) {
  for_sums<V>(rows, cols, RowTerm<V>{M, ld, x}, [&](int i, V sum) { y[i] = sum; });
  for_sums<V>(cols, rows, ColumnTerm<V>{M, ld, v}, [&](int j, V sum) { u[j] += sum; });
  sync();
}

template <class V>
OPTLAYER_FUNCTION V dot(const V* a, const V* b, int n) {
  V sum(0);
  for (int i = rank(); i < n; i += TEAM) add_product(sum, a[i], b[i]);
  return team_sum(sum);
}

template <class V>
OPTLAYER_FUNCTION V norm(const V* a, int n) {
  V most(0);
  for (int i = rank(); i < n; i += TEAM) most = larger(absolute(a[i]), most);
  return team_max(most);
}

}  // namespace team
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
