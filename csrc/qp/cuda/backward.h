// SPDX-License-Identifier: Apache-2.0
// A backward pass in one kernel: u = K^-1 r, and from u, while it lies in fast memory, the gradients of each element's
// own matrices (adjoint.h, call.h):
//
//     P_bar = -(u_x x' + x u_x')/2,   G_bar = -(z u_x' + u_z x'),   A_bar = -(y u_x' + u_y x')
//
// What that saves, in bytes an element with N = n + m + p, float64: a second kernel would read u once more, 8 N, where
// one reads 8 N n for the matrices, writes as much for their gradients, reads 8 (n^2 + k^2) for the factor and moves about
// 54 N for vectors. At n = m = 10 that is 160 of 5,900 bytes, at n = m = 100 1,600 of 491,000: hardly anything where
// memory is the limit. But the gradients are written while other teams still solve, and a small batch, which takes about
// as long as its launches, has one launch and one operator less.
//
// A gradient that the batch shares is summed by kernels of its own (gradients.h). Here every team would add to sums of
// its own, 16 N n bytes read and written an element where those kernels keep the sums in registers and read 16 N; and the
// same bits every time would want elements dealt out in fixed pieces, not taken one by one by whichever team is free.
#pragma once

#include "../adjoint.h"

namespace optlayer {
namespace OPTLAYER_ISA {

template <class V>
struct Backward {
  const BackwardCall& call;
  Adjoint<V> adjoint;

  OPTLAYER_METHOD Backward(const BackwardCall& given, Arena& arena) : call(given), adjoint(given, arena) {}

  OPTLAYER_METHOD void run(const Elements<V>& elements) {
    adjoint.run(elements);
    if (call.dP == nullptr && call.dG == nullptr && call.dA == nullptr) return;
    const int64_t e = elements.at[0];
    const int n = call.n, m = call.m, p = call.p;
    V *x = adjoint.rx, *y = adjoint.rv, *z = y + p, *ux = adjoint.ux, *uy = adjoint.uv, *uz = uy + p;
    load_solution(call.wx, e, n, x);
    if (call.dA != nullptr) load_solution(call.wy, e, p, y);
    if (call.dG != nullptr) load_solution(call.wz, e, m, z);
    sync();
    outer(x, ux, n, V(-0.5), e, call.dP);
    outer(z, uz, m, V(-1), e, call.dG);
    outer(y, uy, p, V(-1), e, call.dA);
  }

 private:
  OPTLAYER_METHOD void load_solution(const Input& from, int64_t e, int count, V* to) const {
    const int64_t at = from.offset(e);
    for (int i = own(0); i < count; i += TEAM) {
      const V a = value(from.data, call.single, at + i);
      to[i] = finite(a) ? a : V(0);
    }
  }

  // scale (v ux' + uv x'), with v and uv of `rows` entries; neighbours write neighbouring entries.
  OPTLAYER_METHOD void outer(const V* v, const V* uv, int rows, V scale, int64_t e, void* to) const {
    if (to == nullptr) return;
    const V *x = adjoint.rx, *ux = adjoint.ux;
    const int n = call.n, entries = rows * n, down = TEAM / n, along = TEAM % n;
    int i = rank() / n, j = rank() % n;
    for (int k = rank(); k < entries; k += TEAM) {
      assign(to, call.single, e * entries + k, scale * (v[i] * ux[j] + uv[i] * x[j]));
      i += down, j += along;
      if (j >= n) i++, j -= n;
    }
  }
};

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
