// SPDX-License-Identifier: Apache-2.0
// Every kernel in its obvious form: what matrix.h means, what the tests compare with, what one thread of a GPU runs.
#pragma once

#include "../common/pack.h"

namespace optlayer {
namespace OPTLAYER_ISA {
namespace plain {

template <class V>
OPTLAYER_FUNCTION void product(const V* M, int ld, int rows, int cols, const V* x, V* y, bool add) {
  for (int i = 0; i < rows; i++) {
    V sum = add ? y[i] : V(0);
    for (int j = 0; j < cols; j++) sum += M[i * ld + j] * x[j];
    y[i] = sum;
  }
}

template <class V>
OPTLAYER_FUNCTION void product_transposed(const V* M, int ld, int rows, int cols, const V* y, V* x) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < cols; j++) x[j] += M[i * ld + j] * y[i];
}

template <class V>
OPTLAYER_FUNCTION void row_products(const V* R, int ldr, int rows, int n, V* K, int ldk) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j <= i; j++) {
      V sum(0);
      for (int k = 0; k < n; k++) sum += R[i * ldr + k] * R[j * ldr + k];
      K[i * ldk + j] = K[j * ldk + i] = sum;
    }
}

template <class V>
OPTLAYER_FUNCTION void weighted_gram(const V* P, int ldp, const V* C, int ldc, const V* g, int rows, int n, V* H,
                                     int ldh) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j <= i; j++) {
      V sum = P[i * ldp + j];
      for (int k = 0; k < rows; k++) sum += g[k] * C[k * ldc + i] * C[k * ldc + j];
      H[i * ldh + j] = sum;
    }
}

template <class V>
OPTLAYER_FUNCTION Mask<V> cholesky(const V* K, int ldk, const V* add, V* L, int ldl, V* inv, int n) {
  Mask<V> ok(true);
  for (int i = 0; i < n; i++)
    for (int j = 0; j <= i; j++) {
      V sum = K[i * ldk + j];
      if (i == j && add != nullptr) sum += add[i];
      for (int k = 0; k < j; k++) sum -= L[i * ldl + k] * L[j * ldl + k];
      if (i == j) {
        ok = ok && sum > V(0) && finite(sum);
        V root = square_root(sum);
        L[i * ldl + i] = root;
        inv[i] = V(1) / root;
      } else {
        L[i * ldl + j] = sum * inv[j];
      }
    }
  return ok;
}

template <class V>
OPTLAYER_FUNCTION void solve_rows(const V* L, int ldl, const V* inv, int n, V* R, int ldr, int rows) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < n; j++) {
      V sum = R[i * ldr + j];
      for (int k = 0; k < j; k++) sum -= R[i * ldr + k] * L[j * ldl + k];
      R[i * ldr + j] = sum * inv[j];
    }
}

template <class V>
OPTLAYER_FUNCTION void lower_solve(const V* L, int ldl, const V* inv, int n, V* x) {
  for (int i = 0; i < n; i++) {
    V sum = x[i];
    for (int k = 0; k < i; k++) sum -= L[i * ldl + k] * x[k];
    x[i] = sum * inv[i];
  }
}

template <class V>
OPTLAYER_FUNCTION void lower_solve_transposed(const V* L, int ldl, const V* inv, int n, V* x) {
  for (int i = n - 1; i >= 0; i--) {
    V xi = x[i] * inv[i];
    x[i] = xi;
    for (int k = 0; k < i; k++) x[k] -= L[i * ldl + k] * xi;
  }
}

template <class V>
OPTLAYER_FUNCTION V dot(const V* a, const V* b, int n) {
  V sum(0);
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

template <class V>
OPTLAYER_FUNCTION V norm(const V* a, int n) {
  V most(0);
  for (int i = 0; i < n; i++) most = larger(absolute(a[i]), most);
  return most;
}

}  // namespace plain
}  // namespace OPTLAYER_ISA
}  // namespace optlayer
