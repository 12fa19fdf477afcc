// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels on a CPU: the operators of the compiled engine, answered by the fibers of emulator.h. The library
// stands in for optlayer/_native (OPTLAYER_LIBRARY), so that every test of the operators is a test of the kernels.
#include <torch/csrc/stable/ops.h>

#include <stdlib.h>
#include <string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "operators.h"
#include "qp/cuda/work.h"
#include "schemas.h"

#include "emulator.h"

namespace optlayer {
namespace {

using namespace OPTLAYER_ISA;

// A GPU of two small processors: little shared memory, so that workspaces lie in both.
constexpr Limits GPU = {2, 512, 24 << 10, 20 << 10, 1 << 10, 65536};

uint64_t number(const char* variable, uint64_t otherwise) {
  const char* text = getenv(variable);
  return text == nullptr ? otherwise : strtoull(text, nullptr, 10);
}

template <class Worker, class Call>
void run(const Call& call) {
  Mapping to = mapping(GPU, TEAM, 64, call.B, need<Worker>(call));
  const size_t each = slow<Worker>(call, to.room);
  emulator::Launch launch;
  launch.blocks = to.blocks, launch.threads = to.threads, launch.shared = to.fast;
  launch.seed = number("OPTLAYER_SEED", 1);
  launch.left_out = (int64_t)number("OPTLAYER_LEFT_OUT", (uint64_t)-1);
  std::vector<double> memory(each / sizeof(double) * to.blocks * to.teams());
  memset(memory.data(), 0xff, memory.size() * sizeof(double));  // NaN
  unsigned long long counter = 0;
  emulator::launch(launch, [&] {
    char* fast = static_cast<char*>(emulator::shared()) + team_in_block() * (to.room.vectors + to.room.matrices);
    work<Worker>(call, fast, reinterpret_cast<char*>(memory.data()) + team_number() * each, to.room, &counter);
  });
}

struct Emulated {
  static Place place(const Tensor&) { return {aoti_torch_device_type_cpu(), 0, tabulate_on_host}; }

  static int64_t solve(const Place&, const SolveCall& call) {
    run<Solver<double>>(call);
    int64_t unsolved = 0;
    for (int64_t e = 0; e < call.B; e++) unsolved += call.status[e] == UNSOLVED;
    return unsolved;
  }

  static void kkt(const Place&, const KktCall& call) { run<Adjoint<double>>(call); }

  // No team works on these: as they are written.
  static void pull(const Place&, const PullCall& call) {
    const auto gradient = [&](const Input& v, const Input& uv, int rows, double scale, bool sum, void* out) {
      for (int64_t k = 0; out != nullptr && k < (int64_t)rows * call.n; k++) {
        double total = 0;
        for (int64_t e = 0; e < call.B; e++) {
          const int64_t i = k / call.n, j = k % call.n;
          const auto read = [&](const Input& from, int64_t at) { return value(from.data, call.single, from.offset(e) + at); };
          const auto solution = [&](const Input& from, int64_t at) { return finite(read(from, at)) ? read(from, at) : 0; };
          const double term = -scale * (solution(v, i) * read(call.ux, j) + read(uv, i) * solution(call.wx, j));
          if (!sum) assign(out, call.single, e * rows * call.n + k, term);
          total += term;
        }
        if (sum) assign(out, call.single, k, total);
      }
    };
    gradient(call.wx, call.ux, call.n, 0.5, call.sum_P, call.dP);
    gradient(call.wz, call.uz, call.m, 1, call.sum_G, call.dG);
    gradient(call.wy, call.uy, call.p, 1, call.sum_A, call.dA);
  }
};

std::string info() { return "built=emulated\nruns=emulated\nlanes=1\ncompiler=GCC\ntorch=2.10\n"; }

}  // namespace
}  // namespace optlayer

STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CPU, m) {
  m.impl("qp", TORCH_BOX(&optlayer::qp<optlayer::Emulated>));
  m.impl("kkt_solve", TORCH_BOX(&optlayer::kkt_solve<optlayer::Emulated>));
  m.impl("pull", TORCH_BOX(&optlayer::pull<optlayer::Emulated>));
}
STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CompositeExplicitAutograd, m) { m.impl("info", TORCH_BOX(&optlayer::info)); }
