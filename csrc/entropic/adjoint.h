// SPDX-License-Identifier: Apache-2.0
// What derivatives of a solution need: solves with K, the KKT matrix there, for any number of right-hand sides
// (optlayer/entropic/program/system.py). K is factorised anew from the state: that costs no more than a few solves.
#pragma once

#include "load.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double UNDERFLOW = 1e-250;  // an x / tau below this has no reciprocal worth having

template <class V>
struct Adjoint {
  const optlayer::entropic::KktCall& call;
  int n, m, p, k;
  Program<V> Q;
  System<V> system;
  V* state;                                // x / tau (n), weights of bounds (n) and rows (k), 1 where there is a K
  V *rx, *rv, *r_box, *ux, *uv, *u_box, *t;
  V *force, *target, *rest, *pinned;       // (n), (k), (n), (n)

  OPTLAYER_METHOD Adjoint(const optlayer::entropic::KktCall& given, Arena& arena)
      : call(given), n(given.n), m(given.m), p(given.p), k(given.m + given.p) {
    Q.lay_out(arena, n, m, p, call.full(), call.diagonal);
    system.lay_out(arena, n, k, call.full(), true);
    state = arena.take<V>(optlayer::entropic::state_size(n, k));
    for (V** vector : {&rx, &r_box, &ux, &u_box, &t, &force, &rest, &pinned}) *vector = arena.take<V>(n);
    for (V** vector : {&rv, &uv, &target}) *vector = arena.take<V>(k);
  }

  OPTLAYER_METHOD void run(const Elements<V>& elements) {
    sync();
    load_vector(call.state, false, elements, (int)optlayer::entropic::state_size(n, k), 0, state);
    load_matrices(call, elements, Q.ld, call.diagonal ? Q.curvature : Q.P, Q.C);
    sync();
    const V *share = state, *w_box = state + n, *w = state + 2 * n;
    const Mask<V> there = state[2 * n + k] > V(0);
    size_rows_of_P(Q);
    for (int i = 0; i < k; i++) {
      const V length = to_unit_norm(Q.C + (size_t)i * Q.ld, n);
      if (owns(i)) Q.unit[i] = reciprocal_length(length), system.w[i] = select(there, w[i], V(0));
    }
    for (int j = own(0); j < n; j += TEAM) {
      const V weight = select(held(j), V(0), w_box[j]), stiffness = weight + (Q.curved ? Q.curvature[j] : V(0));
      system.W[j] = select(held(j) || !there, V(0), share[j] / (V(1) + share[j] * stiffness));
    }
    system.factor(Q, k, true);
    const Mask<V> ok = there && system.ok;
    for (int64_t i = 0; i < call.R; i++) {
      V nonzero(0);
      load_column(call.rx, i, elements, n, rx, nonzero);
      load_column(call.ry, i, elements, p, rv, nonzero);
      load_column(call.rz, i, elements, m, rv + p, nonzero);
      load_column(call.r_box, i, elements, n, r_box, nonzero);
      solve();
      if (!all(ok)) {
        const V nothing = select(team_sum(nonzero) > V(0), V(NAN), V(0));
        for (int j = own(0); j < n; j += TEAM)
          for (V* u : {ux, u_box, t}) u[j] = select(ok, u[j], nothing);
        for (int r = own(0); r < k; r += TEAM) uv[r] = select(ok, uv[r], nothing);
      }
      sync();
      store_column(ux, n, i, elements, call.ux);
      store_column(uv, p, i, elements, call.uy);
      store_column(uv + p, m, i, elements, call.uz);
      store_column(u_box, n, i, elements, call.u_box);
      store_column(t, n, i, elements, call.t);
    }
  }

 private:
  OPTLAYER_METHOD Mask<V> held(int j) const { return state[n + j] == V(INFINITY); }

  // (ux, uv, u_box, t) for (rx, rv, r_box).
  OPTLAYER_METHOD void solve() {
    const V *share = state, *w_box = state + n;
    for (int j = own(0); j < n; j += TEAM) pinned[j] = select(held(j), r_box[j], V(0));
    sync();
    Q.times_P(pinned, force);
    product(Q.C, Q.ld, k, n, pinned, target);
    for (int j = own(0); j < n; j += TEAM) {
      const V soft = select(w_box[j] > V(0) && !held(j), w_box[j] * r_box[j], V(0));
      force[j] = rx[j] + soft - force[j];
    }
    for (int i = own(0); i < k; i += TEAM)
      target[i] = select(system.w[i] > V(0), rv[i] * Q.unit[i] - target[i], V(0));
    system.solve(Q, force, target, ux, uv);
    for (int j = own(0); j < n; j += TEAM) ux[j] += pinned[j];
    for (int i = own(0); i < k; i += TEAM) uv[i] = select(system.w[i] > V(0), uv[i], V(0)), target[i] = -uv[i];
    sync();
    Q.times_P(ux, rest);
    for (int j = own(0); j < n; j += TEAM) rest[j] = rx[j] - rest[j];
    product_transposed(Q.C, Q.ld, k, n, target, rest);
    for (int j = own(0); j < n; j += TEAM) {
      const V soft = select(w_box[j] > V(0) && !held(j), w_box[j] * (ux[j] - r_box[j]), V(0));
      const Mask<V> tiny = share[j] < V(UNDERFLOW);
      t[j] = select(tiny, select(held(j), V(0), rest[j] - soft), ux[j] / select(tiny, V(1), share[j]));
      u_box[j] = select(held(j), rest[j] - t[j], soft);
    }
    for (int i = own(0); i < k; i += TEAM) uv[i] *= Q.unit[i];
  }

  OPTLAYER_METHOD void load_column(const Columns& from, int64_t i, const Elements<V>& elements, int count, V* to,
                                   V& nonzero) const {
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = from.outer * i + from.stride * elements.at[l];
    load(from.data, call.single, offsets, count, to);
    for (int j = own(0); j < count; j += TEAM) nonzero += select(to[j] == V(0), V(0), V(1));
  }

  OPTLAYER_METHOD void store_column(const V* from, int count, int64_t i, const Elements<V>& elements, void* to) const {
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = (i * call.B + elements.at[l]) * count;
    store(from, count, to, call.single, offsets, elements.used);
  }
};

template <class V>
OPTLAYER_FUNCTION size_t kkt_workspace(const optlayer::entropic::KktCall& call) {
  Arena arena(nullptr);
  Adjoint<V> adjoint(call, arena);
  return arena.used();
}

template <class V>
OPTLAYER_FUNCTION void kkt(const optlayer::entropic::KktCall& call, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  Adjoint<V> adjoint(call, arena);
  for (int64_t e = begin; e < end; e += lanes<V>) adjoint.run(Elements<V>(e, end));
}

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
