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
//     H = H0 + C' diag(gamma) C = L L',      V = L^-1 C_k',      M = I + diag(root) V'V diag(root) = F F'
//
//     u = L^-1 (a + C' gamma c),   t = root M^-1 root (V'u - c_k),   dx = L^-T (u - V t)
//     dv = gamma (C dx - c),       dv_k += t                    (never w (C dx - c) with a large w: it cancels)
//
// cap = 0 is the range-space form: H = P.
#pragma once

#include "lanes.h"
#include "program.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// Relative enlargements of the diagonal of a matrix whose factorisation breaks down by rounding; refinement takes the
// perturbation out again.
template <class V>
OPTLAYER_FUNCTION double bump_of(int attempt) {
  static constexpr double bumps[] = {1e-14, 1e-12, 1e-10, 1e-8};
  return sizeof(Scalar<V>) == 8 ? bumps[attempt] : 1e7 * bumps[attempt];
}

template <class V>
struct Split {
  int n, r, capacity, ld, ldf;
  int k;           // bordered slots in use: the most that any lane needs
  bool condensed;  // some row has gamma > 0
  V *L, *inv;      // (n, n), (n)
  V* R;            // (capacity, n): memory for the rows of V'
  const V* rows;   // (k, n): where they are
  V *F, *inv_f;    // (capacity, capacity), (capacity)
  V* gamma;        // (r)
  V* root;         // (capacity), 0 in slots that a lane does not need
  int32_t* heavy;  // (capacity + 1, lanes): the row in a slot of a lane, 0 in slots that it does not need
  int32_t* slot;   // (r, lanes): the slot of a row of a lane, `capacity` where it has none
  int32_t used[lanes<V>];  // the slots that each lane needs: the first ones
  V *u, *t, *g;    // scratch (n), (capacity + 1), (r)

  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int r_, int capacity_) {
    n = n_, r = r_, capacity = capacity_, k = 0, condensed = false, ld = leading<V>(n_), ldf = leading<V>(capacity_);
    F = arena.take<V>((size_t)capacity * ldf), inv_f = arena.take<V>(capacity);
    L = arena.take<V>((size_t)n * ld), inv = arena.take<V>(n);
    R = arena.take<V>((size_t)capacity * ld);
    gamma = arena.take<V>(r), root = arena.take<V>(capacity);
    heavy = arena.take<int32_t>((size_t)(capacity + 1) * lanes<V>), slot = arena.take<int32_t>((size_t)r * lanes<V>);
    u = arena.take<V>(n), t = arena.take<V>(capacity + 1), g = arena.take<V>(r);
  }

  // Cut the weights w (r) and list the heavy rows of each lane in their order, at most `capacity` of them; the others
  // weigh `cap`. Returns where that was enough.
  OPTLAYER_METHOD Mask<V> weigh(const V* w, V cap) {
    V most(0), enough(1);
    for (int i = own(0); i < r; i += TEAM) {
      gamma[i] = smaller(w[i], cap);
      most = larger(gamma[i], most);
      g[i] = square_root(w[i] - gamma[i]);
    }
    condensed = any(team_max(most) > V(0));
    sync();
    for (int l = 0; l < lanes<V>; l++) used[l] = 0;
    for (int i = 0; i < r; i++)
      for (int l = 0; l < lanes<V>; l++) {
        const bool is_heavy = lane(g[i], l) > 0, fits = used[l] < capacity;
        if (is_heavy && !fits) lane(enough, l) = 0;
        if (owns(used[l])) heavy[used[l] * lanes<V> + l] = i;
        if (owns(i)) slot[i * lanes<V> + l] = is_heavy ? used[l] : capacity;
        used[l] += is_heavy && fits;
      }
    fill_slots();
    sync();
    for (int s = own(0); s < k; s += TEAM) {
      root[s] = gathered(g, heavy + s * lanes<V>);
      for (int l = 0; l < lanes<V>; l++)
        if (s >= used[l]) lane(root[s], l) = 0;
    }
    return enough > V(0);
  }

  // k, and row 0 in the slots that a lane does not need.
  OPTLAYER_METHOD void fill_slots() {
    k = 0;
    for (int l = 0; l < lanes<V>; l++) k = used[l] > k ? used[l] : k;
    for (int l = 0; l < lanes<V>; l++)
      for (int s = own(used[l]); s < k; s += TEAM) heavy[s * lanes<V> + l] = 0;
  }

  // Row by row what lies in the slots is added to a vector over the rows (r).
  OPTLAYER_METHOD void scatter(V* slots, V* to) const {
    if (owns(capacity)) slots[capacity] = V(0);
    sync();
    for (int i = own(0); i < r; i += TEAM) to[i] += gathered(slots, slot + i * lanes<V>);
  }

  // Rows of M (., ld) as they lie in the slots; without the variables that are not free, if there is such a mask.
  OPTLAYER_METHOD void gather_rows(const V* M, int ldm, const V* free = nullptr) {
    V* to = R;
    for (int s = 0; s < k; s++, to += ld) {
      int32_t row[lanes<V>];
      for (int l = 0; l < lanes<V>; l++) row[l] = heavy[s * lanes<V> + l] * ldm;
      for (int j = own(0); j < n; j += TEAM) to[j] = gathered(M + j, row);
      for (int j = own(0); free != nullptr && j < n; j += TEAM) to[j] *= free[j];
    }
    rows = R;
  }

  // Factorise for the weights of the last `weigh`. `free` (n), 1 or 0, may be null: variables that are not free are
  // taken out. `diagonal` (n) is added to P. Returns where both factors exist.
  OPTLAYER_METHOD Mask<V> factor(const Program<V>& Q, const V* diagonal, const V* free) {
    V bump(0);
    Mask<V> ok(true);
    for (int attempt = 0; attempt <= 4; attempt++) {
      if (condensed) {
        weighted_gram(Q.P, Q.ld, Q.C, Q.ld, gamma, r, n, L, ld);
      } else {
        for (int i = own(0); i < n; i += TEAM)
          for (int j = 0; j <= i; j++) L[i * ld + j] = Q.P[i * Q.ld + j];
      }
      sync();
      for (int i = own(0); i < n; i += TEAM) {
        V* row = L + i * ld;
        row[i] = (row[i] + diagonal[i]) * (V(1) + bump);
        if (free == nullptr) continue;
        for (int j = 0; j < i; j++) row[j] *= free[i] * free[j];
        row[i] = select(free[i] > V(0), row[i], V(1));
      }
      ok = cholesky(L, ld, (const V*)nullptr, L, ld, inv, n);
      if (all(ok) || attempt == 4) break;
      bump = select(ok, bump, V(bump_of<V>(attempt)));
    }
    if (k == 0) return ok;
    gather_rows(Q.C, Q.ld, free);
    solve_rows(L, ld, inv, n, R, ld, k);
    return border() && ok;
  }

  // F F' = M, of which `mend` may replace what it knows better.
  OPTLAYER_METHOD Mask<V> border() {
    return border([] {});
  }
  template <class Mend>
  OPTLAYER_METHOD Mask<V> border(Mend mend) {
    V bump(0);
    for (int attempt = 0;; attempt++) {
      row_products(rows, ld, k, n, F, ldf);
      for (int s = own(0); s < k; s += TEAM) {
        V* row = F + (size_t)s * ldf;
        for (int t = 0; t <= s; t++) row[t] *= root[s] * root[t];
        row[s] = (row[s] + V(1)) * (V(1) + bump);
      }
      mend();
      const Mask<V> ok = cholesky(F, ldf, (const V*)nullptr, F, ldf, inv_f, k);
      if (all(ok) || attempt == 4) return ok;
      bump = select(ok, bump, V(bump_of<V>(attempt)));
    }
  }

  // (dx, dv) for right-hand sides a (n) and c (r); dx may be a and dv may be c. dx is 0 on variables that are not free,
  // dv is 0 on rows of weight 0.
  OPTLAYER_METHOD void solve(const Program<V>& Q, const V* free, const V* a, const V* c, V* dx, V* dv) {
    for (int j = own(0); j < n; j += TEAM) u[j] = a[j];
    if (condensed) {
      for (int i = own(0); i < r; i += TEAM) g[i] = gamma[i] * c[i];
      product_transposed(Q.C, Q.ld, r, n, g, u);
    }
    if (free != nullptr)
      for (int j = own(0); j < n; j += TEAM) u[j] *= free[j];
    lower_solve(L, ld, inv, n, u);
    if (k > 0) {
      sync();
      border_solve(u, c);
      product_transposed(rows, ld, k, n, t, u);
    }
    lower_solve_transposed(L, ld, inv, n, u);
    for (int j = own(0); j < n; j += TEAM) dx[j] = u[j];
    if (condensed) {
      product(Q.C, Q.ld, r, n, dx, g);
      for (int i = own(0); i < r; i += TEAM) dv[i] = gamma[i] * (g[i] - c[i]);
    } else {
      for (int i = own(0); i < r; i += TEAM) dv[i] = V(0);
    }
    if (k == 0) return;
    for (int s = own(0); s < k; s += TEAM) t[s] = -t[s];
    scatter(t, dv);
  }

  // -t, for u (n) in the coordinates of the rows.
  OPTLAYER_METHOD void border_solve(const V* u, const V* c) {
    for (int s = own(0); s < k; s += TEAM) t[s] = -gathered(c, heavy + s * lanes<V>);
    product(rows, ld, k, n, u, t, true);
    for (int s = own(0); s < k; s += TEAM) t[s] *= root[s];
    lower_solve(F, ldf, inv_f, k, t);
    lower_solve_transposed(F, ldf, inv_f, k, t);
    for (int s = own(0); s < k; s += TEAM) t[s] *= -root[s];
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
