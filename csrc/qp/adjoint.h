// SPDX-License-Identifier: Apache-2.0
// What derivatives of a solution need: solves with K, the KKT matrix there, and the gradients of the matrices.
//
//     kkt     K u = r for any number of right-hand sides, with the factor that was kept or one made anew from the state
//     pull    P_bar = -(u_x x' + x u_x')/2,   G_bar = -(z u_x' + u_z x'),   A_bar = -(y u_x' + u_y x')
#pragma once

#include "lanes.h"
#include "load.h"
#include "system.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct Adjoint {
  static constexpr int REFINEMENTS = 4;  // two are enough but for rows that share their weights

  const KktCall& call;
  int n, m, p, r;
  Program<V> Q;
  System<V> system;
  V *state, *rx, *rv, *r_box, *ux, *uv, *u_box;

  OPTLAYER_METHOD Adjoint(const KktCall& given, Arena& arena)
      : call(given), n(given.n), m(given.m), p(given.p), r(given.m + given.p) {
    Q.lay_out(arena, n, m, p);
    system.lay_out(arena, n, r);
    state = arena.take<V>(2 * n + 2 * r + 2);
    for (V** t : {&rx, &r_box, &ux, &u_box}) *t = arena.take<V>(n);
    for (V** t : {&rv, &uv}) *t = arena.take<V>(r);
  }

  OPTLAYER_METHOD void run(const Elements<V>& elements) {
    load_vector(call.state, false, elements, 2 * n + 2 * r + 2, 0, state);
    const V* kind = state + 2 * n + 2 * r + 1;  // 0 no factorisation, 1 cap 1, 2 cap 0
    Mask<V> ok = *kind > V(0);
    if (!all(ok)) forget(!ok);
    V *D = state, *w_box = state + n, *E = state + 2 * n, *w = E + r;
    Q.D = D, Q.E = E, Q.c = w[r];
    load_program(elements);
    system.weigh(w, w_box);
    const V cap = select(*kind == V(2), V(0), V(1));
    ok = (call.factor.data != nullptr ? restore(elements, cap) : system.factor(Q, cap)) && ok;
    for (int64_t i = 0; i < call.R; i++) {
      V nonzero(0);
      load_column(call.rx, i, elements, n, rx, nonzero);
      load_column(call.ry, i, elements, p, rv, nonzero);
      load_column(call.rz, i, elements, m, rv + p, nonzero);
      load_column(call.r_box, i, elements, n, r_box, nonzero);
      for (int j = 0; j < n; j++) rx[j] *= Q.c * D[j], r_box[j] = r_box[j] / D[j];
      for (int k = 0; k < r; k++) rv[k] *= E[k];
      system.solve(Q, rx, rv, r_box, REFINEMENTS, ok, ux, uv, u_box);
      const V cost = V(1) / Q.c;
      for (int j = 0; j < n; j++) ux[j] *= D[j], u_box[j] = u_box[j] * cost / D[j];
      for (int k = 0; k < r; k++) uv[k] *= E[k] * cost;
      if (!all(ok)) {
        const V nothing = select(nonzero > V(0), V(NAN), V(0));
        for (int j = 0; j < n; j++) ux[j] = select(ok, ux[j], nothing), u_box[j] = select(ok, u_box[j], nothing);
        for (int k = 0; k < r; k++) uv[k] = select(ok, uv[k], nothing);
      }
      store_column(ux, n, i, elements, call.ux);
      store_column(uv, p, i, elements, call.uy);
      store_column(uv + p, m, i, elements, call.uz);
      store_column(u_box, n, i, elements, call.u_box);
    }
  }

 private:
  // Elements without a factorisation: a K that harms nobody.
  OPTLAYER_METHOD void forget(Mask<V> which) {
    for (int j = 0; j < n; j++)
      state[j] = select(which, V(1), state[j]), state[n + j] = select(which, V(0), state[n + j]);
    for (int i = 0; i < r; i++) {
      V *unit = state + 2 * n + i, *weight = unit + r;
      *unit = select(which, V(1), *unit), *weight = select(which, V(0), *weight);
    }
    V* c = state + 2 * n + 2 * r;
    *c = select(which, V(1), *c);
  }

  // P = c D (P0 + P0')/2 D and C = E [A; G] D.
  OPTLAYER_METHOD void load_program(const Elements<V>& elements) {
    const int ld = Q.ld;
    load_matrix(call.P, call.single, elements, n, n, ld, Q.P);
    load_matrix(call.A, call.single, elements, p, n, ld, Q.C);
    load_matrix(call.G, call.single, elements, m, n, ld, Q.C + (size_t)p * ld);
    if (lanes<V> == 1) symmetrise(Q.P, ld, n);
    for (int i = 0; i < n; i++) {
      const V unit = Q.c * Q.D[i];
      V* row = Q.P + (size_t)i * ld;
      if (lanes<V> == 1) {
        for (int j = 0; j < n; j++) row[j] *= unit * Q.D[j];
        continue;
      }
      for (int j = 0; j < i; j++) {
        V& other = Q.P[(size_t)j * ld + i];
        row[j] = other = V(0.5) * (row[j] + other) * (unit * Q.D[j]);
      }
      row[i] *= unit * Q.D[i];
    }
    for (int i = 0; i < r; i++) {
      V* row = Q.C + (size_t)i * ld;
      for (int j = 0; j < n; j++) row[j] *= Q.E[i] * Q.D[j];
    }
  }

  OPTLAYER_METHOD Mask<V> restore(const Elements<V>& elements, V cap) {
    const int64_t* index[lanes<V>];
    int64_t at[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) {
      index[l] = static_cast<const int64_t*>(call.index.data) + call.index.offset(elements.at[l]);
      at[l] = call.factor.offset(elements.at[l]);
    }
    system.restore(Q, cap, index);
    const Split<V>& split = system.split;
    const double* factor = static_cast<const double*>(call.factor.data);
    load_lower(factor, at, n, n, split.L, split.ld);
    for (int l = 0; l < lanes<V>; l++) at[l] += (int64_t)n * n;
    load_lower(factor, at, split.k, system.slots, split.F, split.ldf);
    system.restored();
    return Mask<V>(true);
  }

  OPTLAYER_METHOD void load_column(const Columns& from, int64_t i, const Elements<V>& elements, int count, V* to,
                                   V& nonzero) const {
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = from.outer * i + from.stride * elements.at[l];
    if (from.data != nullptr) load(from.data, call.single, offsets, count, to);
    for (int j = 0; j < count; j++) {
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

#if !defined(__CUDACC__)

// One gradient: out = -scale (v ux' + uv x') with v and uv of `rows` entries, x and ux of `cols`.
struct Outer {
  static constexpr int TILE = 4;      // rows of a tile in registers
  static constexpr int WIDE = 8;      // and its columns
  static constexpr int BLOCK = 128;   // rows and columns that are worked on at once
  static constexpr int TERMS = 32;    // products in a sum at once: two for each element

  const PullCall& call;
  const Input &v, &uv;
  int rows, cols;
  double scale;

  // A gradient for each element.
  void each(int64_t begin, int64_t end, void* out) const {
    double left[2][BLOCK], right[2][BLOCK];
    for (int64_t e = begin; e < end; e++)
      for (int j0 = 0; j0 < cols; j0 += BLOCK) {
        const int width = cols - j0 < BLOCK ? cols - j0 : BLOCK;
        read(call.ux, e, j0, width, 1, right[0]);
        read_solution(call.wx, e, j0, width, 1, right[1]);
        for (int i0 = 0; i0 < rows; i0 += BLOCK) {
          const int height = rows - i0 < BLOCK ? rows - i0 : BLOCK;
          read_solution(v, e, i0, height, -scale, left[0]);
          read(uv, e, i0, height, -scale, left[1]);
          for (int i = 0; i < height; i++) {
            const int64_t at = (e * rows + i0 + i) * cols + j0;
            if (call.single)
              write(left[0][i], left[1][i], right, width, static_cast<float*>(out) + at);
            else
              write(left[0][i], left[1][i], right, width, static_cast<double*>(out) + at);
          }
        }
      }
  }

  // Their sum, added to `total` (rows, cols): a product of matrices whose inner dimension runs over the elements.
  void sum(int64_t begin, int64_t end, double* total) const {
    alignas(64) double left[TERMS][BLOCK], right[TERMS][BLOCK];
    for (int64_t e0 = begin; e0 < end; e0 += TERMS / 2) {
      const int count = (int)(end - e0 < TERMS / 2 ? end - e0 : TERMS / 2);
      for (int j0 = 0; j0 < cols; j0 += BLOCK) {
        const int width = cols - j0 < BLOCK ? cols - j0 : BLOCK;
        for (int e = 0; e < count; e++) {
          read(call.ux, e0 + e, j0, width, 1, right[2 * e]);
          read_solution(call.wx, e0 + e, j0, width, 1, right[2 * e + 1]);
          for (int t = 2 * e; t < 2 * e + 2; t++)
            for (int j = width; j < (width + WIDE - 1) / WIDE * WIDE; j++) right[t][j] = 0;
        }
        for (int i0 = 0; i0 < rows; i0 += BLOCK) {
          const int height = rows - i0 < BLOCK ? rows - i0 : BLOCK;
          for (int e = 0; e < count; e++) {
            read_solution(v, e0 + e, i0, height, -scale, left[2 * e]);
            read(uv, e0 + e, i0, height, -scale, left[2 * e + 1]);
            for (int t = 2 * e; t < 2 * e + 2; t++)
              for (int i = height; i < (height + TILE - 1) / TILE * TILE; i++) left[t][i] = 0;
          }
          for (int i = 0; i < height; i += TILE)
            for (int j = 0; j < width; j += WIDE)
              tile(left, right, 2 * count, i, j, height, width, total + (int64_t)(i0 + i) * cols + j0 + j);
        }
      }
    }
  }

 private:
  typedef Vector<double, 4>::Raw Quad;

  void read(const Input& from, int64_t e, int start, int count, double factor, double* to) const {
    const int64_t at = from.offset(e) + start;
    if (call.single)
      for (int i = 0; i < count; i++) to[i] = factor * static_cast<const float*>(from.data)[at + i];
    else
      for (int i = 0; i < count; i++) to[i] = factor * static_cast<const double*>(from.data)[at + i];
  }

  // Of x, y or z, where a failed element holds NaN: that counts as zero, so that the element takes no part if its u is 0.
  void read_solution(const Input& from, int64_t e, int start, int count, double factor, double* to) const {
    read(from, e, start, count, factor, to);
    for (int i = 0; i < count; i++) to[i] = to[i] - to[i] == 0 ? to[i] : 0;
  }

  template <class T>
  static void write(double a, double b, const double (*right)[BLOCK], int width, T* out) {
    for (int j = 0; j < width; j++) out[j] = (T)(a * right[0][j] + b * right[1][j]);
  }

  void tile(const double (*left)[BLOCK], const double (*right)[BLOCK], int terms, int i, int j, int height, int width,
            double* total) const {
    Quad sums[TILE][2] = {};
    for (int t = 0; t < terms; t++) {
      Quad low, high;
      memcpy(&low, right[t] + j, sizeof low), memcpy(&high, right[t] + j + 4, sizeof high);
      OPTLAYER_UNROLL for (int k = 0; k < TILE; k++) {
        const double a = left[t][i + k];
        sums[k][0] += a * low, sums[k][1] += a * high;
      }
    }
    for (int k = 0; k < TILE && i + k < height; k++)
      for (int l = 0; l < WIDE && j + l < width; l++) total[(int64_t)k * cols + l] += sums[k][l / 4][l % 4];
  }
};

// The gradients that are wanted, of elements [begin, end). Sums are added to `partial`: dP, dG and dA one after the other.
static void pull(const PullCall& call, int64_t begin, int64_t end, double* partial) {
  const int64_t n = call.n, m = call.m, p = call.p;
  const Outer outer[] = {{call, call.wx, call.ux, call.n, call.n, 0.5},
                         {call, call.wz, call.uz, call.m, call.n, 1},
                         {call, call.wy, call.uy, call.p, call.n, 1}};
  void* const out[] = {call.dP, call.dG, call.dA};
  const bool summed[] = {call.sum_P, call.sum_G, call.sum_A};
  double* const total[] = {partial, partial + n * n, partial + n * n + m * n};
  for (int i = 0; i < 3; i++) {
    if (out[i] == nullptr || (i == 1 && m == 0) || (i == 2 && p == 0)) continue;
    if (summed[i])
      outer[i].sum(begin, end, total[i]);
    else
      outer[i].each(begin, end, out[i]);
  }
}

#endif

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
