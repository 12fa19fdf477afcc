// SPDX-License-Identifier: Apache-2.0
// The copies of the kernels for a GPU: one for each number of threads that may work on one problem. setup.py compiles
// engine.cu once for each number in mapping.h.
#pragma once

#include <cuda_runtime_api.h>

#include "gradients.h"
#include "mapping.h"

namespace optlayer {

// Where the teams of a launch work: `slow` bytes each of the block `memory`, and a counter that is zero at the start.
struct Grounds {
  Mapping mapping;
  char* memory = nullptr;
  size_t slow = 0;
  unsigned long long* counter = nullptr;
};

template <class Call>
struct Kernel {
  const void* function;
  // What a call needs, and how much of it lies in slow memory when there is so much room in the fast one.
  Need (*need)(const Call&);
  size_t (*slow)(const Call&, const Room&);
  cudaError_t (*launch)(const Call&, const Grounds&, cudaStream_t);
};

struct TeamEngine {
  int team;
  size_t (*shared)(const SolveCall&);  // float64 numbers for SolveCall.prepared; 0 where nothing is to be prepared
  Kernel<SolveCall> prepare, solve;
  Kernel<BackwardCall> kkt;
};

const TeamEngine* team_engine_1();
const TeamEngine* team_engine_8();
const TeamEngine* team_engine_32();
const TeamEngine* team_engine_128();

// The kernels of gradients.h. `partial` has room for pull_partial(call) float64 numbers.
cudaError_t pull(const PullCall& call, double* partial, cudaStream_t stream);
cudaError_t tabulate(const Offsets& offsets, cudaStream_t stream);

}  // namespace optlayer
