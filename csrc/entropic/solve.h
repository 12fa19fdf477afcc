// SPDX-License-Identifier: Apache-2.0
// A batch of entropic programs from the caller's arrays to the caller's arrays, a pack at a time:
//
//     load and judge -> standard form -> interior point -> closing -> judge the point on the data as given -> outputs
//
// What the kernels do not decide (no convergence and no certificate, a P that is not convex, rows that force variables to
// zero, degeneracies that closing.h refuses) keeps the status UNSOLVED and is left to the reference engine.
#pragma once

#include "closing.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double ALMOST = 100;  // residuals up to so many times their tolerance are almost small enough

template <class V>
struct Solver {
  const optlayer::entropic::SolveCall& call;
  Rules rules;
  Data<V> data;
  Interior<V> interior;
  Closing<V> closing;
  V *x, *v, *z_box, *s, *share, *ray, *ray_box, *state;
  V *Px, *Ay, *Gz;  // scratch (n)

  OPTLAYER_METHOD Solver(const optlayer::entropic::SolveCall& given, Arena& arena) : call(given), rules(given) {
    const int n = call.n, k = call.m + call.p;
    data.lay_out(arena, call);
    interior.lay_out(arena, n, call.m, call.p, call.full(), call.diagonal);
    closing.lay_out(arena, &interior);
    for (V** vector : {&x, &z_box, &share, &ray_box, &Px, &Ay, &Gz}) *vector = arena.take<V>(n);
    for (V** vector : {&v, &s, &ray}) *vector = arena.take<V>(k);
    state = arena.take<V>(optlayer::entropic::state_size(n, k));
  }

  OPTLAYER_METHOD void run(const Elements<V>& elements) {
    Program<V>& Q = interior.Q;
    System<V>& system = interior.system;
    interior.rules = &rules;  // not in the constructor: a solver may be copied
    closing.interior = &interior;
    data.call = &call;
    Mask<V> invalid, crossed;
    sync();
    data.read_vectors(elements);
    data.read_matrices(elements, Q.full ? Q.P : Q.curvature, Q.C);
    sync();
    data.judge(invalid, crossed);
    Mask<V> bad = invalid || crossed;
    if (any(bad)) data.replace(bad);
    const Mask<V> sound = convex(data, system);
    if (!all(sound)) data.replace(!sound);
    standardise(data, rules.proof, Q, system);
    const Mask<V> good = !bad && sound && !forces(Q);
    take_contradiction(Q, rules.proof, system);
    interior.run(good);
    const Mask<V> closes = good && !interior.infeasible, closed = closing.run(closes);

    // the data as given once more, where nothing is needed any longer
    data.read_matrices(elements, Q.full ? system.L : interior.best.x, system.T);
    if (any(bad)) data.read_vectors(elements);
    sync();
    finish(closes);
    const Mask<V> proven = interior.infeasible;
    if (any(proven)) certify(proven);
    const V merit = judge();
    V status((double)UNSOLVED);
    // what only the rounding to float32 keeps from its tolerance no other engine would bring nearer, unless equalities
    // depend on each other: the reference engine finds the least of their multipliers
    if (rules.single && Q.p < 2) status = select(closed && merit <= V(ALMOST), V((double)ALMOST_SOLVED), status);
    status = select(closed && merit <= V(1), V((double)SOLVED), status);
    status = select(proven || crossed, V((double)PRIMAL_INFEASIBLE), status);
    status = select(invalid, V((double)INVALID_DATA), status);
    write(elements, status, proven);
  }

 private:
  // x, multipliers and bounds' multipliers in the caller's units, also those of fixed variables; from the closing, or
  // elsewhere from the last iterate.
  OPTLAYER_METHOD void finish(Mask<V> closes) {
    const Program<V>& Q = interior.Q;
    const Point<V>& at = interior.at;
    const int n = Q.n, p = Q.p, k = Q.k;
    for (int j = own(0); j < n; j += TEAM) {
      const Mask<V> fixed = Q.free[j] == V(0);
      x[j] = select(fixed, Q.value[j], select(closes, closing.x[j], at.x[j]));
      z_box[j] = select(closes, closing.z_box[j], at.z_upper[j] - at.z_lower[j]);
      if (!all(closes)) closing.log_x[j] = select(closes, closing.log_x[j], logarithm(x[j]));
      if (Q.fixes) closing.log_x[j] = select(fixed, logarithm(Q.value[j]), closing.log_x[j]);
      Ay[j] = Gz[j] = V(0);
    }
    for (int i = own(0); i < k; i += TEAM) v[i] = select(closes, closing.v[i], at.rows[i]) * Q.unit[i];
    sync();
    if (!Q.fixes) return;
    product_transposed(data.C, data.ld, p, n, v, Ay);
    product_transposed(data.C + (size_t)p * data.ld, data.ld, k - p, n, v + p, Gz);
    times_P(x, Px);
    for (int j = own(0); j < n; j += TEAM) {
      const V force = data.q[j] + Ay[j] + Gz[j] + Px[j];
      const V z = -(force + data.tau[j] * (closing.log_x[j] + V(1)));
      z_box[j] = select(Q.free[j] == V(0), z, z_box[j]);
    }
  }

  // The data's P, which need not be that of the standard form.
  OPTLAYER_METHOD void times_P(const V* from, V* to) const {
    if (call.full()) return product(data.P, data.ld, data.n, data.n, from, to);
    for (int j = own(0); j < data.n; j += TEAM) to[j] = call.diagonal ? data.P[j] * from[j] : V(0);
  }

  // Farkas certificates on the data as given, with a proven gap of 1; the bounds and x >= 0 absorb what they can.
  OPTLAYER_METHOD void certify(Mask<V> proven) {
    const Program<V>& Q = interior.Q;
    const int n = Q.n, k = Q.k;
    for (int i = own(0); i < k; i += TEAM) ray[i] = interior.proof[i] * Q.unit[i];
    for (int j = own(0); j < n; j += TEAM) Px[j] = V(0);
    product_transposed(data.C, data.ld, k, n, ray, Px);
    V value(0);
    for (int i = own(0); i < k; i += TEAM) value -= select(finite(data.d[i]), data.d[i] * ray[i], V(0));
    for (int j = own(0); j < n; j += TEAM) {
      const V force = -Px[j], high = data.upper_bound(j);
      const Mask<V> bounded = force < V(0) || high < V(INFINITY);
      ray_box[j] = select(bounded, force, V(0));
      const V bound = select(force > V(0), select(bounded, high, V(0)), data.lower_bound(j));
      value -= select(ray_box[j] == V(0), V(0), bound * ray_box[j]);
    }
    value = team_sum(value);
    const V worth = select(proven && value > V(0), value, V(1));
    for (int i = own(0); i < k; i += TEAM) ray[i] = select(proven, ray[i] / worth, V(0));
    for (int j = own(0); j < n; j += TEAM) ray_box[j] = select(proven, ray_box[j] / worth, V(0));
    sync();
  }

  OPTLAYER_METHOD V read(V a) const { return rules.single ? rounded(a) : a; }

  // The largest residual in units of its tolerance max(eps_abs, eps_rel scale), of the solution as it is read
  // (optlayer/residuals.py). Also s = h - Gx.
  OPTLAYER_METHOD V judge() {
    const int n = data.n, p = data.p, k = data.k, ld = data.ld;
    V *to_x = interior.dx, *to_v = interior.rows;
    product(data.C, ld, k, n, x, s);
    for (int i = own(p); i < k; i += TEAM) s[i] = data.d[i] - s[i];
    for (int j = own(0); j < n; j += TEAM) to_x[j] = read(x[j]), Ay[j] = Gz[j] = V(0);
    for (int i = own(0); i < k; i += TEAM) to_v[i] = read(v[i]);
    sync();
    product_transposed(data.C, ld, p, n, to_v, Ay);
    product_transposed(data.C + (size_t)p * ld, ld, k - p, n, to_v + p, Gz);
    product(data.C, ld, k, n, to_x, interior.r2);
    times_P(to_x, Px);
    V primal(0), primal_scale(0), dual(0), dual_scale(0), xPx(0), linear(0), entropy(0), mass(0), support(0), bounds(0), largest(0);
    for (int i = own(0); i < k; i += TEAM) {
      const Mask<V> open = i >= p ? data.d[i] >= V(UNLIMITED) : Mask<V>(false);
      const V Cx = select(open, V(0), interior.r2[i]), d = select(open, V(0), data.d[i]), z = to_v[i];
      const V over = i < p ? absolute(Cx - d) : positive(Cx - d);
      primal = most(over, primal), primal_scale = most(absolute(Cx), most(absolute(d), primal_scale));
      support += d * z;
      if (i >= p) dual = most(select(open, absolute(z), positive(-z)), dual);
    }
    for (int j = own(0); j < n; j += TEAM) {
      const V value = to_x[j], tau = data.tau[j];
      V z = read(z_box[j]);
      const Mask<V> shut = value == V(0) && z == V(INFINITY), there = value > V(rules.least);
      z = select(shut, V(0), z);
      const V log_of_x = logarithm(larger(value, V(rules.least))), slope = tau * (log_of_x + V(1));
      V stationarity = Px[j] + data.q[j] + slope + z + Ay[j] + Gz[j];
      stationarity = select(there, absolute(stationarity), select(shut, V(0), positive(-stationarity)));
      // beyond `least` only a force that would make x larger is wrong
      dual = most(stationarity, dual);
      dual_scale = most(absolute(Px[j]), most(absolute(data.q[j]), dual_scale));
      dual_scale = most(select(there, absolute(slope), V(0)), most(absolute(z), dual_scale));
      dual_scale = most(absolute(Ay[j]), most(absolute(Gz[j]), dual_scale));
      xPx += value * Px[j], linear += data.q[j] * value, mass += tau * value;
      entropy += select(value == V(0), V(0), tau * (value * log_of_x));
      largest = most(absolute(value), largest);
      const V low = smaller(z, V(0)), high = positive(z);
      const Mask<V> no_lower = data.lb[j] <= V(-UNLIMITED), no_upper = data.ub[j] >= V(UNLIMITED);
      bounds += select(no_lower && no_upper, V(0), V(1));
      support += select(no_lower, V(0), data.lb[j]) * low + select(no_upper, V(0), data.ub[j]) * high;
      primal = most(select(no_lower, V(0), positive(data.lb[j] - value)), primal);
      primal = most(select(no_upper, V(0), positive(value - data.ub[j])), primal);
      dual = most(select(no_lower, -low, V(0)), most(select(no_upper, high, V(0)), dual));
    }
    primal = team_most(primal), primal_scale = team_most(primal_scale), dual = team_most(dual);
    dual_scale = team_most(dual_scale), largest = team_most(largest);
    xPx = team_sum(xPx), linear = team_sum(linear), entropy = team_sum(entropy), mass = team_sum(mass);
    support = team_sum(support), bounds = team_sum(bounds);
    primal_scale = select(bounds > V(0), most(largest, primal_scale), primal_scale);
    const V gap = absolute(xPx + linear + entropy + mass + support);
    const V objective = V(0.5) * xPx + linear + entropy, other = -mass - V(0.5) * xPx - support;
    const V gap_scale = smaller(absolute(objective), absolute(other));
    const V merit = most(in_tolerances(primal, primal_scale), most(in_tolerances(dual, dual_scale), in_tolerances(gap, gap_scale)));
    return select(merit != merit, V(INFINITY), merit);
  }

  OPTLAYER_METHOD V in_tolerances(V value, V scale) const {
    return value / larger(V(rules.eps_rel) * scale, V(rules.eps_abs > NONZERO ? rules.eps_abs : NONZERO));
  }

  // The larger one; NaN where either is.
  static OPTLAYER_MEMBER V most(V a, V b) { return select(a != a, a, larger(a, b)); }
  static OPTLAYER_MEMBER V team_most(V a) { return select(team_any(a != a), V(NAN), team_max(a)); }

  OPTLAYER_METHOD void write(const Elements<V>& elements, V status, Mask<V> proven) {
    const Program<V>& Q = interior.Q;
    const int n = Q.n, p = Q.p, k = Q.k;
    const Mask<V> solved = status == V((double)SOLVED);
    const Mask<V> answered = solved || ((proven || status == V((double)ALMOST_SOLVED)) && Mask<V>(!call.nan_failures));
    const V nothing(call.nan_failures ? NAN : 0.0);
    for (int j = own(0); j < n; j += TEAM) {
      const V value = x[j], z = z_box[j], tau = data.tau[j], log_x = closing.log_x[j];
      const V lower = select(z < V(0), V(1), select(z > V(0), V(0), closing.lower_share[j]));
      share[j] = select(solved, select(Q.free[j] == V(0) && z == V(0), V(0.5), lower), V(0));
      V ratio = value / tau;
      const Mask<V> tiny = !(value > V(TINY));
      if (any(tiny)) ratio = select(tiny, exponential(log_x - logarithm(tau)), ratio);
      state[j] = select(solved, ratio, V(0));
      state[n + j] = select(solved, select(Q.free[j] == V(0), V(INFINITY), closing.w_box[j]), V(0));
      x[j] = select(answered, value, nothing), z_box[j] = select(answered, z, nothing);
      Px[j] = select(answered, log_x, V(call.nan_failures ? NAN : -INFINITY));
    }
    for (int i = own(0); i < k; i += TEAM) {
      state[2 * n + i] = select(solved, closing.w[i], V(0));
      v[i] = select(answered, v[i], nothing);
      s[i] = select(answered, s[i], call.nan_failures ? nothing : data.d[i]);
    }
    if (owns(0)) state[2 * n + k] = select(solved, V(1), V(0));
    sync();
    store_vector(elements, x, n, call.x);
    store_vector(elements, v, p, call.y);
    store_vector(elements, v + p, k - p, call.z);
    store_vector(elements, z_box, n, call.z_box);
    store_vector(elements, s + p, k - p, call.s);
    store_vector(elements, Px, n, call.log_x);
    store_vector(elements, share, n, call.lower_share);
    store_vector(elements, any(proven) ? ray : nullptr, p, call.ray_y);
    store_vector(elements, any(proven) ? ray + p : nullptr, k - p, call.ray_z);
    store_vector(elements, any(proven) ? ray_box : nullptr, n, call.ray_box);
    const int size = (int)optlayer::entropic::state_size(n, k);
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = elements.at[l] * size;
    store(state, size, call.state, false, offsets, elements.used);
    for (int l = 0; l < elements.used && rank() == 0; l++) {
      const int64_t e = elements.at[l];
      call.status[e] = (int64_t)lane(status, l);
      call.iterations[e] = (int64_t)lane(interior.iterations, l);
      call.weakly_active[e] = lane_of(solved, l) ? (int64_t)lane(closing.weak, l) : 0;
    }
  }

  // Zeros where `from` is null.
  OPTLAYER_METHOD void store_vector(const Elements<V>& elements, const V* from, int count, void* to) {
    if (count == 0) return;
    if (from == nullptr) {
      const size_t size = (call.single ? sizeof(float) : sizeof(double)) * count;
      clear(static_cast<char*>(to) + elements.at[0] * size, elements.used * size);
      return;
    }
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = elements.at[l] * count;
    store(from, count, to, call.single, offsets, elements.used);
  }
};

template <class V>
OPTLAYER_FUNCTION size_t solve_workspace(const optlayer::entropic::SolveCall& call) {
  Arena arena(nullptr);
  Solver<V> solver(call, arena);
  return arena.used();
}

template <class V>
OPTLAYER_FUNCTION void solve(const optlayer::entropic::SolveCall& call, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  Solver<V> solver(call, arena);
  for (int64_t e = begin; e < end; e += lanes<V>) solver.run(Elements<V>(e, end));
}

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
