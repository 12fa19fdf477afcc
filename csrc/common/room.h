// SPDX-License-Identifier: Apache-2.0
// How much of a workspace lies in fast memory, in bytes. It is handed out in the order in which pieces are taken, so what
// is used most is taken first; pieces of more than `vector` bytes leave `kept` bytes of it to the smaller ones, which
// every step reads.
#pragma once

#include <stddef.h>

namespace optlayer {

struct Room {
  size_t vector = 0, fast = 0, kept = 0;
};

}  // namespace optlayer
