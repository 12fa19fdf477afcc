// SPDX-License-Identifier: Apache-2.0
// The kernels of gradients.h on a GPU.
#include "engines.h"
#include "gradients.h"

namespace optlayer {
namespace {

template <class Work>
__global__ void __launch_bounds__(Grid::THREADS) grid_kernel(const __grid_constant__ Work work,
                                                             const __grid_constant__ Grid grid) {
  work(grid, {{blockIdx.x, blockIdx.y}, {threadIdx.x, threadIdx.y}});
}

template <class Work>
void launch(const Work& work, cudaStream_t stream) {
  const Grid grid = work.grid();
  const dim3 blocks(grid.blocks[0], grid.blocks[1]), threads(grid.threads[0], grid.threads[1]);
  grid_kernel<Work><<<blocks, threads, 0, stream>>>(work, grid);
}

}  // namespace

cudaError_t pull(const PullCall& call, double* partial, cudaStream_t stream) {
  pull_in_grids(call, partial, [&](const auto& work) { launch(work, stream); });
  return cudaGetLastError();
}

cudaError_t tabulate(const Offsets& offsets, cudaStream_t stream) {
  launch(offsets, stream);
  return cudaGetLastError();
}

}  // namespace optlayer
