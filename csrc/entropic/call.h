// SPDX-License-Identifier: Apache-2.0
// What the operator of entropic programs asks of an engine (see qp/call.h).
#pragma once

#include "../qp/call.h"

namespace optlayer {
namespace entropic {

// optlayer::entropic_qp (optlayer/entropic/program/operators.py): inputs and outputs are float64, or float32 where
// `single`; state is float64 always. Outputs are contiguous over the B elements.
struct SolveCall {
  int64_t B = 0;
  int n = 0, m = 0, p = 0;
  bool single = false;
  bool diagonal = false;  // P is (1, n), the diagonal of a diagonal one
  Input P, q, G, h, A, b, lb, ub, tau;
  double eps_abs = 0, eps_rel = 0;
  int max_iter = 0;
  bool nan_failures = false;

  void *x = nullptr, *y = nullptr, *z = nullptr, *z_box = nullptr, *s = nullptr, *log_x = nullptr;
  int64_t *status = nullptr, *iterations = nullptr, *weakly_active = nullptr;
  void* lower_share = nullptr;
  void *ray_y = nullptr, *ray_z = nullptr, *ray_box = nullptr;
  double* state = nullptr;

  OPTLAYER_PLAIN bool full() const { return P.data != nullptr && !diagonal; }
};

// Entries of the state of an element.
OPTLAYER_PLAIN int64_t state_size(int64_t n, int64_t k) { return 2 * n + k + 1; }

// optlayer::entropic_kkt_solve: R right-hand sides for each of the B elements, as in qp/call.h.
struct KktCall {
  int64_t B = 0, R = 1;
  int n = 0, m = 0, p = 0;
  bool single = false;
  bool diagonal = false;
  Input P, G, A, state;
  Columns rx, ry, rz, r_box;
  void *ux = nullptr, *uy = nullptr, *uz = nullptr, *u_box = nullptr, *t = nullptr;  // (R, B, size) contiguous

  OPTLAYER_PLAIN bool full() const { return P.data != nullptr && !diagonal; }
};

// The kernels of one instruction set, for as many problems side by side as a register holds; see qp/call.h.
struct Engine {
  int lanes;
  size_t (*solve_workspace)(const SolveCall&);
  void (*solve)(const SolveCall&, int64_t begin, int64_t end, void* workspace);
  size_t (*kkt_workspace)(const KktCall&);
  void (*kkt)(const KktCall&, int64_t begin, int64_t end, void* workspace);
};

}  // namespace entropic
}  // namespace optlayer
