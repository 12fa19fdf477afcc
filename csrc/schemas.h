// SPDX-License-Identifier: Apache-2.0
// What the operators of the compiled engine are called and take. One source of a library includes it.
#pragma once

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(optlayer_native, m) {
  // optlayer::qp with the warm start at the end; formulation is 0 auto, 1 split, 2 range. `unsolved` counts the elements
  // whose status is UNSOLVED: the engine leaves them to another, and only their status is written. It is -1 where that is
  // to be looked up.
  m.def(
      "qp(Tensor? P, Tensor q, Tensor? G, Tensor? h, Tensor? A, Tensor? b, Tensor? lb, Tensor? ub, "
      "float eps_abs, float eps_rel, int max_iter, int formulation, bool nan_failures, bool keep_factor, "
      "Tensor? x0=None, Tensor? y0=None, Tensor? z0=None, Tensor? z_box0=None) -> "
      "(Tensor x, Tensor y, Tensor z, Tensor z_box, Tensor s, Tensor status, Tensor iterations, Tensor weakly_active, "
      "Tensor lower_share, Tensor ray, Tensor state, Tensor factor, Tensor index, int unsolved)");
  // optlayer::kkt_solve.
  m.def(
      "kkt_solve(Tensor? P, Tensor? G, Tensor? A, Tensor state, Tensor factor, Tensor index, "
      "Tensor rx, Tensor ry, Tensor rz, Tensor r_box) -> (Tensor ux, Tensor uy, Tensor uz, Tensor u_box)");
  // The gradients of P, G, A for w = (x, y, z) and u, all with the same batch dimensions: each is 0 not wanted (an empty
  // tensor), 1 one for every element, 2 the sum over all of them.
  m.def(
      "pull(Tensor x, Tensor y, Tensor z, Tensor ux, Tensor uy, Tensor uz, int P, int G, int A) -> "
      "(Tensor dP, Tensor dG, Tensor dA)");
  // Both at once, for one right-hand side an element; y and z may be absent where G and A want nothing.
  m.def(
      "kkt_pull(Tensor? P, Tensor? G, Tensor? A, Tensor state, Tensor factor, Tensor index, "
      "Tensor rx, Tensor ry, Tensor rz, Tensor r_box, Tensor x, Tensor? y, Tensor? z, int dP, int dG, int dA) -> "
      "(Tensor ux, Tensor uy, Tensor uz, Tensor u_box, Tensor P_bar, Tensor G_bar, Tensor A_bar)");
  // optlayer::entropic_qp without its factor; `unsolved` as above.
  m.def(
      "entropic_qp(Tensor? P, Tensor q, Tensor? G, Tensor? h, Tensor? A, Tensor? b, Tensor? lb, Tensor? ub, Tensor tau, "
      "float eps_abs, float eps_rel, int max_iter, bool nan_failures) -> "
      "(Tensor x, Tensor y, Tensor z, Tensor z_box, Tensor s, Tensor log_x, Tensor status, Tensor iterations, "
      "Tensor weakly_active, Tensor lower_share, Tensor ray_y, Tensor ray_z, Tensor ray_box, Tensor state, int unsolved)");
  // optlayer::entropic_kkt_solve, which makes the factor anew.
  m.def(
      "entropic_kkt_solve(Tensor? P, Tensor? G, Tensor? A, Tensor state, Tensor rx, Tensor ry, Tensor rz, Tensor r_box) "
      "-> (Tensor ux, Tensor uy, Tensor uz, Tensor u_box, Tensor t)");
  // What was built and what runs, as lines "key=value".
  m.def("info() -> str");
}
