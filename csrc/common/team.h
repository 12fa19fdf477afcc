// SPDX-License-Identifier: Apache-2.0
// The team of threads that works on one problem. OPTLAYER_TEAM says how many they are, a power of two:
//
//   1         a CPU core (or one of its lanes), a thread of a GPU: everything here vanishes
//   2 .. 32   part of a warp; a block holds several teams
//   64 ..     a whole block
//
// Vectors and matrices lie in memory that the whole team sees; thread `rank()` works on every TEAM-th entry:
//
//     for (int i = rank(); i < n; i += TEAM) x[i] = ...;      sync();      // before another thread reads x
//
// Scalars are computed by all threads alike, from what the functions below return: the same bits in every thread and in
// every run. So all threads take the same branches, and all of them call every function here at the same place. Only
// sync() makes what a thread wrote known to the others.
//
// With -DOPTLAYER_EMULATE the threads are fibers on a CPU (tests/native/emulator.h).
#pragma once

#include "pack.h"

#ifndef OPTLAYER_TEAM
#define OPTLAYER_TEAM 1
#endif

#if defined(OPTLAYER_EMULATE)
#include "emulator.h"
// Where in the source a thread has called.
#define OPTLAYER_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define OPTLAYER_ALSO_CALLER , OPTLAYER_CALLER
#define OPTLAYER_AT , file, line
#else
#define OPTLAYER_CALLER
#define OPTLAYER_ALSO_CALLER
#define OPTLAYER_AT
#endif

namespace optlayer {
namespace OPTLAYER_ISA {

constexpr int TEAM = OPTLAYER_TEAM;
static_assert(TEAM >= 1 && TEAM <= 1024 && (TEAM & (TEAM - 1)) == 0, "a team is a power of two");

// Threads of a team whose registers are within reach of each other.
constexpr int NEIGHBOURS = TEAM < 32 ? TEAM : 32;

#if defined(__CUDA_ARCH__) || defined(OPTLAYER_EMULATE)

#if defined(__CUDA_ARCH__)

OPTLAYER_INLINE int thread_in_block() { return (int)threadIdx.x; }
OPTLAYER_INLINE int64_t teams_before_block() { return (int64_t)blockIdx.x * (blockDim.x / TEAM); }

// The threads of this team in its warp.
OPTLAYER_INLINE unsigned neighbours() {
  return TEAM >= 32 ? 0xffffffffu : ((1u << NEIGHBOURS % 32) - 1) << (threadIdx.x % 32 / NEIGHBOURS * NEIGHBOURS);
}

OPTLAYER_INLINE void sync() {
  if (TEAM > 32)
    __syncthreads();
  else if (TEAM > 1)
    __syncwarp(neighbours());
}

// The value of the thread whose rank differs in the bit `step`, below NEIGHBOURS.
template <class T>
OPTLAYER_INLINE T swapped(T a, int step) {
  return __shfl_xor_sync(neighbours(), a, step);
}

// The value of the thread `source` of NEIGHBOURS, which this one is among.
template <class T>
OPTLAYER_INLINE T neighbour(T a, int source) {
  return __shfl_sync(neighbours(), a, source, NEIGHBOURS);
}

// The value of the thread of rank `source`.
template <class T>
OPTLAYER_INLINE T team_from(T a, int source) {
  if (TEAM == 1) return a;
  if (TEAM <= 32) return __shfl_sync(neighbours(), a, source, NEIGHBOURS);
  __shared__ T value;
  __syncthreads();
  if ((int)threadIdx.x == source) value = a;
  __syncthreads();
  return value;
}

// f(a, b) over the values of one thread of each warp, in the order of the warps.
template <class T, class F>
OPTLAYER_INLINE T over_warps(T a, F f) {
  __shared__ T values[TEAM < 32 ? 1 : TEAM / 32];
  __syncthreads();
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = a;
  __syncthreads();
  a = values[0];
  OPTLAYER_UNROLL for (int w = 1; w < TEAM / 32; w++) a = f(a, values[w]);
  return a;
}

OPTLAYER_INLINE bool team_any(bool m) {
  return TEAM == 1 ? m : TEAM > 32 ? __syncthreads_or(m) != 0 : __any_sync(neighbours(), m) != 0;
}
OPTLAYER_INLINE bool team_all(bool m) {
  return TEAM == 1 ? m : TEAM > 32 ? __syncthreads_and(m) != 0 : __all_sync(neighbours(), m) != 0;
}

OPTLAYER_INLINE unsigned long long fetch_add(unsigned long long* counter) { return atomicAdd(counter, 1ull); }

#else

OPTLAYER_INLINE int thread_in_block() { return emulator::thread(); }
OPTLAYER_INLINE int64_t teams_before_block() { return (int64_t)emulator::block() * (emulator::threads() / TEAM); }

OPTLAYER_INLINE void sync(OPTLAYER_CALLER) {
  if (TEAM > 1) emulator::meet(emulator::thread() / TEAM * TEAM, TEAM OPTLAYER_AT);
}

// The value of a thread of this team, which all of its threads call for at once.
template <class T>
OPTLAYER_INLINE T emulated_value(T a, int source OPTLAYER_ALSO_CALLER) {
  const int first = emulator::thread() / TEAM * TEAM;
  uint64_t mine = 0;
  memcpy(&mine, &a, sizeof a);
  const uint64_t theirs = emulator::exchange(mine, first + source, first, TEAM OPTLAYER_AT);
  memcpy(&a, &theirs, sizeof a);
  return a;
}
template <class T>
OPTLAYER_INLINE T swapped(T a, int step OPTLAYER_ALSO_CALLER) {
  return emulated_value(a, (emulator::thread() % TEAM) ^ step OPTLAYER_AT);
}
template <class T>
OPTLAYER_INLINE T neighbour(T a, int source OPTLAYER_ALSO_CALLER) {
  return emulated_value(a, emulator::thread() % TEAM / NEIGHBOURS * NEIGHBOURS + source OPTLAYER_AT);
}
template <class T>
OPTLAYER_INLINE T team_from(T a, int source OPTLAYER_ALSO_CALLER) {
  return TEAM == 1 ? a : emulated_value(a, source OPTLAYER_AT);
}
template <class T, class F>
OPTLAYER_INLINE T over_warps(T a, F f OPTLAYER_ALSO_CALLER) {
  T total = emulated_value(a, 0 OPTLAYER_AT);
  for (int w = 1; w < TEAM / 32; w++) total = f(total, emulated_value(a, 32 * w OPTLAYER_AT));
  return total;
}
OPTLAYER_INLINE unsigned long long fetch_add(unsigned long long* counter) {
  return __atomic_fetch_add(counter, 1ull, __ATOMIC_RELAXED);
}

#endif

// This thread's number within its team.
OPTLAYER_INLINE int rank() { return TEAM == 1 ? 0 : thread_in_block() % TEAM; }
// This team's number within its block, and within all blocks.
OPTLAYER_INLINE int team_in_block() { return thread_in_block() / TEAM; }
OPTLAYER_INLINE int64_t team_number() { return teams_before_block() + team_in_block(); }

// f(a, b) over the values of all threads.
template <class T, class F>
OPTLAYER_INLINE T reduced(T a, F f OPTLAYER_ALSO_CALLER) {
  OPTLAYER_UNROLL for (int step = 1; step < NEIGHBOURS; step *= 2) {
    const T b = swapped(a, step OPTLAYER_AT);
    a = (rank() & step) != 0 ? f(b, a) : f(a, b);  // the same order in both threads
  }
  if constexpr (TEAM > 32) a = over_warps(a, f OPTLAYER_AT);
  return a;
}
struct Sum {
  template <class T>
  OPTLAYER_MEMBER T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN does not show, unless all are.
struct Most {
  template <class T>
  OPTLAYER_MEMBER T operator()(T a, T b) const {
    return a > b || b != b ? a : b;
  }
};
template <class T>
OPTLAYER_INLINE T team_sum(T a OPTLAYER_ALSO_CALLER) {
  return reduced(a, Sum() OPTLAYER_AT);
}
template <class T>
OPTLAYER_INLINE T team_max(T a OPTLAYER_ALSO_CALLER) {
  return reduced(a, Most() OPTLAYER_AT);
}
template <class T>
OPTLAYER_INLINE T team_min(T a OPTLAYER_ALSO_CALLER) {
  return -reduced(-a, Most() OPTLAYER_AT);
}

#if defined(OPTLAYER_EMULATE)
struct Either {
  OPTLAYER_MEMBER bool operator()(bool a, bool b) const { return a || b; }
};
OPTLAYER_INLINE bool team_any(bool m OPTLAYER_ALSO_CALLER) { return reduced(m, Either() OPTLAYER_AT); }
OPTLAYER_INLINE bool team_all(bool m OPTLAYER_ALSO_CALLER) { return !team_any(!m OPTLAYER_AT); }
#endif

// The next number of a counter that all teams share, one for the whole team.
OPTLAYER_INLINE int64_t team_next(unsigned long long* counter OPTLAYER_ALSO_CALLER) {
  return (int64_t)team_from(rank() == 0 ? fetch_add(counter) : 0ull, 0 OPTLAYER_AT);
}

#else

OPTLAYER_INLINE int rank() { return 0; }
OPTLAYER_INLINE int team_in_block() { return 0; }
OPTLAYER_INLINE int64_t team_number() { return 0; }
OPTLAYER_INLINE void sync() {}
template <class T>
OPTLAYER_INLINE T team_from(T a, int) {
  return a;
}
template <class T>
OPTLAYER_INLINE T neighbour(T a, int) {
  return a;
}
template <class T>
OPTLAYER_INLINE T swapped(T a, int) {
  return a;
}
// The values may be packs, and the conditions masks.
template <class T>
OPTLAYER_INLINE T team_sum(T a) {
  return a;
}
template <class T>
OPTLAYER_INLINE T team_max(T a) {
  return a;
}
template <class T>
OPTLAYER_INLINE T team_min(T a) {
  return a;
}
template <class M>
OPTLAYER_INLINE M team_any(M m) {
  return m;
}
template <class M>
OPTLAYER_INLINE M team_all(M m) {
  return m;
}
OPTLAYER_INLINE int64_t team_next(unsigned long long* counter) { return (int64_t)(*counter)++; }

#endif

// A vector's entries are shared out by their index: entry i is the thread's whose rank is i % TEAM. The first one from
// entry i on that is this thread's:
//
//     for (int i = own(start); i < end; i += TEAM)
template <class I>
OPTLAYER_INLINE I own(I i) {
  return TEAM == 1 ? i : i + ((I)(rank() - (int)(i % TEAM) + TEAM) & (TEAM - 1));
}
template <class I>
OPTLAYER_INLINE bool owns(I i) {
  return TEAM == 1 || (int)(i & (TEAM - 1)) == rank();
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
