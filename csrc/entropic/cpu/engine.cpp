// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of entropic programs for one instruction set: compiled once for each, as qp/cpu/engine.cpp is.
#include "../adjoint.h"
#include "../solve.h"
#include "engines.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

// float64 numbers in a register.
#if defined(__AVX512F__)
static constexpr int LANES = 8;
#elif defined(__AVX2__)
static constexpr int LANES = 4;
#else
static constexpr int LANES = 2;
#endif

using Lanes = Pack<double, LANES>;
static constexpr optlayer::entropic::Engine ENGINE = {LANES, solve_workspace<Lanes>, solve<Lanes>,
                                                     kkt_workspace<Lanes>, kkt<Lanes>};

}  // namespace entropic
}  // namespace OPTLAYER_ISA

namespace entropic {

const Engine* OPTLAYER_JOIN(engine_, OPTLAYER_ISA)() { return &OPTLAYER_ISA::entropic::ENGINE; }

}  // namespace entropic
}  // namespace optlayer
