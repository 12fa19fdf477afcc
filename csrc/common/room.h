// SPDX-License-Identifier: Apache-2.0
// How much of a workspace lies in fast memory, in bytes: for pieces of at most `vector` bytes, which every step reads, and
// for larger ones in their order.
#pragma once

#include <stddef.h>

namespace optlayer {

struct Room {
  size_t vector = 0, vectors = 0, matrices = 0;
};

}  // namespace optlayer
