// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels on a CPU: the operators of the compiled engine, answered by the fibers of emulator.h. The library
// stands in for optlayer/_native (OPTLAYER_LIBRARY), so that every test of the operators is a test of the kernels. With
// OPTLAYER_UNREAD=1 matrices that a batch shares are NaN once the first launch has set them up.
#include <torch/csrc/stable/ops.h>

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "entropic/adjoint.h"
#include "entropic/operators.h"
#include "entropic/solve.h"
#include "operators.h"
#include "qp/cuda/gradients.h"
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

// "FILE:LINE" of a barrier to leave out.
std::string left_out() {
  const char* text = getenv("OPTLAYER_LEFT_OUT");
  return text == nullptr ? "" : text;
}

template <class Worker, class Call>
void run(const Call& call) {
  Mapping to = mapping(GPU, TEAM, 64, call.B, need<Worker>(call));
  const size_t each = slow<Worker>(call, to.room);
  emulator::Launch launch;
  launch.blocks = to.blocks, launch.threads = to.threads, launch.shared = to.fast;
  launch.seed = number("OPTLAYER_SEED", 1);
  launch.left_out_at = left_out();
  std::vector<double> memory(each / sizeof(double) * to.blocks * to.teams());
  memset(memory.data(), 0xff, memory.size() * sizeof(double));  // NaN
  unsigned long long counter = 0;
  emulator::launch(launch, [&] {
    char* fast = static_cast<char*>(emulator::shared()) + team_in_block() * to.room.fast;
    work<Worker>(call, fast, reinterpret_cast<char*>(memory.data()) + team_number() * each, to.room, &counter);
  });
}

// The threads of a grid never meet: they run one after the other, the blocks in random order.
template <class Work>
void run_grid(const Work& work) {
  const Grid grid = work.grid();
  std::vector<uint64_t> blocks((size_t)grid.blocks[0] * grid.blocks[1]);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(number("OPTLAYER_SEED", 1)));
  for (uint64_t block : blocks)
    for (unsigned i = 0; i < grid.threads[1]; i++)
      for (unsigned j = 0; j < grid.threads[0]; j++)
        work(grid, {{(unsigned)(block % grid.blocks[0]), (unsigned)(block / grid.blocks[0])}, {j, i}});
}

struct Emulated {
  static Place place(const Tensor&) { return {aoti_torch_device_type_cpu(), 0, tabulate}; }

  static void tabulate(const Place&, const Batch& batch, const int64_t* strides, int64_t* offsets) {
    Offsets table;
    table.rank = (int)batch.rank, table.count = batch.count(), table.offsets = offsets;
    for (int64_t d = 0; d < batch.rank; d++) table.size[d] = batch.size[d], table.stride[d] = strides[d];
    run_grid(table);
  }

  static int64_t solve(const Place&, SolveCall call) {
    std::vector<double> prepared(Preparation<double>::size(call), NAN), unread;
    if (!prepared.empty()) {
      call.prepared = prepared.data();
      SolveCall one = call;
      one.B = 1;
      run<Preparation<double>>(one);
      if (number("OPTLAYER_UNREAD", 0) == 1) {
        unread.resize((size_t)call.n * std::max({call.n, call.m, call.p}));
        memset(unread.data(), 0xff, unread.size() * sizeof(double));
        for (Input* matrix : {&call.P, &call.G, &call.A}) matrix->data = unread.data();
      }
    }
    run<Solver<double>>(call);
    int64_t unsolved = 0;
    for (int64_t e = 0; e < call.B; e++) unsolved += call.status[e] == UNSOLVED;
    return unsolved;
  }

  static int64_t entropic(const Place&, const optlayer::entropic::SolveCall& call) {
    run<OPTLAYER_ISA::entropic::Solver<double>>(call);
    int64_t unsolved = 0;
    for (int64_t e = 0; e < call.B; e++) unsolved += call.status[e] == UNSOLVED;
    return unsolved;
  }

  static void entropic(const Place&, const optlayer::entropic::KktCall& call) {
    run<OPTLAYER_ISA::entropic::Adjoint<double>>(call);
  }

  static void kkt(const Place&, const KktCall& call) { run<Backward<double>>(BackwardCall{call, {}, {}, {}}); }

  static void pull(const Place&, const PullCall& call) {
    std::vector<double> partial(pull_partial(call), NAN);
    pull_in_grids(call, partial.data(), [](const auto& work) { run_grid(work); });
  }

  static void kkt_pull(const Place&, const KktCall& system, const PullCall& gradients) {
    const auto [each, sums] = shares(system, gradients);
    if (each.B > 0) run<Backward<double>>(each);
    pull(place(Tensor()), sums);
  }
};

std::string info() { return "built=emulated\nruns=emulated\nlanes=1\ncompiler=GCC\ntorch=2.10\n"; }

}  // namespace
}  // namespace optlayer

STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CPU, m) {
  m.impl("qp", TORCH_BOX(&optlayer::qp<optlayer::Emulated>));
  m.impl("kkt_solve", TORCH_BOX(&optlayer::kkt_solve<optlayer::Emulated>));
  m.impl("pull", TORCH_BOX(&optlayer::pull<optlayer::Emulated>));
  m.impl("kkt_pull", TORCH_BOX(&optlayer::kkt_pull<optlayer::Emulated>));
  m.impl("entropic_qp", TORCH_BOX(&optlayer::entropic::qp<optlayer::Emulated>));
  m.impl("entropic_kkt_solve", TORCH_BOX(&optlayer::entropic::kkt_solve<optlayer::Emulated>));
}
STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CompositeExplicitAutograd, m) { m.impl("info", TORCH_BOX(&optlayer::info)); }
