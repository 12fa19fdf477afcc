// SPDX-License-Identifier: Apache-2.0
// What a point leaves undone, and what it proves (optlayer/entropic/program/interior_point.py).
#pragma once

#include "start.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace entropic {

static constexpr double GAP = 1e4;     // gaps count this many times: x is off by the root of the gap near weak activity
static constexpr double FLOOR = 1e-6;  // rounding may excuse no larger residual
static constexpr double PROOF = 1e-8;  // a certificate excludes every feasible x up to 1e8 times the size of the iterate
static constexpr double PROOF_OF_ROUNDING = 1e-5;  // and up to 1e5 times where r < 0 is no more than the rounding of r = 0

// Stationarity with v, rows (Ax - b, Gx + s - h) and bounds (x + s_upper - ub, lb - x + s_lower). `error` is relative to
// the largest x, `size`, and to tau; rounding alone may leave `floor`.
template <class V>
struct Residuals {
  V *stationarity, *rows, *upper, *lower;
  V* forces;  // (n): A'y + G'z
  V *inner, *Gz;  // scratch (n)
  V error, floor, size;

  OPTLAYER_METHOD void lay_out(Arena& arena, int n, int k) {
    for (V** vector : {&stationarity, &upper, &lower, &forces, &inner, &Gz}) *vector = arena.take<V>(n);
    rows = arena.take<V>(k);
  }

  // `least` bounds the largest x from below where there are no equalities.
  OPTLAYER_METHOD void measure(const Program<V>& Q, const Point<V>& at, V least) {
    const int n = Q.n, p = Q.p, k = Q.k;
    V largest(0);
    for (int j = own(0); j < n; j += TEAM) {
      inner[j] = Q.free[j] * at.x[j], forces[j] = Gz[j] = V(0);
      largest = larger(inner[j], largest);
    }
    largest = team_max(largest);
    if (p == 0) largest = larger(largest, least);
    size = largest;
    const V unit = V(1) / largest;
    product(Q.C, Q.ld, k, n, inner, rows);
    product_transposed(Q.C, Q.ld, p, n, at.rows, forces);
    product_transposed(Q.C + (size_t)p * Q.ld, Q.ld, k - p, n, at.rows + p, Gz);
    Q.times_P(inner, stationarity);
    V dual(0), excess(0), bounds(0), gap(0), weight(0), lightest(INFINITY);
    floor = V(0);
    for (int j = own(0); j < n; j += TEAM) {
      const V x = at.x[j], tau = Q.tau[j], Px = stationarity[j];
      V force = Px + Q.q[j] + forces[j] + Gz[j];
      V terms = absolute(Q.q[j]) + absolute(forces[j]) + absolute(Gz[j]) + absolute(Px);
      if (Q.full) terms += sizes_of_P(Q, j);
      if (Q.uppers) {
        const V z = at.z_upper[j], slack = at.s_upper[j];
        force += z, terms += z, gap += slack * z;
        // x + slack first: where the slack is below the rounding of x, nothing is left of it, nor of the violation
        upper[j] = Q.upper[j] * ((x + slack) - Q.ub[j]);
        bounds = larger(absolute(upper[j]), bounds);
      }
      if (Q.lowers) {
        const V z = at.z_lower[j], slack = at.s_lower[j];
        force -= z, terms += z, gap += slack * z;
        lower[j] = -Q.lower[j] * ((x - slack) - Q.lb[j]);
        bounds = larger(absolute(lower[j]), bounds);
      }
      forces[j] += Gz[j];
      const V free = Q.free[j], real = free * (force + tau * (logarithm(x) + V(1)));
      const V share = x / tau;
      dual = worst(absolute(share * real), dual);
      floor = larger(free * terms * share, floor);
      weight += tau * inner[j], lightest = smaller(tau, lightest);
      stationarity[j] = real - at.v[j];
    }
    V equalities(0), sides(0);
    for (int i = own(0); i < k; i += TEAM) {
      V left = rows[i] - Q.d[i];
      if (i < p) {
        equalities = larger(absolute(Q.d[i]), equalities), excess = worst(absolute(left), excess);
      } else {
        left += at.s[i], sides = worst(absolute(left), sides), gap += at.s[i] * at.rows[i];
      }
      rows[i] = left;
    }
    equalities = larger(team_max(equalities), largest), excess = team_worst(excess), sides = team_worst(sides);
    dual = team_worst(dual), bounds = team_max(bounds), gap = team_sum(gap), weight = team_sum(weight);
    weight = larger(weight, team_min(lightest) * largest);
    error = worst(dual * unit, worst(excess / equalities, worst(worst(sides, bounds) * unit, V(GAP) * gap / weight)));
    floor = smaller(V(8 * EPS) * team_max(floor) * unit, V(FLOOR));
  }

  // Whether multipliers of the rows and bounds, z >= 0, prove that there is no feasible x: with r = A'y + G'z + z_upper -
  // z_lower >= 0 and t = -(b'y + h'z + ub'z_upper - lb'z_lower) > 0 there is none (Farkas), for x >= 0 is a constraint.
  // `forces` (n) is A'y + G'z.
  OPTLAYER_METHOD Mask<V> prove(const Program<V>& Q, const V* multipliers, const V* z_upper, const V* z_lower,
                                const V* products, double proof) const {
    V t(0), terms(0), lack(0), ulp(0), asked(size);  // every feasible x is as large as what an equality or a budget asks for
    for (int i = own(0); i < Q.k; i += TEAM) {
      t -= Q.given[i] * multipliers[i], terms += Q.size[i] * absolute(multipliers[i]);
      ulp = larger(V(EPS) * absolute(multipliers[i]), ulp);
      asked = larger(i < Q.p ? absolute(Q.given[i]) : -Q.given[i], asked);
    }
    for (int j = own(0); j < Q.n; j += TEAM) {
      V r = products[j];
      if (Q.uppers) {
        const V value = Q.ub[j] * z_upper[j];
        r += z_upper[j], t -= value, terms += value;
      }
      if (Q.lowers) {
        const V value = Q.lb[j] * z_lower[j];
        r -= z_lower[j], t += value, terms += value;
      }
      lack = larger(-Q.free[j] * r, lack);
    }
    t = team_sum(t), terms = team_sum(terms), lack = team_max(lack), ulp = team_max(ulp);
    const V most = team_max(asked) * V(Q.n), sure = select(lack <= V(4) * ulp, V(PROOF_OF_ROUNDING), V(PROOF));
    return t > V(proof) * terms && lack * most < sure * t;
  }

 private:
  // The larger one; NaN where either is.
  static OPTLAYER_MEMBER V worst(V a, V b) { return select(a != a, a, larger(a, b)); }
  static OPTLAYER_MEMBER V team_worst(V a) { return select(team_any(a != a), V(NAN), team_max(a)); }

  // |P| x.
  OPTLAYER_METHOD V sizes_of_P(const Program<V>& Q, int j) const {
    V sum(0);
    for (int i = 0; i < Q.n; i++) add_product(sum, absolute(Q.P[(size_t)i * Q.ld + j]), inner[i]);
    return sum;
  }
};

}  // namespace entropic
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
