// SPDX-License-Identifier: Apache-2.0
// Memory that is allocated once and then handed out: kernels allocate nothing inside a solve.
#pragma once

#include "pack.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// Hands out consecutive pieces of one block. With a null block it only counts, so that the same code that lays a
// workspace out also tells its size.
class Arena {
 public:
  OPTLAYER_MEMBER explicit Arena(void* block) : start_(static_cast<char*>(block)), used_(0) {}

  template <class T>
  OPTLAYER_MEMBER T* take(size_t count) {
    T* piece = start_ == nullptr ? nullptr : reinterpret_cast<T*>(start_ + used_);
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  OPTLAYER_MEMBER size_t used() const { return used_; }

 private:
  char* start_;
  size_t used_;
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
