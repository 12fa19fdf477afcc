// SPDX-License-Identifier: Apache-2.0
// The copies of the kernels of entropic programs for a GPU; see qp/cuda/engines.h.
#pragma once

#include "../../qp/cuda/engines.h"
#include "../call.h"

namespace optlayer {
namespace entropic {

struct TeamEngine {
  int team;
  Kernel<SolveCall> solve;
  Kernel<KktCall> kkt;
};

const TeamEngine* team_engine_1();
const TeamEngine* team_engine_8();
const TeamEngine* team_engine_32();
const TeamEngine* team_engine_128();

}  // namespace entropic
}  // namespace optlayer
