// SPDX-License-Identifier: Apache-2.0
// Dense linear algebra on values V: W problems at once for a pack, one problem for a scalar.
//
// A matrix is a pointer and a leading dimension `ld` (in values), row after row. Triangular factors are lower, and the
// reciprocals of their diagonal are kept beside them in `inv`: nothing divides twice. What lies above the diagonal of a
// factor, or beyond the columns of a padded row, is neither read nor written.
//
// A team of threads calls a kernel together (team/): each begins and ends with a barrier, but dot and norm, of whose
// vectors a thread reads the entries that it owns (team.h).
#pragma once

#include "../common/arena.h"
#include "../common/team.h"
#include "cholesky.h"
#include "gram.h"
#include "product.h"
#include "triangular.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// The leading dimension of a matrix of n columns, such that the rows of a large matrix spread over the cache: rows of
// packs are an odd number of them apart, rows of numbers a whole number of vectors and no large power of two. A team reads
// columns, too: rows that are an odd number of values apart lie in different banks of shared memory.
template <class V>
OPTLAYER_FUNCTION int leading(int n) {
  if constexpr (TEAM > 1) return n | 1;
#if !defined(OPTLAYER_DEVICE)
  if constexpr (lanes<V> > 1) return n >= 32 ? n | 1 : n;
  if constexpr (is_double<V>) {
    const int padded = (n + WIDTH - 1) / WIDTH * WIDTH;
    return padded > 0 && padded % 64 == 0 ? padded + WIDTH : padded;
  }
#endif
  return n;
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
