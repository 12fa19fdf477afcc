// SPDX-License-Identifier: Apache-2.0
// What derivatives of a solution need: solves with K, the KKT matrix there, for any number of right-hand sides, with the
// factor that was kept or one made anew from the state.
#pragma once

#include "least_norm.h"
#include "load.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct Adjoint {
  static constexpr int REFINEMENTS = 4;  // two are enough but for rows that share their weights

  const KktCall& call;
  int n, m, p, r;
  Program<V> Q;
  LeastNorm<V> solver;
  V *state, *rx, *rv, *r_box, *ux, *uv, *u_box;

  OPTLAYER_METHOD Adjoint(const KktCall& given, Arena& arena)
      : call(given), n(given.n), m(given.m), p(given.p), r(given.m + given.p) {
    Q.lay_out(arena, n, m, p);
    solver.lay_out(arena, n, r, call.single);
    state = arena.take<V>(2 * n + 2 * r + 2);
    for (V** t : {&rx, &r_box, &ux, &u_box}) *t = arena.take<V>(n);
    for (V** t : {&rv, &uv}) *t = arena.take<V>(r);
  }

  OPTLAYER_METHOD void run(const Elements<V>& elements) {
    sync();
    load_vector(call.state, false, elements, 2 * n + 2 * r + 2, 0, state);
    sync();
    const V* kind = state + 2 * n + 2 * r + 1;  // 0 no factorisation, 1 cap 1, 2 cap 0
    Mask<V> ok = *kind > V(0);
    if (!all(ok)) forget(!ok);
    V *D = state, *w_box = state + n, *E = state + 2 * n, *w = E + r;
    Q.D = D, Q.E = E, Q.c = w[r];
    load_program(elements);
    System<V>& K = solver.K;
    K.weigh(w, w_box);
    const V cap = select(*kind == V(2), V(0), V(1));
    ok = (call.factor.data != nullptr ? restore(elements, cap) : K.factor(Q, cap)) && ok;
    for (int64_t i = 0; i < call.R; i++) {
      V nonzero(0);
      load_column(call.rx, i, elements, n, rx, nonzero);
      load_column(call.ry, i, elements, p, rv, nonzero);
      load_column(call.rz, i, elements, m, rv + p, nonzero);
      load_column(call.r_box, i, elements, n, r_box, nonzero);
      sync();
      for (int j = own(0); j < n; j += TEAM) rx[j] *= Q.c * D[j], r_box[j] = r_box[j] / D[j];
      for (int k = own(0); k < r; k += TEAM) rv[k] *= E[k];
      solver.solve(Q, rx, rv, r_box, REFINEMENTS, ok, ux, uv, u_box);
      const V cost = V(1) / Q.c;
      for (int j = own(0); j < n; j += TEAM) ux[j] *= D[j], u_box[j] = u_box[j] * cost / D[j];
      for (int k = own(0); k < r; k += TEAM) uv[k] *= E[k] * cost;
      if (!all(ok)) {
        const V nothing = select(team_sum(nonzero) > V(0), V(NAN), V(0));
        for (int j = own(0); j < n; j += TEAM) ux[j] = select(ok, ux[j], nothing), u_box[j] = select(ok, u_box[j], nothing);
        for (int k = own(0); k < r; k += TEAM) uv[k] = select(ok, uv[k], nothing);
      }
      sync();
      store_column(ux, n, i, elements, call.ux);
      store_column(uv, p, i, elements, call.uy);
      store_column(uv + p, m, i, elements, call.uz);
      store_column(u_box, n, i, elements, call.u_box);
    }
  }

 private:
  // Elements without a factorisation: a K that harms nobody.
  OPTLAYER_METHOD void forget(Mask<V> which) {
    for (int j = own(0); j < n; j += TEAM)
      state[j] = select(which, V(1), state[j]), state[n + j] = select(which, V(0), state[n + j]);
    for (int i = own(0); i < r; i += TEAM) {
      V *unit = state + 2 * n + i, *weight = unit + r;
      *unit = select(which, V(1), *unit), *weight = select(which, V(0), *weight);
    }
    V* c = state + 2 * n + 2 * r;
    if (owns(0)) *c = select(which, V(1), *c);
    sync();
  }

  // P = c D (P0 + P0')/2 D and C = E [A; G] D.
  OPTLAYER_METHOD void load_program(const Elements<V>& elements) {
    const int ld = Q.ld;
    load_matrix(call.P, call.single, elements, n, n, ld, Q.P);
    load_matrix(call.A, call.single, elements, p, n, ld, Q.C);
    load_matrix(call.G, call.single, elements, m, n, ld, Q.C + (size_t)p * ld);
    sync();
    if (lanes<V> == 1) symmetrise(Q.P, ld, n);
    sync();
    for (int i = 0; i < n; i++) {
      const V unit = Q.c * Q.D[i];
      V* row = Q.P + (size_t)i * ld;
      if (lanes<V> == 1) {
        for (int j = own(0); j < n; j += TEAM) row[j] *= unit * Q.D[j];
        continue;
      }
      for (int j = own(0); j < i; j += TEAM) {
        V& other = Q.P[(size_t)j * ld + i];
        row[j] = other = V(0.5) * (row[j] + other) * (unit * Q.D[j]);
      }
      row[i] *= unit * Q.D[i];
    }
    for (int i = 0; i < r; i++) {
      V* row = Q.C + (size_t)i * ld;
      for (int j = own(0); j < n; j += TEAM) row[j] *= Q.E[i] * Q.D[j];
    }
  }

  OPTLAYER_METHOD Mask<V> restore(const Elements<V>& elements, V cap) {
    const int64_t* index[lanes<V>];
    int64_t at[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) {
      index[l] = static_cast<const int64_t*>(call.index.data) + call.index.offset(elements.at[l]);
      at[l] = call.factor.offset(elements.at[l]);
    }
    System<V>& K = solver.K;
    K.restore(Q, cap, index);
    const Split<V>& split = K.split;
    const double* factor = static_cast<const double*>(call.factor.data);
    load_lower(factor, at, n, split.L, split.ld);
    for (int l = 0; l < lanes<V>; l++) at[l] += triangle(n);
    load_lower(factor, at, split.k, split.F, split.ldf);
    K.restored();
    return Mask<V>(true);
  }

  OPTLAYER_METHOD void load_column(const Columns& from, int64_t i, const Elements<V>& elements, int count, V* to,
                                   V& nonzero) const {
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = from.outer * i + from.stride * elements.at[l];
    if (from.data != nullptr) load(from.data, call.single, offsets, count, to);
    for (int j = own(0); j < count; j += TEAM) {
      if (from.data == nullptr) to[j] = V(0);
      nonzero += select(to[j] == V(0), V(0), V(1));
    }
  }

  OPTLAYER_METHOD void store_column(const V* from, int count, int64_t i, const Elements<V>& elements, void* to) const {
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = (i * call.B + elements.at[l]) * count;
    if (to != nullptr) store(from, count, to, call.single, offsets, elements.used);
  }
};

template <class V>
OPTLAYER_FUNCTION size_t kkt_workspace(const KktCall& call) {
  Arena arena(nullptr);
  Adjoint<V> adjoint(call, arena);
  return arena.used();
}

template <class V>
OPTLAYER_FUNCTION void kkt(const KktCall& call, int64_t begin, int64_t end, void* workspace) {
  Arena arena(workspace);
  Adjoint<V> adjoint(call, arena);
  for (int64_t e = begin; e < end; e += lanes<V>) adjoint.run(Elements<V>(e, end));
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
