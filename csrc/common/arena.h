// SPDX-License-Identifier: Apache-2.0
// Memory that is allocated once and then handed out: kernels allocate nothing inside a solve.
#pragma once

#include "pack.h"
#include "room.h"

namespace optlayer {
namespace OPTLAYER_ISA {

#if !defined(OPTLAYER_DEVICE)

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

#else

// Of a GPU's fast memory, which the threads of a block share, `room` says how much there is: what fits lies there, and the
// rest in the slow block. Null blocks only count.
class Arena {
 public:
  OPTLAYER_MEMBER explicit Arena(void* slow) : Arena(nullptr, slow, Room()) {}
  OPTLAYER_MEMBER Arena(void* fast, void* slow, const Room& room)
      : fast_(static_cast<char*>(fast)), slow_(static_cast<char*>(slow)), room_(room) {}

  template <class T>
  OPTLAYER_MEMBER T* take(size_t count) {
    const size_t size = (count * sizeof(T) + 7) / 8 * 8;
    const bool small = size <= room_.vector;
    const size_t kept = small || vectors_ >= room_.kept ? 0 : room_.kept - vectors_;
    if (small) vectors_ += size;
    const bool fits = in_fast_ + size + kept <= room_.fast;
    size_t& used = fits ? in_fast_ : used_;
    char* const piece = (fits ? fast_ : slow_) + used;
    used += size;
    return reinterpret_cast<T*>(piece);
  }

  // Bytes of the slow block that are in use, and of all pieces of at most room.vector bytes.
  OPTLAYER_MEMBER size_t used() const { return used_; }
  OPTLAYER_MEMBER size_t vectors() const { return vectors_; }

 private:
  char *fast_, *slow_;
  Room room_;
  size_t in_fast_ = 0, used_ = 0, vectors_ = 0;
};

#endif

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
