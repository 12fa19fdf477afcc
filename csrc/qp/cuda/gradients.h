// SPDX-License-Identifier: Apache-2.0
// The gradients of the matrices of a program from (x, y, z) and u (call.h), where backward.h does not form them, and
// tables of offsets: what a thread does at its place in a grid, and which grids there are. gradients.cu launches them.
//
// A sum over the batch is taken in pieces of 64 elements, each from its first element to its last in a register, then in
// pieces of 64 such sums, and so on until there is one. The pieces depend on the batch and on the size of the matrix only:
// so does the rounding. No gradient of a single element is ever in memory.
#pragma once

#include <utility>

#include "../call.h"

namespace optlayer {

constexpr int64_t PIECE = 64;
constexpr int64_t MOST_PARTIAL = 1 << 22;  // numbers in the sums of all pieces: beyond it they have more elements

// A grid of blocks, two-dimensional as are its blocks, and a thread's place in it.
struct Grid {
  static constexpr int THREADS = 256;  // of a block
  static constexpr int64_t MOST_WIDE = 1 << 20, MOST_HIGH = 1 << 15;  // blocks; CUDA permits 2^31 - 1 and 2^16 - 1

  unsigned blocks[2] = {1, 1}, threads[2] = {THREADS, 1};

  // Blocks for `count` things in a dimension, `each` of them a block; where there may not be so many the blocks go on.
  void cover(int dimension, int64_t count, int64_t each) {
    const int64_t wanted = (count + each - 1) / each, most = dimension == 0 ? MOST_WIDE : MOST_HIGH;
    blocks[dimension] = (unsigned)(wanted < most ? wanted : most);
  }
  // A row of threads for each of `rows` things of so many entries, several rows a block where these are few.
  static Grid of_rows(int rows_at, int64_t rows, int64_t entries, int64_t entries_a_thread) {
    Grid to;
    to.threads[0] = 32;
    while (to.threads[0] < THREADS && to.threads[0] < entries) to.threads[0] *= 2;
    to.threads[1] = THREADS / to.threads[0];
    to.cover(rows_at, rows, to.threads[1]), to.cover(1 - rows_at, entries, entries_a_thread * to.threads[0]);
    return to;
  }
};
struct Spot {
  unsigned block[2], thread[2];
};

// One gradient: out = -scale (v ux' + uv x') with v and uv of `rows` entries, x and ux of `cols`.
struct Outer {
  Input v, uv, x, ux;
  int rows, cols;
  double scale;
  bool single;
  void* out;

  OPTLAYER_PLAIN double read(const Input& from, int64_t offset, int i) const {
    return single ? (double)static_cast<const float*>(from.data)[offset + i]
                  : static_cast<const double*>(from.data)[offset + i];
  }
  // Of x, y or z, where a failed element holds NaN: that counts as zero, so that the element takes no part if its u is 0.
  OPTLAYER_PLAIN double read_solution(const Input& from, int64_t offset, int i) const {
    const double value = read(from, offset, i);
    return value - value == 0 ? value : 0;
  }
  OPTLAYER_PLAIN double entry(int64_t e, int i, int j) const {
    return -scale * (read_solution(v, v.offset(e), i) * read(ux, ux.offset(e), j) +
                     read(uv, uv.offset(e), i) * read_solution(x, x.offset(e), j));
  }
  OPTLAYER_PLAIN void write(int64_t at, double value) const {
    if (single)
      static_cast<float*>(out)[at] = (float)value;
    else
      static_cast<double*>(out)[at] = value;
  }
};

// A gradient for each element: a row of threads an element.
struct Each {
  Outer outer;
  int64_t B;

  Grid grid() const { return Grid::of_rows(0, B, (int64_t)outer.rows * outer.cols, 16); }
  OPTLAYER_PLAIN void operator()(const Grid& grid, const Spot& at) const {
    const int entries = outer.rows * outer.cols, step = (int)(grid.blocks[1] * grid.threads[0]);
    for (int64_t e = (int64_t)at.block[0] * grid.threads[1] + at.thread[1]; e < B;
         e += (int64_t)grid.blocks[0] * grid.threads[1])
      for (int k = (int)(at.block[1] * grid.threads[0] + at.thread[0]); k < entries; k += step)
        outer.write(e * entries + k, outer.entry(e, k / outer.cols, k % outer.cols));
  }
};

// What the kernels of a sum have in common: (pieces, entries) sums of `count` terms, or the gradient where there is one
// piece.
struct Pieces {
  Outer outer;
  int64_t count, pieces;
  double* to;

  Grid grid() const { return Grid::of_rows(1, pieces, (int64_t)outer.rows * outer.cols, 1); }
  template <class Term>
  OPTLAYER_PLAIN void sum(const Grid& grid, const Spot& at, Term term) const {
    const int64_t entries = (int64_t)outer.rows * outer.cols, step = (int64_t)grid.blocks[0] * grid.threads[0];
    for (int64_t piece = (int64_t)at.block[1] * grid.threads[1] + at.thread[1]; piece < pieces;
         piece += (int64_t)grid.blocks[1] * grid.threads[1])
      for (int64_t k = (int64_t)at.block[0] * grid.threads[0] + at.thread[0]; k < entries; k += step) {
        double total = 0;
        for (int64_t i = count * piece / pieces; i < count * (piece + 1) / pieces; i++) total += term(i, k);
        if (pieces == 1)
          outer.write(k, total);
        else
          to[piece * entries + k] = total;
      }
  }
};

struct SumOfElements : Pieces {
  OPTLAYER_PLAIN void operator()(const Grid& grid, const Spot& at) const {
    sum(grid, at, [&](int64_t e, int64_t k) { return outer.entry(e, (int)k / outer.cols, (int)k % outer.cols); });
  }
};

// Of the sums over `count` pieces.
struct SumOfSums : Pieces {
  const double* from;

  OPTLAYER_PLAIN void operator()(const Grid& grid, const Spot& at) const {
    const int64_t entries = (int64_t)outer.rows * outer.cols;
    sum(grid, at, [&](int64_t piece, int64_t k) { return from[piece * entries + k]; });
  }
};

// offsets[e] for element e < count of a batch with these sizes and strides.
struct Offsets {
  int rank = 0;
  int64_t size[64], stride[64];
  int64_t count = 0;
  int64_t* offsets = nullptr;

  Grid grid() const {
    Grid to;
    to.cover(0, count, Grid::THREADS);
    return to;
  }
  OPTLAYER_PLAIN void operator()(const Grid& grid, const Spot& at) const {
    for (int64_t e = (int64_t)at.block[0] * grid.threads[0] + at.thread[0]; e < count;
         e += (int64_t)grid.blocks[0] * grid.threads[0]) {
      int64_t rest = e, offset = 0;
      for (int d = rank - 1; d >= 0; d--) {
        offset += rest % size[d] * stride[d];
        rest /= size[d];
      }
      offsets[e] = offset;
    }
  }
};

inline int64_t pieces_of(int64_t count) { return count > PIECE ? (count + PIECE - 1) / PIECE : 1; }
inline int64_t first_pieces(int64_t B, int64_t entries) {
  int64_t pieces = pieces_of(B);
  while (pieces > 1 && pieces * entries > MOST_PARTIAL) pieces /= 2;
  return pieces;
}

// Of a backward pass, what one kernel does (backward.h) and the sums that are left.
inline std::pair<BackwardCall, PullCall> shares(const KktCall& system, const PullCall& gradients) {
  BackwardCall each{system, gradients.wx, gradients.wy, gradients.wz};
  PullCall sums = gradients;
  (gradients.sum_P ? sums.dP : each.dP) = gradients.dP, (gradients.sum_P ? each.dP : sums.dP) = nullptr;
  (gradients.sum_G ? sums.dG : each.dG) = gradients.dG, (gradients.sum_G ? each.dG : sums.dG) = nullptr;
  (gradients.sum_A ? sums.dA : each.dA) = gradients.dA, (gradients.sum_A ? each.dA : sums.dA) = nullptr;
  return {each, sums};
}

// Numbers that the sums of a call want room for.
inline int64_t pull_partial(const PullCall& call) {
  const int64_t n = call.n, rows[] = {call.sum_P ? n : 0, call.sum_G ? call.m : 0, call.sum_A ? call.p : 0};
  int64_t most = 0;
  for (int64_t count : rows) {
    const int64_t pieces = first_pieces(call.B, count * n), numbers = (pieces + pieces_of(pieces)) * count * n;
    most = numbers > most ? numbers : most;
  }
  return most;
}

// The gradients that are wanted: launch(work) runs work(grid, spot) at every spot of work.grid(), one grid after another.
template <class Launch>
void pull_in_grids(const PullCall& call, double* partial, Launch launch) {
  const Outer outers[] = {{call.wx, call.ux, call.wx, call.ux, call.n, call.n, 0.5, call.single, call.dP},
                          {call.wz, call.uz, call.wx, call.ux, call.m, call.n, 1, call.single, call.dG},
                          {call.wy, call.uy, call.wx, call.ux, call.p, call.n, 1, call.single, call.dA}};
  const bool summed[] = {call.sum_P, call.sum_G, call.sum_A};
  for (int i = 0; i < 3; i++) {
    const Outer& outer = outers[i];
    const int64_t entries = (int64_t)outer.rows * outer.cols;
    if (outer.out == nullptr || entries == 0) continue;
    if (!summed[i]) {
      if (call.B > 0) launch(Each{outer, call.B});
      continue;
    }
    int64_t pieces = first_pieces(call.B, entries);
    double *to = partial, *other = partial + pieces * entries;
    launch(SumOfElements{{outer, call.B, pieces, to}});
    while (pieces > 1) {
      const int64_t fewer = pieces_of(pieces);
      launch(SumOfSums{{outer, pieces, fewer, other}, to});
      double* const written = other;
      other = to, to = written, pieces = fewer;
    }
  }
}

}  // namespace optlayer
