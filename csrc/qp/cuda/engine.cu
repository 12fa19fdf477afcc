// SPDX-License-Identifier: Apache-2.0
// The kernels for quadratic programs, for teams of OPTLAYER_TEAM threads.
#include "launch.h"

namespace optlayer {

const TeamEngine* OPTLAYER_JOIN(team_engine_, OPTLAYER_TEAM)() {
  using namespace OPTLAYER_ISA;
  static const TeamEngine engine = {TEAM, Preparation<double>::size, kernel<Preparation<double>, SolveCall>(),
                                    kernel<Solver<double>, SolveCall>(),
                                    kernel<Backward<double>, BackwardCall>()};
  return &engine;
}

}  // namespace optlayer
