// SPDX-License-Identifier: Apache-2.0
// The gradients of the matrices of a program:
//
//     P_bar = -(u_x x' + x u_x')/2,   G_bar = -(z u_x' + u_z x'),   A_bar = -(y u_x' + u_y x')
#pragma once

#include "../../common/pack.h"
#include "../call.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// One gradient: out = -scale (v ux' + uv x') with v and uv of `rows` entries, x and ux of `cols`.
struct Outer {
  static constexpr int TILE = 4;      // rows of a tile in registers
  static constexpr int WIDE = 8;      // and its columns
  static constexpr int BLOCK = 128;   // rows and columns that are worked on at once
  static constexpr int TERMS = 32;    // products in a sum at once: two for each element

  const PullCall& call;
  const Input &v, &uv;
  int rows, cols;
  double scale;

  // A gradient for each element.
  void each(int64_t begin, int64_t end, void* out) const {
    double left[2][BLOCK], right[2][BLOCK];
    for (int64_t e = begin; e < end; e++)
      for (int j0 = 0; j0 < cols; j0 += BLOCK) {
        const int width = cols - j0 < BLOCK ? cols - j0 : BLOCK;
        read(call.ux, e, j0, width, 1, right[0]);
        read_solution(call.wx, e, j0, width, 1, right[1]);
        for (int i0 = 0; i0 < rows; i0 += BLOCK) {
          const int height = rows - i0 < BLOCK ? rows - i0 : BLOCK;
          read_solution(v, e, i0, height, -scale, left[0]);
          read(uv, e, i0, height, -scale, left[1]);
          for (int i = 0; i < height; i++) {
            const int64_t at = (e * rows + i0 + i) * cols + j0;
            if (call.single)
              write(left[0][i], left[1][i], right, width, static_cast<float*>(out) + at);
            else
              write(left[0][i], left[1][i], right, width, static_cast<double*>(out) + at);
          }
        }
      }
  }

  // Their sum, added to `total` (rows, cols): a product of matrices whose inner dimension runs over the elements.
  void sum(int64_t begin, int64_t end, double* total) const {
    alignas(64) double left[TERMS][BLOCK], right[TERMS][BLOCK];
    for (int64_t e0 = begin; e0 < end; e0 += TERMS / 2) {
      const int count = (int)(end - e0 < TERMS / 2 ? end - e0 : TERMS / 2);
      for (int j0 = 0; j0 < cols; j0 += BLOCK) {
        const int width = cols - j0 < BLOCK ? cols - j0 : BLOCK;
        for (int e = 0; e < count; e++) {
          read(call.ux, e0 + e, j0, width, 1, right[2 * e]);
          read_solution(call.wx, e0 + e, j0, width, 1, right[2 * e + 1]);
          for (int t = 2 * e; t < 2 * e + 2; t++)
            for (int j = width; j < (width + WIDE - 1) / WIDE * WIDE; j++) right[t][j] = 0;
        }
        for (int i0 = 0; i0 < rows; i0 += BLOCK) {
          const int height = rows - i0 < BLOCK ? rows - i0 : BLOCK;
          for (int e = 0; e < count; e++) {
            read_solution(v, e0 + e, i0, height, -scale, left[2 * e]);
            read(uv, e0 + e, i0, height, -scale, left[2 * e + 1]);
            for (int t = 2 * e; t < 2 * e + 2; t++)
              for (int i = height; i < (height + TILE - 1) / TILE * TILE; i++) left[t][i] = 0;
          }
          for (int i = 0; i < height; i += TILE)
            for (int j = 0; j < width; j += WIDE)
              tile(left, right, 2 * count, i, j, height, width, total + (int64_t)(i0 + i) * cols + j0 + j);
        }
      }
    }
  }

 private:
  typedef Vector<double, 4>::Raw Quad;

  void read(const Input& from, int64_t e, int start, int count, double factor, double* to) const {
    const int64_t at = from.offset(e) + start;
    if (call.single)
      for (int i = 0; i < count; i++) to[i] = factor * static_cast<const float*>(from.data)[at + i];
    else
      for (int i = 0; i < count; i++) to[i] = factor * static_cast<const double*>(from.data)[at + i];
  }

  // Of x, y or z, where a failed element holds NaN: that counts as zero, so that the element takes no part if its u is 0.
  void read_solution(const Input& from, int64_t e, int start, int count, double factor, double* to) const {
    read(from, e, start, count, factor, to);
    for (int i = 0; i < count; i++) to[i] = to[i] - to[i] == 0 ? to[i] : 0;
  }

  template <class T>
  static void write(double a, double b, const double (*right)[BLOCK], int width, T* out) {
    for (int j = 0; j < width; j++) out[j] = (T)(a * right[0][j] + b * right[1][j]);
  }

  void tile(const double (*left)[BLOCK], const double (*right)[BLOCK], int terms, int i, int j, int height, int width,
            double* total) const {
    Quad sums[TILE][2] = {};
    for (int t = 0; t < terms; t++) {
      Quad low, high;
      memcpy(&low, right[t] + j, sizeof low), memcpy(&high, right[t] + j + 4, sizeof high);
      OPTLAYER_UNROLL for (int k = 0; k < TILE; k++) {
        const double a = left[t][i + k];
        sums[k][0] += a * low, sums[k][1] += a * high;
      }
    }
    for (int k = 0; k < TILE && i + k < height; k++)
      for (int l = 0; l < WIDE && j + l < width; l++) total[(int64_t)k * cols + l] += sums[k][l / 4][l % 4];
  }
};

// The gradients that are wanted, of elements [begin, end). Sums are added to `partial`: dP, dG and dA one after the other.
static void pull(const PullCall& call, int64_t begin, int64_t end, double* partial) {
  const int64_t n = call.n, m = call.m, p = call.p;
  const Outer outer[] = {{call, call.wx, call.ux, call.n, call.n, 0.5},
                         {call, call.wz, call.uz, call.m, call.n, 1},
                         {call, call.wy, call.uy, call.p, call.n, 1}};
  void* const out[] = {call.dP, call.dG, call.dA};
  const bool summed[] = {call.sum_P, call.sum_G, call.sum_A};
  double* const total[] = {partial, partial + n * n, partial + n * n + m * n};
  for (int i = 0; i < 3; i++) {
    if (out[i] == nullptr || (i == 1 && m == 0) || (i == 2 && p == 0)) continue;
    if (summed[i])
      outer[i].sum(begin, end, total[i]);
    else
      outer[i].each(begin, end, out[i]);
  }
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
