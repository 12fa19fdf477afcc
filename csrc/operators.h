// SPDX-License-Identifier: Apache-2.0
// The operators of csrc/library.cpp: from their tensors to the calls of qp/call.h, for the machine whose memory the
// tensors lie in. A machine answers the calls:
//
//     place(t)             where t lies
//     solve(place, call)   returns how many elements it leaves UNSOLVED, or -1 where it does not know yet
//     kkt(place, call)
//     pull(place, call)
//     kkt_pull(place, call, call)
#pragma once

#include <tuple>
#include <utility>

#include "common/tensors.h"

namespace optlayer {

inline ScalarType float_type(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float, "expected float64 or float32");
  return type;
}

inline int narrow(int64_t size) {
  STD_TORCH_CHECK(size < 1 << 14, "a program of size ", size, " is too large for the compiled engine");
  return static_cast<int>(size);
}

template <size_t... I>
auto as_tuple(Tensor* t, std::index_sequence<I...>) {
  return std::make_tuple(std::move(t[I])...);
}

template <class Machine>
auto qp(Optional P, Tensor q, Optional G, Optional h, Optional A, Optional b, Optional lb, Optional ub,
        double eps_abs, double eps_rel, int64_t max_iter, int64_t formulation, bool nan_failures, bool keep_factor,
        Optional x0, Optional y0, Optional z0, Optional z_box0) {
  const Optional* vectors[] = {&h, &b, &lb, &ub, &x0, &y0, &z0, &z_box0};
  const Place place = Machine::place(q);
  Batch batch;
  batch.join(q, 1);
  for (const Optional* t : {&P, &G, &A}) batch.join(*t, 2);
  for (const Optional* t : vectors) batch.join(*t, 1);

  SolveCall call;
  const int64_t n = length(q), m = length(h), p = length(b), r = m + p, k = r < 2 * n ? r : 2 * n;
  const ScalarType type = float_type(q);
  STD_TORCH_CHECK(n > 0 && G.has_value() == h.has_value() && A.has_value() == b.has_value(),
                  "one of G and h, or of A and b, is absent, or n is 0");
  call.B = batch.count();
  call.n = narrow(n), call.m = narrow(m), call.p = narrow(p);
  call.single = type == ScalarType::Float;
  Reader reader(place, batch, type);
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
  Tensor out[13] = {make(place, batch, n, type),
                    make(place, batch, p, type),
                    make(place, batch, m, type),
                    make(place, batch, n, type),
                    make(place, batch, m, type),
                    make(place, batch, -1, whole),
                    make(place, batch, -1, whole),
                    make(place, batch, -1, whole),
                    make(place, batch, n, type),
                    make(place, batch, n + r + n, type),
                    make(place, batch, 2 * n + 2 * r + 2, full),
                    make(place, batch, keep_factor ? factor_size(n, k) : 0, full),
                    make(place, batch, k, whole)};
  void** floats[] = {&call.x, &call.y, &call.z, &call.z_box, &call.s};
  for (int i = 0; i < 5; i++) *floats[i] = out[i].mutable_data_ptr();
  call.status = static_cast<int64_t*>(out[5].mutable_data_ptr());
  call.iterations = static_cast<int64_t*>(out[6].mutable_data_ptr());
  call.weakly_active = static_cast<int64_t*>(out[7].mutable_data_ptr());
  call.lower_share = out[8].mutable_data_ptr();
  call.ray = out[9].mutable_data_ptr();
  call.state = static_cast<double*>(out[10].mutable_data_ptr());
  call.factor = keep_factor ? static_cast<double*>(out[11].mutable_data_ptr()) : nullptr;
  call.index = static_cast<int64_t*>(out[12].mutable_data_ptr());

  const int64_t unsolved = call.B > 0 ? Machine::solve(place, call) : 0;
  return std::tuple_cat(as_tuple(out, std::make_index_sequence<13>()), std::make_tuple(unsolved));
}

// The arguments of kkt_solve, and run(place, batch, call, u) while they are there.
template <class Machine, class Run>
std::tuple<Tensor, Tensor, Tensor, Tensor> with_kkt(const Optional& P, const Optional& G, const Optional& A,
                                                    const Tensor& state, const Tensor& factor, const Tensor& index,
                                                    const Tensor& rx, const Tensor& ry, const Tensor& rz,
                                                    const Tensor& r_box, Run run) {
  const Place place = Machine::place(rx);
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
  Reader matrices(place, own, type), vectors(place, batch, type);
  call.P = matrices.matrix(P, n, n, "P", true);
  call.G = matrices.matrix(G, m, n, "G"), call.A = matrices.matrix(A, p, n, "A");
  call.state = matrices.vector(state, 2 * n + 2 * r + 2, full, "state");
  call.index = matrices.vector(index, k, ScalarType::Long, "index");
  if (length(factor) > 0) call.factor = matrices.vector(factor, factor_size(n, k), full, "factor");
  call.rx = vectors.columns(rx, n, extra, "rx"), call.ry = vectors.columns(ry, p, extra, "ry");
  call.rz = vectors.columns(rz, m, extra, "rz"), call.r_box = vectors.columns(r_box, n, extra, "r_box");

  std::tuple<Tensor, Tensor, Tensor, Tensor> u = {make(place, batch, n, type), make(place, batch, p, type),
                                                  make(place, batch, m, type), make(place, batch, n, type)};
  call.ux = std::get<0>(u).mutable_data_ptr(), call.uy = std::get<1>(u).mutable_data_ptr();
  call.uz = std::get<2>(u).mutable_data_ptr(), call.u_box = std::get<3>(u).mutable_data_ptr();
  run(place, batch, call, u);
  return u;
}

template <class Machine>
std::tuple<Tensor, Tensor, Tensor, Tensor> kkt_solve(Optional P, Optional G, Optional A, Tensor state, Tensor factor,
                                                     Tensor index, Tensor rx, Tensor ry, Tensor rz, Tensor r_box) {
  return with_kkt<Machine>(P, G, A, state, factor, index, rx, ry, rz, r_box,
                           [](const Place& place, const Batch&, const KktCall& call, const auto&) {
                             if (call.B > 0 && call.R > 0) Machine::kkt(place, call);
                           });
}

// Tensors for the gradients of P, G and A (0 not wanted, 1 of each element, 2 their sum), told to the call.
inline std::tuple<Tensor, Tensor, Tensor> gradients(const Place& place, const Batch& batch, ScalarType type,
                                                    const int64_t (&want)[3], PullCall& call) {
  const int64_t rows[] = {call.n, call.m, call.p};
  void** to[] = {&call.dP, &call.dG, &call.dA};
  call.sum_P = want[0] == 2, call.sum_G = want[1] == 2, call.sum_A = want[2] == 2;
  Tensor out[3];
  for (int i = 0; i < 3; i++) {
    Batch shape = want[i] == 1 ? batch : Batch();
    if (want[i] != 0) shape.size[shape.rank++] = rows[i];
    out[i] = make(place, shape, want[i] != 0 ? call.n : 0, type);
    if (want[i] != 0) *to[i] = out[i].mutable_data_ptr();
  }
  return {out[0], out[1], out[2]};
}

template <class Machine>
std::tuple<Tensor, Tensor, Tensor> pull(Tensor x, Tensor y, Tensor z, Tensor ux, Tensor uy, Tensor uz, int64_t P,
                                        int64_t G, int64_t A) {
  const Place place = Machine::place(x);
  Batch batch;
  for (const Tensor* t : {&x, &y, &z, &ux, &uy, &uz}) batch.join(*t, 1);
  PullCall call;
  const int64_t n = length(x), p = length(y), m = length(z);
  const ScalarType type = float_type(x);
  call.B = batch.count();
  call.n = narrow(n), call.m = narrow(m), call.p = narrow(p);
  call.single = type == ScalarType::Float;
  Reader reader(place, batch, type);
  call.wx = reader.vector(x, n, "x"), call.wy = reader.vector(y, p, "y"), call.wz = reader.vector(z, m, "z");
  call.ux = reader.vector(ux, n, "ux"), call.uy = reader.vector(uy, p, "uy"), call.uz = reader.vector(uz, m, "uz");
  std::tuple<Tensor, Tensor, Tensor> out = gradients(place, batch, type, {P, G, A}, call);
  Machine::pull(place, call);
  return out;
}

// kkt_solve for one right-hand side an element, and pull with what it finds.
template <class Machine>
auto kkt_pull(Optional P, Optional G, Optional A, Tensor state, Tensor factor, Tensor index, Tensor rx, Tensor ry,
              Tensor rz, Tensor r_box, Tensor x, Optional y, Optional z, int64_t dP, int64_t dG, int64_t dA) {
  std::tuple<Tensor, Tensor, Tensor> out;
  const auto run = [&](const Place& place, const Batch& batch, const KktCall& kkt, const auto& u) {
    STD_TORCH_CHECK(batch.rank == state.dim() - 1, "there are more right-hand sides than one for an element");
    STD_TORCH_CHECK((dG == 0 || z.has_value()) && (dA == 0 || y.has_value()), "y or z is absent");
    PullCall call;
    call.B = kkt.B, call.n = kkt.n, call.m = kkt.m, call.p = kkt.p, call.single = kkt.single;
    Reader reader(place, batch, float_type(rx));
    call.wx = reader.vector(x, call.n, "x"), call.wy = reader.vector(y, call.p, "y");
    call.wz = reader.vector(z, call.m, "z");
    call.ux = reader.vector(std::get<0>(u), call.n, "ux"), call.uy = reader.vector(std::get<1>(u), call.p, "uy");
    call.uz = reader.vector(std::get<2>(u), call.m, "uz");
    out = gradients(place, batch, float_type(rx), {dP, dG, dA}, call);
    Machine::kkt_pull(place, kkt, call);
  };
  auto u = with_kkt<Machine>(P, G, A, state, factor, index, rx, ry, rz, r_box, run);
  return std::tuple_cat(std::move(u), std::move(out));
}

}  // namespace optlayer
