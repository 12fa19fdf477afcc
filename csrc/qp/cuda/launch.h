// SPDX-License-Identifier: Apache-2.0
// How a kernel for teams of OPTLAYER_TEAM threads is launched, whatever its teams work on. The files that include it are
// compiled once for each of mapping.h's teams, with -DOPTLAYER_ISA=cuda_T -DOPTLAYER_TEAM=T.
#pragma once

#include "engines.h"
#include "work.h"

#define OPTLAYER_JOIN_(a, b) a##b
#define OPTLAYER_JOIN(a, b) OPTLAYER_JOIN_(a, b)

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr int THREADS = TEAM < 32 ? 32 : TEAM;
static constexpr int BLOCKS = THREADS > 128 ? 2 : 256 / THREADS;  // of a processor: 255 registers a thread

template <class Worker, class Call>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    worker_kernel(const __grid_constant__ Call call, const __grid_constant__ Grounds grounds) {
  extern __shared__ __align__(16) char shared[];
  const Room& room = grounds.mapping.room;
  char* fast = shared + team_in_block() * room.fast;
  char* slow = grounds.memory + team_number() * grounds.slow;
  work<Worker>(call, fast, slow, room, grounds.counter);
}

template <class Worker, class Call>
static cudaError_t launch(const Call& call, const Grounds& grounds, cudaStream_t stream) {
  const Mapping& to = grounds.mapping;
  worker_kernel<Worker, Call><<<to.blocks, to.threads, to.fast, stream>>>(call, grounds);
  return cudaGetLastError();
}

template <class Worker, class Call>
static Kernel<Call> kernel() {
  return {reinterpret_cast<const void*>(worker_kernel<Worker, Call>), need<Worker, Call>, slow<Worker, Call>,
          launch<Worker, Call>};
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
