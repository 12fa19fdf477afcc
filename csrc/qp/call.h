// SPDX-License-Identifier: Apache-2.0
// What the operators ask of an engine: plain pointers and numbers, no torch. library.cpp fills these records from
// tensors and every instruction set's copy of the kernels (qp/cpu/engine.cpp) answers them.
//
// All arrays are dense inside an element; element e of the batch begins at `data + offset(e)` values.
#pragma once

#include <stddef.h>
#include <stdint.h>

// These records are compiled for several instruction sets: a function in them must not exist as a symbol, or the linker
// would keep whichever copy it meets first.
#if defined(__CUDACC__)
#define OPTLAYER_PLAIN __host__ __device__ __forceinline__
#else
#define OPTLAYER_PLAIN __attribute__((always_inline)) inline
#endif

namespace optlayer {

// Entries of a lower triangle, which lies row after row in the caller's arrays, and of the two in a factor that is kept.
OPTLAYER_PLAIN int64_t triangle(int64_t rows) { return rows * (rows + 1) / 2; }
OPTLAYER_PLAIN int64_t factor_size(int64_t n, int64_t slots) { return triangle(n) + triangle(slots); }

// One tensor argument; `data` is null where the block is absent. float32 and float64 are told apart by the call.
struct Input {
  const void* data = nullptr;
  int64_t stride = 0;                // values from one element to the next: 0 where the batch shares one
  const int64_t* offsets = nullptr;  // of each element instead, where no single stride will do

  OPTLAYER_PLAIN int64_t offset(int64_t element) const { return offsets != nullptr ? offsets[element] : element * stride; }
  OPTLAYER_PLAIN bool shared() const { return data == nullptr || (offsets == nullptr && stride == 0); }
};

enum class Formulation : int { automatic = 0, split = 1, range = 2 };

// optlayer/status.py has the same numbers.
enum Status : int64_t {
  UNSOLVED = 0,
  SOLVED = 1,
  PRIMAL_INFEASIBLE = 2,
  DUAL_INFEASIBLE = 3,
  ALMOST_SOLVED = 4,
  MAX_ITERATIONS = 5,
  NUMERICAL_ERROR = 6,
  INSUFFICIENT_PROGRESS = 7,
  NON_CONVEX = 8,
  INVALID_DATA = 9,
};

// optlayer::qp (optlayer/ops.py): inputs and outputs are float64, or float32 where `single`; state and factor are
// float64 always. Outputs are contiguous over the B elements.
struct SolveCall {
  int64_t B = 0;
  int n = 0, m = 0, p = 0;
  bool single = false;
  Input P, q, G, h, A, b, lb, ub, x0, y0, z0, z_box0;
  double eps_abs = 0, eps_rel = 0;
  int max_iter = 0;
  Formulation formulation = Formulation::automatic;
  bool nan_failures = false, keep_factor = false;
  void* prepared = nullptr;  // what the batch shares, set up for all threads (solve.h); null: each sets it up for itself

  void *x = nullptr, *y = nullptr, *z = nullptr, *z_box = nullptr, *s = nullptr;
  int64_t *status = nullptr, *iterations = nullptr, *weakly_active = nullptr;
  void *lower_share = nullptr, *ray = nullptr;
  double *state = nullptr, *factor = nullptr;
  int64_t* index = nullptr;
};

// optlayer::kkt_solve: R right-hand sides for each of the B elements. Element e has the right-hand sides
// (i, e), i < R, of an array (R, B, size), or shares one where a stride is 0.
struct Columns {
  const void* data = nullptr;
  int64_t stride = 0;   // values from one element to the next
  int64_t outer = 0;    // values from one right-hand side to the next
};

struct KktCall {
  int64_t B = 0, R = 1;
  int n = 0, m = 0, p = 0;
  bool single = false;
  Input P, G, A;
  Input state, factor, index;  // factor.data null: refactorise from the state
  Columns rx, ry, rz, r_box;
  void *ux = nullptr, *uy = nullptr, *uz = nullptr, *u_box = nullptr;  // (R, B, size) contiguous
};

// The gradients of the matrices (optlayer/derivative/variation.py):
//
//     P_bar = -(u_x x' + x u_x')/2,   G_bar = -(z u_x' + u_z x'),   A_bar = -(y u_x' + u_y x')
//
// one for each element, or the sum over all of them where the batch shares the matrix. An element whose x, y, z are NaN
// and whose u is zero has the gradient zero.
struct PullCall {
  int64_t B = 0;
  int n = 0, m = 0, p = 0;
  bool single = false;
  Input wx, wy, wz, ux, uy, uz;
  bool sum_P = false, sum_G = false, sum_A = false;
  void *dP = nullptr, *dG = nullptr, *dA = nullptr;  // null: not wanted
};

// Both at once, for gradients of each element and one right-hand side.
struct BackwardCall : KktCall {
  Input wx, wy, wz;
  void *dP = nullptr, *dG = nullptr, *dA = nullptr;  // null: not wanted
};

// The kernels for problems one by one, or for as many of them side by side as a register holds. Elements [begin, end)
// are worked on by one thread with a workspace of its own, 64-byte aligned and of the size told.
struct Kernels {
  int lanes;
  size_t (*solve_workspace)(const SolveCall&);
  // Elements that the kernels do not decide (iterates that stall, rare degeneracies) end with the status UNSOLVED: the
  // reference engine takes them.
  void (*solve)(const SolveCall&, int64_t begin, int64_t end, void* workspace);
  size_t (*kkt_workspace)(const KktCall&);
  void (*kkt)(const KktCall&, int64_t begin, int64_t end, void* workspace);
};

// All kernels of one instruction set.
struct Engine {
  const char* name;
  Kernels single, pack;
  // Sums are taken over [begin, end) and added to `partial` (n n + m n + p n float64, zeroed by the caller).
  void (*pull)(const PullCall&, int64_t begin, int64_t end, double* partial);
};

}  // namespace optlayer
