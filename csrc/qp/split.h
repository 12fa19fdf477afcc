// SPDX-License-Identifier: Apache-2.0
// The weight split: one Cholesky-based kernel for the Newton system of every quadratic program.
//
//     [ H0  C'   ] [dx]   [a]          H0 = P + diag(diagonal), a weight w_i >= 0 for every row of C
//     [ C  -1/w  ] [dv] = [c]
//
// Condensing all rows into H0 + C' diag(w) C destroys P when active rows weigh 1e12; eliminating x needs P to be positive
// definite. The split does neither: each weight is cut in two, w = gamma + root^2 with gamma = min(w, cap). The harmless
// part is condensed, and the heavy rows C_k (w > cap) are bordered:
//
//     H = H0 + C' diag(gamma) C = L L',      V = L^-1 C_k' diag(root),      M = I + V'V = F F'
//
//     u = L^-1 (a + C' gamma c),   t = M^-1 (V'u - root c_k),   dx = L^-T (u - V t)
//     dv = gamma (C dx - c),       dv_k += root t               (never w (C dx - c) with a large w: it cancels)
//
// cap = 0 is the range-space form: H = P.
#pragma once

#include "program.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// Relative enlargements of the diagonal of a matrix whose factorisation breaks down by rounding; refinement takes the
// perturbation out again.
static constexpr double BUMPS[] = {1e-14, 1e-12, 1e-10, 1e-8};

template <class V>
struct Split {
  int n, r, capacity, ld, ldf;
  int k;           // bordered slots in use: the most that any lane needs
  bool condensed;  // some row has gamma > 0
  V *L, *inv;      // (n, n), (n)
  V* R;            // (capacity, n): the rows of V'
  V *F, *inv_f;    // (capacity, capacity), (capacity)
  V* gamma;        // (r)
  V* root;         // (capacity), 0 in slots that a lane does not need
  int32_t* heavy;  // (capacity, lanes): the row in a slot of a lane, -1 in slots that it does not need
  V *u, *t, *g;    // scratch (n), (capacity), (r)

  void lay_out(Arena& arena, int n_, int r_, int capacity_) {
    n = n_, r = r_, capacity = capacity_, k = 0, condensed = false, ld = leading<V>(n_), ldf = leading<V>(capacity_);
    L = arena.take<V>((size_t)n * ld), inv = arena.take<V>(n);
    R = arena.take<V>((size_t)capacity * ld);
    F = arena.take<V>((size_t)capacity * ldf), inv_f = arena.take<V>(capacity);
    gamma = arena.take<V>(r), root = arena.take<V>(capacity);
    heavy = arena.take<int32_t>((size_t)capacity * lanes<V>);
    u = arena.take<V>(n), t = arena.take<V>(capacity), g = arena.take<V>(r);
  }

  // Cut the weights w (r) and list the heavy rows of each lane in their order, at most `capacity` of them; the others
  // weigh `cap`. Returns where that was enough.
  Mask<V> weigh(const V* w, V cap) {
    V most(0);
    for (int i = 0; i < r; i++) {
      gamma[i] = smaller(w[i], cap);
      most = larger(gamma[i], most);
    }
    condensed = any(most > V(0));
    k = 0;
    V enough(1);
    for (int l = 0; l < lanes<V>; l++) {
      int slot = 0;
      for (int i = 0; i < r; i++) {
        const double weight = lane(w[i], l);
        if (!(weight > lane(cap, l))) continue;
        if (slot == capacity) {
          lane(enough, l) = 0;
          break;
        }
        if (slot == k) {
          root[k] = V(0);
          for (int other = 0; other < lanes<V>; other++) heavy[k * lanes<V> + other] = -1;
          k++;
        }
        lane(root[slot], l) = ::sqrt(weight - lane(cap, l));
        heavy[slot++ * lanes<V> + l] = i;
      }
    }
    return enough > V(0);
  }

  // The entries of a vector over the rows (r) in the slots, 0 where a lane has none.
  void gather(const V* c, V* slots) const {
    for (int s = 0; s < k; s++) {
      slots[s] = V(0);
      for (int l = 0; l < lanes<V>; l++) {
        const int row = heavy[s * lanes<V> + l];
        if (row >= 0) lane(slots[s], l) = lane(c[row], l);
      }
    }
  }

  // The heavy rows of C, times root and free.
  void gather_rows(const Program<V>& Q, const V* free) {
    for (int s = 0; s < k; s++) {
      const int32_t* row = heavy + s * lanes<V>;
      V* to = R + (size_t)s * ld;
      bool alike = true;
      for (int l = 1; l < lanes<V>; l++) alike = alike && row[l] == row[0];
      if (alike) {
        const V* from = Q.C + (size_t)row[0] * Q.ld;
        for (int j = 0; j < n; j++) to[j] = from[j];
      } else {
        for (int l = 0; l < lanes<V>; l++) {
          const V* from = Q.C + (size_t)(row[l] < 0 ? 0 : row[l]) * Q.ld;
          for (int j = 0; j < n; j++) lane(to[j], l) = lane(from[j], l);
        }
      }
      for (int j = 0; j < n; j++) to[j] *= free == nullptr ? root[s] : root[s] * free[j];
    }
  }

  // Factorise for the weights of the last `weigh`. `free` (n), 1 or 0, may be null: variables that are not free are
  // taken out. `diagonal` (n) is added to P. Returns where both factors exist.
  Mask<V> factor(const Program<V>& Q, const V* diagonal, const V* free) {
    V bump(0);
    Mask<V> ok(true);
    for (int attempt = 0; attempt <= 4; attempt++) {
      if (condensed) {
        weighted_gram(Q.P, Q.ld, Q.C, Q.ld, gamma, r, n, L, ld);
      } else {
        for (int i = 0; i < n; i++)
          for (int j = 0; j <= i; j++) L[i * ld + j] = Q.P[i * Q.ld + j];
      }
      for (int i = 0; i < n; i++) {
        V* row = L + i * ld;
        row[i] = (row[i] + diagonal[i]) * (V(1) + bump);
        if (free == nullptr) continue;
        for (int j = 0; j < i; j++) row[j] *= free[i] * free[j];
        row[i] = select(free[i] > V(0), row[i], V(1));
      }
      ok = cholesky(L, ld, (const V*)nullptr, L, ld, inv, n);
      if (all(ok) || attempt == 4) break;
      bump = select(ok, bump, V(BUMPS[attempt]));
    }
    if (k == 0) return ok;
    gather_rows(Q, free);
    solve_rows(L, ld, inv, n, R, ld, k);
    return border() && ok;
  }

  // F F' = I + R R'.
  Mask<V> border() {
    V bump(0);
    for (int attempt = 0;; attempt++) {
      row_products(R, ld, k, n, F, ldf);
      for (int s = 0; s < k; s++) F[s * ldf + s] = (F[s * ldf + s] + V(1)) * (V(1) + bump);
      const Mask<V> ok = cholesky(F, ldf, (const V*)nullptr, F, ldf, inv_f, k);
      if (all(ok) || attempt == 4) return ok;
      bump = select(ok, bump, V(BUMPS[attempt]));
    }
  }

  // (dx, dv) for right-hand sides a (n) and c (r); dx may be a and dv may be c. dx is 0 on variables that are not free,
  // dv is 0 on rows of weight 0.
  void solve(const Program<V>& Q, const V* free, const V* a, const V* c, V* dx, V* dv) {
    for (int j = 0; j < n; j++) u[j] = a[j];
    if (condensed) {
      for (int i = 0; i < r; i++) g[i] = gamma[i] * c[i];
      product_transposed(Q.C, Q.ld, r, n, g, u);
    }
    if (free != nullptr)
      for (int j = 0; j < n; j++) u[j] *= free[j];
    lower_solve(L, ld, inv, n, u);
    if (k > 0) {
      gather(c, t);
      for (int s = 0; s < k; s++) t[s] = -root[s] * t[s];
      product(R, ld, k, n, u, t, true);
      lower_solve(F, ldf, inv_f, k, t);
      lower_solve_transposed(F, ldf, inv_f, k, t);
      for (int s = 0; s < k; s++) t[s] = -t[s];
      product_transposed(R, ld, k, n, t, u);
    }
    lower_solve_transposed(L, ld, inv, n, u);
    for (int j = 0; j < n; j++) dx[j] = u[j];
    if (condensed) {
      product(Q.C, Q.ld, r, n, dx, g);
      for (int i = 0; i < r; i++) dv[i] = gamma[i] * (g[i] - c[i]);
    } else {
      for (int i = 0; i < r; i++) dv[i] = V(0);
    }
    for (int s = 0; s < k; s++) {
      const V rt = -root[s] * t[s];
      for (int l = 0; l < lanes<V>; l++) {
        const int row = heavy[s * lanes<V> + l];
        if (row >= 0) lane(dv[row], l) += lane(rt, l);
      }
    }
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
