// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of one instruction set. This file is compiled once for each, with -DOPTLAYER_ISA=NAME and the
// compiler's options for it, so nothing of the standard library may be instantiated here: the linker would keep one copy
// of it for all processors.
#include "engines.h"

#include "../adjoint.h"
#include "../solve.h"
#include "outer.h"

#define OPTLAYER_TEXT_(a) #a
#define OPTLAYER_TEXT(a) OPTLAYER_TEXT_(a)

namespace optlayer {
namespace OPTLAYER_ISA {

// float64 numbers in a register.
#if defined(__AVX512F__)
static constexpr int LANES = 8;
#elif defined(__AVX2__)
static constexpr int LANES = 4;
#else
static constexpr int LANES = 2;
#endif

template <class V>
static constexpr Kernels kernels() {
  return {lanes<V>, solve_workspace<V>, solve<V>, kkt_workspace<V>, kkt<V>};
}

static constexpr Engine ENGINE = {OPTLAYER_TEXT(OPTLAYER_ISA), kernels<double>(), kernels<Pack<double, LANES>>(), pull};

}  // namespace OPTLAYER_ISA

const Engine* OPTLAYER_JOIN(engine_, OPTLAYER_ISA)() { return &OPTLAYER_ISA::ENGINE; }

}  // namespace optlayer
