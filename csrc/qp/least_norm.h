// SPDX-License-Identifier: Apache-2.0
// K u = r where K may be singular (optlayer/kkt/system.py): variables that no row and no P holds, rows that depend on
// each other. A right-hand side outside the range of K is projected on it, and of all solutions the shortest is taken:
// no derivative depends on the factorisation.
#pragma once

#include "system.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct LeastNorm {
  static constexpr double INCONSISTENT = 1e-7;  // a right-hand side that leaves more is outside the range of K
  static constexpr double PURE = 1e-7;          // of the whole: what is left of a part is 1e-4 of what was taken out
  static constexpr int PASSES = 6;

  System<V> K;
  int n, r;

  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int r_, bool single) {
    n = n_, r = r_, tiny_pivot = single ? 1e-3 : 1e-8, vanishing = single ? 1e-6 : 1e-13;
    K.lay_out(arena, n, r, single);
    right_x = arena.take<V>(n), right_v = arena.take<V>(r);
  }

  // The least squares solution of least norm, in the lanes of `which`, for the K that was factorised last: ux, uv and
  // u_box; NaN for a right-hand side that is not finite.
  OPTLAYER_METHOD void solve(const Program<V>& Q, const V* rx, const V* rv, const V* r_box, int refinements,
                             Mask<V> which, V* ux, V* uv, V* u_box) {
    K.refine(Q, rx, rv, r_box, false, refinements, which, false);
    const V whole = K.size;
    const Mask<V> sound = finite(whole);
    const Mask<V> lost = which && sound && larger(norm(K.a, n), norm(K.b, r)) > V(INCONSISTENT) * whole;
    const Mask<V> vague = which && sound && (singular() || lost);
    if (any(lost)) {
      project(Q, rx, rv, r_box, refinements, lost, ux, uv);
      rx = right_x, rv = right_v;
    }
    if (any(vague)) shorten(Q, rx, rv, r_box, vague);
    for (int j = own(0); j < n; j += TEAM) ux[j] = select(sound, K.x[j], V(NAN));
    for (int i = own(0); i < r; i += TEAM) uv[i] = select(sound, K.v[i], V(NAN));
    K.boxes(rx, r_box, u_box);
    for (int j = own(0); j < n; j += TEAM) u_box[j] = select(sound, u_box[j], V(NAN));
  }

 private:
  V *right_x, *right_v;  // (n), (r) a right-hand side that is projected
  // What counts as zero in scaled data, which may have been rounded to float32.
  double tiny_pivot;  // squared: below it K may be singular
  double vanishing;   // of a vector: K maps it to zero, but for rounding

  // Where K is singular, or so nearly that rho and delta make the difference: solutions are not unique, or multipliers.
  OPTLAYER_METHOD Mask<V> singular() const {
    Mask<V> found(false);
    for (int j = own(0); j < n; j += TEAM) found = found || K.split.inv[j] * K.split.inv[j] * V(tiny_pivot) > V(1);
    for (int s = own(0); s < K.split.k; s += TEAM) {
      const V reach = K.split.root[s] * K.split.inv_f[s];
      found = found || reach * reach * V(tiny_pivot) > V(1);
    }
    return team_any(found);
  }

  // The part of K's (try_x, try_v) that it maps to zero: (K + R)^-1 R, where R is the regularisation, leaves it as it
  // is and rho of all else. Twice, that nearly singular directions are spared. Returns the lanes where K does so indeed.
  OPTLAYER_METHOD Mask<V> null_part(const Program<V>& Q) {
    for (int pass = 0; pass < 2; pass++) {
      for (int j = own(0); j < n; j += TEAM) K.try_a[j] = V(K.rho) * K.free[j] * K.try_x[j];
      for (int i = own(0); i < r; i += TEAM) K.try_b[i] = V(-K.rho) * K.there[i] * K.try_v[i];
      K.solve_factored(Q, K.try_a, K.try_b, K.try_x, K.try_v);
    }
    for (int j = own(0); j < n; j += TEAM) K.try_x[j] *= K.free[j], K.try_Aty[j] = V(0);
    product(Q.P, Q.ld, n, n, K.try_x, K.try_Px);
    product(Q.C, Q.ld, r, n, K.try_x, K.try_Cx);
    product_transposed(Q.C, Q.ld, r, n, K.try_v, K.try_Aty);
    V left(0);
    for (int j = own(0); j < n; j += TEAM) {
      const V force = K.try_Px[j] + K.try_Aty[j] + K.stiff[j] * K.try_x[j];
      left = larger(K.free[j] * absolute(force), left);
    }
    for (int i = own(0); i < r; i += TEAM) {
      const V move = K.try_Cx[i] - K.compliance[i] * K.try_v[i];
      left = larger(K.there[i] * absolute(move), left);
    }
    return team_max(left) <= V(vanishing) * larger(norm(K.try_x, n), norm(K.try_v, r));
  }

  // Project the right-hand side on the range of K in the lanes of `lost`, to right_x and right_v, and solve again there.
  OPTLAYER_METHOD void project(const Program<V>& Q, const V* rx, const V* rv, const V* r_box, int refinements,
                               Mask<V> lost, V* keep_x, V* keep_v) {
    const V whole = K.size;
    for (int j = own(0); j < n; j += TEAM) right_x[j] = rx[j], keep_x[j] = K.x[j];
    for (int i = own(0); i < r; i += TEAM) right_v[i] = rv[i], keep_v[i] = K.v[i];
    Mask<V> going = lost;
    for (int pass = 0; pass < PASSES && any(going); pass++) {
      for (int j = own(0); j < n; j += TEAM) K.try_x[j] = K.free[j] * right_x[j] * V(1 / K.rho);
      for (int i = own(0); i < r; i += TEAM) K.try_v[i] = select(K.there[i] > V(0), right_v[i] * V(-1 / K.rho), V(0));
      going = going && null_part(Q);
      V most(0);
      for (int j = own(0); j < n; j += TEAM) {
        const V part = select(going, V(K.rho) * K.try_x[j], V(0));
        right_x[j] -= part, most = larger(absolute(part), most);
      }
      for (int i = own(0); i < r; i += TEAM) {
        const V part = select(going, V(-K.rho) * K.try_v[i], V(0));
        right_v[i] -= part, most = larger(absolute(part), most);
      }
      going = going && team_max(most) > V(PURE) * whole;
    }
    K.refine(Q, right_x, right_v, r_box, false, refinements, lost, false);
    for (int j = own(0); j < n; j += TEAM) K.x[j] = select(lost, K.x[j], keep_x[j]);
    for (int i = own(0); i < r; i += TEAM) K.v[i] = select(lost, K.v[i], keep_v[i]);
    if (K.bounded) refresh(Q, right_x, right_v, r_box);
  }

  // Take the part that K maps to zero out of x and v in the lanes of `which`.
  OPTLAYER_METHOD void shorten(const Program<V>& Q, const V* rx, const V* rv, const V* r_box, Mask<V> which) {
    for (int pass = 0; pass < PASSES && any(which); pass++) {
      for (int j = own(0); j < n; j += TEAM) K.try_x[j] = K.x[j];
      for (int i = own(0); i < r; i += TEAM) K.try_v[i] = K.v[i];
      which = which && null_part(Q);
      for (int j = own(0); j < n; j += TEAM) K.x[j] = select(which, K.x[j] - K.try_x[j], K.x[j]);
      for (int i = own(0); i < r; i += TEAM) K.v[i] = select(which, K.v[i] - K.try_v[i], K.v[i]);
      const V left = larger(norm(K.x, n), norm(K.v, r)), gone = larger(norm(K.try_x, n), norm(K.try_v, r));
      which = which && gone > V(PURE) * left;
    }
    if (K.bounded) refresh(Q, rx, rv, r_box);
  }

  // The products at x and v.
  OPTLAYER_METHOD void refresh(const Program<V>& Q, const V* rx, const V* rv, const V* r_box) {
    for (int j = own(0); j < n; j += TEAM) K.try_x[j] = K.x[j];
    for (int i = own(0); i < r; i += TEAM) K.try_v[i] = K.v[i];
    K.residual(Q, rx, rv, r_box);
    K.keep(Mask<V>(true), Mask<V>(true));
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
