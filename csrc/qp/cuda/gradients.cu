// SPDX-License-Identifier: Apache-2.0
// The gradients of the matrices of a program on a GPU (qp/cpu/outer.h does it on a CPU), and tables of offsets.
#include "engines.h"

namespace optlayer {
namespace {

constexpr int THREADS = 256;
// Sums are taken in pieces of the batch that do not depend on the GPU: neither does their rounding.
constexpr int64_t PIECE = 64;  // elements
constexpr int64_t MOST_PIECES = 512;
constexpr int64_t MOST_PARTIAL = 1 << 22;  // numbers in the sums of all pieces
constexpr int64_t MOST_BLOCKS = 1 << 20;

// One gradient: out = -scale (v ux' + uv x') with v and uv of `rows` entries, x and ux of `cols`.
struct Outer {
  Input v, uv, x, ux;
  int rows, cols;
  double scale;
  bool single;
  void* out;

  __device__ double read(const Input& from, int64_t offset, int i) const {
    return single ? (double)static_cast<const float*>(from.data)[offset + i]
                  : static_cast<const double*>(from.data)[offset + i];
  }
  // Of x, y or z, where a failed element holds NaN: that counts as zero, so that the element takes no part if its u is 0.
  __device__ double read_solution(const Input& from, int64_t offset, int i) const {
    const double value = read(from, offset, i);
    return value - value == 0 ? value : 0;
  }
  __device__ double entry(int64_t e, int i, int j) const {
    return -scale * (read_solution(v, v.offset(e), i) * read(ux, ux.offset(e), j) +
                     read(uv, uv.offset(e), i) * read_solution(x, x.offset(e), j));
  }
  __device__ void write(int64_t at, double value) const {
    if (single)
      static_cast<float*>(out)[at] = (float)value;
    else
      static_cast<double*>(out)[at] = value;
  }
};

// A gradient for each element: a row of threads an element, several elements a block where they are small.
__global__ void each(const __grid_constant__ Outer outer, int64_t B) {
  const int entries = outer.rows * outer.cols;
  for (int64_t e = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; e < B; e += (int64_t)gridDim.x * blockDim.y)
    for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < entries; k += gridDim.y * blockDim.x)
      outer.write(e * entries + k, outer.entry(e, k / outer.cols, k % outer.cols));
}

// Their sums over the pieces, (pieces, entries).
__global__ void pieces_of_sum(const __grid_constant__ Outer outer, int64_t B, int64_t pieces, double* partial) {
  const int entries = outer.rows * outer.cols, k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= entries) return;
  const int i = k / outer.cols, j = k % outer.cols;
  for (int64_t piece = blockIdx.y; piece < pieces; piece += gridDim.y) {
    double sum = 0;
    for (int64_t e = B * piece / pieces; e < B * (piece + 1) / pieces; e++) sum += outer.entry(e, i, j);
    partial[piece * entries + k] = sum;
  }
}
__global__ void sum_of_pieces(const __grid_constant__ Outer outer, int64_t pieces, const double* partial) {
  const int entries = outer.rows * outer.cols, k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= entries) return;
  double sum = 0;
  for (int64_t piece = 0; piece < pieces; piece++) sum += partial[piece * entries + k];
  outer.write(k, sum);
}

__global__ void offsets_of(const __grid_constant__ Dimensions shape, int64_t count, int64_t* offsets) {
  for (int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; e < count; e += (int64_t)gridDim.x * blockDim.x) {
    int64_t rest = e, offset = 0;
    for (int d = shape.rank - 1; d >= 0; d--) {
      offset += rest % shape.size[d] * shape.stride[d];
      rest /= shape.size[d];
    }
    offsets[e] = offset;
  }
}

int64_t number_of_pieces(int64_t B, int64_t entries) {
  int64_t pieces = (B + PIECE - 1) / PIECE;
  pieces = pieces < MOST_PIECES ? pieces : MOST_PIECES;
  while (pieces > 1 && pieces * entries > MOST_PARTIAL) pieces /= 2;
  return pieces > 1 ? pieces : 1;
}

unsigned blocks_for(int64_t count, int64_t each) {
  const int64_t blocks = (count + each - 1) / each;
  return (unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
}

}  // namespace

int64_t pull_partial(const PullCall& call) {
  const int64_t n = call.n, rows[] = {call.sum_P ? n : 0, call.sum_G ? call.m : 0, call.sum_A ? call.p : 0};
  int64_t most = 0;
  for (int64_t count : rows) {
    const int64_t numbers = number_of_pieces(call.B, count * n) * count * n;
    most = numbers > most ? numbers : most;
  }
  return most;
}

cudaError_t pull(const PullCall& call, double* partial, cudaStream_t stream) {
  const Outer outers[] = {{call.wx, call.ux, call.wx, call.ux, call.n, call.n, 0.5, call.single, call.dP},
                          {call.wz, call.uz, call.wx, call.ux, call.m, call.n, 1, call.single, call.dG},
                          {call.wy, call.uy, call.wx, call.ux, call.p, call.n, 1, call.single, call.dA}};
  const bool summed[] = {call.sum_P, call.sum_G, call.sum_A};
  for (int i = 0; i < 3; i++) {
    const Outer& outer = outers[i];
    const int64_t entries = (int64_t)outer.rows * outer.cols;
    if (outer.out == nullptr || entries == 0 || (call.B == 0 && !summed[i])) continue;
    if (summed[i]) {
      const int64_t pieces = number_of_pieces(call.B, entries);
      const unsigned blocks = blocks_for(entries, THREADS);
      pieces_of_sum<<<dim3(blocks, (unsigned)pieces), THREADS, 0, stream>>>(outer, call.B, pieces, partial);
      sum_of_pieces<<<blocks, THREADS, 0, stream>>>(outer, pieces, partial);
      continue;
    }
    unsigned wide = 32;
    while (wide < THREADS && wide < entries) wide *= 2;
    const unsigned tall = THREADS / wide, along = entries > 16 * THREADS ? blocks_for(entries, 16 * THREADS) : 1;
    each<<<dim3(blocks_for(call.B, tall), along), dim3(wide, tall), 0, stream>>>(outer, call.B);
  }
  return cudaGetLastError();
}

cudaError_t tabulate(const Dimensions& dimensions, int64_t count, int64_t* offsets, cudaStream_t stream) {
  offsets_of<<<blocks_for(count, THREADS), THREADS, 0, stream>>>(dimensions, count, offsets);
  return cudaGetLastError();
}

}  // namespace optlayer
