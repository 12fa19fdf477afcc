// SPDX-License-Identifier: Apache-2.0
// The operators of the compiled engine, through torch's stable ABI: one library for every Python and every torch from
// 2.10 on. optlayer/ops.py says what the operators mean, operators.h turns their tensors into the calls of qp/call.h, and
// here a processor answers them.
#include <torch/csrc/stable/library.h>

#include <string>

#include "operators.h"
#include "qp/cpu/dispatch.h"

STABLE_TORCH_LIBRARY(optlayer_native, m) {
  // optlayer::qp; formulation is 0 auto, 1 split, 2 range. `unsolved` counts the elements whose status is UNSOLVED:
  // the engine leaves them to another, and only their status is written. It is -1 where that is to be looked up.
  m.def(
      "qp(Tensor? P, Tensor q, Tensor? G, Tensor? h, Tensor? A, Tensor? b, Tensor? lb, Tensor? ub, "
      "Tensor? x0, Tensor? y0, Tensor? z0, Tensor? z_box0, "
      "float eps_abs, float eps_rel, int max_iter, int formulation, bool nan_failures, bool keep_factor) -> "
      "(Tensor x, Tensor y, Tensor z, Tensor z_box, Tensor s, Tensor status, Tensor iterations, Tensor weakly_active, "
      "Tensor lower_share, Tensor ray_x, Tensor ray_y, Tensor ray_z, Tensor ray_box, "
      "Tensor state, Tensor factor, Tensor index, int unsolved)");
  // optlayer::kkt_solve.
  m.def(
      "kkt_solve(Tensor? P, Tensor? G, Tensor? A, Tensor state, Tensor factor, Tensor index, "
      "Tensor rx, Tensor ry, Tensor rz, Tensor r_box) -> (Tensor ux, Tensor uy, Tensor uz, Tensor u_box)");
  // The gradients of P, G, A for w = (x, y, z) and u, all with the same batch dimensions: each is 0 not wanted (an empty
  // tensor), 1 one for every element, 2 the sum over all of them.
  m.def(
      "pull(Tensor x, Tensor y, Tensor z, Tensor ux, Tensor uy, Tensor uz, int P, int G, int A) -> "
      "(Tensor dP, Tensor dG, Tensor dA)");
  // What was built and what runs, as lines "key=value".
  m.def("info() -> str");
}

namespace optlayer {
namespace {

// Sums are taken in pieces of the batch that do not depend on the number of threads: neither does their rounding.
constexpr int64_t PIECE = 256;           // elements
constexpr int64_t MOST_PIECES = 64;
constexpr int64_t MOST_PARTIAL = 1 << 22;  // numbers in the sums of all pieces

struct Processor {
  static Place place(const Tensor&) { return {aoti_torch_device_type_cpu(), 0, tabulate}; }

  static void tabulate(const Place&, const Batch& batch, const int64_t* strides, int64_t* offsets) {
    int64_t filled = 1;
    offsets[0] = 0;
    for (int64_t d = batch.rank - 1, block = 1; d >= 0; d--) {  // the first `block` offsets are those of the last dimensions
      for (; filled < block * batch.size[d]; filled++)
        offsets[filled] = offsets[filled % block] + filled / block * strides[d];
      block = filled;
    }
  }

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

  static void kkt(const Place&, const KktCall& call) {
    const int64_t n = call.n, r = call.m + call.p;
    const Kernels& use = kernels(call.B, n, r);
    const size_t size = use.kkt_workspace(call);
    const double work = call.factor.data == nullptr ? work_of_solve(n, r) / STEPS : 0;
    spread(call.B, use.lanes, work + call.R * work_of_kkt(n, r), [&](int64_t begin, int64_t end) {
      use.kkt(call, begin, end, Workspace(size).data());
    });
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
}
STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CompositeExplicitAutograd, m) { m.impl("info", TORCH_BOX(&optlayer::info)); }
