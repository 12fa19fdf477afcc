// SPDX-License-Identifier: Apache-2.0
// The interior point method's view of a program: a point, its residuals, and one Newton step from it
// (optlayer/solvers/newton.py). With E = [G; -I; I], e = [h; -lb; ub],
//
//     P x + q + A'y + E'z = 0,      A x = b,      E x + s = e,      s_i z_i = 0,      s, z >= 0
//
// is followed along s_i z_i = mu -> 0. A step factorises one matrix and solves with it twice. rho and delta, the terms of
// the proximal method of multipliers, stand in the matrix only: the residuals are those of the problem itself.
//
// Two forms of the system: the weight split (split.h) for any program, and the range space (range.h), where x follows
// from the multipliers, stationarity always holds and primal and dual steps are of one length.
#pragma once

#include "range.h"
#include "rules.h"
#include "split.h"

namespace optlayer {
namespace OPTLAYER_ISA {

static constexpr double PROXIMAL = 1e-6;                               // rho and delta at the start; both fall with mu
static constexpr double RHO_MIN = 1e-14;                               // floor of rho
static constexpr double STEP = 0.95, LONG_STEP = 0.9999, LONG = 0.9;   // fraction to the boundary, beyond 0.9
template <class V>
constexpr double TINY = sizeof(Scalar<V>) == 8 ? 1e-40 : 1e-30;        // floor of s and z
static constexpr double START_FLOOR = 1e-2;                            // of s and z in the starting point
static constexpr double FAR = 1e6;     // scaled right-hand sides beyond this do not shape the starting point
static constexpr double ABSURD = 1e6;  // a warm start so many times larger than the cold one is none
template <class V>
constexpr double NONZERO = sizeof(Scalar<V>) == 8 ? 1e-300 : 1e-30;
static constexpr double DRIFT = 1e-6;  // relative residuals below which C x is computed and not updated

template <class V>
struct Newton {
  static constexpr double CAP = 100;    // of the weight split, on data scaled to order one
  // An inequality that leans so far one way shows its side. With 1000 half as many first attempts fail, but all come a
  // fourth of a step later (random programs, n = 10 to 100).
  static constexpr double CLEAR = 100;

  const Program<V>* Q;
  const Rules* rules;
  bool ranged;
  bool boxes;  // some lane has bounds, and they take part: in the range space there are none
  int n, r, p, T;  // T rows: C and, where there are any, the bounds
  int most;        // of T in any lane
  V count;         // inequalities of each lane, at least 1
  Mask<V> alone;   // lanes without any: they take full Newton steps
  Mask<V> fixed;   // lanes with fixed variables

  Point<V> at;
  RangeSpace<V> space;
  Split<V> split;  // its F and inv_f also hold the range space's factor
  V *e, *Ex;       // (T) right-hand sides and products of all rows
  V *rd, *rz;      // (n), (T) residuals
  V *Px, *Gz, *Ay; // (n)
  V *w, *iz, *is, *rc, *c, *dz, *ds;  // (T) weights, 1/z, 1/s before the last step, complementarity over z, right-hand
                                      // side, directions
  V *unit, *dual_unit;           // (T), (n): from residuals in scaled units to the caller's
  V *dx, *diagonal, *free;       // (n)

  V mu, primal, dual, gap;  // mean complementarity; scaled, purely relative residuals
  V contract;               // the largest unscaled residual in units of its tolerance: met at 1

  // `bounds`: there may be some; `in_range_space`: that may be the form.
  OPTLAYER_METHOD void lay_out(Arena& arena, int n_, int r_, int p_, bool bounds, bool in_range_space) {
    n = n_, r = r_, p = p_, most = bounds ? r + 2 * n : r;
    at.lay_out(arena, n, r, most);
    split.lay_out(arena, n, r, r);
    space.lay_out(arena, split, in_range_space);
    for (V** vector : {&e, &Ex, &rz, &w, &iz, &is, &rc, &c, &dz, &ds, &unit}) *vector = arena.take<V>(most);
    for (V** vector : {&rd, &Px, &Gz, &Ay, &dx, &diagonal, &free, &dual_unit}) *vector = arena.take<V>(n);
  }

  OPTLAYER_METHOD void begin(const Program<V>& program, const Rules& given, bool in_range_space) {
    Q = &program, rules = &given, ranged = in_range_space;
    boxes = Q->boxes && !ranged, T = boxes ? r + 2 * n : r;
    count = V(0);
    for (int i = own(0); i < r; i += TEAM) e[i] = Q->d[i], unit[i] = V(1) / Q->E[i];
    for (int j = own(0); j < n; j += TEAM) dual_unit[j] = V(1) / (Q->c * Q->D[j]);
    for (int i = own(p); i < r; i += TEAM) count += Q->live[i];
    for (int j = own(0); j < n; j += TEAM) free[j] = V(1) - Q->fixed[j];
    for (int i = own(T); i < most; i += TEAM) at.v[i] = V(0), at.s[i] = V(1);
    for (int i = own(0); i < most; i += TEAM) iz[i] = is[i] = V(1);
    if (boxes)
      for (int j = own(0); j < n; j += TEAM) {
        e[r + j] = -Q->lo[j], e[r + n + j] = Q->hi[j];
        unit[r + j] = unit[r + n + j] = Q->D[j];
        count += Q->has_lo[j] + Q->has_hi[j];
      }
    count = team_sum(count);
    alone = count == V(0);
    V sum(0);
    for (int j = own(0); j < n; j += TEAM) sum += Q->fixed[j];
    fixed = team_sum(sum) > V(0);
    sync();
    count = larger(count, V(1));
    primal = dual = gap = V(0);  // nothing is measured: the first time C x is computed
  }

  // E x (and A x) for all rows, in the lanes of `which`. In the range space C x follows from v.
  OPTLAYER_METHOD void rows_of(const V* x, Mask<V> which = Mask<V>(true)) {
    if (ranged) {
      if (!any(which)) return;
      product(space.K, space.ldk, r, r, at.v, rc);
      for (int i = own(0); i < r; i += TEAM) Ex[i] = select(which, -(space.g[i] + rc[i]), Ex[i]);
    } else {
      product(Q->C, Q->ld, r, n, x, Ex);
    }
    if (!boxes) return;
    for (int j = own(0); j < n; j += TEAM) Ex[r + j] = -x[j], Ex[r + n + j] = x[j];
    sync();
  }

  // (dx, dz) with (P + rho) dx + E'dz = a, E dx - dz/w = c for all rows, equalities included; a = -rd in the split.
  OPTLAYER_METHOD void solve() {
    if (ranged) {
      for (int i = own(0); i < r; i += TEAM) dz[i] = -c[i];
      lower_solve(split.F, split.ldf, split.inv_f, r, dz);
      lower_solve_transposed(split.F, split.ldf, split.inv_f, r, dz);
      return;
    }
    for (int j = own(0); j < n; j += TEAM) dx[j] = -rd[j];
    sync();
    if (boxes)
      for (int j = own(0); j < n; j += TEAM) dx[j] += w[r + n + j] * c[r + n + j] - w[r + j] * c[r + j];
    split.solve(*Q, boxes ? free : nullptr, dx, c, dx, dz);
    if (!boxes) return;
    for (int j = own(0); j < n; j += TEAM) {
      dz[r + j] = -w[r + j] * (dx[j] + c[r + j]);
      dz[r + n + j] = w[r + n + j] * (dx[j] - c[r + n + j]);
    }
    sync();
  }

  // Factorise for the weights w (T), of which the range space wants the reciprocals.
  OPTLAYER_METHOD Mask<V> factor(V rho) {
    if (ranged) {
      Mask<V> ok = cholesky(space.K, space.ldk, w, split.F, split.ldf, split.inv_f, r);
      V bump(0);
      for (int attempt = 0; attempt < 4 && !all(ok); attempt++) {
        bump = select(ok, bump, V(bump_of<V>(attempt)));
        for (int i = own(0); i < r; i += TEAM) dz[i] = w[i] + bump * (w[i] + space.K[i * space.ldk + i]);
        ok = cholesky(space.K, space.ldk, dz, split.F, split.ldf, split.inv_f, r);
      }
      return ok;
    }
    sync();
    for (int j = own(0); j < n; j += TEAM) diagonal[j] = rho;
    if (boxes)
      for (int j = own(0); j < n; j += TEAM) diagonal[j] += w[r + j] + w[r + n + j];
    split.weigh(w, CAP);
    return split.factor(*Q, diagonal, boxes ? free : nullptr);
  }

  // Mehrotra's starting point, from the system with all weights one; rows far from the origin of the scaled problem
  // are left out of it and get slacks and multipliers afterwards.
  OPTLAYER_METHOD Mask<V> start() {
    V* near = iz;
    for (int i = own(0); i < T; i += TEAM) {
      near[i] = i < p ? V(1) : select(e[i] <= V(FAR), Q->live[i], V(0));
      w[i] = i < p ? V(1 / PROXIMAL) : near[i] * V(1 / (1 + PROXIMAL));
      if (ranged) w[i] = i < p ? V(PROXIMAL) : select(near[i] > V(0), V(1 + PROXIMAL), V(LARGEST_RECIPROCAL<V>));
      c[i] = ranged ? e[i] + space.g[i] : e[i];
    }
    for (int j = own(0); j < n; j += TEAM) {
      rd[j] = Q->q[j];
      at.x[j] = select(free[j] > V(0), V(0), Q->lo[j]);
    }
    if (any(fixed)) {  // their value is part of the right-hand sides
      product_transposed(Q->P, Q->ld, n, n, at.x, rd);
      product(Q->C, Q->ld, r, n, at.x, Ex);
      for (int i = own(0); i < r; i += TEAM) c[i] -= Ex[i];
      for (int j = own(0); j < n; j += TEAM) rd[j] *= free[j];
    }
    const Mask<V> ok = factor(V(PROXIMAL));
    solve();
    for (int i = own(0); i < T; i += TEAM) at.v[i] = dz[i];
    if (!ranged)
      for (int j = own(0); j < n; j += TEAM) at.x[j] += free[j] * dx[j];
    rows_of(at.x);
    V shift_s(0), shift_z(0), product_sz(0), sum_s(0), sum_z(0), inside(0);
    for (int i = own(p); i < T; i += TEAM) {
      const V z = at.v[i];
      shift_s = larger(select(near[i] > V(0), V(1.5) * z, V(0)), shift_s);
      shift_z = larger(select(near[i] > V(0), V(-1.5) * z, V(0)), shift_z);
      inside += near[i];
    }
    shift_s = team_max(shift_s), shift_z = team_max(shift_z), inside = team_sum(inside);
    for (int i = own(p); i < T; i += TEAM) {
      const V z = at.v[i];
      at.s[i] = shift_s - z, at.v[i] = shift_z + z;
      product_sz += near[i] * at.s[i] * at.v[i];
    }
    const V flat = select(team_sum(product_sz) <= V(1e-12), V(1), V(0));
    product_sz = V(0);
    for (int i = own(p); i < T; i += TEAM) {
      at.s[i] = near[i] * (at.s[i] + flat), at.v[i] = near[i] * (at.v[i] + flat);
      product_sz += at.s[i] * at.v[i], sum_s += at.s[i], sum_z += at.v[i];
    }
    product_sz = team_sum(product_sz), sum_s = team_sum(sum_s), sum_z = team_sum(sum_z);
    const V more_s = V(0.5) * product_sz / larger(sum_z, V(NONZERO<V>));
    const V more_z = V(0.5) * product_sz / larger(sum_s, V(NONZERO<V>));
    product_sz = V(0);
    for (int i = own(p); i < T; i += TEAM) {
      at.s[i] = near[i] * larger(at.s[i] + more_s, V(START_FLOOR));
      at.v[i] = near[i] * larger(at.v[i] + more_z, V(START_FLOOR));
      product_sz += at.s[i] * at.v[i];
    }
    product_sz = team_sum(product_sz);
    const V mean = larger(product_sz / larger(inside, V(1)), V(START_FLOOR));
    for (int i = own(0); i < p; i += TEAM) at.s[i] = V(1);
    for (int i = own(p); i < T; i += TEAM) {
      const Mask<V> apart = near[i] == V(0);
      const V away = larger(e[i] - Ex[i], V(1));
      at.s[i] = select(apart, away, at.s[i]), at.v[i] = select(apart, mean / away, at.v[i]);
      const Mask<V> absent = Q->live[i] == V(0);
      at.s[i] = select(absent, V(1), at.s[i]), at.v[i] = select(absent, V(TINY<V>), at.v[i]);
    }
    return ok;
  }

  // Take a warm start, x in dx (n) and multipliers in dz (T) with slacks to be mended, on the lanes where it is no worse
  // by far than the cold one.
  OPTLAYER_METHOD void warm_start() {
    V usual(0), offered(0), sum(0);
    V* x = dx;
    for (int j = own(0); j < n && !ranged; j += TEAM) {
      x[j] = select(free[j] > V(0), x[j], Q->lo[j]);
      usual = larger(absolute(at.x[j]), usual), offered = larger(absolute(x[j]), offered);
      sum += x[j];
    }
    V* kept = ds;  // rows_of reads at.v in the range space
    for (int i = own(0); i < T; i += TEAM) {
      kept[i] = at.v[i], at.v[i] = i < p ? dz[i] : larger(dz[i], V(START_FLOOR));
      sum += Q->live[i] * dz[i];
    }
    rows_of(x);
    for (int i = own(0); i < T; i += TEAM) {
      const V live = Q->live[i], s = larger(e[i] - Ex[i], V(START_FLOOR));
      usual = larger(live * absolute(kept[i]), usual), offered = larger(live * absolute(at.v[i]), offered);
      if (i >= p) usual = larger(live * at.s[i], usual), offered = larger(live * s, offered);
    }
    usual = team_max(usual);
    offered = select(finite(team_sum(sum)), team_max(offered), V(INFINITY));
    const Mask<V> take = offered < V(ABSURD) * (V(1) + usual);
    for (int i = own(0); i < T; i += TEAM) {
      const Mask<V> there = take && (i < p ? Mask<V>(true) : Q->live[i] > V(0));
      at.v[i] = select(there, at.v[i], kept[i]);
      if (i >= p) at.s[i] = select(there, larger(e[i] - Ex[i], V(START_FLOOR)), at.s[i]);
    }
    if (!ranged)
      for (int j = own(0); j < n; j += TEAM) at.x[j] = select(take, x[j], at.x[j]);
  }

  // Residuals at the point: scaled for the method, unscaled for the contract.
  OPTLAYER_METHOD void measure(Mask<V> which) {
    const V* x = at.x;
    rows_of(x, which && larger(larger(primal, dual), gap) < V(DRIFT));
    V complementarity(0), support(0), worst_p(0), raw_p(0), size_p(1), raw_size_p(0);
    for (int i = own(0); i < r; i += TEAM) {
      const V v = at.v[i], d = e[i], live = Q->live[i];
      const V excess = live * (Ex[i] - d);
      V violation;
      if (i < p) {
        rz[i] = excess;
        violation = absolute(excess);
      } else {
        rz[i] = excess + live * at.s[i];
        complementarity += at.s[i] * v;
        violation = positive(excess);
      }
      support += d * v;
      worst_p = larger(absolute(rz[i]), worst_p);
      raw_p = larger(violation * unit[i], raw_p);
      const V size = live * larger(absolute(Ex[i]), absolute(d));
      size_p = larger(size, size_p);
      raw_size_p = larger(size * unit[i], raw_size_p);
    }
    for (int i = own(r); i < T; i += TEAM) {
      const int j = i < r + n ? i - r : i - r - n;
      const V live = Q->live[i], excess = live * (Ex[i] - e[i]), size = live * absolute(x[j]);
      rz[i] = excess + live * at.s[i];
      complementarity += live * at.s[i] * at.v[i];
      support += live * e[i] * at.v[i];
      worst_p = larger(absolute(rz[i]), worst_p);
      raw_p = larger(positive(excess) * unit[i], raw_p);
      size_p = larger(size, size_p);
      raw_size_p = larger(size * unit[i], raw_size_p);
    }
    complementarity = team_sum(complementarity);
    mu = complementarity / count;

    V xPx, qx, worst_d(0), raw_d(0), size_d(1e-8), raw_size_d(0), spread;
    if (ranged) {  // stationarity holds by construction
      V gv(0), vKv(0);
      for (int i = own(0); i < r; i += TEAM) gv += space.g[i] * at.v[i], vKv -= at.v[i] * (Ex[i] + space.g[i]);
      gv = team_sum(gv), vKv = team_sum(vKv);
      xPx = space.g0 + V(2) * gv + vKv, qx = -(space.g0 + gv), spread = absolute(qx);
    } else {
      product(Q->P, Q->ld, n, n, x, Px);
      for (int j = own(0); j < n; j += TEAM) Gz[j] = Ay[j] = V(0);
      product_transposed(Q->C, Q->ld, p, n, at.v, Ay);
      product_transposed(Q->C + (size_t)p * Q->ld, Q->ld, r - p, n, at.v + p, Gz);
      xPx = V(0), qx = V(0), spread = V(0);
      for (int j = own(0); j < n; j += TEAM) {
        const V box = boxes ? at.z_hi[j] - at.z_lo[j] : V(0), q = Q->q[j];
        const V sum = Px[j] + q + Ay[j] + Gz[j] + box;
        support -= Q->fixed[j] * Q->lo[j] * sum;  // the multiplier of a fixed variable is what stationarity leaves
        rd[j] = free[j] * sum;
        const V parts = larger(larger(absolute(Px[j]), absolute(q)), larger(absolute(Ay[j]), absolute(Gz[j])));
        const V size = free[j] * larger(parts, absolute(box));
        worst_d = larger(absolute(rd[j]), worst_d);
        raw_d = larger(absolute(rd[j]) * dual_unit[j], raw_d);
        size_d = larger(larger(size, free[j] * absolute(Gz[j] + box)), size_d);
        raw_size_d = larger(size * dual_unit[j], raw_size_d);
        xPx += x[j] * Px[j], qx += x[j] * q, spread += absolute(x[j] * q);
      }
    }
    worst_p = team_max(worst_p), raw_p = team_max(raw_p), size_p = team_max(size_p), raw_size_p = team_max(raw_size_p);
    support = team_sum(support);
    if (!ranged) {
      worst_d = team_max(worst_d), raw_d = team_max(raw_d), size_d = team_max(size_d), raw_size_d = team_max(raw_size_d);
      xPx = team_sum(xPx), qx = team_sum(qx), spread = team_sum(spread);
    }
    const V objective = V(0.5) * xPx + qx, cost = V(1) / Q->c;
    const V size_g = larger(larger(absolute(objective), V(1e-2) * spread), V(1e-4));
    primal = worst_p / size_p, dual = worst_d / size_d, gap = complementarity / size_g;
    const V values = smaller(absolute(objective), absolute(V(0.5) * xPx + support)) * cost;
    contract = larger(in_tolerance(raw_p, raw_size_p), in_tolerance(raw_d, raw_size_d));
    contract = larger(in_tolerance(absolute(xPx + qx + support) * cost, values), contract);
    const V sum = primal + dual + gap;
    contract = select(sum == sum, contract, V(INFINITY));
  }

  OPTLAYER_METHOD V in_tolerance(V residual, V size) const {
    const double least = rules->eps_abs > NONZERO<V> ? rules->eps_abs : NONZERO<V>;
    return residual / larger(V(rules->eps_rel) * size, V(least));
  }

  // One predictor-corrector step (Mehrotra, SIAM J. Optim. 2, 1992) of the lanes that are `moving`; returns where the
  // factorisation succeeded.
  OPTLAYER_METHOD Mask<V> advance(V rho, V delta, Mask<V> moving) {
    for (int i = own(0); i < p; i += TEAM) w[i] = ranged ? delta : V(1) / delta, c[i] = -rz[i];
    for (int i = own(p); i < T; i += TEAM) {
      const V z = at.v[i], s = at.s[i], live = Q->live[i];
      iz[i] = select(moving, V(1) / z, iz[i]), is[i] = select(moving, V(1) / s, is[i]);
      if (ranged)
        w[i] = select(moving, select(live > V(0), s * iz[i] + delta, V(LARGEST_RECIPROCAL<V>)), V(1));
      else
        w[i] = select(moving, live * z / (s + delta * z), live);
      c[i] = live * (s - rz[i]);
    }
    const Mask<V> ok = factor(rho);
    solve();
    V worst_s(-1), worst_z(-1);
    for (int i = own(p); i < T; i += TEAM) {
      const V live = Q->live[i];
      dz[i] *= live;
      ds[i] = -live * at.s[i] * (V(1) + dz[i] * iz[i]);
      worst_s = smaller(ds[i] * is[i], worst_s), worst_z = smaller(dz[i] * iz[i], worst_z);
    }
    worst_s = team_min(worst_s), worst_z = team_min(worst_z);
    if (ranged) worst_s = worst_z = smaller(worst_s, worst_z);
    V step_s = V(-1) / worst_s, step_z = V(-1) / worst_z, affine(0);
    for (int i = own(p); i < T; i += TEAM) affine += Q->live[i] * (at.s[i] + step_s * ds[i]) * (at.v[i] + step_z * dz[i]);
    V sigma = positive(team_sum(affine) / count) / larger(mu, V(NONZERO<V>));
    sigma = smaller(sigma * sigma * sigma, V(1));
    const V target = sigma * mu;
    for (int i = own(p); i < T; i += TEAM) {
      // complementarity s z + ds dz - sigma mu of the corrector, over z
      rc[i] = at.s[i] + (ds[i] * dz[i] - target) * iz[i];
      c[i] = Q->live[i] * (rc[i] - rz[i]);
    }
    solve();
    worst_s = worst_z = V(-1);
    for (int i = own(p); i < T; i += TEAM) {
      const V live = Q->live[i];
      dz[i] *= live;
      ds[i] = -live * (rc[i] + at.s[i] * dz[i] * iz[i]);
      worst_s = smaller(ds[i] * is[i], worst_s), worst_z = smaller(dz[i] * iz[i], worst_z);
    }
    worst_s = team_min(worst_s), worst_z = team_min(worst_z);
    if (ranged) worst_s = worst_z = smaller(worst_s, worst_z);
    step_s = fraction(V(-1) / worst_s), step_z = fraction(V(-1) / worst_z);
    if (ranged) {  // K dv = -c - dv / w: C x moves without a product with K
      const V step = select(moving, step_z, V(0));
      for (int i = own(0); i < r; i += TEAM) Ex[i] += step * (c[i] + w[i] * dz[i]);
    }
    if (!ranged)
      for (int j = own(0); j < n; j += TEAM)
        at.x[j] = select(moving, at.x[j] + step_s * (boxes ? free[j] * dx[j] : dx[j]), at.x[j]);
    for (int i = own(0); i < p; i += TEAM) at.v[i] = select(moving, at.v[i] + step_z * dz[i], at.v[i]);
    for (int i = own(p); i < T; i += TEAM) {
      at.s[i] = select(moving, larger(at.s[i] + step_s * ds[i], V(TINY<V>)), at.s[i]);
      at.v[i] = select(moving, larger(at.v[i] + step_z * dz[i], V(TINY<V>)), at.v[i]);
    }
    return ok;
  }

  // How much more inequality i behaves like an active one than like one that is not: z/s, and to the fourth power what
  // the last step made of z over what it made of s, of which one tends to 1 and the other to 0 (A. S. El-Bakry,
  // R. A. Tapia and Y. Zhang, SIAM Review 36, 1994).
  OPTLAYER_METHOD V leaning(int i) const {
    const V z = at.v[i], s = at.s[i], trend = z * iz[i] / (s * is[i]), squared = trend * trend;
    return z / s * (squared * squared);
  }

  // Where all inequalities show their side.
  OPTLAYER_METHOD Mask<V> clear() const {
    V least(INFINITY);
    for (int i = own(p); i < T; i += TEAM) {
      const V lean = leaning(i);
      least = smaller(select(Q->live[i] > V(0), larger(lean, V(1) / lean), V(INFINITY)), least);
    }
    return team_min(least) > V(CLEAR);
  }

  OPTLAYER_METHOD V fraction(V step) const {
    return select(alone, V(1), step * select(step > V(LONG), V(LONG_STEP), V(STEP)));
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
