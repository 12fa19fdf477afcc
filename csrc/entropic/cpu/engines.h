// SPDX-License-Identifier: Apache-2.0
// The copies of the CPU kernels of entropic programs that this library holds; see qp/cpu/engines.h.
#pragma once

#include "../../qp/cpu/engines.h"
#include "../call.h"

namespace optlayer {
namespace entropic {

const Engine* engine_avx512();
const Engine* engine_avx2();
const Engine* engine_baseline();
const Engine* engine_neon();

}  // namespace entropic
}  // namespace optlayer
