// SPDX-License-Identifier: Apache-2.0
// The kernels for entropic programs, for teams of OPTLAYER_TEAM threads.
#include "../../qp/cuda/launch.h"
#include "../adjoint.h"
#include "../solve.h"
#include "engines.h"

namespace optlayer {
namespace entropic {

const TeamEngine* OPTLAYER_JOIN(team_engine_, OPTLAYER_TEAM)() {
  using namespace OPTLAYER_ISA;
  static const TeamEngine engine = {TEAM, kernel<OPTLAYER_ISA::entropic::Solver<double>, SolveCall>(),
                                    kernel<OPTLAYER_ISA::entropic::Adjoint<double>, KktCall>()};
  return &engine;
}

}  // namespace entropic
}  // namespace optlayer
