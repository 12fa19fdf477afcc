// SPDX-License-Identifier: Apache-2.0
// The copies of the CPU kernels that this library holds, best first. setup.py says which are compiled.
#pragma once

#include "../call.h"

#define OPTLAYER_JOIN_(a, b) a##b
#define OPTLAYER_JOIN(a, b) OPTLAYER_JOIN_(a, b)

namespace optlayer {

const Engine* engine_avx512();
const Engine* engine_avx2();
const Engine* engine_baseline();
const Engine* engine_neon();

}  // namespace optlayer
