// SPDX-License-Identifier: Apache-2.0
// The first steps of the interior point method, in float32: far from the solution seven digits are plenty, and a register
// holds twice as many of them. Two packs of float64 are one pack here.
//
// A lane arrives when its active set shows (interior.h), and the method takes over in float64, whose own measure decides
// about everything. A lane where nothing gets better any more, or whose multipliers grow as they do if there is no
// feasible point, starts anew in float64: its point would be a bad one to go on from.
//
// In the range space (range.h) a step needs K, g, d and multipliers only: the float32 program has no variables, and K
// comes from the float64 factor of P. K must not have more rows than there are variables: it is singular then, and what
// float32 makes of it is another problem. By the weight split it is the whole program.
#pragma once

#include <utility>

#include "interior.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct Approach;

#if !defined(OPTLAYER_DEVICE)

// By shuffles: a register that is put together in memory keeps its reader waiting.
template <class Half, int... I>
OPTLAYER_INLINE auto joined(Half a, Half b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, I...);
}
template <int START, class Raw, int... I>
OPTLAYER_INLINE auto part(Raw a, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, a, (START + I)...);
}

// Two packs of float64 in one of float32.
template <int W>
OPTLAYER_INLINE Pack<float, 2 * W> narrowed(Pack<double, W> a, Pack<double, W> b) {
  typedef typename Square<W>::Half Half;
  return {joined(__builtin_convertvector(a.v, Half), __builtin_convertvector(b.v, Half),
                 std::make_integer_sequence<int, 2 * W>())};
}

// The first or the second of them.
template <int W2>
OPTLAYER_INLINE Pack<double, W2 / 2> widened(Pack<float, W2> a, int side) {
  typedef std::make_integer_sequence<int, W2 / 2> Count;
  return {__builtin_convertvector(side == 0 ? part<0>(a.v, Count()) : part<W2 / 2>(a.v, Count()),
                                  typename Pack<double, W2 / 2>::Raw)};
}

template <class V>
OPTLAYER_INLINE void narrow(const V* a, const V* b, size_t count, Pack<float, 2 * lanes<V>>* to) {
  for (size_t i = 0; i < count; i++) to[i] = narrowed(a[i], b[i]);
}

template <class V>
struct Approach {
  using F = Pack<float, 2 * lanes<V>>;
  static constexpr int LATE = 8, LIMIT = 40;  // steps without progress, and in all
  static constexpr double LARGE = 1e3;        // multipliers of this size leave the residuals too few of seven digits

  bool ranged = false;
  Program<F> Q;
  Newton<F> newton;
  Path<F> path;
  Mask<F> arrived;

  OPTLAYER_METHOD void lay_out(Arena& arena, int n, int m, int p, bool bounds, bool in_range_space) {
    ranged = in_range_space;
    Q.lay_out(arena, ranged ? 0 : n, m, p);
    newton.lay_out(arena, Q.n, m + p, p, bounds, ranged);
  }

  // Bring two packs of programs on their way, in the lanes of which[0] and which[1].
  OPTLAYER_METHOD void run(const Program<V>& a, const Program<V>& b, const RangeSpace<V>& at_a, const RangeSpace<V>& at_b,
                           Mask<V> which_a, Mask<V> which_b, const Rules& rules) {
    load(a, b);
    if (ranged) {
      RangeSpace<F>& space = newton.space;
      narrow(at_a.K, at_b.K, (size_t)Q.r * space.ldk, space.K);
      narrow(at_a.g, at_b.g, Q.r, space.g);
      space.g0 = narrowed(at_a.g0, at_b.g0);
    }
    newton.begin(Q, rules, ranged);
    Mask<F> moving = narrowed(select(which_a, V(1), V(0)), select(which_b, V(1), V(0))) > F(0);
    moving = moving && newton.start();
    arrived = Mask<F>(false), path = Path<F>();
    const F limit(rules.max_iter < LIMIT ? rules.max_iter : LIMIT);
    Progress<F> progress;
    for (;;) {
      newton.measure(moving);
      const F values[4] = {newton.primal, newton.dual, newton.gap, newton.mu};
      moving = moving && norm(newton.at.v, newton.T) < F(LARGE);
      const F worst = larger(larger(values[0], values[1]), values[2]);
      arrived = arrived || (moving && path.ready(newton, worst, moving));
      progress.look(values, moving);
      moving = moving && !arrived && progress.age < F(LATE) && path.iterations < limit;
      if (!any(moving)) return;
      path.step(newton, moving);
      // delta stays: rounding moves the multipliers of equalities that depend on each other by 1e-7 / delta in a step
      moving = newton.advance(path.rho(), F(PROXIMAL), moving) && moving;
    }
  }

  // The lanes of the first or second pack that have arrived. Their points go to `to`; how they came there.
  OPTLAYER_METHOD Mask<V> arrivals(int side) const { return widened(select(arrived, F(1), F(0)), side) > V(0); }
  OPTLAYER_METHOD Path<V> give(int side, const Program<V>& program, Newton<V>& to) const {
    const Mask<V> here = arrivals(side);
    Point<V>& at = to.at;
    for (int j = 0; j < Q.n; j++)
      at.x[j] = select(here, select(program.fixed[j] > V(0), program.lo[j], widened(newton.at.x[j], side)), at.x[j]);
    for (int i = 0; i < to.T; i++) {
      at.v[i] = select(here, widened(newton.at.v[i], side), at.v[i]);
      at.s[i] = select(here, widened(newton.at.s[i], side), at.s[i]);
      to.iz[i] = select(here, widened(newton.iz[i], side), to.iz[i]);
      to.is[i] = select(here, widened(newton.is[i], side), to.is[i]);
    }
    Path<V> by;
    by.iterations = select(here, widened(path.iterations, side), by.iterations);
    by.reference = select(here, widened(path.reference, side), by.reference);
    by.proximal = select(here, widened(path.proximal, side), by.proximal);
    by.patience = select(here, V(-1), by.patience);
    return by;
  }

 private:
  OPTLAYER_METHOD void load(const Program<V>& a, const Program<V>& b) {
    const int n = Q.n, r = Q.r;
    narrow(a.P, b.P, (size_t)n * Q.ld, Q.P);
    narrow(a.C, b.C, (size_t)r * Q.ld, Q.C);
    narrow(a.q, b.q, n, Q.q), narrow(a.D, b.D, n, Q.D), narrow(a.fixed, b.fixed, n, Q.fixed);
    narrow(a.lo, b.lo, n, Q.lo), narrow(a.hi, b.hi, n, Q.hi);
    narrow(a.has_lo, b.has_lo, n, Q.has_lo), narrow(a.has_hi, b.has_hi, n, Q.has_hi);
    narrow(a.d, b.d, r, Q.d), narrow(a.E, b.E, r, Q.E), narrow(a.live, b.live, r, Q.live);
    Q.c = narrowed(a.c, b.c), Q.boxes = n > 0 && (a.boxes || b.boxes);
  }
};

#endif

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
