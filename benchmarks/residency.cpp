// SPDX-License-Identifier: Apache-2.0
// How many problems a GPU works on at once, told by the arithmetic of a launch (csrc/qp/cuda/mapping.h): for each size
// n = m in the arguments after the registers of a thread, of the kernels that solve and of those of a backward pass,
//
//     n  blocks and problems of a processor, bytes of a workspace and those of them in fast memory: solve, then backward
//
// for the sizes that teams of OPTLAYER_TEAM threads take, on the GPU whose limits stand in the first six arguments.
#include <cstdio>
#include <cstdlib>

#include "qp/cuda/work.h"

using namespace optlayer;
using namespace OPTLAYER_ISA;

int main(int count, char** arguments) {
  const auto number = [&](int i) { return atoi(arguments[i]); };
  const Limits gpu = {number(1), number(2), (size_t)number(3), (size_t)number(4), (size_t)number(5), number(6)};
  double data = 0;
  for (int i = 9; i < count; i++) {
    const int n = number(i);
    if (team_for(n, n) != TEAM) continue;
    SolveCall solve;
    BackwardCall backward;
    solve.n = solve.m = backward.n = backward.m = n;
    solve.P.data = &data;
    const Need needs[] = {need<Solver<double>>(solve), need<Backward<double>>(backward)};
    printf("%d", n);
    for (int k = 0; k < 2; k++) {
      const Mapping to = mapping(gpu, TEAM, number(7 + k), 1 << 30, needs[k]);
      const size_t fast = to.room.fast < needs[k].all ? to.room.fast : needs[k].all;
      printf(" %d %d %zu %zu", to.together, to.together * to.teams(), needs[k].all, fast);
    }
    printf("\n");
  }
}
