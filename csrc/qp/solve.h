// SPDX-License-Identifier: Apache-2.0
// A batch of quadratic programs from the caller's arrays to the caller's arrays, a pack at a time:
//
//     load and judge -> equilibrate -> interior point, in the range space or by the weight split, with early attempts to
//     finish -> polish -> judge the point on the data as given -> outputs and the factorised KKT system
//
// What the kernels do not decide (iterates that stall without a certificate, a P that is not convex, degeneracies that
// polish.h refuses) keeps the status UNSOLVED and is left to the reference engine.
#pragma once

#include "approach.h"
#include "load.h"
#include "polish.h"
#include "scaling.h"

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr double DISTANT = 1e5;     // scaled right-hand sides beyond it leave float32 too few digits for the rest
static constexpr double ALMOST = 1e3;      // a residual within this factor of its tolerance is almost small enough
static constexpr double CONVEXITY = 3e-5;  // of max |P|: below it a negative eigenvalue is a rounded datum

template <class V>
struct Solver {
  const SolveCall& call;
  Rules rules;
  Program<V> Q;
  Interior<V> interior;
  Polisher<V> polisher;
  V *out_x, *out_v, *out_box, *out_s, *out_share;
  bool shared;          // the batch has one P, G and A, in the range space: they are set up once
  bool set_up = false;  // and they have been

  Elements<V> elements{0, 0};  // the pack at hand
  Mask<V> invalid, crossed;    // bad data, lb > ub
  Mask<V> good, in_range;      // neither of these and convex; in the range space
  Mask<V> sturdy;              // good in float32, too

  OPTLAYER_METHOD Solver(const SolveCall& given, Arena& arena) : call(given), rules(given) {
    const int n = call.n, m = call.m, p = call.p, r = m + p;
    const bool bounds = call.lb.data != nullptr || call.ub.data != nullptr;
    interior.lay_out(arena, n, r, p, bounds, call.P.data != nullptr && ranges());
    Q.lay_out(arena, n, m, p);
    polisher.lay_out(arena, n, r, call.single, &interior.newton.split);
    for (V** vector : {&out_x, &out_box, &out_share}) *vector = arena.take<V>(n);
    for (V** vector : {&out_v, &out_s}) *vector = arena.take<V>(r);
    shared = call.P.data != nullptr && call.P.shared() && call.G.shared() && call.A.shared() && call.B > lanes<V> &&
             !bounds && ranges();
  }

  // Whether the formulation and the numbers of rows and variables permit the range space.
  OPTLAYER_METHOD bool ranges() const {
    if (call.formulation != Formulation::automatic) return call.formulation == Formulation::range;
    return call.m + call.p <= ROWS_PER_VARIABLE * call.n;
  }

  // Load the problems of a pack and choose their form.
  OPTLAYER_METHOD void open(const Elements<V>& given) {
    elements = given;
    Newton<V>& newton = interior.newton;
    Mask<V> admitted, definite, convex;
    sync();
    if (shared && !set_up && call.prepared != nullptr) adopt(static_cast<V*>(call.prepared));
    prepare(invalid, crossed, admitted, definite, convex);
    if (shared && !(all(admitted) && all(definite))) {  // start over without sharing
      shared = false;
      prepare(invalid, crossed, admitted, definite, convex);
    }
    scale_vectors(Q);
    Mask<V> bounded(false);
    if (Q.boxes)
      for (int j = own(0); j < Q.n; j += TEAM) bounded = bounded || Q.has_lo[j] + Q.has_hi[j] + Q.fixed[j] > V(0);
    bounded = team_any(bounded);
    good = !(invalid || crossed) && convex;
    V most(0);
    for (int i = own(0); i < Q.r; i += TEAM) most = larger(absolute(Q.d[i]), most);
    for (int j = own(0); Q.boxes && j < Q.n; j += TEAM) most = larger(larger(absolute(Q.lo[j]), absolute(Q.hi[j])), most);
    sturdy = good && admitted && team_max(most) < V(DISTANT);
    in_range = ranges() ? good && admitted && !bounded : Mask<V>(false);
    if (!any(in_range)) return;
    if (!shared || !set_up) newton.space.set_up(Q, shared ? Mask<V>(true) : in_range);  // later packs have other lanes
    newton.space.set_cost(Q);
    set_up = true;
  }

  OPTLAYER_METHOD void run(const Elements<V>& given) {
    open(given);
    close();
  }

  // Set up what the batch shares, in call.prepared for all threads; any element's vectors will do. Whether it can be
  // shared is the first value there.
  OPTLAYER_METHOD void share(const Elements<V>& any_element) {
    elements = any_element, shared = true;
    Mask<V> admitted, definite, convex;
    prepare(invalid, crossed, admitted, definite, convex);
    shared = shared && all(admitted) && all(definite);
    V* to = static_cast<V*>(call.prepared);
    if (owns(0)) to[0] = V(shared);
    if (!shared) return;
    if (owns(1)) to[1] = Q.c;
    interior.newton.space.set_up(Q, Mask<V>(true));
    to += 2;
    each_shared([&](const V* from, size_t count) {
      for (size_t i = own((size_t)0); i < count; i += TEAM) to[i] = from[i];
      to += count;
    });
  }

  // The values in call.prepared.
  OPTLAYER_METHOD size_t share_size() {
    size_t size = 2;
    each_shared([&](const V*, size_t count) { size += count; });
    return size;
  }

  // The lanes that take this form and may begin in float32.
  OPTLAYER_METHOD Mask<V> approaching(bool ranged) const { return sturdy && (ranged ? in_range : !in_range); }

  OPTLAYER_METHOD bool warm() const {
    return call.x0.data != nullptr || call.y0.data != nullptr || call.z0.data != nullptr || call.z_box0.data != nullptr;
  }

  // Solve them, those that arrived on the first or second side of an approach from there, and write the answers.
  OPTLAYER_METHOD void close(const Approach<V>* approach = nullptr, int side = 0) {
    Newton<V>& newton = interior.newton;
    polisher.reset();
    interior.certificates.clear(Q.n, Q.r);
    V iterations(0);
    Mask<V> solved(false), infeasible(false), unbounded(false), exhausted(false);
    for (int form = 0; form < 2; form++) {
      const Mask<V> which = form == 0 ? in_range : good && !in_range;
      if (!any(which)) continue;
      newton.begin(Q, rules, form == 0);
      Path<V> path;
      Mask<V> sound(true), arrived(false);
      bool approached = false;
      if constexpr (lanes<V> > 1) {
        approached = approach != nullptr && approach->ranged == (form == 0);
        if (approached) arrived = approach->arrivals(side);
      }
      if (any(which && !arrived)) sound = newton.start() || arrived;
      if constexpr (lanes<V> > 1)
        if (approached) path = approach->give(side, Q, newton);
      if (warm()) warm_start();
      interior.run(which, sound, path, [&](Mask<V> ripe) { return attempt(ripe, true); });
      if (interior.went_on) polisher.forget_factor();
      // what stands for a solution, or for want of iterations has to, and is not finished gets the ordinary polish, and
      // where that fails the central K
      const Mask<V> pending = (interior.solved && !interior.finished) || interior.exhausted;
      if (any(pending)) {
        const Mask<V> accepted = attempt(pending, false);
        const Mask<V> left = pending && !accepted;
        if (any(left)) polisher.central(Q, newton.at, rules, left);
      }
      share_bounds(which);
      solved = solved || interior.solved || interior.finished;
      infeasible = infeasible || interior.infeasible, unbounded = unbounded || interior.unbounded;
      exhausted = exhausted || interior.exhausted;
      iterations = select(which, interior.path.iterations, iterations);
    }
    V status((double)UNSOLVED);
    const Mask<V> fits = (solved || exhausted) && polisher.fits();
    status = select(exhausted && !(polisher.merit <= V(1)), V((double)MAX_ITERATIONS), status);
    // what only the rounding to float32 keeps from its tolerance no other engine would bring nearer
    const Mask<V> final = exhausted || Mask<V>(call.single);
    status = select(fits && final && polisher.merit <= V(ALMOST), V((double)ALMOST_SOLVED), status);
    status = select(fits && polisher.merit <= V(1), V((double)SOLVED), status);
    status = select(infeasible || crossed, V((double)PRIMAL_INFEASIBLE), status);
    status = select(unbounded, V((double)DUAL_INFEASIBLE), status);
    status = select(invalid, V((double)INVALID_DATA), status);
    write(status, iterations, any(infeasible || unbounded));
  }

  // Every array that depends on P, G and A alone, with its size.
  template <class F>
  OPTLAYER_METHOD void each_shared(const F& f) {
    RangeSpace<V>& space = interior.newton.space;
    const size_t n = Q.n, r = Q.r;
    f(Q.P, n * Q.ld), f(Q.C, r * Q.ld), f(Q.D, n), f(Q.E, r);
    f(space.L, n * space.ld), f(space.inv, n), f(space.VT, r * space.ld), f(space.K, r * space.ldk);
  }

  // Read what `share` has set up where it lies: nothing writes to it.
  OPTLAYER_METHOD void adopt(V* from) {
    shared = set_up = all(from[0] > V(0));
    if (!shared) return;
    Q.c = from[1];
    from += 2;
    each_shared([&](V*& piece, size_t count) { piece = from, from += count; });
  }

  // Load the problems and bring their matrices to scale. `admitted`: P permits the range space; `definite`: P has a
  // Cholesky factor; `convex`: but for rounding it has no negative eigenvalue.
  OPTLAYER_METHOD void prepare(Mask<V>& invalid, Mask<V>& crossed, Mask<V>& admitted,
                               Mask<V>& definite, Mask<V>& convex) {
    Newton<V>& newton = interior.newton;
    admitted = definite = convex = Mask<V>(true);
    load_vectors(call, elements, Q, invalid, crossed);
    const bool matrices = !shared || !set_up;
    if (matrices) {
      const Mask<V> unsound = load_matrices(call, elements, Q);
      invalid = invalid || unsound;
      if (shared) shared = !any(unsound);  // no one else's data would be better
      if (!shared) mask_rows(Q);
    }
    const Mask<V> bad = invalid || crossed;
    if (any(bad)) replace(Q, bad, !shared);
    if (!matrices) return;
    scale_matrices(Q, equilibrate(Q, !shared, newton.Px, newton.Gz, newton.rz));
    if (call.P.data == nullptr) {
      admitted = definite = Mask<V>(false);
    } else {
      admitted = newton.space.admit(Q, call.formulation == Formulation::range, definite);
      if (!all(definite)) convex = definite || is_convex();
    }
  }

  // Polish the interior point on some lanes; unless `early`, the residuals there are those of the last measurement.
  OPTLAYER_METHOD Mask<V> attempt(Mask<V> which, bool early) {
    Newton<V>& newton = interior.newton;
    sync();
    if (newton.ranged) newton.space.primal(newton.at.v, newton.at.x);
    return polisher.polish(Q, newton, rules, which, early);
  }

  // P + 3e-5 max|P| I, in the caller's units, has a Cholesky factor.
  OPTLAYER_METHOD Mask<V> is_convex() {
    Split<V>& scratch = interior.newton.split;
    V most(0);
    sync();
    for (int i = own(0); i < Q.n; i += TEAM)
      for (int j = 0; j <= i; j++) {
        const V entry = Q.P[i * Q.ld + j] / (Q.c * Q.D[i] * Q.D[j]);
        scratch.L[i * scratch.ld + j] = entry;
        most = larger(absolute(entry), most);
      }
    most = team_max(most);
    V* add = interior.newton.dx;
    for (int i = own(0); i < Q.n; i += TEAM) add[i] = V(CONVEXITY) * most + V(NONZERO<V>);
    return cholesky(scratch.L, scratch.ld, add, scratch.L, scratch.ld, scratch.inv, Q.n);
  }

  OPTLAYER_METHOD void warm_start() {
    Newton<V>& newton = interior.newton;
    const int n = Q.n, r = Q.r, p = Q.p;
    V *x = newton.dx, *v = newton.dz, *box = newton.Gz;
    load_vector(call.x0, call.single, elements, n, 0, x);
    load_vector(call.y0, call.single, elements, p, 0, v);
    load_vector(call.z0, call.single, elements, r - p, 0, v + p);
    load_vector(call.z_box0, call.single, elements, n, 0, box);
    sync();
    for (int i = own(0); i < r; i += TEAM) v[i] = v[i] * Q.c / Q.E[i];
    for (int j = own(0); j < n; j += TEAM) {
      x[j] = x[j] / Q.D[j], box[j] = box[j] * Q.c * Q.D[j];
      if (Q.boxes) v[r + j] = positive(-box[j]), v[r + n + j] = positive(box[j]);
    }
    sync();
    newton.warm_start();
  }

  // The part of a move of an active bound that is the lower one's: by the weights of the interior point, for now.
  OPTLAYER_METHOD void share_bounds(Mask<V> which) {
    const Point<V>& at = interior.newton.at;
    sync();
    for (int j = own(0); j < Q.n; j += TEAM) {
      if (!Q.boxes) {
        out_share[j] = V(0);
        continue;
      }
      const V lower = Q.has_lo[j] * at.z_lo[j] / at.s_lo[j], upper = Q.has_hi[j] * at.z_hi[j] / at.s_hi[j];
      const V share = select(lower + upper > V(0), lower / larger(lower + upper, V(NONZERO<V>)), V(0));
      out_share[j] = select(which, share, out_share[j]);
    }
  }

  OPTLAYER_METHOD void write(V status, V iterations, bool proven) {
    const int n = Q.n, m = Q.m, p = Q.p, r = Q.r;
    const Mask<V> solved = status == V((double)SOLVED);
    const Mask<V> usable = status == V((double)ALMOST_SOLVED) || status == V((double)MAX_ITERATIONS);
    const Mask<V> answered = solved || (usable && Mask<V>(!call.nan_failures));
    const V nothing(call.nan_failures ? NAN : 0.0), cost = V(1) / Q.c;
    for (int i = own(0); i < r; i += TEAM) {
      const V s = select(Q.live[i] > V(0), (Q.d[i] - polisher.Cx[i]) / Q.E[i], V(INFINITY));
      out_s[i] = select(answered, s, call.nan_failures ? nothing : select(Q.live[i] > V(0), Q.d[i] / Q.E[i], V(INFINITY)));
      out_v[i] = select(answered, polisher.v[i] * Q.E[i] * cost, nothing);
    }
    for (int j = own(0); j < n; j += TEAM) {
      const V z = polisher.z_box[j] * cost / Q.D[j];
      V share = select(z < V(0), V(1), select(z > V(0), V(0), out_share[j]));
      share = select(Q.fixed[j] > V(0) && z == V(0), V(0.5), share);
      out_share[j] = select(solved, share, V(0));
      out_x[j] = select(answered, polisher.x[j] * Q.D[j], nothing);
      out_box[j] = select(answered, z, nothing);
    }
    sync();
    const bool bare = !Q.boxes && all(solved);
    const Certificates<V>& proof = interior.certificates;
    store_vector(out_x, n, call.x);
    store_vector(out_v, p, call.y);
    store_vector(out_v + p, m, call.z);
    store_vector(bare ? nullptr : out_box, n, call.z_box);
    store_vector(out_s + p, m, call.s);
    store_vector(bare ? nullptr : out_share, n, call.lower_share);
    if (proven) {
      store_vector(proof.x, n, call.ray, n + r + n, 0);
      store_vector(proof.v, r, call.ray, n + r + n, n);
      store_vector(proof.box, n, call.ray, n + r + n, n + r);
    } else {
      store_vector(nullptr, n + r + n, call.ray);
    }
    for (int l = 0; l < elements.used && rank() == 0; l++) {
      const int64_t e = elements.at[l];
      call.status[e] = (int64_t)lane(status, l);
      call.iterations[e] = (int64_t)lane(iterations, l);
      call.weakly_active[e] = lane_of(solved, l) ? (int64_t)lane(polisher.weak, l) : 0;
    }
    // a single problem's range space has its L in the split's memory (range.h)
    if (polisher.write(Q, call, elements, solved) && lanes<V> == 1) set_up = false;
  }

  // Zeros where `from` is null.
  OPTLAYER_METHOD void store_vector(const V* from, int count, void* to) {
    store_vector(from, count, to, count, 0);
  }

  // The same from entry `start` on of rows of `size` entries; zeros fill whole rows.
  OPTLAYER_METHOD void store_vector(const V* from, int count, void* to, int size, int start) {
    if (count == 0) return;
    if (from == nullptr) {
      const size_t row = (call.single ? sizeof(float) : sizeof(double)) * count;
      clear(static_cast<char*>(to) + elements.at[0] * row, elements.used * row);
      return;
    }
    int64_t offsets[lanes<V>];
    for (int l = 0; l < lanes<V>; l++) offsets[l] = elements.at[l] * size + start;
    store(from, count, to, call.single, offsets, elements.used);
  }
};

#if !defined(OPTLAYER_DEVICE)

// Two packs at a time, which begin in float32 together.
template <class V>
struct Pair {
  Solver<V> solvers[2];
  Approach<V> approach;
  bool approaches;

  OPTLAYER_METHOD Pair(const SolveCall& call, Arena& arena) : solvers{{call, arena}, {call, arena}} {
    const bool bounds = call.lb.data != nullptr || call.ub.data != nullptr;
    const bool ranged = !bounds && solvers[0].ranges();
    approaches = call.P.data != nullptr && !solvers[0].warm() && (!ranged || call.m + call.p <= call.n);
    if (approaches) approach.lay_out(arena, call.n, call.m, call.p, bounds, ranged);
  }

  OPTLAYER_METHOD void run(int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; e += 2 * lanes<V>) {
      const int count = end - e > lanes<V> ? 2 : 1;
      for (int i = 0; i < count; i++) solvers[i].open(Elements<V>(e + i * lanes<V>, end));
      const Solver<V>&a = solvers[0], &b = solvers[count - 1];
      const Mask<V> which_a = a.approaching(approach.ranged), which_b = b.approaching(approach.ranged);
      const bool used = approaches && any(which_a || which_b);
      if (used) approach.run(a.Q, b.Q, a.interior.newton.space, b.interior.newton.space, which_a, which_b, a.rules);
      for (int i = 0; i < count; i++) solvers[i].close(used ? &approach : nullptr, i);
    }
  }
};

#endif

// What goes over the elements of a thread.
template <class V>
struct Course {
  Solver<V> solver;
  OPTLAYER_METHOD Course(const SolveCall& call, Arena& arena) : solver(call, arena) {}
  OPTLAYER_METHOD void run(int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; e++) solver.run(Elements<V>(e, end));
  }
};
#if !defined(OPTLAYER_DEVICE)
template <class S, int W>
struct Course<Pack<S, W>> : Pair<Pack<S, W>> {
  using Pair<Pack<S, W>>::Pair;
};
#endif

template <class V>
OPTLAYER_FUNCTION size_t solve_workspace(const SolveCall& call) {
  Arena arena(nullptr);
  Course<V> course(call, arena);
  return arena.used();
}

template <class V>
OPTLAYER_FUNCTION void solve(const SolveCall& call, int64_t begin, int64_t end, void* workspace) {
  Arena arena(workspace);
  Course<V> course(call, arena);
  course.run(begin, end);
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
