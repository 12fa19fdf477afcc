// SPDX-License-Identifier: Apache-2.0
// The operators of the compiled engine, through torch's stable ABI: one library for every Python and every torch from
// 2.10 on. optlayer/ops.py says what the operators mean; here their tensors become the calls of qp/call.h.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/tensors.h"
#include "qp/cpu/dispatch.h"

STABLE_TORCH_LIBRARY(optlayer_native, m) {
  // optlayer::qp; formulation is 0 auto, 1 split, 2 range. `unsolved` counts the elements whose status is UNSOLVED:
  // the engine leaves them to another, and only their status is written.
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

ScalarType float_type(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float, "expected float64 or float32");
  return type;
}

int narrow(int64_t size) {
  STD_TORCH_CHECK(size < 1 << 14, "a program of size ", size, " is too large for the compiled engine");
  return static_cast<int>(size);
}

template <size_t... I>
auto as_tuple(Tensor* t, std::index_sequence<I...>) {
  return std::make_tuple(std::move(t[I])...);
}

auto qp(Optional P, Tensor q, Optional G, Optional h, Optional A, Optional b, Optional lb, Optional ub, Optional x0,
        Optional y0, Optional z0, Optional z_box0, double eps_abs, double eps_rel, int64_t max_iter,
        int64_t formulation, bool nan_failures, bool keep_factor) {
  const Optional* vectors[] = {&h, &b, &lb, &ub, &x0, &y0, &z0, &z_box0};
  Batch batch;
  batch.join(q, 1);
  for (const Optional* t : {&P, &G, &A}) batch.join(*t, 2);
  for (const Optional* t : vectors) batch.join(*t, 1);

  SolveCall call;
  const int64_t n = length(q), m = length(h), p = length(b), r = m + p, k = r < 2 * n ? r : 2 * n;
  const ScalarType type = float_type(q);
  STD_TORCH_CHECK(n > 0 && (m == 0 || G.has_value()) && (p == 0 || A.has_value()), "G or A is absent, or n is 0");
  call.B = batch.count();
  call.n = narrow(n), call.m = narrow(m), call.p = narrow(p);
  call.single = type == ScalarType::Float;
  Reader reader(batch, type);
  call.P = reader.matrix(P, n, n, "P", true);
  call.q = reader.vector(q, n, "q");
  call.G = reader.matrix(G, m, n, "G"), call.h = reader.vector(h, m, "h");
  call.A = reader.matrix(A, p, n, "A"), call.b = reader.vector(b, p, "b");
  call.lb = reader.vector(lb, n, "lb"), call.ub = reader.vector(ub, n, "ub");
  call.x0 = reader.vector(x0, n, "x0"), call.y0 = reader.vector(y0, p, "y0");
  call.z0 = reader.vector(z0, m, "z0"), call.z_box0 = reader.vector(z_box0, n, "z_box0");
  call.eps_abs = eps_abs, call.eps_rel = eps_rel;
  call.max_iter = max_iter < 1 << 30 ? static_cast<int>(max_iter) : 1 << 30;
  call.formulation = static_cast<Formulation>(formulation);
  call.nan_failures = nan_failures, call.keep_factor = keep_factor;

  const ScalarType whole = ScalarType::Long, full = ScalarType::Double;
  Tensor out[16] = {make(batch, n, type),
                    make(batch, p, type),
                    make(batch, m, type),
                    make(batch, n, type),
                    make(batch, m, type),
                    make(batch, -1, whole),
                    make(batch, -1, whole),
                    make(batch, -1, whole),
                    make(batch, n, type),
                    make(batch, n, type),
                    make(batch, p, type),
                    make(batch, m, type),
                    make(batch, n, type),
                    make(batch, 2 * n + 2 * r + 2, full),
                    make(batch, keep_factor ? n * n + k * k : 0, full),
                    make(batch, k, whole)};
  void** floats[] = {&call.x,     &call.y,     &call.z,     &call.z_box,  &call.s,
                     nullptr,     nullptr,     nullptr,     &call.lower_share, &call.ray_x,
                     &call.ray_y, &call.ray_z, &call.ray_box};
  for (int i = 0; i < 13; i++)
    if (floats[i] != nullptr) *floats[i] = out[i].mutable_data_ptr();
  call.status = static_cast<int64_t*>(out[5].mutable_data_ptr());
  call.iterations = static_cast<int64_t*>(out[6].mutable_data_ptr());
  call.weakly_active = static_cast<int64_t*>(out[7].mutable_data_ptr());
  call.state = static_cast<double*>(out[13].mutable_data_ptr());
  call.factor = keep_factor ? static_cast<double*>(out[14].mutable_data_ptr()) : nullptr;
  call.index = static_cast<int64_t*>(out[15].mutable_data_ptr());

  int64_t unsolved = 0;
  if (call.B > 0) {
    const Kernels& use = kernels(call.B, n, r);
    const size_t size = use.solve_workspace(call);
    spread(call.B, use.lanes, work_of_solve(n, r), [&](int64_t begin, int64_t end) {
      use.solve(call, begin, end, Workspace(size).data());
    });
    for (int64_t e = 0; e < call.B; e++) unsolved += call.status[e] == UNSOLVED;
  }
  return std::tuple_cat(as_tuple(out, std::make_index_sequence<16>()), std::make_tuple(unsolved));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> kkt_solve(Optional P, Optional G, Optional A, Tensor state, Tensor factor,
                                                     Tensor index, Tensor rx, Tensor ry, Tensor rz, Tensor r_box) {
  Batch batch;
  for (const Tensor* t : {&state, &rx, &ry, &rz, &r_box}) batch.join(*t, 1);
  const int64_t extra = batch.rank - (state.dim() - 1);
  Batch own;
  own.rank = batch.rank - extra;
  for (int64_t d = 0; d < own.rank; d++) own.size[d] = batch.size[extra + d];

  KktCall call;
  const int64_t n = length(rx), p = length(ry), m = length(rz), r = m + p, k = r < 2 * n ? r : 2 * n;
  const ScalarType type = float_type(rx), full = ScalarType::Double;
  STD_TORCH_CHECK(n > 0 && (m == 0 || G.has_value()) && (p == 0 || A.has_value()), "G or A is absent, or n is 0");
  call.B = own.count(), call.R = batch.count(0, extra);
  call.n = narrow(n), call.m = narrow(m), call.p = narrow(p);
  call.single = type == ScalarType::Float;
  for (const Optional* t : {&P, &G, &A}) {  // they belong to the batch: they cannot enlarge it
    const int64_t rank = own.rank;
    Batch joined = own;
    joined.join(*t, 2);
    STD_TORCH_CHECK(joined.rank == rank && joined.count() == own.count(), "a matrix has more elements than the batch");
  }
  Reader matrices(own, type), vectors(batch, type);
  call.P = matrices.matrix(P, n, n, "P", true);
  call.G = matrices.matrix(G, m, n, "G"), call.A = matrices.matrix(A, p, n, "A");
  call.state = matrices.vector(state, 2 * n + 2 * r + 2, full, "state");
  call.index = matrices.vector(index, k, ScalarType::Long, "index");
  if (length(factor) > 0) call.factor = matrices.vector(factor, n * n + k * k, full, "factor");
  call.rx = vectors.columns(rx, n, extra, "rx"), call.ry = vectors.columns(ry, p, extra, "ry");
  call.rz = vectors.columns(rz, m, extra, "rz"), call.r_box = vectors.columns(r_box, n, extra, "r_box");

  Tensor ux = make(batch, n, type), uy = make(batch, p, type), uz = make(batch, m, type), u_box = make(batch, n, type);
  call.ux = ux.mutable_data_ptr(), call.uy = uy.mutable_data_ptr();
  call.uz = uz.mutable_data_ptr(), call.u_box = u_box.mutable_data_ptr();
  if (call.B > 0 && call.R > 0) {
    const Kernels& use = kernels(call.B, n, r);
    const size_t size = use.kkt_workspace(call);
    const double work = call.factor.data == nullptr ? work_of_solve(n, r) / STEPS : 0;
    spread(call.B, use.lanes, work + call.R * work_of_kkt(n, r), [&](int64_t begin, int64_t end) {
      use.kkt(call, begin, end, Workspace(size).data());
    });
  }
  return {ux, uy, uz, u_box};
}

// Sums are taken in pieces of the batch that do not depend on the number of threads: neither does their rounding.
constexpr int64_t PIECE = 256;           // elements
constexpr int64_t MOST_PIECES = 64;
constexpr int64_t MOST_PARTIAL = 1 << 22;  // numbers in the sums of all pieces

std::tuple<Tensor, Tensor, Tensor> pull(Tensor x, Tensor y, Tensor z, Tensor ux, Tensor uy, Tensor uz, int64_t P,
                                        int64_t G, int64_t A) {
  Batch batch;
  for (const Tensor* t : {&x, &y, &z, &ux, &uy, &uz}) batch.join(*t, 1);
  PullCall call;
  const int64_t n = length(x), p = length(y), m = length(z);
  const ScalarType type = float_type(x);
  call.B = batch.count();
  call.n = narrow(n), call.m = narrow(m), call.p = narrow(p);
  call.single = type == ScalarType::Float;
  Reader reader(batch, type);
  call.wx = reader.vector(x, n, "x"), call.wy = reader.vector(y, p, "y"), call.wz = reader.vector(z, m, "z");
  call.ux = reader.vector(ux, n, "ux"), call.uy = reader.vector(uy, p, "uy"), call.uz = reader.vector(uz, m, "uz");
  call.sum_P = P == 2, call.sum_G = G == 2, call.sum_A = A == 2;

  const int64_t want[] = {P, G, A}, rows[] = {n, m, p};
  void** to[] = {&call.dP, &call.dG, &call.dA};
  Tensor out[3];
  int64_t entries = 0;
  for (int i = 0; i < 3; i++) {
    Batch shape = want[i] == 1 ? batch : Batch();
    if (want[i] != 0) shape.size[shape.rank++] = rows[i];
    out[i] = make(shape, want[i] != 0 ? n : 0, type);
    if (want[i] != 0) *to[i] = out[i].mutable_data_ptr();
    entries += rows[i] * n;
  }
  if (P != 2 && G != 2 && A != 2) {
    spread(call.B, 1, static_cast<double>(entries) + 1,
           [&](int64_t begin, int64_t end) { engine().pull(call, begin, end, nullptr); });
    return {out[0], out[1], out[2]};
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
  int64_t start = 0;
  for (int i = 0; i < 3; i++) {
    const int64_t count = rows[i] * n;
    if (want[i] == 2) {
      for (int64_t j = 0; j < count; j++) {
        double sum = 0;
        for (int64_t piece = 0; piece < pieces; piece++) sum += partial[piece * entries + start + j];
        if (call.single)
          static_cast<float*>(*to[i])[j] = static_cast<float>(sum);
        else
          static_cast<double*>(*to[i])[j] = sum;
      }
    }
    start += count;
  }
  return {out[0], out[1], out[2]};
}

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
  m.impl("qp", TORCH_BOX(&optlayer::qp));
  m.impl("kkt_solve", TORCH_BOX(&optlayer::kkt_solve));
  m.impl("pull", TORCH_BOX(&optlayer::pull));
}
STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CompositeExplicitAutograd, m) { m.impl("info", TORCH_BOX(&optlayer::info)); }
