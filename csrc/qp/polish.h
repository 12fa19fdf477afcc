// SPDX-License-Identifier: Apache-2.0
// From an interior point to the vertex, edge or face it points at, with the active set verified and not guessed
// (optlayer/kkt/polish.py, where the reasons stand).
//
//     guess       a row is active where z > s; early also by the trend of z and s (newton.h)
//     attempt     K (x, v, z_box) = (-q, d, bounds), solved and refined: no trace of mu is left
//     flip        exactly the rows of a wrong sign change sides, and K is factorised again
//     share       active inequalities that depend on the active rows before them get large finite weights
//     weak        rows that neither sign decides get the central weight z/s
//
// An early attempt, while the interior point is still on its way, is accepted only where every active row has a positive
// multiplier, every inactive one a positive slack, and the point meets the contract.
#pragma once

#include "contract.h"
#include "load.h"
#include "newton.h"
#include "system.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct Polisher {
  static constexpr int ROUNDS = 4, EARLY_ROUNDS = 2, REFINEMENTS = 10;
  static constexpr double Z_SIGN = 1e-11, S_SIGN = 1e-12;  // of the largest term of stationarity; variable or row
  static constexpr double WEAK = 1e-3, AMBIGUOUS = 1e6;    // a weak row has s, z below 1e-3 of these sizes and s/z between
  static constexpr double DECIDED = 1e8;  // of a bound's central weight w: beyond it w (x - bound) loses more than 1/w
  static constexpr double DEPENDENT = 1e-9;                // squared distance of an active row from those before it
  static constexpr double SHARED_LEAST = 1e6, SHARED_MOST = 1e8;  // weights of active rows that depend on each other
  static constexpr double NO_WORSE = 1e-4;  // of the tolerance: below it residuals are rounding

  System<V> system;
  const RangeSpace<V>* space;
  int n, r;
  V *x, *v, *z_box, *Cx, *w, *w_box;  // of the lanes that are accepted or central: (n), (r), (n), (r) in scaled units;
                                      // (r), (n)
  V weak, merit;                 // weakly active rows and bounds; the contract
  Mask<V> ranged;                // K is to be factorised in the range space

  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int r_, bool single, const Split<V>* shared) {
    n = n_, r = r_;
    system.lay_out(arena, n, r, single, shared);
    for (V** t : {&x, &z_box, &w_box, &lower, &upper, &try_w_box, &right_x, &bound, &new_x, &new_box, &flip_lower, &flip_upper})
      *t = arena.take<V>(n);
    for (V** t : {&v, &Cx, &w, &rows, &try_w, &new_v, &flip_rows}) *t = arena.take<V>(r);
  }

  // Before the first call for a pack.
  OPTLAYER_METHOD void reset() {
    space = nullptr, form = factored = false;
    for (int j = own(0); j < n; j += TEAM) x[j] = z_box[j] = w_box[j] = V(0);
    for (int i = own(0); i < r; i += TEAM) v[i] = Cx[i] = w[i] = V(0);
    weak = V(0), merit = V(INFINITY);
    settled = ranged = fresh = exists = Mask<V>(false);
  }

  // Polish the lanes of `which` from an interior point, in the method's own form. Returns the lanes whose active set is
  // verified and whose point is no worse, or, early, is good enough.
  OPTLAYER_METHOD Mask<V> polish(const Program<V>& Q, const Newton<V>& newton, const Rules& rules, Mask<V> which,
                                 bool early) {
    const Point<V>& at = newton.at;
    form = newton.ranged;
    if (form) space = &newton.space;
    V before(1);
    if (!early) before = larger(judge_interior(Q, at, rules), V(NO_WORSE));
    guess(Q, newton, early);
    Mask<V> todo = which, accepted(false);
    for (int round = 0; round < (early ? EARLY_ROUNDS : ROUNDS); round++) {
      Mask<V> right, strict;
      V count;
      const Mask<V> usable = attempt(Q, at, todo, right, strict, count);
      Mask<V> done = todo && usable && right;
      if (early) done = done && strict;
      if (any(done)) {
        const Mask<V> good = accept(Q, rules, done, before);
        weak = select(good, count, weak);
        fresh = fresh || (good && count == V(0));
        accepted = accepted || good;
      }
      todo = todo && usable && !right;
      if (!any(todo)) break;
      for (int i = own(0); i < r; i += TEAM) rows[i] = absolute(rows[i] - flip_rows[i]);
      for (int j = own(0); Q.boxes && j < n; j += TEAM) {
        lower[j] = absolute(lower[j] - flip_lower[j]);
        upper[j] = absolute(upper[j] - flip_upper[j]);
      }
    }
    return accepted;
  }

  // The interior point itself, with the central weights z/s in all rows, for lanes that the last call of `polish`
  // found nothing better for.
  OPTLAYER_METHOD void central(const Program<V>& Q, const Point<V>& at, const Rules& rules, Mask<V> which) {
    interior_point(Q, at);
    take(which, judge(Q, rules));
    for (int i = own(0); i < r; i += TEAM)
      w[i] = select(which, i < Q.p ? V(INFINITY) : Q.live[i] * at.v[i] / at.s[i], w[i]);
    for (int j = own(0); j < n; j += TEAM) w_box[j] = select(which, central_box(Q, at, j), w_box[j]);
    weak = select(which, V(0), weak);
    fresh = fresh && !which;
  }

  // The memory of the factor, which is shared, has been used for something else.
  OPTLAYER_METHOD void forget_factor() { fresh = Mask<V>(false); }

  // The lanes whose K has no more heavy rows than are kept. Where it has, the rows to keep have to be chosen such that
  // they span all of them, which the kernels leave to the reference engine.
  OPTLAYER_METHOD Mask<V> fits() {
    V heavy(0), there(0);
    for (int i = own(0); i < r; i += TEAM) heavy += select(w[i] > V(1), V(1), V(0)), there += select(w[i] > V(0), V(1), V(0));
    heavy = team_sum(heavy), there = team_sum(there);
    ranged = ranged && there <= V(system.slots);
    return heavy <= V(system.slots);
  }

  // State, factor and index of the first `used` lanes for the backward pass; lanes not `solved` have none. Factors that
  // are not those of (w, w_box) are made anew; returns whether one was that takes the split's memory.
  OPTLAYER_METHOD bool write(const Program<V>& Q, const SolveCall& call, const Elements<V>& elements, Mask<V> solved) {
    Mask<V> ok = solved;
    bool split = false;
    for (int in_range = 1; call.keep_factor && in_range >= 0; in_range--) {
      const Mask<V> mine = solved && (in_range ? ranged : !ranged);
      if (!any(mine)) continue;
      split = split || !in_range;
      const Mask<V> whole = refactor(Q, mine, in_range) || !mine;
      ranged = ranged && whole;  // a lane with too many heavy rows for it is left to the split
      ok = ok && (whole || Mask<V>(in_range == 1));
      store_factor(call, elements, mine && whole);
    }
    store_state(Q, call, elements, ok);
    clear_factor(call, elements, call.keep_factor ? !ok : Mask<V>(true));
    return split;
  }

 private:
  V *rows, *lower, *upper;                  // 1 where active, as guessed
  V *flip_rows, *flip_lower, *flip_upper;   // 1 where that was wrong
  V *try_w, *try_w_box, *right_x, *bound;   // weights, -q and values of the active bounds
  V *new_x, *new_v, *new_box;               // the point of an attempt
  V z_size, s_size;
  Mask<V> settled;  // w and w_box are final so far
  Mask<V> fresh;    // and the system's factor is theirs
  Mask<V> exists;   // the system's factor
  bool factored;    // it is of the range space
  bool form;        // so is that of the present lanes

  static OPTLAYER_METHOD V central_box(const Program<V>& Q, const Point<V>& at, int j) {
    if (!Q.boxes) return V(0);
    const V weight = Q.has_lo[j] * at.z_lo[j] / at.s_lo[j] + Q.has_hi[j] * at.z_hi[j] / at.s_hi[j];
    return select(Q.fixed[j] > V(0) || weight > V(DECIDED), V(INFINITY), weight);
  }

  OPTLAYER_METHOD void guess(const Program<V>& Q, const Newton<V>& newton, bool early) {
    const Point<V>& at = newton.at;
    const auto active = [&](int i) { return early ? newton.leaning(i) > V(1) : at.v[i] > at.s[i]; };
    for (int i = own(0); i < r; i += TEAM) rows[i] = i < Q.p ? V(1) : select(Q.live[i] > V(0) && active(i), V(1), V(0));
    for (int j = own(0); j < n; j += TEAM) {
      right_x[j] = -Q.q[j];
      lower[j] = upper[j] = V(0);
      if (!Q.boxes) continue;
      const Mask<V> low = Q.has_lo[j] > V(0) && active(r + j);
      const Mask<V> high = Q.has_hi[j] > V(0) && active(r + n + j) && !(low && at.z_lo[j] > at.z_hi[j]);
      lower[j] = select(low && !high, V(1), V(0)), upper[j] = select(high, V(1), V(0));
    }
  }

  // Solve the KKT conditions on the guessed active set in the lanes of `todo` and look at the signs they give. Leaves
  // the point in new_x, new_v, new_box and the weights of K to keep in try_w, try_w_box. Returns where the point exists;
  // `right` where no sign is wrong, `strict` where none is near zero either, `count` the weak rows and bounds.
  OPTLAYER_METHOD Mask<V> attempt(const Program<V>& Q, const Point<V>& at, Mask<V> todo, Mask<V>& right,
                                  Mask<V>& strict, V& count) {
    for (int i = own(0); i < r; i += TEAM) try_w[i] = select(todo, select(rows[i] > V(0), V(INFINITY), V(0)), w[i]);
    for (int j = own(0); j < n; j += TEAM) {
      bound[j] = V(0);
      try_w_box[j] = w_box[j];
      if (!Q.boxes) continue;
      const Mask<V> low = lower[j] + Q.fixed[j] > V(0), high = upper[j] > V(0);
      bound[j] = select(low, Q.lo[j], select(high, Q.hi[j], V(0)));
      try_w_box[j] = select(todo, select(low || high, V(INFINITY), V(0)), w_box[j]);
    }
    system.weigh(try_w, try_w_box);
    exists = factorise(Q, form);
    fresh = settled && exists && (form ? ranged : !ranged) && !todo;
    for (int j = own(0); j < n; j += TEAM) system.x[j] = at.x[j];
    for (int i = own(0); i < r; i += TEAM) system.v[i] = at.v[i];
    system.refine(Q, right_x, Q.d, bound, true, REFINEMENTS, todo && exists);
    system.boxes(right_x, bound, new_box);
    sizes(Q, at);

    const V tz = V(Z_SIGN) * z_size, ts = V(S_SIGN) * s_size, surplus = dependent(Q);
    right = Mask<V>(true), strict = surplus == V(0);
    count = V(0);
    V sum(0), largest(0);
    for (int j = own(0); j < n; j += TEAM) new_x[j] = system.x[j], sum += system.x[j];
    for (int i = own(0); i < Q.p; i += TEAM) new_v[i] = system.v[i], flip_rows[i] = V(0), sum += system.v[i];
    for (int i = own(Q.p); i < r; i += TEAM) {
      const V z = system.v[i], s = Q.d[i] - system.Cx[i];
      const Mask<V> row = rows[i] > V(0), live = Q.live[i] > V(0);
      const Mask<V> wrong = live && select(row, z, V(0)) < -tz, violated = live && !row && s < -ts;
      const Mask<V> flips = todo && (wrong || violated);
      flip_rows[i] = select(flips, V(1), V(0));
      right = right && !flips;
      strict = strict && (!live || select(row, z - tz, s - ts) > V(0));
      const Mask<V> doubtful = live && in_doubt(row, z, s, at.v[i], at.s[i]);
      count += select(doubtful, V(1), V(0));
      if (any(todo && doubtful)) try_w[i] = select(todo && doubtful, at.v[i] / at.s[i], try_w[i]);
      new_v[i] = positive(z), sum += z;
      largest = larger(absolute(z), largest);
    }
    for (int j = own(0); Q.boxes && j < n; j += TEAM) {
      const V z = new_box[j], s_lo = system.x[j] - Q.lo[j], s_hi = Q.hi[j] - system.x[j];
      const Mask<V> low = lower[j] > V(0), high = upper[j] > V(0), idle = !(low || high || Q.fixed[j] > V(0));
      const Mask<V> has_lo = Q.has_lo[j] > V(0), has_hi = Q.has_hi[j] > V(0);
      const Mask<V> to_lower = todo && ((low && z > tz) || (idle && has_lo && s_lo < -ts));
      const Mask<V> to_upper = todo && ((high && z < -tz) || (idle && has_hi && s_hi < -ts));
      flip_lower[j] = select(to_lower, V(1), V(0));
      flip_upper[j] = select(to_upper, V(1), V(0));
      right = right && !(to_lower || to_upper);
      strict = strict && !(low && !(-z > tz)) && !(high && !(z > tz)) && !(idle && has_lo && !(s_lo > ts)) &&
               !(idle && has_hi && !(s_hi > ts));
      const Mask<V> doubtful = (has_lo && !high && in_doubt(low, -z, s_lo, at.z_lo[j], at.s_lo[j])) ||
                               (has_hi && !low && in_doubt(high, z, s_hi, at.z_hi[j], at.s_hi[j]));
      count += select(doubtful, V(1), V(0));
      if (any(todo && doubtful)) try_w_box[j] = select(todo && doubtful, central_box(Q, at, j), try_w_box[j]);
      new_box[j] = select(low, smaller(z, V(0)), select(high, positive(z), z));
      largest = larger(select(low || high, absolute(z), V(0)), largest);
      sum += z;
    }
    right = team_all(right), strict = team_all(strict), count = surplus + team_sum(count);
    sum = team_sum(sum), largest = team_max(largest);
    if (any(todo && surplus > V(0))) share(Q, todo && surplus > V(0), larger(largest, V(1e-300)));
    return exists && finite(sum);
  }

  OPTLAYER_METHOD Mask<V> factorise(const Program<V>& Q, bool in_range_space) {
    factored = in_range_space;
    return in_range_space ? system.factor(*space) : system.factor(Q, V(1));
  }

  // Units of multipliers and slacks: the terms of stationarity, and the rows and variables, at the interior point.
  OPTLAYER_METHOD void sizes(const Program<V>& Q, const Point<V>& at) {
    z_size = larger(system.first_Px, V(1e-300)), s_size = larger(system.first_Cx, V(1));
    for (int j = own(0); j < n; j += TEAM) {
      z_size = larger(absolute(Q.q[j]), z_size), s_size = larger(absolute(at.x[j]), s_size);
      if (Q.boxes) z_size = larger(larger(Q.has_lo[j] * at.z_lo[j], Q.has_hi[j] * at.z_hi[j]), z_size);
    }
    for (int i = own(Q.p); i < r; i += TEAM) z_size = larger(Q.live[i] * at.v[i], z_size);
    z_size = team_max(z_size), s_size = team_max(s_size);
  }

  // Rows whose multiplier (active) or slack (inactive) vanishes and whose interior z0, s0 decide for neither.
  OPTLAYER_METHOD Mask<V> in_doubt(Mask<V> active, V z, V s, V z0, V s0) const {
    const Mask<V> as_active = active && z <= V(Z_SIGN) * z_size && s0 < V(WEAK) * s_size && s0 * V(AMBIGUOUS) > z0;
    const Mask<V> as_inactive =
        !active && s <= V(S_SIGN) * s_size && z0 < V(WEAK) * larger(z_size, V(1)) && s0 < V(AMBIGUOUS) * z0;
    return as_active || as_inactive;
  }

  // How many active inequalities depend on the active rows before them; equalities stand first.
  OPTLAYER_METHOD V dependent(const Program<V>& Q) const {
    const Split<V>& split = system.split;
    V count(0);
    for (int s = own(0); s < split.k; s += TEAM) {
      const V pivot = split.F[(size_t)s * split.ldf + s], root = split.root[s];
      V inequality(0);
      for (int l = 0; l < lanes<V>; l++) lane(inequality, l) = split.heavy[s * lanes<V> + l] >= Q.p ? 1 : 0;
      count += select(pivot * pivot < V(DEPENDENT) * root * root, inequality, V(0));
    }
    return team_sum(count);
  }

  // Weights in proportion to z^2, as on the central path.
  OPTLAYER_METHOD void share(const Program<V>& Q, Mask<V> which, V largest) {
    const V least(SHARED_LEAST), most(SHARED_MOST);
    for (int i = own(Q.p); i < r; i += TEAM) {
      const V part = system.v[i] / largest;
      const Mask<V> mine = which && try_w[i] == V(INFINITY);
      try_w[i] = select(mine, smaller(larger(most * part * part, least), most), try_w[i]);
    }
    for (int j = own(0); Q.boxes && j < n; j += TEAM) {
      const V part = new_box[j] / largest;
      const Mask<V> mine = which && lower[j] + upper[j] > V(0) && try_w_box[j] == V(INFINITY);
      try_w_box[j] = select(mine, smaller(larger(most * part * part, least), most), try_w_box[j]);
    }
  }

  // Take the attempt's point in the lanes of `done` where its merit is good.
  OPTLAYER_METHOD Mask<V> accept(const Program<V>& Q, const Rules& rules, Mask<V> done, V before) {
    bool clamped = false;
    for (int i = own(Q.p); i < r; i += TEAM) clamped = clamped || any(done && system.v[i] < V(0));
    if (team_any(clamped)) products(Q);
    V reached = contract_merit(Q, rules, new_x, new_v, new_box, system.Px, system.Aty, system.Gtz, system.Cx);
    const Mask<V> good = done && reached <= before;
    if (any(good)) {
      if (rules.single) reached = judge(Q, rules);
      take(good, reached);
      for (int i = own(0); i < r; i += TEAM) w[i] = select(good, try_w[i], w[i]);
      for (int j = own(0); j < n; j += TEAM) w_box[j] = select(good, try_w_box[j], w_box[j]);
    }
    return good;
  }

  OPTLAYER_METHOD void take(Mask<V> which, V reached) {
    for (int j = own(0); j < n; j += TEAM) x[j] = select(which, new_x[j], x[j]), z_box[j] = select(which, new_box[j], z_box[j]);
    for (int i = own(0); i < r; i += TEAM) v[i] = select(which, new_v[i], v[i]), Cx[i] = select(which, system.Cx[i], Cx[i]);
    merit = select(which, reached, merit);
    settled = settled || which;
    ranged = (ranged && !which) || (which && Mask<V>(form));
  }

  OPTLAYER_METHOD void products(const Program<V>& Q) {
    const int p = Q.p, m = Q.m, ld = Q.ld;
    product(Q.P, ld, n, n, new_x, system.Px);
    product(Q.C, ld, r, n, new_x, system.Cx);
    for (int j = own(0); j < n; j += TEAM) system.Aty[j] = system.Gtz[j] = V(0);
    if (p > 0) product_transposed(Q.C, ld, p, n, new_v, system.Aty);
    if (m > 0) product_transposed(Q.C + (size_t)p * ld, ld, m, n, new_v + p, system.Gtz);
  }

  // The merit of the new point as it will be read: rounded to float32, in the caller's units, if that is what is asked.
  OPTLAYER_METHOD V judge(const Program<V>& Q, const Rules& rules) {
    if (rules.single) {
      for (int j = own(0); j < n; j += TEAM) {
        const V unit = Q.c * Q.D[j];
        new_x[j] = rounded(new_x[j] * Q.D[j]) / Q.D[j], new_box[j] = rounded(new_box[j] / unit) * unit;
      }
      for (int i = own(0); i < r; i += TEAM) {
        const V unit = Q.c / Q.E[i];
        new_v[i] = rounded(new_v[i] / unit) * unit;
      }
    }
    products(Q);
    return contract_merit(Q, rules, new_x, new_v, new_box, system.Px, system.Aty, system.Gtz, system.Cx);
  }

  // The interior point as the new point; of fixed variables the multiplier is what stationarity leaves.
  OPTLAYER_METHOD void interior_point(const Program<V>& Q, const Point<V>& at) {
    for (int j = own(0); j < n; j += TEAM) new_x[j] = at.x[j], new_box[j] = V(0);
    for (int i = own(0); i < r; i += TEAM) new_v[i] = i < Q.p ? at.v[i] : Q.live[i] * at.v[i];
    if (!Q.boxes) return;
    products(Q);
    for (int j = own(0); j < n; j += TEAM) {
      const V box = Q.has_hi[j] * at.z_hi[j] - Q.has_lo[j] * at.z_lo[j];
      new_x[j] = select(Q.fixed[j] > V(0), Q.lo[j], new_x[j]);
      new_box[j] = select(Q.fixed[j] > V(0), -(system.Px[j] + Q.q[j] + system.Aty[j] + system.Gtz[j]), box);
    }
  }

  OPTLAYER_METHOD V judge_interior(const Program<V>& Q, const Point<V>& at, const Rules& rules) {
    interior_point(Q, at);
    if (!Q.boxes) products(Q);
    return contract_merit(Q, rules, new_x, new_v, new_box, system.Px, system.Aty, system.Gtz, system.Cx);
  }

  // Make the system's factor that of (w, w_box) in the lanes of `which`.
  OPTLAYER_METHOD Mask<V> refactor(const Program<V>& Q, Mask<V> which, bool in_range_space) {
    if (all(fresh || !which) && factored == in_range_space) return exists;
    for (int i = own(0); i < r; i += TEAM) try_w[i] = select(which, w[i], V(0));
    for (int j = own(0); j < n; j += TEAM) try_w_box[j] = select(which, w_box[j], V(0));
    system.weigh(try_w, try_w_box);
    fresh = which;
    return exists = factorise(Q, in_range_space);
  }

  OPTLAYER_METHOD void store_state(const Program<V>& Q, const SolveCall& call, const Elements<V>& elements,
                                   Mask<V> ok) {
    const int size = 2 * n + 2 * r + 2;
    const V last[2] = {Q.c, select(ok, select(ranged, V(2), V(1)), V(0))};
    int64_t at[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) at[l] = elements.at[l] * size;
    const V* parts[] = {Q.D, w_box, Q.E, w, last};
    const int counts[] = {n, n, r, r, 2};
    for (int t = 0; t < 5; t++) {
      store(parts[t], counts[t], call.state, false, at, elements.used);
      for (int l = 0; l < lanes<V>; l++) at[l] += counts[t];
    }
  }

  // Nothing is left uninitialised.
  OPTLAYER_METHOD void clear_factor(const SolveCall& call, const Elements<V>& elements, Mask<V> which) {
    const int64_t slots = system.slots, size = factor_size(n, slots);
    for (int l = 0; l < elements.used; l++) {
      if (!lane_of(which, l)) continue;
      for (int64_t i = own(0); i < slots; i += TEAM) call.index[elements.at[l] * slots + i] = 0;
      for (int64_t i = own(0); call.keep_factor && i < size; i += TEAM) call.factor[elements.at[l] * size + i] = 0;
    }
  }

  // L and F, and the kept rows: the heavy ones in order, then the light ones.
  OPTLAYER_METHOD void store_factor(const SolveCall& call, const Elements<V>& elements, Mask<V> which) {
    const Split<V>& split = system.split;
    const int slots = system.slots;
    const int64_t size = factor_size(n, slots);
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = lane_of(which, l) ? elements.at[l] * size : -size;
    store_lower(split.L, split.ld, n, n, call.factor, offsets, elements.used);
    for (int l = 0; l < lanes<V>; l++) offsets[l] += offsets[l] < 0 ? 0 : triangle(n);
    store_lower(split.F, split.ldf, split.k, slots, call.factor, offsets, elements.used);
    for (int l = 0; l < elements.used && rank() == 0; l++) {
      if (!lane_of(which, l)) continue;
      int64_t* index = call.index + elements.at[l] * slots;
      int kept = 0;
      while (kept < split.used[l]) index[kept] = split.heavy[kept * lanes<V> + l], kept++;
      for (int i = 0, next = 0, heavy = kept; i < r && kept < slots; i++) {
        if (next < heavy && index[next] == i)
          next++;
        else
          index[kept++] = i;
      }
    }
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
