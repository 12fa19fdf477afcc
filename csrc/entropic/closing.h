// SPDX-License-Identifier: Apache-2.0
// From the interior point to the solution (optlayer/entropic/program/closing.py): v = 0, and an active set that is
// verified and not guessed. Rows and bounds with more multiplier than slack are taken to be active. Given them
//
//     log x = -(Px + q + A'y + G'z) / tau - 1  of the free variables,   Cx = d  in the active rows,   x = bound  elsewhere
//
// are smooth, and two or three Newton steps from the interior point reach the limits of rounding. If a multiplier comes
// out negative or an inactive constraint violated, exactly these change sides. An x so small that no row feels it has no
// say in that: it is the exponential of its formula, whatever that is. What then cannot be verified, and active
// constraints that depend on each other, are left to the reference engine.
#pragma once

#include "interior.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr int ROUNDS = 8, NEWTON_STEPS = 16;
static constexpr double QUADRATIC = 1e-8;  // a relative Newton step below this leaves nothing but rounding
static constexpr double TRACE = 1e-3;      // of tau: a multiplier v below it is left to the Newton steps
static constexpr double TINY = 1e-290;     // an x below this is the exponential of its logarithm, and not the reverse
static constexpr double Z_SIGN = 1e-11, S_SIGN = 1e-12;  // of the largest force; of the largest variable or right side
static constexpr double WEAK = 1e-3, AMBIGUOUS = 1e6;    // of a weak constraint s and z, and s/z, are within these

template <class V>
struct Closing {
  Interior<V>* interior;
  V *x, *log_x, *v, *z_box;               // the solution in standard form: (n), (n), (k), (n)
  V *w, *w_box, *lower_share;             // (k), (n), (n): weights of the KKT matrix there, as in closing.py
  V weak;                                 // the number of weakly active rows and bounds
  V *rows, *lower, *upper;                // the active set: (k), (n), (n), 1 or 0
  V *flip_rows, *flip_lower, *flip_upper; // what of it was wrong
  V *base, *force, *inner, *delta;        // (n), (n), (n), (k)
  V* least;                               // (n): changes of x below it are lost in the rounding of the rows
  V force_size, slack_size, released;

  OPTLAYER_METHOD void lay_out(Arena& arena, Interior<V>* given) {
    interior = given;
    const int n = given->Q.n, k = given->Q.k;
    for (V** vector : {&x, &log_x, &z_box, &w_box, &lower_share, &lower, &upper, &flip_lower, &flip_upper, &base, &force,
                       &inner, &least})
      *vector = arena.take<V>(n);
    for (V** vector : {&v, &w, &rows, &flip_rows, &delta}) *vector = arena.take<V>(k);
  }

  // Returns the lanes of `which` whose active set is verified.
  OPTLAYER_METHOD Mask<V> run(Mask<V> which) {
    guess();
    Mask<V> sure(false), open = which;
    released = weak = V(0);
    for (int round = 0; round <= ROUNDS && any(open); round++) {
      if (round > 0) flip(open);
      Mask<V> flips(false);
      const Mask<V> right = attempt(open, flips);
      sure = sure || right;
      open = open && !right && flips;
    }
    return sure && released == V(0);
  }

 private:
  OPTLAYER_METHOD void guess() {
    const Program<V>& Q = interior->Q;
    const Point<V>& at = interior->at;
    const int n = Q.n, p = Q.p, k = Q.k;
    for (int j = own(0); j < n; j += TEAM) force[j] = V(0);
    product_transposed(Q.C, Q.ld, k, n, at.rows, force);
    V most(0), largest(0);
    for (int j = own(0); j < n; j += TEAM) {
      V size = absolute(force[j]) + absolute(Q.q[j]) + Q.tau[j];
      if (Q.uppers) size += at.z_upper[j];
      if (Q.lowers) size += at.z_lower[j];
      most = larger(Q.free[j] * size, most), largest = larger(Q.free[j] * at.x[j], largest);
    }
    for (int i = own(0); i < k; i += TEAM) largest = larger(absolute(Q.d[i]), largest);
    force_size = team_max(most), slack_size = team_max(largest);
    const V units = force_size / slack_size;
    for (int i = own(0); i < k; i += TEAM)
      rows[i] = i < p ? V(1) : select(at.rows[i] > units * at.s[i], V(1), V(0));
    for (int j = own(0); j < n; j += TEAM) {
      const Mask<V> low = Q.lower[j] > V(0) && at.z_lower[j] > units * at.s_lower[j];
      const Mask<V> high = Q.upper[j] > V(0) && at.z_upper[j] > units * at.s_upper[j];
      lower[j] = select(low, V(1), V(0)), upper[j] = select(high && !low, V(1), V(0));
    }
    sync();
  }

  // The other side for what was found wrong.
  OPTLAYER_METHOD void flip(Mask<V> which) {
    const Program<V>& Q = interior->Q;
    const V changes = select(which, V(1), V(0));
    for (int i = own(0); i < Q.k; i += TEAM) rows[i] = absolute(rows[i] - changes * flip_rows[i]);
    for (int j = own(0); j < Q.n; j += TEAM) {
      lower[j] = absolute(lower[j] - changes * flip_lower[j]);
      upper[j] = absolute(upper[j] - changes * flip_upper[j]) * (V(1) - lower[j]);
    }
    sync();
  }

  // Solve on the active set as it stands, in the lanes of `which`; returns where it is right. `flips`: where something is
  // to change sides.
  OPTLAYER_METHOD Mask<V> attempt(Mask<V> which, Mask<V>& flips) {
    const Program<V>& Q = interior->Q;
    System<V>& system = interior->system;
    const Point<V>& at = interior->at;
    V *dx = interior->dx, *r1 = interior->r1, *r2 = interior->r2, *dv = interior->rows;
    const int n = Q.n, k = Q.k;
    // the multipliers that the increments delta start from
    for (int i = own(0); i < k; i += TEAM) dv[i] = at.rows[i] * rows[i], delta[i] = V(0);
    for (int j = own(0); j < n; j += TEAM) {
      x[j] = select(which, select(lower[j] > V(0), Q.lb[j], select(upper[j] > V(0), Q.ub[j], at.x[j])), x[j]);
      base[j] = Q.q[j], inner[j] = Q.free[j] * x[j];
    }
    product_transposed(Q.C, Q.ld, k, n, dv, base);
    Q.times_P(inner, force);
    for (int j = own(0); j < n; j += TEAM) {
      const Mask<V> shrinks = which && !held(j) && at.v[j] > V(TRACE) * Q.tau[j];
      if (any(shrinks)) x[j] = select(shrinks, exponential(-(force[j] + base[j]) / Q.tau[j] - V(1)), x[j]);
    }
    find_least(r2);
    Mask<V> settled = !which, small(false);
    for (int step = 0; step < NEWTON_STEPS; step++) {
      forces();
      V rounding(0);
      for (int j = own(0); j < n; j += TEAM) {
        tail(j, which);
        system.W[j] = select(held(j), V(0), x[j] / (Q.tau[j] + (Q.curved ? x[j] * Q.curvature[j] : V(0))));
        inner[j] = Q.free[j] * x[j];
        r1[j] = -(force[j] + Q.tau[j] * (log_x[j] + V(1)));
      }
      for (int i = own(0); i < k; i += TEAM) system.w[i] = select(rows[i] > V(0), V(INFINITY), V(0));
      product(Q.C, Q.ld, k, n, inner, r2);
      V off(0);
      for (int i = own(0); i < k; i += TEAM) {
        r2[i] = Q.d[i] - r2[i];
        off = larger(rows[i] * absolute(r2[i]), off);
      }
      // a large step of multipliers, where a row was released, leaves rounding in the rows that the next one takes out
      settled = settled || (small && team_max(off) <= V(S_SIGN) * slack_size);
      system.factor(Q, k, true);
      if (all(settled)) break;
      system.solve(Q, r1, r2, dx, dv);
      V most(0);
      for (int j = own(0); j < n; j += TEAM) {
        const Mask<V> moving = !held(j) && x[j] > V(TINY);
        const V relative = select(moving, dx[j] / select(moving, x[j], V(1)), V(0));
        V size = absolute(relative);
        if (any(size > V(QUADRATIC))) {
          const V change = absolute(exponential(relative) - V(1));
          size = select(x[j] * change < least[j], V(0), size);
        }
        most = select(relative != relative, V(INFINITY), larger(size, most));
        x[j] = select(settled, x[j], x[j] * (V(1) + larger(V(-0.9), smaller(relative, V(10)))));
        inner[j] = Q.free[j] * x[j];
      }
      for (int i = own(0); i < k; i += TEAM)
        delta[i] += select(settled || rows[i] == V(0), V(0), dv[i]);
      sync();
      Q.times_P(inner, force);
      for (int j = own(0); j < n; j += TEAM)
        rounding = larger(Q.free[j] * (absolute(base[j]) + absolute(force[j])) / Q.tau[j], rounding);
      rounding = V(64 * EPS) * team_max(rounding);
      small = team_max(most) <= larger(V(QUADRATIC), rounding);
    }
    forces();
    for (int j = own(0); j < n; j += TEAM) tail(j, which);
    Mask<V> sound = settled && system.ok;
    const V dependent = k > 0 ? system.dependent : V(0);
    for (int i = own(0); i < k; i += TEAM) dv[i] = at.rows[i] * rows[i] + delta[i];
    for (int j = own(0); j < n; j += TEAM) {
      const V z = -(force[j] + Q.tau[j] * (log_x[j] + V(1)));
      z_box[j] = select(which, select(lower[j] + upper[j] > V(0), z, V(0)), z_box[j]);
      inner[j] = Q.free[j] * x[j];
      sound = sound && finite(x[j]) && finite(log_x[j]);
    }
    sound = team_all(sound);
    product(Q.C, Q.ld, k, n, inner, r2);
    for (int i = own(0); i < k; i += TEAM) r2[i] = Q.d[i] - r2[i];
    judge(which, dv, r2);
    const Mask<V> redundant = which && surplus(dependent);
    Mask<V> wrong(false);
    for (int i = own(0); i < k; i += TEAM) wrong = wrong || flip_rows[i] > V(0);
    for (int j = own(0); j < n; j += TEAM) wrong = wrong || flip_lower[j] + flip_upper[j] > V(0);
    wrong = team_any(wrong);
    const Mask<V> astray = redundant || !sound;  // no signs to go by
    flips = wrong;
    if (any(which && astray)) {
      flips = select_weakest(astray) || (wrong && !astray);
    }
    released += select(which && redundant, V(1), V(0));
    return which && sound && !wrong && !redundant;
  }

  OPTLAYER_METHOD Mask<V> held(int j) const { return lower[j] + upper[j] > V(0) || interior->Q.free[j] == V(0); }

  // force = Px + base + C'delta.
  OPTLAYER_METHOD void forces() {
    const Program<V>& Q = interior->Q;
    for (int j = own(0); j < Q.n; j += TEAM) inner[j] = Q.free[j] * x[j];
    sync();
    Q.times_P(inner, force);
    for (int j = own(0); j < Q.n; j += TEAM) force[j] += base[j];
    product_transposed(Q.C, Q.ld, Q.k, Q.n, delta, force);
  }

  // The changes of each variable that are lost in the rounding of the active rows, of the forces and of the sum of x. The
  // scratch is (k).
  OPTLAYER_METHOD void find_least(V* share) {
    const Program<V>& Q = interior->Q;
    V sum(0), most(0);
    for (int j = own(0); j < Q.n; j += TEAM) {
      inner[j] = Q.free[j] * x[j];
      sum += inner[j], most = larger(absolute(Q.q[j]) + Q.tau[j], most);
    }
    sum = V(1) / larger(team_sum(sum), V(TINY)), most = V(1) / team_max(most);
    sync();
    for (int i = own(0); i < Q.k; i += TEAM) {
      V terms = absolute(Q.d[i]);
      for (int j = 0; j < Q.n; j++) add_product(terms, absolute(Q.C[(size_t)i * Q.ld + j]), inner[j]);
      share[i] = rows[i] / larger(terms, V(TINY));
    }
    sync();
    for (int j = own(0); j < Q.n; j += TEAM) {
      V felt = larger(sum, Q.curvature[j] * most);
      for (int i = 0; i < Q.n && Q.full; i++) felt = larger(absolute(Q.P[(size_t)i * Q.ld + j]) * most, felt);
      for (int i = 0; i < Q.k; i++) felt = larger(absolute(Q.C[(size_t)i * Q.ld + j]) * share[i], felt);
      least[j] = larger(V(shift(Q.k)) / felt, V(2 * TINY));
    }
    sync();
  }

  // x and its logarithm: where no row can tell the difference, log x is the formula's and x its exponential. An x below
  // `least` that the formula wants above it is raised to `least`, from where Newton steps take it.
  OPTLAYER_METHOD void tail(int j, Mask<V> which) {
    V value = x[j];
    const Mask<V> moves = which && !held(j), small = moves && least[j] > V(QUADRATIC) * value;
    value = select(moves, larger(value, least[j]), value);
    V logarithm_of_x = logarithm(larger(value, V(TINY)));
    if (any(small)) {
      const V formula = -force[j] / interior->Q.tau[j] - V(1), exact = exponential(formula);
      const Mask<V> unfelt = small && absolute(exact - x[j]) < least[j];
      value = select(unfelt, exact, value), logarithm_of_x = select(unfelt, formula, logarithm_of_x);
    }
    x[j] = value, log_x[j] = select(which, logarithm_of_x, log_x[j]);
  }

  // From the multipliers and the slacks (d - Cx) of all rows: which constraints are on the wrong side, which are weakly
  // active, and the weights.
  OPTLAYER_METHOD void judge(Mask<V> which, const V* multipliers, const V* slacks) {
    const Program<V>& Q = interior->Q;
    const Point<V>& at = interior->at;
    const V tz = V(Z_SIGN) * force_size, ts = V(S_SIGN) * slack_size;
    V count(0);
    for (int i = own(0); i < Q.k; i += TEAM) {
      const V z = multipliers[i], s = slacks[i];
      const Mask<V> active = rows[i] > V(0), inequality(i >= Q.p);
      const Mask<V> wrong = inequality && ((active && z < -tz) || (!active && s < -ts));
      flip_rows[i] = select(wrong, V(1), V(0));
      const Mask<V> soft = inequality && is_weak(active, z, s, at.rows[i], at.s[i]);
      const V weight = select(soft, at.rows[i] / at.s[i], select(active, V(INFINITY), V(0)));
      w[i] = select(which, weight, w[i]), v[i] = select(which, select(inequality, positive(z), z), v[i]);
      count += select(soft, V(1), V(0));
    }
    for (int j = own(0); j < Q.n; j += TEAM) {
      V share(0), weight = select(Q.free[j] == V(0), V(INFINITY), V(0));
      Mask<V> low(false), high(false);
      if (Q.lowers || Q.uppers) {
        const V z = z_box[j], value = x[j];
        const Mask<V> at_lower = lower[j] > V(0), at_upper = upper[j] > V(0), idle = !held(j);
        const Mask<V> has_lower = Q.lower[j] > V(0), has_upper = Q.upper[j] > V(0);
        low = (at_lower && z > tz) || (idle && has_lower && value < Q.lb[j] - ts);
        high = (at_upper && z < -tz) || (idle && has_upper && value > Q.ub[j] + ts);
        const Mask<V> soft_lower = has_lower && !at_upper && is_weak(at_lower, -z, value - Q.lb[j], at.z_lower[j], at.s_lower[j]);
        const Mask<V> soft_upper = has_upper && !at_lower && is_weak(at_upper, z, Q.ub[j] - value, at.z_upper[j], at.s_upper[j]);
        const V w_lower = select(soft_lower, at.z_lower[j] / at.s_lower[j], V(0));
        const V w_upper = select(soft_upper, at.z_upper[j] / at.s_upper[j], V(0));
        const Mask<V> soft = soft_lower || soft_upper;
        weight = select(soft, w_lower + w_upper, select(held(j), V(INFINITY), V(0)));
        share = select(soft, w_lower / (w_lower + w_upper), lower[j]);
        z_box[j] = select(which, select(at_lower, smaller(z, V(0)), positive(z)), z);
        count += select(soft_lower, V(1), V(0)) + select(soft_upper, V(1), V(0));
      }
      flip_lower[j] = select(low, V(1), V(0)), flip_upper[j] = select(high, V(1), V(0));
      w_box[j] = select(which, weight, w_box[j]), lower_share[j] = select(which, share, lower_share[j]);
    }
    weak = select(which, team_sum(count), weak);
  }

  // A constraint whose multiplier (active) or slack (inactive) vanishes, and whose z0, s0 decide for neither.
  OPTLAYER_METHOD Mask<V> is_weak(Mask<V> active, V z, V s, V z0, V s0) const {
    const V ratio = (s0 / slack_size) / (z0 / force_size);
    const Mask<V> as_active =
        active && z <= V(Z_SIGN) * force_size && s0 < V(WEAK) * slack_size && ratio > V(1 / AMBIGUOUS);
    const Mask<V> as_inactive =
        !active && s <= V(S_SIGN) * slack_size && z0 < V(WEAK) * force_size && ratio < V(AMBIGUOUS);
    return as_active || as_inactive;
  }

  // Whether active inequalities and bounds depend on each other and on the equalities, of all rows of which `dependent` do.
  OPTLAYER_METHOD Mask<V> surplus(V dependent) {
    const Program<V>& Q = interior->Q;
    System<V>& system = interior->system;
    if (!any(dependent > V(0))) return Mask<V>(false);
    if (Q.p == 0) return dependent > V(0);
    for (int j = own(0); j < Q.n; j += TEAM)
      system.W[j] = Q.free[j] * x[j] / (Q.tau[j] + (Q.curved ? x[j] * Q.curvature[j] : V(0)));
    for (int i = own(0); i < Q.p; i += TEAM) system.w[i] = V(INFINITY);
    system.factor(Q, Q.p, true);
    return dependent > system.dependent;
  }

  // Of the lanes that are astray the active inequality or bound with the least multiplier beside its slack, at most one,
  // changes sides. Returns where there is one.
  OPTLAYER_METHOD Mask<V> select_weakest(Mask<V> astray) {
    const Program<V>& Q = interior->Q;
    const Point<V>& at = interior->at;
    V least(INFINITY), first(INFINITY);
    const auto each = [&](auto visit) {
      for (int i = own(Q.p); i < Q.k; i += TEAM) visit(rows[i], at.rows[i] / at.s[i], flip_rows[i], i);
      for (int j = own(0); j < Q.n && Q.lowers; j += TEAM)
        visit(lower[j], at.z_lower[j] / at.s_lower[j], flip_lower[j], Q.k + j);
      for (int j = own(0); j < Q.n && Q.uppers; j += TEAM)
        visit(upper[j], at.z_upper[j] / at.s_upper[j], flip_upper[j], Q.k + Q.n + j);
    };
    each([&](V active, V ratio, V&, int) { least = select(active > V(0), smaller(ratio, least), least); });
    least = team_min(least);
    each([&](V active, V ratio, V&, int number) {
      first = select(active > V(0) && ratio == least, smaller(V(number), first), first);
    });
    first = team_min(first);
    each([&](V active, V, V& flips, int number) {
      const V weakest = select(active > V(0) && first == V(number), V(1), V(0));
      flips = select(astray, weakest, flips);
    });
    sync();
    return astray && least < V(INFINITY);
  }
};

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
