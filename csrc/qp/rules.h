// SPDX-License-Identifier: Apache-2.0
// The plain numbers that steer the method; optlayer/solvers/newton.py and kkt/ say where they come from.
#pragma once

#include "call.h"

namespace optlayer {

struct Rules {
  double eps_abs, eps_rel;
  int max_iter;
  Formulation formulation;
  bool single;              // the answer is rounded to float32 before it is judged
  double proof;             // least gap or fall, relative to the data, that a certificate must prove
  double delta;             // floor of delta: equalities that contradict each other by rounding must not drive y away
  double relative = 1e-9;   // bound on the scaled, purely relative residuals
  double infeasible = 1e-9; // accuracy of certificates

  OPTLAYER_PLAIN explicit Rules(const SolveCall& call)
      : eps_abs(call.eps_abs),
        eps_rel(call.eps_rel),
        max_iter(call.max_iter),
        formulation(call.formulation),
        single(call.single),
        delta(call.single ? 1e-7 : 1e-12) {
    const double eps = eps_abs > eps_rel ? eps_abs : eps_rel, least = call.single ? 5e-7 : 1e-9;
    proof = 0.1 * eps > least ? 0.1 * eps : least;
  }
};

}  // namespace optlayer
