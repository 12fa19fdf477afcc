// SPDX-License-Identifier: Apache-2.0
// The primal-dual interior point method on a pack of programs (optlayer/solvers/interior.py): Newton steps until every
// lane has its verdict. A lane is
//
//     solved      when the contract (unscaled residuals) and the scaled, purely relative residuals hold, or early, when
//                 the active set that its point suggests is proven right (polish.h),
//     infeasible, or unbounded, when an iterate or its last step certifies it (every second iteration looks),
//     exhausted   when its iterations are used up while it makes progress,
//     undecided   when it stalls or breaks down.
//
// A lane with a verdict stands still while the others go on.
#pragma once

#include "certificate.h"
#include "newton.h"

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr int STALL = 12, AFTER_CONTRACT = 6;  // iterations without progress, and those granted after the contract
static constexpr double PROGRESS = 0.9;               // a residual below this part of its record makes progress
static constexpr double STUCK = 0.8;    // one that keeps more than this part over a step may belong to no solution
static constexpr double DIVERGED = 1e3; // scaled variables of this size may be on a ray
static constexpr double RIPE = 1e-3;    // relative residuals at which the active set may show
// Steps that a ripe lane is given to show it clearly, before it is tried anyhow. With 2 of them 1.7 times as many first
// attempts fail at n = 100.
static constexpr double PATIENCE = 4;
static constexpr double RIPER = 1e-3;   // of the residuals at a failed attempt: worth another

// How far an interior point has come, and the proximal term of its next step.
template <class V>
struct Path {
  V iterations = V(0);
  V reference = V(0);  // the distance from the solution at the start
  V proximal = V(PROXIMAL);
  V ripe = V(RIPE);    // relative residuals at which to look for the active set
  V patience = V(PATIENCE);  // steps left to show it clearly; less than 0 at a point that has arrived from elsewhere

  // Before the lanes that are `moving` take a step.
  OPTLAYER_METHOD void step(const Newton<V>& newton, Mask<V> moving) {
    const V distance = select(newton.alone, larger(newton.primal, newton.dual), newton.mu);
    reference = select(moving && iterations == V(0), larger(distance, V(NONZERO<V>)), reference);
    proximal = select(moving, smaller(proximal, V(PROXIMAL) * distance / reference), proximal);
    iterations += select(moving, V(1), V(0));
  }
  // After they have: the lanes whose active set is worth an attempt, now that their residuals are `worst`.
  OPTLAYER_METHOD Mask<V> ready(const Newton<V>& newton, V worst, Mask<V> moved) {
    const Mask<V> near = worst < ripe;
    if (!any(near)) return near;
    patience -= select(near && moved, V(1), V(0));
    return near && (patience < V(0) || newton.clear());
  }
  // After an attempt that failed at such residuals.
  OPTLAYER_METHOD void wait(Mask<V> failed, V worst) {
    ripe = select(failed, worst * V(RIPER), ripe);
    patience = select(failed, V(PATIENCE), patience);
  }
  OPTLAYER_METHOD V rho() const { return larger(proximal, V(RHO_MIN)); }
  OPTLAYER_METHOD V delta(const Rules& rules) const { return larger(proximal, V(rules.delta)); }
};

// Whether anything gets better, by a tenth at least.
template <class V>
struct Progress {
  V records[4] = {V(INFINITY), V(INFINITY), V(INFINITY), V(INFINITY)};
  V age = V(0);  // iterations since it last did

  OPTLAYER_METHOD void look(const V (&values)[4], Mask<V> moved) {
    Mask<V> any_better(false);
    for (int i = 0; i < 4; i++) {
      const Mask<V> better = values[i] < V(PROGRESS) * records[i];
      records[i] = select(better, values[i], records[i]);
      any_better = any_better || better;
    }
    age = select(moved, select(any_better, V(0), age + V(1)), age);
  }
};

template <class V>
struct Interior {
  Newton<V> newton;
  Certificates<V> certificates;
  V *last_x, *last_v, *last_Px, *last_Cx;  // the iterate before
  V *trial, *step_x, *step_P, *step_C;
  V *best_x, *best_v, *best_s;  // the best iterate among those that meet the contract
  Path<V> path;
  Mask<V> solved;     // the point stands for a solution, not yet polished
  Mask<V> finished;   // polished early and done
  Mask<V> infeasible, unbounded;
  Mask<V> exhausted;
  Mask<V> stepped;    // here: last_x and last_v are there
  bool went_on;       // after the last attempt to finish: what that left in the memory that is shared is overwritten

  OPTLAYER_METHOD void lay_out(Arena& arena, int n, int r, int p, bool bounds, bool in_range_space) {
    newton.lay_out(arena, n, r, p, bounds, in_range_space);
    certificates.lay_out(arena, n, r);
    for (V** vector : {&last_x, &last_Px, &step_x, &step_P, &best_x}) *vector = arena.take<V>(n);
    for (V** vector : {&last_v, &last_Cx, &trial, &step_C}) *vector = arena.take<V>(r);
    for (V** vector : {&best_v, &best_s}) *vector = arena.take<V>(newton.most);
  }

  // Run on the lanes of `which`, from the point that is there, which came by `path`. `polish(ripe)` tries to finish
  // the lanes of `ripe` from the present point and returns those that it finished. A ripe lane waits for the attempt
  // until no lane moves, and goes on from where it stood if the attempt fails: nothing depends on its neighbours.
  template <class Polish>
  OPTLAYER_METHOD void run(Mask<V> which, Mask<V> sound, const Path<V>& by, Polish polish) {
    path = by;
    const Rules& rules = *newton.rules;
    const int n = newton.n, r = newton.r;
    Mask<V> running = which, moved = which, even(true);
    solved = finished = infeasible = unbounded = exhausted = stepped = Mask<V>(false);
    went_on = true;
    const Mask<V> arrived = which && path.patience < V(0);
    if (any(arrived)) {
      finished = polish(arrived);
      went_on = false;
      path.wait(arrived, V(RIPE));
      moved = running = which && !finished;
      if (!any(running)) return;
    }
    V after(0), best(INFINITY), last_p(0), last_d(0);
    Progress<V> progress;
    for (;;) {
      newton.measure(moved);
      const V worst = larger(larger(newton.primal, newton.dual), newton.gap);
      const Mask<V> met = newton.contract <= V(1), exact = worst <= V(rules.relative);
      const Mask<V> waits = path.ready(newton, worst, moved);

      after = select(moved && (met || after > V(0)), after + V(1), after);
      keep_best(moved && met, best);
      const V open_mu = select(newton.gap > V(rules.relative), newton.mu, V(0)), least(0.1 * rules.relative);
      const V values[4] = {larger(newton.primal, least), larger(newton.dual, least), larger(newton.gap, least), open_mu};
      progress.look(values, moved);

      const Mask<V> ends = running && met && exact && !waits;
      const Mask<V> stalled = progress.age > V(STALL) || after > V(AFTER_CONTRACT);
      const Mask<V> broken = !(newton.contract < V(INFINITY)) || !sound, at_limit = path.iterations >= V(rules.max_iter);
      const Mask<V> gives_up = running && !ends && (((stalled || at_limit) && !waits) || broken);
      const Mask<V> takes_best = gives_up && best <= V(1), stops = gives_up && !takes_best && !stalled && !broken;
      if (any(takes_best)) restore_best(takes_best);
      solved = solved || ends || takes_best;
      running = running && !ends && !gives_up;
      certify(moved && (running || stops) && even && !waits && !met, last_p, last_d);
      exhausted = exhausted || (stops && !infeasible && !unbounded);
      running = running && !(infeasible || unbounded);
      if (!any(running)) return;

      moved = running && !waits;
      if (!any(moved)) {
        const Mask<V> accepted = polish(running);
        went_on = false;
        finished = finished || accepted;
        path.wait(running, worst);
        running = running && !accepted;
        continue;
      }
      path.step(newton, moved);
      for (int i = own(0); i < r; i += TEAM) last_v[i] = select(moved, newton.at.v[i], last_v[i]);
      if (!newton.ranged) {
        for (int i = own(0); i < r; i += TEAM) last_Cx[i] = select(moved, newton.Ex[i], last_Cx[i]);
        for (int j = own(0); j < n; j += TEAM) {
          last_x[j] = select(moved, newton.at.x[j], last_x[j]);
          last_Px[j] = select(moved, newton.Px[j], last_Px[j]);
        }
      }
      last_p = select(moved, newton.primal, last_p), last_d = select(moved, newton.dual, last_d);
      went_on = true;
      sound = newton.advance(path.rho(), path.delta(rules), moved) || !moved;
      stepped = stepped || moved;
      even = (moved && !even) || (!moved && even);
    }
  }

  OPTLAYER_METHOD void keep_best(Mask<V> candidates, V& best) {
    const Mask<V> better = candidates && newton.contract < best;
    if (!any(better)) return;
    best = select(better, newton.contract, best);
    for (int j = own(0); j < newton.n; j += TEAM) best_x[j] = select(better, newton.at.x[j], best_x[j]);
    for (int i = own(0); i < newton.T; i += TEAM) {
      best_v[i] = select(better, newton.at.v[i], best_v[i]);
      best_s[i] = select(better, newton.at.s[i], best_s[i]);
    }
  }

  OPTLAYER_METHOD void restore_best(Mask<V> takes) {
    for (int j = own(0); j < newton.n; j += TEAM) newton.at.x[j] = select(takes, best_x[j], newton.at.x[j]);
    for (int i = own(0); i < newton.T; i += TEAM) {
      newton.at.v[i] = select(takes, best_v[i], newton.at.v[i]);
      newton.at.s[i] = select(takes, best_s[i], newton.at.s[i]);
    }
  }

  // Look for certificates in the iterate and in its last step (when iterates diverge the step is the ray itself), on
  // those candidates whose primal (infeasible) or dual (unbounded) residual is stuck.
  OPTLAYER_METHOD void certify(Mask<V> candidates, V last_p, V last_d) {
    const Program<V>& Q = *newton.Q;
    const int n = newton.n, r = newton.r, p = newton.p;
    if (!any(candidates)) return;
    const Mask<V> late = candidates && (stepped || newton.alone);
    Mask<V> primal = late && newton.primal > V(1e-12) && (!stepped || newton.primal > V(STUCK) * last_p);
    Mask<V> dual = late && newton.dual > V(1e-12) && (!stepped || newton.dual > V(STUCK) * last_d);
    dual = newton.ranged ? Mask<V>(false) : dual && norm(newton.at.x, n) > V(DIVERGED);
    if (newton.T == 0) primal = Mask<V>(false);
    if (any(primal)) {
      for (int i = own(0); i < r; i += TEAM) trial[i] = newton.at.v[i];
      infeasible = infeasible || certificates.farkas(Q, *newton.rules, trial, primal);
      primal = primal && stepped && !infeasible;
      if (any(primal)) {
        for (int i = own(0); i < r; i += TEAM) {
          const V step = newton.at.v[i] - last_v[i];
          trial[i] = i < p ? step : Q.live[i] * positive(step);
        }
        infeasible = infeasible || certificates.farkas(Q, *newton.rules, trial, primal);
      }
    }
    if (!any(dual)) return;
    unbounded = unbounded || certificates.ray(Q, *newton.rules, newton.at.x, newton.Px, newton.Ex,
                                              dual && !infeasible && !newton.fixed);
    dual = dual && stepped && !infeasible && !unbounded;
    if (!any(dual)) return;
    for (int j = own(0); j < n; j += TEAM) step_x[j] = newton.at.x[j] - last_x[j], step_P[j] = newton.Px[j] - last_Px[j];
    for (int i = own(0); i < r; i += TEAM) step_C[i] = newton.Ex[i] - last_Cx[i];
    unbounded = unbounded || certificates.ray(Q, *newton.rules, step_x, step_P, step_C, dual);
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
