// SPDX-License-Identifier: Apache-2.0
// The operators of the compiled engine, through torch's stable ABI: one library for every Python and every torch from
// 2.10 on. optlayer/ops.py says what the operators mean, operators.h turns their tensors into the calls of qp/call.h, and
// here a processor answers them.
#include <string>

#include "entropic/operators.h"
#include "operators.h"
#include "qp/cpu/dispatch.h"
#include "schemas.h"

namespace optlayer {
namespace {

// Sums are taken in pieces of the batch that do not depend on the number of threads: neither does their rounding.
constexpr int64_t PIECE = 256;           // elements
constexpr int64_t MOST_PIECES = 64;
constexpr int64_t MOST_PARTIAL = 1 << 22;  // numbers in the sums of all pieces

// Multiplications in a step of the method for an entropic program.
template <class Call>
double entropic_work(const Call& call) {
  const double n = call.n, k = call.m + call.p;
  return n * (40 + k * (k + 8)) + k * k * k + (call.full() ? n * n * (n / 3 + k + 8) : 0);
}

struct Processor {
  static Place place(const Tensor&) { return {aoti_torch_device_type_cpu(), 0, tabulate_on_host}; }

  static int64_t solve(const Place&, const SolveCall& call) {
    const Kernels& use = kernels(call.B, call.n, call.m + call.p);
    const size_t size = use.solve_workspace(call);
    spread(call.B, use.lanes, work_of_solve(call.n, call.m + call.p), [&](int64_t begin, int64_t end) {
      use.solve(call, begin, end, Workspace(size).data());
    });
    int64_t unsolved = 0;
    for (int64_t e = 0; e < call.B; e++) unsolved += call.status[e] == UNSOLVED;
    return unsolved;
  }

  static int64_t entropic(const Place&, const entropic::SolveCall& call) {
    const entropic::Engine& use = *chosen().entropic;
    const size_t size = use.solve_workspace(call);
    spread(call.B, use.lanes, STEPS * entropic_work(call), [&](int64_t begin, int64_t end) {
      use.solve(call, begin, end, Workspace(size).data());
    });
    int64_t unsolved = 0;
    for (int64_t e = 0; e < call.B; e++) unsolved += call.status[e] == UNSOLVED;
    return unsolved;
  }

  static void entropic(const Place&, const entropic::KktCall& call) {
    const entropic::Engine& use = *chosen().entropic;
    const size_t size = use.kkt_workspace(call);
    spread(call.B, use.lanes, (1 + 0.2 * call.R) * entropic_work(call), [&](int64_t begin, int64_t end) {
      use.kkt(call, begin, end, Workspace(size).data());
    });
  }

  static void kkt(const Place&, const KktCall& call) {
    const int64_t n = call.n, r = call.m + call.p;
    const Kernels& use = kernels(call.B, n, r);
    const size_t size = use.kkt_workspace(call);
    const double work = call.factor.data == nullptr ? work_of_solve(n, r) / STEPS : 0;
    spread(call.B, use.lanes, work + call.R * work_of_kkt(n, r), [&](int64_t begin, int64_t end) {
      use.kkt(call, begin, end, Workspace(size).data());
    });
  }

  static void kkt_pull(const Place& place, const KktCall& system, const PullCall& gradients) {
    if (system.B > 0) kkt(place, system);
    pull(place, gradients);
  }

  static void pull(const Place&, const PullCall& call) {
    const int64_t rows[] = {call.n, call.m, call.p}, entries = (rows[0] + rows[1] + rows[2]) * call.n;
    if (!call.sum_P && !call.sum_G && !call.sum_A) {
      spread(call.B, 1, static_cast<double>(entries) + 1,
             [&](int64_t begin, int64_t end) { engine().pull(call, begin, end, nullptr); });
      return;
    }
    int64_t pieces = (call.B + PIECE - 1) / PIECE;
    pieces = pieces < MOST_PIECES ? pieces : MOST_PIECES;
    while (pieces > 1 && pieces * entries > MOST_PARTIAL) pieces /= 2;
    if (pieces < 1) pieces = 1;
    std::vector<double> partial(pieces * entries, 0.0);
    spread(pieces, 1, static_cast<double>(entries) * call.B / pieces + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        engine().pull(call, call.B * i / pieces, call.B * (i + 1) / pieces, partial.data() + i * entries);
    });
    void* const to[] = {call.dP, call.dG, call.dA};
    const bool summed[] = {call.sum_P, call.sum_G, call.sum_A};
    int64_t start = 0;
    for (int i = 0; i < 3; i++) {
      const int64_t count = rows[i] * call.n;
      for (int64_t j = 0; summed[i] && j < count; j++) {
        double sum = 0;
        for (int64_t piece = 0; piece < pieces; piece++) sum += partial[piece * entries + start + j];
        if (call.single)
          static_cast<float*>(to[i])[j] = static_cast<float>(sum);
        else
          static_cast<double*>(to[i])[j] = sum;
      }
      start += count;
    }
  }
};

std::string info() {
  std::string built;
  for (const Candidate& candidate : candidates()) built += (built.empty() ? "" : ", ") + std::string(candidate.engine->name);
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "GCC " __VERSION__;
#endif
  const uint64_t target = TORCH_FEATURE_VERSION;
  return "built=" + built + "\nruns=" + engine().name + "\nlanes=" + std::to_string(engine().pack.lanes) +
         "\ncompiler=" + compiler + "\ntorch=" + std::to_string(target >> 56) + "." +
         std::to_string(target >> 48 & 255) + "\n";
}

}  // namespace
}  // namespace optlayer

STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CPU, m) {
  m.impl("qp", TORCH_BOX(&optlayer::qp<optlayer::Processor>));
  m.impl("kkt_solve", TORCH_BOX(&optlayer::kkt_solve<optlayer::Processor>));
  m.impl("pull", TORCH_BOX(&optlayer::pull<optlayer::Processor>));
  m.impl("entropic_qp", TORCH_BOX(&optlayer::entropic::qp<optlayer::Processor>));
  m.impl("kkt_pull", TORCH_BOX(&optlayer::kkt_pull<optlayer::Processor>));
  m.impl("entropic_kkt_solve", TORCH_BOX(&optlayer::entropic::kkt_solve<optlayer::Processor>));
}
STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CompositeExplicitAutograd, m) { m.impl("info", TORCH_BOX(&optlayer::info)); }
