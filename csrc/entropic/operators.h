// SPDX-License-Identifier: Apache-2.0
// The operators of entropic programs, from their tensors to the calls of entropic/call.h; see csrc/operators.h. A machine
// answers entropic(place, call), of which that of a SolveCall returns how many elements it leaves UNSOLVED, or -1.
#pragma once

#include "../operators.h"
#include "call.h"

namespace optlayer {
namespace entropic {

template <class Machine>
auto qp(Optional P, Tensor q, Optional G, Optional h, Optional A, Optional b, Optional lb, Optional ub, Tensor tau,
        double eps_abs, double eps_rel, int64_t max_iter, bool nan_failures) {
  const Optional* vectors[] = {&h, &b, &lb, &ub};
  const Place place = Machine::place(q);
  Batch batch;
  batch.join(q, 1), batch.join(tau, 1);
  for (const Optional* t : {&P, &G, &A}) batch.join(*t, 2);
  for (const Optional* t : vectors) batch.join(*t, 1);

  SolveCall call;
  const int64_t n = length(q), m = length(h), p = length(b);
  const ScalarType type = float_type(q);
  STD_TORCH_CHECK(n > 0 && (m == 0 || G.has_value()) && (p == 0 || A.has_value()), "G or A is absent, or n is 0");
  const int64_t rows = P.has_value() ? P->size(P->dim() - 2) : 0;
  call.B = batch.count();
  call.n = narrow(n), call.m = narrow(m), call.p = narrow(p);
  call.single = type == ScalarType::Float, call.diagonal = rows == 1 && n > 1;
  Reader reader(place, batch, type);
  call.P = reader.matrix(P, call.diagonal ? 1 : n, n, "P", !call.diagonal);
  call.q = reader.vector(q, n, "q");
  call.G = reader.matrix(G, m, n, "G"), call.h = reader.vector(h, m, "h");
  call.A = reader.matrix(A, p, n, "A"), call.b = reader.vector(b, p, "b");
  call.lb = reader.vector(lb, n, "lb"), call.ub = reader.vector(ub, n, "ub");
  call.tau = reader.vector(tau, n, "tau");
  call.eps_abs = eps_abs, call.eps_rel = eps_rel;
  call.max_iter = max_iter < 1 << 30 ? static_cast<int>(max_iter) : 1 << 30;
  call.nan_failures = nan_failures;

  Tensor out[14];
  const int64_t sizes[] = {n, p, m, n, m, n, -1, -1, -1, n, p, m, n};
  void** floats[] = {&call.x,  &call.y,  &call.z,           &call.z_box, &call.s,     &call.log_x, nullptr,
                     nullptr,  nullptr,  &call.lower_share, &call.ray_y, &call.ray_z, &call.ray_box};
  for (int i = 0; i < 13; i++) {
    out[i] = make(place, batch, sizes[i], sizes[i] < 0 ? ScalarType::Long : type);
    if (floats[i] != nullptr) *floats[i] = out[i].mutable_data_ptr();
  }
  out[13] = make(place, batch, state_size(n, m + p), ScalarType::Double);
  call.status = static_cast<int64_t*>(out[6].mutable_data_ptr());
  call.iterations = static_cast<int64_t*>(out[7].mutable_data_ptr());
  call.weakly_active = static_cast<int64_t*>(out[8].mutable_data_ptr());
  call.state = static_cast<double*>(out[13].mutable_data_ptr());
  const int64_t unsolved = call.B > 0 ? Machine::entropic(place, call) : 0;
  return std::tuple_cat(as_tuple(out, std::make_index_sequence<14>()), std::make_tuple(unsolved));
}

template <class Machine>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> kkt_solve(Optional P, Optional G, Optional A, Tensor state,
                                                             Tensor rx, Tensor ry, Tensor rz, Tensor r_box) {
  const Place place = Machine::place(rx);
  Batch batch;
  for (const Tensor* t : {&state, &rx, &ry, &rz, &r_box}) batch.join(*t, 1);
  const int64_t extra = batch.rank - (state.dim() - 1);
  Batch own;
  own.rank = batch.rank - extra;
  for (int64_t d = 0; d < own.rank; d++) own.size[d] = batch.size[extra + d];

  KktCall call;
  const int64_t n = length(rx), p = length(ry), m = length(rz);
  const ScalarType type = float_type(rx);
  STD_TORCH_CHECK(n > 0 && (m == 0 || G.has_value()) && (p == 0 || A.has_value()), "G or A is absent, or n is 0");
  call.B = own.count(), call.R = batch.count(0, extra);
  call.n = narrow(n), call.m = narrow(m), call.p = narrow(p);
  call.single = type == ScalarType::Float;
  call.diagonal = P.has_value() && n > 1 && P->size(P->dim() - 2) == 1;
  Reader matrices(place, own, type), vectors(place, batch, type);
  call.P = matrices.matrix(P, call.diagonal ? 1 : n, n, "P", !call.diagonal);
  call.G = matrices.matrix(G, m, n, "G"), call.A = matrices.matrix(A, p, n, "A");
  call.state = matrices.vector(state, state_size(n, m + p), ScalarType::Double, "state");
  call.rx = vectors.columns(rx, n, extra, "rx"), call.ry = vectors.columns(ry, p, extra, "ry");
  call.rz = vectors.columns(rz, m, extra, "rz"), call.r_box = vectors.columns(r_box, n, extra, "r_box");

  Tensor out[] = {make(place, batch, n, type), make(place, batch, p, type), make(place, batch, m, type),
                  make(place, batch, n, type), make(place, batch, n, type)};
  void** to[] = {&call.ux, &call.uy, &call.uz, &call.u_box, &call.t};
  for (int i = 0; i < 5; i++) *to[i] = out[i].mutable_data_ptr();
  if (call.B > 0 && call.R > 0) Machine::entropic(place, call);
  return {out[0], out[1], out[2], out[3], out[4]};
}

}  // namespace entropic
}  // namespace optlayer
