// SPDX-License-Identifier: Apache-2.0
// A primal-dual interior point method for entropic programs that does not care how large the costs are
// (optlayer/entropic/program/interior_point.py). x >= 0 keeps a multiplier v of its own, whose true value is zero:
//
//     stationarity        Px + q + tau (log x + 1) + A'y + G'z + z_upper - z_lower - v = 0
//     rows and bounds     Ax = b,   Gx + s = h,   x + s_upper = ub,   x - s_lower = lb
//     complementarity     x v = 0,  s z = 0,  s_upper z_upper = 0,  s_lower z_lower = 0     (followed as = sigma mu)
//
// Steps are relative: a stands for dx / x and ds / s, b for dv / v and dz / z. Complementarity reads a + b = kappa, with
// kappa = -1 in the predictor and, with its a and b, kappa = sigma mu / product - 1 - a b in the corrector.
//
// A lane with a verdict stands still while the others go on.
#pragma once

#include "residuals.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double STEP = 0.995;     // of the way to the nearest bound
static constexpr double SHORTEST = 1e-6;  // the smallest fall of mu in the predictor that is believed
static constexpr double NEAR = 1e-4;      // so near the solution,
static constexpr int PATIENCE = 12;       // so many iterations without a smaller error are rounding at work
static constexpr double DOUBTFUL = 1e-6;  // an iterate nearer to the solution is none of an infeasible problem

template <class V>
struct Interior {
  const Rules* rules;
  Program<V> Q;
  System<V> system;
  Point<V> at, best;
  Residuals<V> left;
  V *dx, *r1, *r2, *rows;    // a direction and its right-hand side: (n), (n), (k), (k)
  V *k_x, *k_s, *k_upper, *k_lower;  // kappa
  V *a_x, *a_s, *a_upper, *a_lower;  // relative steps of x and the slacks; b = kappa - a but for b_s
  V* b_s;
  V *step_rows, *step_upper, *step_lower;  // of the multipliers, at full length: the last one, z >= 0
  V iterations, proximity;                 // `proximity`: the least error so far
  V length;
  V *proof;                                // (k) of a certificate
  Mask<V> solved, infeasible;

  OPTLAYER_METHOD void lay_out(Arena& arena, int n, int m, int p, bool full, bool curved) {
    const int k = m + p;
    Q.lay_out(arena, n, m, p, full, curved);
    system.lay_out(arena, n, k, full);
    at.lay_out(arena, n, k), best.lay_out(arena, n, k), left.lay_out(arena, n, k);
    for (V** vector : {&dx, &r1, &k_x, &k_upper, &k_lower, &a_x, &a_upper, &a_lower, &step_upper, &step_lower})
      *vector = arena.take<V>(n);
    for (V** vector : {&r2, &rows, &k_s, &a_s, &b_s, &step_rows, &proof}) *vector = arena.take<V>(k);
  }

  // Run on the lanes of `which`, from the program in Q.
  OPTLAYER_METHOD void run(Mask<V> which) {
    const int n = Q.n, p = Q.p, k = Q.k;
    for (int i = own(0); i < k; i += TEAM) proof[i] = V(0);
    solved = infeasible = Mask<V>(false);
    start(Q, system, r1, dx, at);
    // before there is a step, what equality rows say against each other may be a certificate
    for (int i = own(0); i < k; i += TEAM) step_rows[i] = i < p ? -Q.contradiction[i] : V(0);
    for (int j = own(0); j < n; j += TEAM) step_upper[j] = step_lower[j] = V(0);
    V least(0), since(0);
    for (int j = own(0); j < n; j += TEAM) least = larger(at.x[j], least);
    least = team_max(least) * V(1e-10);  // without equalities x may vanish
    iterations = V(0), proximity = V(INFINITY);
    Mask<V> running = which, broken(false);
    for (int iteration = 0;; iteration++) {
      left.measure(Q, at, least);
      const Mask<V> met = running && left.error <= V(rules->eps) + left.floor;
      broken = broken || !finite(left.error);
      const Mask<V> doubtful = left.error <= V(iteration == 0 ? 0.0 : DOUBTFUL);
      const Mask<V> proven = certify(running && !met && !doubtful);
      solved = solved || met, infeasible = infeasible || proven;
      const Mask<V> better = running && left.error < proximity;
      proximity = select(better, left.error, proximity);
      since = select(better, V(0), since + V(1));
      const Mask<V> stuck = proximity < V(NEAR) && since >= V(PATIENCE);
      const Mask<V> keeps = better && !met && proximity < V(NEAR);
      if (any(keeps)) best.take(Q, keeps, at);
      running = running && !(met || broken || proven || stuck);
      if (iteration == rules->max_iter || !any(running)) break;
      iterations += select(running, V(1), V(0));
      broken = running && !advance(running, is_centring(iteration));
    }
    // an unsolved lane that came near has its best point, and others their last one
    at.take(Q, !solved && proximity < V(NEAR), best);
    sync();
  }

  // Every eighth iteration, and every third from the sixtieth on, centres more: without them one random problem in twenty
  // thousand runs in a circle of predictors and correctors.
  static OPTLAYER_MEMBER bool is_centring(int iteration) {
    return iteration < 60 ? iteration % 8 == 7 : iteration % 3 == 0;
  }

 private:
  // Farkas certificates in the iterate and in its last step: when iterates diverge their step is it.
  OPTLAYER_METHOD Mask<V> certify(Mask<V> candidates) {
    if (!any(candidates) || (Q.k == 0 && !Q.uppers)) return Mask<V>(false);
    const Mask<V> found = candidates && left.prove(Q, at.rows, at.z_upper, at.z_lower, left.forces, rules->proof);
    for (int i = own(0); i < Q.k && any(found); i += TEAM) proof[i] = select(found, at.rows[i], proof[i]);
    candidates = candidates && !found;
    if (!any(candidates)) return found;
    for (int j = own(0); j < Q.n; j += TEAM) r1[j] = V(0);
    product_transposed(Q.C, Q.ld, Q.k, Q.n, step_rows, r1);
    const Mask<V> by_step = candidates && left.prove(Q, step_rows, step_upper, step_lower, r1, rules->proof);
    for (int i = own(0); i < Q.k && any(by_step); i += TEAM) proof[i] = select(by_step, step_rows[i], proof[i]);
    return found || by_step;
  }

  // Predictor, corrector, one common step of the lanes that are `moving`. Returns where a finite step was found; others
  // stay as they are.
  OPTLAYER_METHOD Mask<V> advance(Mask<V> moving, bool centring) {
    const int n = Q.n, p = Q.p, k = Q.k;
    V mu(0), count(0);
    for (int j = own(0); j < n; j += TEAM) {
      const V x = at.x[j];
      V stiffness = Q.tau[j] + at.v[j];
      if (Q.curved) stiffness += x * Q.curvature[j];
      mu += x * at.v[j], count += Q.free[j];
      k_x[j] = -Q.free[j];
      if (Q.uppers) {
        stiffness += x * (at.z_upper[j] / at.s_upper[j]);
        mu += at.s_upper[j] * at.z_upper[j], count += Q.upper[j], k_upper[j] = -Q.upper[j];
      }
      if (Q.lowers) {
        stiffness += x * (at.z_lower[j] / at.s_lower[j]);
        mu += at.s_lower[j] * at.z_lower[j], count += Q.lower[j], k_lower[j] = -Q.lower[j];
      }
      system.W[j] = Q.free[j] * x / stiffness;
    }
    for (int i = own(0); i < k; i += TEAM) {
      system.w[i] = i < p ? V(INFINITY) : at.rows[i] / at.s[i];
      if (i >= p) mu += at.s[i] * at.rows[i], count += V(1);
      k_s[i] = V(-1);
    }
    count = team_sum(count), mu = team_sum(mu) / count;
    system.factor(Q, k, true);
    direction();
    V ahead(0);
    for (int j = own(0); j < n; j += TEAM) {
      ahead += after(at.x[j] * at.v[j], a_x[j], k_x[j] - a_x[j]);
      if (Q.uppers) ahead += after(at.s_upper[j] * at.z_upper[j], a_upper[j], k_upper[j] - a_upper[j]);
      if (Q.lowers) ahead += after(at.s_lower[j] * at.z_lower[j], a_lower[j], k_lower[j] - a_lower[j]);
    }
    for (int i = own(p); i < k; i += TEAM) ahead += after(at.s[i] * at.rows[i], a_s[i], b_s[i]);
    const V fall = larger(V(SHORTEST), smaller(V(1), team_sum(ahead) / count / mu));
    const V target = (centring ? square_root(fall) : fall * fall) * mu;
    for (int j = own(0); j < n; j += TEAM) {
      k_x[j] = corrected(target, at.x[j] * at.v[j], a_x[j], k_x[j] - a_x[j], Q.free[j]);
      if (Q.uppers) {
        const V product_sz = at.s_upper[j] * at.z_upper[j];
        k_upper[j] = corrected(target, product_sz, a_upper[j], k_upper[j] - a_upper[j], Q.upper[j]);
      }
      if (Q.lowers) {
        const V product_sz = at.s_lower[j] * at.z_lower[j];
        k_lower[j] = corrected(target, product_sz, a_lower[j], k_lower[j] - a_lower[j], Q.lower[j]);
      }
    }
    for (int i = own(p); i < k; i += TEAM) k_s[i] = corrected(target, at.s[i] * at.rows[i], a_s[i], b_s[i], V(1));
    const Mask<V> sound = direction();
    length *= V(STEP);
    move(moving && sound);
    return sound;
  }

  // (1 + length a) (1 + length b) product.
  OPTLAYER_METHOD V after(V product, V a, V b) const { return product * (V(1) + length * a) * (V(1) + length * b); }

  // 0 where nothing is `there`: the quotient of a product that vanishes overflows.
  static OPTLAYER_MEMBER V corrected(V target, V product, V a, V b, V there) {
    return select(there > V(0), target / larger(product, V(NONZERO)) - V(1) - a * b, V(0));
  }

  // dx, the multipliers' steps and the relative steps for kappa, and the longest step up to 1 that keeps everything
  // positive. Returns where all of it is finite.
  OPTLAYER_METHOD Mask<V> direction() {
    const int n = Q.n, p = Q.p, k = Q.k;
    for (int j = own(0); j < n; j += TEAM) {
      V r = k_x[j] * at.v[j] - left.stationarity[j];
      if (Q.uppers) r -= at.z_upper[j] * (left.upper[j] / at.s_upper[j] + k_upper[j]);
      if (Q.lowers) r += at.z_lower[j] * (left.lower[j] / at.s_lower[j] + k_lower[j]);
      r1[j] = r;
    }
    for (int i = own(0); i < k; i += TEAM) r2[i] = -left.rows[i] - (i < p ? V(0) : k_s[i] * at.s[i]);
    system.solve(Q, r1, r2, dx, rows);
    product(Q.C + (size_t)p * Q.ld, Q.ld, k - p, n, dx, a_s + p);
    V most(1), sum(0);
    for (int j = own(0); j < n; j += TEAM) {
      const V a = dx[j] / at.x[j];
      a_x[j] = a;
      note(a, k_x[j] - a, most, sum);
      if (Q.uppers) {
        const V to = -Q.upper[j] * (left.upper[j] + dx[j]) / at.s_upper[j];
        a_upper[j] = to;
        note(to, k_upper[j] - to, most, sum);
      }
      if (Q.lowers) {
        const V to = -Q.lower[j] * (left.lower[j] - dx[j]) / at.s_lower[j];
        a_lower[j] = to;
        note(to, k_lower[j] - to, most, sum);
      }
    }
    for (int i = own(p); i < k; i += TEAM) {
      a_s[i] = -(left.rows[i] + a_s[i]) / at.s[i];
      b_s[i] = rows[i] / at.rows[i];  // not from a_s, which cancels where a row is active
      note(a_s[i], b_s[i], most, sum);
    }
    for (int i = own(0); i < p; i += TEAM) sum += rows[i] * V(0);
    length = V(1) / team_max(most);
    return team_sum(sum) == V(0);
  }

  // The step that a relative change permits, and NaN in the sum where it is not finite.
  static OPTLAYER_MEMBER void note(V a, V b, V& most, V& sum) {
    most = larger(larger(-a, -b), most);
    sum += (a + b) * V(0);
  }

  OPTLAYER_METHOD void move(Mask<V> which) {
    const auto moved = [&](V& value, V relative, V on, V otherwise) {
      const V to = larger(value * (V(1) + length * relative), V(LEAST));
      value = select(which, select(on > V(0), to, otherwise), value);
    };
    for (int j = own(0); j < Q.n; j += TEAM) {
      moved(at.v[j], k_x[j] - a_x[j], Q.free[j], V(0)), moved(at.x[j], a_x[j], Q.free[j], V(1));
      if (Q.uppers) {
        const V b = k_upper[j] - a_upper[j];
        step_upper[j] = positive(at.z_upper[j] * b);
        moved(at.z_upper[j], b, Q.upper[j], V(0)), moved(at.s_upper[j], a_upper[j], Q.upper[j], V(1));
      }
      if (Q.lowers) {
        const V b = k_lower[j] - a_lower[j];
        step_lower[j] = positive(at.z_lower[j] * b);
        moved(at.z_lower[j], b, Q.lower[j], V(0)), moved(at.s_lower[j], a_lower[j], Q.lower[j], V(1));
      }
    }
    for (int i = own(0); i < Q.p; i += TEAM) {
      step_rows[i] = rows[i];
      at.rows[i] = select(which, at.rows[i] + length * rows[i], at.rows[i]);
    }
    for (int i = own(Q.p); i < Q.k; i += TEAM) {
      step_rows[i] = positive(rows[i]);
      moved(at.s[i], a_s[i], V(1), V(1)), moved(at.rows[i], b_s[i], V(1), V(1));
    }
    sync();
  }
};

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
