// SPDX-License-Identifier: Apache-2.0
// The KKT system at a solution (optlayer/kkt/system.py), in scaled units:
//
//         [ P  C'  I     ]        D = diag(1/w),  D_box = diag(1/w_box)
//     K = [ C -D   0     ]        w = infinity for an active row or bound, 0 for an inactive one,
//         [ I  0  -D_box ]        z/s, the central value, for one that is weakly active
//
// Rows and bounds of weight 0 are not there, bounds of infinite weight are eliminated, the others sit on the diagonal
// of P. What remains is regularised by rho = delta and factorised by the weight split; every solve is refined
// against K itself. The units are powers of two, so a residual in scaled units is as exact as one in the caller's.
#pragma once

#include "range.h"
#include "split.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct System {
  static constexpr double CAP = 1;  // the less of the rows is condensed, the more digits of P are kept
  static constexpr double CONDENSED = 1e8;  // the largest weight that may be condensed and leave P eight digits
  static constexpr double WORTHWHILE = 0.7;  // a refinement that leaves more than this of the residual is the last
  static constexpr double SLOWER = 1e3, NEAR_ROUNDING = 1e-11;  // so is one that gains that much less, near rounding
  static constexpr double SURE = 1e-6;                 // a gain that the next refinement is sure to have again
  static constexpr int WHOLE = 24;  // rows in the range space up to which light ones are not left out
  static constexpr double ROUNDING = 4e-15;  // of the right-hand side: what is left is rounding

  int n, r;
  int slots;       // the most heavy rows of a factor that is kept
  bool bounded;    // some lane has a bound of positive weight
  Mask<V> boxed;   // the lanes that have
  bool bare;       // the rows of the border are those of C, times free, and not of V'
  Split<V> split;  // its L is borrowed from `space` while the factor is of the range-space form
  V *L, *inv;      // the split's own
  V *compliance, *there, *weight;           // (r) 1/w, 1 or 0, the regularised w
  V *free, *stiff, *diagonal;               // (n) 1 or 0, the finite w_box, what is added to P
  V *x, *v, *a, *b;                         // the best iterate and its residuals
  V *Px, *Aty, *Gtz, *Cx;                   // and its products
  V *try_x, *try_v, *try_a, *try_b;         // the next
  V *try_Px, *try_Aty, *try_Gtz, *try_Cx;
  V size;                                   // of the right-hand side
  // Regularises K, and is its delta: in float64 two refinements reach rounding. Data may have been rounded to float32, so
  // that a zero eigenvalue of P is negative.
  double rho;
  V first_Px, first_Cx;                     // norms at the start

  // The split's memory may be shared with another one that is not needed meanwhile.
  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int r_, bool single, const Split<V>* shared = nullptr) {
    rho = single ? 1e-6 : 1e-12, n = n_, r = r_, slots = r_ < 2 * n_ ? r_ : 2 * n_, bare = bounded = false;
    if (shared == nullptr) {
      split.lay_out(arena, n, r, slots);
    } else {
      split = *shared, split.capacity = slots, split.ldf = leading<V>(slots);
    }
    L = split.L, inv = split.inv;
    for (V** t : {&compliance, &there, &weight, &v, &b, &Cx, &try_v, &try_b, &try_Cx}) *t = arena.take<V>(r);
    for (V** t : {&free, &stiff, &diagonal, &x, &a, &Px, &Aty, &Gtz, &try_x, &try_a, &try_Px, &try_Aty, &try_Gtz})
      *t = arena.take<V>(n);
  }

  OPTLAYER_METHOD const V* mask() const { return bounded ? free : nullptr; }

  // The weights of K: w (r), w_box (n).
  OPTLAYER_METHOD void weigh(const V* w, const V* w_box) {
    for (int i = own(0); i < r; i += TEAM) {
      const Mask<V> here = w[i] > V(0);
      there[i] = select(here, V(1), V(0));
      compliance[i] = select(here, V(1) / w[i], V(0));
      weight[i] = there[i] / (compliance[i] + V(rho));
    }
    V most(0);
    for (int j = own(0); j < n; j += TEAM) {
      const Mask<V> loose = w_box[j] < V(INFINITY);
      free[j] = select(loose, V(1), V(0));
      stiff[j] = select(loose, w_box[j], V(0));
      diagonal[j] = stiff[j] + V(rho);
      most = larger(w_box[j], most);
    }
    boxed = team_max(most) > V(0);
    bounded = any(boxed);
  }

  // Factorise K for the weights of the last `weigh`: by the split with this cap, 0 or 1 in each lane.
  OPTLAYER_METHOD Mask<V> factor(const Program<V>& Q, V cap) {
    bare = false, split.L = L, split.inv = inv;
    const Mask<V> enough = split.weigh(weight, cap);
    return split.factor(Q, diagonal, mask()) && enough;
  }

  // The same from the range space: H = P is factorised there once and for all, for positive definite P without bounds.
  OPTLAYER_METHOD Mask<V> factor(const RangeSpace<V>& space) {
    bare = false, split.L = space.L, split.inv = space.inv;
    const bool whole = r <= WHOLE && r <= slots;
    const Mask<V> enough = whole ? take_all() : split.weigh(weight, V(0));
    const int k = split.k, ldf = split.ldf;
    if (k == 0) return enough;
    sync();
    if (whole)
      split.rows = space.VT;
    else
      split.gather_rows(space.VT, space.ld);
    const auto fill = [&](Mask<V> which) {
      const bool anew = all(which);
      for (int s = own(0); s < k; s += TEAM) {
        V* border = split.F + (size_t)s * ldf;
        const V root = split.root[s];
        if (whole && anew) {
          const V* row = space.K + (size_t)s * space.ldk;
          for (int t = 0; t <= s; t++) border[t] = row[t] * (root * split.root[t]);
        } else {
          const int32_t* row = split.heavy + s * lanes<V>;
          for (int t = 0; t <= s; t++) {
            int32_t at[lanes<V>];
            for (int l = 0; l < lanes<V>; l++) at[l] = row[l] * space.ldk + split.heavy[t * lanes<V> + l];
            border[t] = select(which, gathered(space.K, at) * (root * split.root[t]), border[t]);
          }
        }
        border[s] += select(which, V(1), V(0));
      }
    };
    fill(Mask<V>(true));
    const Mask<V> ok = cholesky(split.F, ldf, (const V*)nullptr, split.F, ldf, split.inv_f, k);
    if (all(ok)) return enough;
    // lanes whose border, scaled and not summed, rounding has made indefinite sum it; the others keep theirs
    return split.border([&] { fill(ok); }) && enough;
  }

  // Restore from what was kept, all but L and F: caps (0 or 1 in each lane) and the kept rows, `index[l][s]` for lane l.
  // L (lower) and F (lower) have to be filled in by the caller, for the first split.k slots, then `restored` called.
  OPTLAYER_METHOD void restore(const Program<V>& Q, V cap, const int64_t* const* index) {
    bare = true, split.L = L, split.inv = inv;
    V most(0), heavy(0);
    for (int i = own(0); i < r; i += TEAM) {
      split.gamma[i] = smaller(weight[i], cap);
      most = larger(split.gamma[i], most);
      heavy += select(weight[i] > cap, V(1), V(0));
      for (int l = 0; l < lanes<V>; l++) split.slot[i * lanes<V> + l] = split.capacity;
    }
    split.condensed = any(team_max(most) > V(0));
    heavy = team_sum(heavy);
    V last(0);  // slots in use may follow others that are not
    sync();
    for (int s = own(0); s < slots; s += TEAM) {
      int32_t* row = split.heavy + s * lanes<V>;
      for (int l = 0; l < lanes<V>; l++) row[l] = (uint64_t)index[l][s] < (uint64_t)r ? (int32_t)index[l][s] : 0;
      split.root[s] = square_root(positive(gathered(weight, row) - cap));
      for (int l = 0; l < lanes<V>; l++) {
        const bool in_use = lane(split.root[s], l) > 0;
        if (in_use) split.slot[row[l] * lanes<V> + l] = s, lane(last, l) = s + 1;
      }
    }
    last = team_max(last);
    for (int l = 0; l < lanes<V>; l++) split.used[l] = (int)lane(last, l);
    split.fill_slots();
    sync();
    if (any(heavy > V(slots))) condense(cap);
    split.gather_rows(Q.C, Q.ld, mask());
  }
  OPTLAYER_METHOD void restored() {
    sync();
    for (int i = own(0); i < n; i += TEAM) inv[i] = V(1) / L[(size_t)i * split.ld + i];
    for (int s = own(0); s < split.k; s += TEAM) split.inv_f[s] = V(1) / split.F[(size_t)s * split.ldf + s];
  }

  // K u = (rx, rv, r_box) from the start (x, v), where a multiplier that is not unique comes out nearest to; or from
  // nothing. The best iterate of each lane is left in x and v, its residuals in a and b and its products in Px, Aty,
  // Gtz and Cx, for the lanes of `which`; the loop ends when none of them improves any more. Unless products are wanted,
  // a last correction that is sure to end at rounding is not looked at, but where bounds need the products.
  OPTLAYER_METHOD void refine(const Program<V>& Q, const V* rx, const V* rv, const V* r_box, bool started,
                              int refinements, Mask<V> which, bool products = true) {
    V most(0), box(0), sum(0), first(0);  // first: the residual of nothing
    for (int j = own(0); j < n; j += TEAM) {
      const V right = rx[j] * free[j];
      most = larger(absolute(right), most), sum += right;
    }
    first = most;
    for (int i = own(0); i < r; i += TEAM) {
      const V right = select(there[i] > V(0), rv[i], V(0));
      most = larger(absolute(right), most), sum += right;
      first = larger(absolute(right) / (V(1) + compliance[i]), first);
    }
    for (int j = own(0); bounded && j < n; j += TEAM) {
      const V right = select(free[j] == V(0) || stiff[j] > V(0), r_box[j], V(0));
      box = larger(absolute(right), box), sum += right;
    }
    most = team_max(most), box = team_max(box), first = team_max(first);
    size = select(finite(team_sum(sum)), most + box, V(NAN));
    for (int j = own(0); j < n; j += TEAM) {
      const V from = started ? x[j] : V(0);
      try_x[j] = bounded ? select(free[j] > V(0), from, r_box[j]) : from;
    }
    for (int i = own(0); i < r; i += TEAM) try_v[i] = started ? v[i] * there[i] : V(0);
    V best(INFINITY), rate(INFINITY);
    Mask<V> going = which;
    for (int step = 0;; step++) {
      V error;
      if (step == 0 && !started && !bounded) {
        for (int j = own(0); j < n; j += TEAM) try_a[j] = rx[j];
        for (int i = own(0); i < r; i += TEAM) try_b[i] = select(there[i] > V(0), rv[i], V(0));
        error = select(finite(size), first, V(NAN));
      } else {
        error = residual(Q, rx, rv, r_box);
      }
      if (step == 0 && started) first_Px = norm(try_Px, n), first_Cx = norm(try_Cx, r);
      const Mask<V> better = going && error < best;
      keep(step == 0 ? Mask<V>(true) : better, step == 0 ? Mask<V>(true) : which);
      const V last = rate;
      rate = error / best;
      going = better && error > V(ROUNDING) * size;
      if (step > 1)
        going = going && rate < V(WORTHWHILE) && (rate < V(SLOWER) * last || error > V(NEAR_ROUNDING) * size);
      best = select(better, error, best);
      if (step == refinements + 1 || !any(going)) return;
      solve_factored(Q, a, b, try_x, try_v);
      for (int j = own(0); j < n; j += TEAM) try_x[j] += x[j];
      for (int i = own(0); i < r; i += TEAM) try_v[i] += v[i];
      if (step == 0 || products) continue;
      const Mask<V> sure = going && !boxed && error * rate <= V(ROUNDING) * size && rate < V(SURE);
      if (!any(sure)) continue;
      for (int j = own(0); j < n; j += TEAM) x[j] = select(sure, try_x[j], x[j]);
      for (int i = own(0); i < r; i += TEAM) v[i] = select(sure, try_v[i], v[i]);
      going = going && !sure;
      if (!any(going)) return;
    }
  }

  // What a weakly active bound pulls with; one that is not there does not, wherever it may be.
  OPTLAYER_METHOD V pull_of_bound(const V* at, const V* r_box, int j) const {
    return select(stiff[j] > V(0), stiff[j] * (at[j] - r_box[j]), V(0));
  }

  // What the solution moves the bounds' multipliers by, from the best iterate.
  OPTLAYER_METHOD void boxes(const V* rx, const V* r_box, V* u_box) const {
    for (int j = own(0); j < n; j += TEAM)
      u_box[j] = bounded ? select(free[j] > V(0), pull_of_bound(x, r_box, j), rx[j] - Px[j] - (Aty[j] + Gtz[j])) : V(0);
  }

  // The residuals try_a, try_b at try_x, try_v and their norm; NaN shows.
  OPTLAYER_METHOD V residual(const Program<V>& Q, const V* rx, const V* rv, const V* r_box) {
    const int p = Q.p, m = Q.m, ld = Q.ld;
    product(Q.P, ld, n, n, try_x, try_Px);
    for (int j = own(0); j < n; j += TEAM) try_Aty[j] = try_Gtz[j] = V(0);
    if (p > 0) product_pair(Q.C, ld, p, n, try_x, try_Cx, try_v, try_Aty);
    if (m > 0) product_pair(Q.C + (size_t)p * ld, ld, m, n, try_x, try_Cx + p, try_v + p, try_Gtz);
    V most(0), sum(0);
    for (int j = own(0); j < n; j += TEAM) {
      V left = rx[j] - try_Px[j] - (try_Aty[j] + try_Gtz[j]);
      if (bounded) left = free[j] * (left - pull_of_bound(try_x, r_box, j));
      try_a[j] = left, sum += left;
      most = larger(absolute(left), most);
    }
    for (int i = own(0); i < r; i += TEAM) {
      const V left = select(there[i] > V(0), rv[i] - try_Cx[i] + compliance[i] * try_v[i], V(0));
      try_b[i] = left, sum += left;
      most = larger(absolute(left) / (V(1) + compliance[i]), most);
    }
    return select(finite(team_sum(sum)), team_max(most), V(NAN));
  }

  // The next iterate becomes the best one in the lanes of `better`; others than `which` are nobody's business.
  OPTLAYER_METHOD void keep(Mask<V> better, Mask<V> which) {
    V** best[] = {&x, &a, &Px, &Aty, &Gtz, &v, &b, &Cx};
    V** next[] = {&try_x, &try_a, &try_Px, &try_Aty, &try_Gtz, &try_v, &try_b, &try_Cx};
    const bool whole = all(better || !which);
    if (!whole && !any(better)) return;
    for (int t = 0; t < 8; t++) {
      if (whole) {
        V* other = *best[t];
        *best[t] = *next[t], *next[t] = other;
        continue;
      }
      V *to = *best[t], *from = *next[t];
      const int count = t < 5 ? n : r;
      for (int i = own(0); i < count; i += TEAM) to[i] = select(better, from[i], to[i]);
    }
  }

  OPTLAYER_METHOD void solve_factored(const Program<V>& Q, const V* ra, const V* rb, V* dx, V* dv) {
    if (!bare) {
      split.solve(Q, mask(), ra, rb, dx, dv);
      return;
    }
    // without V: V t = L^-1 C_k't and V'u = C_k L^-T u
    V *u = split.u, *t = split.t, *g = split.g;
    for (int j = own(0); j < n; j += TEAM) u[j] = ra[j];
    if (split.condensed) {
      for (int i = own(0); i < r; i += TEAM) g[i] = split.gamma[i] * rb[i];
      product_transposed(Q.C, Q.ld, r, n, g, u);
    }
    lower_solve_both(u);
    for (int j = own(0); j < n; j += TEAM) dx[j] = u[j];
    for (int i = own(0); i < r; i += TEAM) dv[i] = V(0);
    if (split.k > 0) {
      split.border_solve(dx, rb);
      for (int j = own(0); j < n; j += TEAM) u[j] = V(0);
      product_transposed(split.rows, split.ld, split.k, n, t, u);
      lower_solve_both(u);
      for (int j = own(0); j < n; j += TEAM) dx[j] += u[j];
      for (int s = own(0); s < split.k; s += TEAM) t[s] = -t[s];
      split.scatter(t, dv);
    }
    if (!split.condensed) return;
    product(Q.C, Q.ld, r, n, dx, g);
    for (int i = own(0); i < r; i += TEAM) dv[i] += split.gamma[i] * (g[i] - rb[i]);
  }

 private:
  // All rows in their order, also those of weight 0: where they are few that is quicker than to choose.
  OPTLAYER_METHOD Mask<V> take_all() {
    split.k = r, split.condensed = false;
    for (int i = own(0); i < r; i += TEAM) {
      split.gamma[i] = V(0), split.root[i] = square_root(weight[i]);
      for (int l = 0; l < lanes<V>; l++) split.heavy[i * lanes<V> + l] = split.slot[i * lanes<V> + l] = i;
    }
    for (int l = 0; l < lanes<V>; l++) split.used[l] = r;
    return Mask<V>(true);
  }

  // Heavy rows that are not among those kept are condensed where their weight permits.
  OPTLAYER_METHOD void condense(V cap) {
    for (int i = own(0); i < r; i += TEAM)
      for (int l = 0; l < lanes<V>; l++) {
        const double whole = lane(weight[i], l);
        const bool left_out = split.slot[i * lanes<V> + l] == split.capacity && whole > lane(cap, l);
        if (left_out && whole <= CONDENSED) lane(split.gamma[i], l) = whole;
      }
  }

  // u = H^-1 u on the free variables.
  OPTLAYER_METHOD void lower_solve_both(V* u) const {
    for (int j = own(0); bounded && j < n; j += TEAM) u[j] *= free[j];
    lower_solve(split.L, split.ld, split.inv, n, u);
    lower_solve_transposed(split.L, split.ld, split.inv, n, u);
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
