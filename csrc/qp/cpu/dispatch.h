// SPDX-License-Identifier: Apache-2.0
// How the CPU answers a call: which instruction set, one problem or several at a time, and which thread does what.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <stdlib.h>
#include <string.h>

#include <new>
#include <string>

#include "../../entropic/cpu/engines.h"
#include "engines.h"

namespace optlayer {

// The instruction sets of this library, best first.
struct Candidate {
  const Engine* engine;
  const entropic::Engine* entropic;
  bool runs;  // on this processor
};

inline const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
#if defined(OPTLAYER_HAS_AVX512)
      {engine_avx512(), entropic::engine_avx512(),
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
#if defined(OPTLAYER_HAS_AVX2)
      {engine_avx2(), entropic::engine_avx2(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
#if defined(OPTLAYER_HAS_NEON)
      {engine_neon(), entropic::engine_neon(), true},
#endif
#if defined(OPTLAYER_HAS_BASELINE)
      {engine_baseline(), entropic::engine_baseline(), __builtin_cpu_supports("sse4.2") != 0},
#endif
  };
  return all;
}

// The best that runs here, or the one that the environment variable OPTLAYER_ISA names.
inline const Candidate& chosen() {
  static const Candidate* const found = [] {
    const char* wanted = getenv("OPTLAYER_ISA");
    std::string known;
    for (const Candidate& candidate : candidates()) {
      if (!candidate.runs) continue;
      const char* name = candidate.engine->name;
      if (wanted == nullptr || *wanted == 0 || strcmp(wanted, name) == 0) return &candidate;
      known += known.empty() ? name : std::string(", ") + name;
    }
    STD_TORCH_CHECK(wanted != nullptr, "no compiled instruction set runs on this processor");
    STD_TORCH_CHECK(false, "OPTLAYER_ISA is ", wanted, ", expected one of ", known);
  }();
  return *found;
}
inline const Engine& engine() { return *chosen().engine; }

// ---- one or several problems at a time -------------------------------------------------------------------------------

constexpr int64_t SMALL = 24;    // n + m + p up to which lanes are always worth it, also for a single problem
constexpr int64_t MEDIUM = 160;  // and up to which they are for a few
constexpr int64_t LARGER = 300;  // the same where the first steps may be in float32 (qp/approach.h)
constexpr int64_t FEW = 3;
constexpr double WORTH = 2e4;    // multiplications that are worth a thread
constexpr double STEPS = 10;     // factorisations in a solve

inline const Kernels& kernels(int64_t B, int64_t n, int64_t rows) {
  const Engine& best = engine();
  const int64_t size = n + rows, most = rows <= n ? LARGER : MEDIUM;
  return size <= SMALL || (size <= most && B >= FEW) ? best.pack : best.single;
}

// Multiplications in one solve, and in one solve with a kept factor.
inline double work_of_solve(int64_t n, int64_t rows) {
  const double N = n, R = rows, least = R < N ? R : N;
  return STEPS * (N * N * (N / 3 + least + 8) + 8 * N * R + least * least * least / 3);
}
inline double work_of_kkt(int64_t n, int64_t rows) {
  const double N = n, R = rows;
  return 4 * (3 * N * N + 4 * N * R + R);
}

// ---- threads ---------------------------------------------------------------------------------------------------------

// Memory of one thread, kept from call to call unless it is large.
class Workspace {
 public:
  explicit Workspace(size_t size) {
#if defined(OPTLAYER_POISON)  // exactly as large as told, and NaN
    allocate(size);
    owned_ = true;
    memset(data_, 0xff, size);
#else
    Cache& kept = cache();
    if (size <= kept.size) {
      data_ = kept.data;
      return;
    }
    const size_t pages = (size + 4095) / 4096 * 4096;
    allocate(pages);
    owned_ = pages > LARGE;
    if (owned_) return;
    free(kept.data);
    kept.data = data_;
    kept.size = pages;
#endif
  }
  ~Workspace() {
    if (owned_) free(data_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  static constexpr size_t LARGE = size_t(32) << 20;
  struct Cache {
    void* data = nullptr;
    size_t size = 0;
    ~Cache() { free(data); }
  };
  static Cache& cache() {
    static thread_local Cache kept;
    return kept;
  }

  void allocate(size_t size) {
    if (posix_memalign(&data_, 64, size) != 0) throw std::bad_alloc();
  }

  void* data_ = nullptr;
  bool owned_ = false;
};

// Run f(begin, end) over the B elements on torch's threads: each has a multiple of `lanes` elements, and so many that
// the work, told for one element, is worth a thread.
template <class F>
void spread(int64_t B, int64_t lanes, double work, const F& f) {
  const int64_t packs = (B + lanes - 1) / lanes;
  const double worth = WORTH / (work * lanes);
  const int64_t grain = worth < 1 ? 1 : worth > packs ? packs : (int64_t)worth;
  if (packs <= grain) {
    f(int64_t(0), B);
    return;
  }
  torch::stable::parallel_for(0, packs, grain, [&](int64_t begin, int64_t end) {
    f(begin * lanes, end * lanes < B ? end * lanes : B);
  });
}

}  // namespace optlayer
