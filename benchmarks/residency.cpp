// SPDX-License-Identifier: Apache-2.0
// How many problems a GPU works on at once, told by the arithmetic of a launch (csrc/qp/cuda/mapping.h). Arguments are the
// limits of a GPU (six), the registers of a thread of the kernel that solves and of that of a backward pass, and sizes
// n = m. For each size that teams of OPTLAYER_TEAM threads take it writes a line,
//
//     n   whether the factor of the interior point method lies in fast memory
//     then of the solver, and of the backward pass: the blocks and the problems of a processor, the bytes of a workspace
//     and those of them in fast memory
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
    const Mapping to[] = {mapping(gpu, TEAM, number(7), 1 << 30, needs[0]), mapping(gpu, TEAM, number(8), 1 << 30, needs[1])};
    char *fast = reinterpret_cast<char*>(size_t(1) << 30), *slow = fast + (size_t(1) << 30);  // nothing is there
    Arena arena(fast, slow, to[0].room);
    const Solver<double> solver(solve, arena);
    printf("%d %d", n, reinterpret_cast<char*>(solver.interior.newton.split.F) < slow);
    for (int k = 0; k < 2; k++) {
      const size_t within = to[k].room.fast < needs[k].all ? to[k].room.fast : needs[k].all;
      printf(" %d %d %zu %zu", to[k].together, to[k].together * to[k].teams(), needs[k].all, within);
    }
    printf("\n");
  }
}
