// SPDX-License-Identifier: Apache-2.0
// The KKT matrix of an entropic program, factorised by its structure (optlayer/entropic/program/kkt.py).
//
//     K = [ P + diag(1/W)  C'         ;        W (n) >= 0: what a unit of force moves each variable by, P set aside
//           C              -diag(1/w) ]        w (k): infinity for a row that holds, 0 for one that is not there
//
// Everything is scaled symmetrically by sqrt(W), and the rows by g = sqrt(w / (1 + w)):
//
//     M = I + sqrt(W) P sqrt(W) = L L',     T = g C sqrt(W),     S = T M^-1 T' + diag(1 / (1 + w))
//     S m = T M^-1 sqrt(W) r1 - g r2,       dx = sqrt(W) M^-1 (sqrt(W) r1 - T' m),      l = g m
//
// S has its diagonal scaled to one before it is factorised, S = F F'. Without a full P the cost is O(n k^2 + k^3).
#pragma once

#include "program.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double LOOSE = 0.1;        // below this share of the force on a variable P is a perturbation
static constexpr double NULL_VALUE = 1e-13; // an eigenvalue of S below this, times k, is zero
static constexpr int SWEEPS = 4, PASSES = 5;
static constexpr double DEPENDENT = 1e-11;  // a squared pivot of S below this: a row that depends on those before it

// What keeps the scaled S (k, k) of dependent rows definite; its factors do not feel what moves a row by less.
OPTLAYER_INLINE double shift(int k) { return 8 * EPS * ::sqrt((double)(k > 1 ? k : 1)); }

// Leave of r (k) its components along the eigenvalues of S far below `small`; F is the factor of S + small.
template <class V>
OPTLAYER_FUNCTION void inverse_iteration(const V* F, int ld, const V* inv, int k, V small, V* r) {
  for (int sweep = 0; sweep < SWEEPS; sweep++) {
    lower_solve(F, ld, inv, k, r);
    lower_solve_transposed(F, ld, inv, k, r);
    for (int i = own(0); i < k; i += TEAM) r[i] *= small;
  }
}

// Take out of r (k) its components along the eigenvalues of S far below `small`, in some lanes; F is the factor of
// S + small. Sweeps of inverse iteration leave of r these components but for a few hundredths; what a pass leaves of them
// the next one takes. The scratch is (k).
template <class V>
OPTLAYER_FUNCTION void deflate(const V* F, int ld, const V* inv, int k, V small, Mask<V> which, V* scratch, V* r) {
  for (int pass = 0; pass < PASSES; pass++) {
    for (int i = own(0); i < k; i += TEAM) scratch[i] = r[i];
    inverse_iteration(F, ld, inv, k, small, scratch);
    for (int i = own(0); i < k; i += TEAM) r[i] -= select(which, scratch[i], V(0));
  }
  sync();
}

template <class V>
struct System {
  int n, k, ld, ldk;
  bool full;
  V *L, *L_inv, *H;        // (n, n), (n), (k, n): T L^-T; with a full P only
  V *T, *S, *F, *F_inv;    // (k, n), (k, k), (k, k), (k)
  V *F_null, *F_null_inv;  // (k, k), (k): the factor of S enlarged, where an exact system needs it
  V *W, *root;             // (n)
  V *a, *g, *unit, *w;     // (k); w is for the caller to set, as W is
  V *t, *force, *e, *m;    // scratch (n), (n), (k), (k)
  V* unused;               // (k), scratch of the callers
  Mask<V> ok, singular;
  bool exact, deflates;  // solves of an exact system are projected where S is singular
  V dependent;  // how many rows depend on those before them

  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int k_, bool full_, bool exact_ = false) {
    n = n_, k = k_, full = full_, exact = exact_, deflates = false, ld = leading<V>(n_), ldk = leading<V>(k_);
    L = arena.take<V>(full ? (size_t)n * ld : 0), L_inv = arena.take<V>(full ? n : 0);
    T = arena.take<V>((size_t)k * ld), H = full ? arena.take<V>((size_t)k * ld) : T;
    for (V** matrix : {&S, &F}) *matrix = arena.take<V>((size_t)k * ldk);
    F_null = arena.take<V>(exact ? (size_t)k * ldk : 0), F_null_inv = arena.take<V>(exact ? k : 0);
    for (V** vector : {&W, &root, &t, &force}) *vector = arena.take<V>(n);
    for (V** vector : {&F_inv, &a, &g, &unit, &w, &e, &m, &unused}) *vector = arena.take<V>(k);
  }

  // With the first `rows` rows of C, and without P unless `with_P`.
  OPTLAYER_METHOD void factor(const Program<V>& Q, int rows, bool with_P) {
    k = rows, full = with_P && Q.full;
    for (int j = own(0); j < n; j += TEAM) root[j] = square_root(W[j]);
    for (int i = own(0); i < k; i += TEAM) {
      const Mask<V> holds = w[i] == V(INFINITY);
      const V share = V(1) / (V(1) + w[i]);
      a[i] = share, g[i] = square_root(select(holds, V(1), w[i] * share));
    }
    sync();
    for (int i = 0; i < k; i++)
      for (int j = own(0); j < n; j += TEAM) T[(size_t)i * ld + j] = Q.C[(size_t)i * ld + j] * (g[i] * root[j]);
    ok = Mask<V>(true);
    if (full) factor_P(Q);
    if (k > 0) factor_rows();
  }

  // dx (n) and l (k) with K (dx, l) = (r1, r2).
  OPTLAYER_METHOD void solve(const Program<V>& Q, const V* r1, const V* r2, V* dx, V* l) {
    for (int j = own(0); j < n; j += TEAM) force[j] = root[j] * r1[j];
    if (k > 0) {
      for (int j = own(0); j < n; j += TEAM) t[j] = force[j];
      tangential();
      product(T, ld, k, n, t, m);
      for (int i = own(0); i < k; i += TEAM) m[i] -= g[i] * r2[i];
      over_rows(m);
      step(dx);
      product(Q.C, ld, k, n, dx, e);
      for (int i = own(0); i < k; i += TEAM) e[i] = g[i] * (r2[i] - e[i]) + a[i] * m[i];
      over_rows(e);
      for (int i = own(0); i < k; i += TEAM) m[i] -= e[i], l[i] = g[i] * m[i];
    }
    // in this form small components of dx are right to as many digits as large ones
    if (full) step(dx);
    for (int j = own(0); j < n; j += TEAM) t[j] = r1[j];
    if (k > 0) {
      for (int i = own(0); i < k; i += TEAM) e[i] = -l[i];
      product_transposed(Q.C, ld, k, n, e, t);
    }
    if (!full) {
      for (int j = own(0); j < n; j += TEAM) dx[j] = W[j] * t[j];
      return;
    }
    product(Q.P, ld, n, n, dx, force);
    for (int j = own(0); j < n; j += TEAM)
      dx[j] = select(W[j] * Q.row_size[j] < V(LOOSE), W[j] * (t[j] - force[j]), dx[j]);
  }

 private:
  OPTLAYER_METHOD void factor_P(const Program<V>& Q) {
    for (int i = 0; i < n; i++)
      for (int j = own(0); j <= i; j += TEAM) {
        const V entry = root[i] * Q.P[(size_t)i * ld + j] * root[j];
        L[(size_t)i * ld + j] = i == j ? entry + V(1 + 4 * EPS) : entry;
      }
    ok = cholesky(L, ld, (const V*)nullptr, L, ld, L_inv, n);
    for (int i = 0; i < k; i++)
      for (int j = own(0); j < n; j += TEAM) H[(size_t)i * ld + j] = T[(size_t)i * ld + j];
    if (k > 0) solve_rows(L, ld, L_inv, n, H, ld, k);
  }

  OPTLAYER_METHOD void factor_rows() {
    row_products(full ? H : T, ld, k, n, S, ldk);
    for (int i = own(0); i < k; i += TEAM) {
      V& diagonal = S[(size_t)i * ldk + i];
      diagonal += a[i];
      // a row of zeros keeps its unit: a large one would multiply the rounding that it leaves in the others
      unit[i] = select(diagonal > V(NONZERO), V(1) / square_root(larger(diagonal, V(NONZERO))), V(1));
    }
    sync();
    for (int i = 0; i < k; i++)
      for (int j = own(0); j <= i; j += TEAM) {
        V& entry = S[(size_t)i * ldk + j];
        entry *= unit[i] * unit[j];
        if (i == j) entry += V(shift(k));  // refinement takes it out again
      }
    ok = cholesky(S, ldk, (const V*)nullptr, F, ldk, F_inv, k) && ok;
    dependent = V(0);
    for (int i = own(0); i < k; i += TEAM) {
      const V pivot = F[(size_t)i * ldk + i];
      dependent += select(pivot * pivot < V(DEPENDENT), V(1), V(0));
    }
    dependent = team_sum(dependent);
    singular = dependent > V(0), deflates = exact && any(singular);
    if (!deflates) return;
    for (int i = own(0); i < k; i += TEAM) e[i] = small();
    cholesky(S, ldk, e, F_null, ldk, F_null_inv, k);
  }

  OPTLAYER_METHOD V small() const { return V(NULL_VALUE * (k > 10 ? k : 10)); }

  // t = M^-1 t.
  OPTLAYER_METHOD void tangential() {
    if (!full) return;
    lower_solve(L, ld, L_inv, n, t);
    lower_solve_transposed(L, ld, L_inv, n, t);
  }

  // r = S^-1 r.
  OPTLAYER_METHOD void over_rows(V* r) {
    for (int i = own(0); i < k; i += TEAM) r[i] *= unit[i];
    if (deflates) deflate(F_null, ldk, F_null_inv, k, small(), singular, unused, r);
    lower_solve(F, ldk, F_inv, k, r);
    lower_solve_transposed(F, ldk, F_inv, k, r);
    if (deflates) deflate(F_null, ldk, F_null_inv, k, small(), singular, unused, r);
    for (int i = own(0); i < k; i += TEAM) r[i] *= unit[i];
  }

  // dx = sqrt(W) M^-1 (force - T'm).
  OPTLAYER_METHOD void step(V* dx) {
    for (int j = own(0); j < n; j += TEAM) t[j] = force[j];
    if (k > 0) {
      for (int i = own(0); i < k; i += TEAM) e[i] = -m[i];
      product_transposed(T, ld, k, n, e, t);
    }
    tangential();
    for (int j = own(0); j < n; j += TEAM) dx[j] = root[j] * t[j];
  }
};

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
