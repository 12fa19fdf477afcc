// SPDX-License-Identifier: Apache-2.0
// What one team of a launch does: it takes problems from a counter until there are none left. A problem that is solved
// costs nothing more, and nothing waits for the slowest one. What a batch shares is set up by a launch before: its one
// team leaves it in memory where all teams read it, mostly from a cache.
#pragma once

#include "../solve.h"
#include "backward.h"
#include "mapping.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// What a call needs of memory for each team, and how much of that is slow where there is so much room in the fast one.
template <class Worker, class Call>
static Need need(const Call& call) {
  const int64_t n = call.n, r = call.m + call.p;
  Need sizes;
  sizes.vector = (size_t)(2 * n + r > 2 ? 2 * (n + r) + 2 : 4) * sizeof(double);
  Room nothing;
  nothing.vector = sizes.vector;
  Arena arena(nullptr, nullptr, nothing);
  Worker worker(call, arena);
  sizes.all = arena.used(), sizes.vectors = arena.vectors();
  return sizes;
}

template <class Worker, class Call>
static size_t slow(const Call& call, const Room& room) {
  Arena arena(nullptr, nullptr, room);
  Worker worker(call, arena);
  return (arena.used() + 127) / 128 * 128;
}

// Sets up what a batch shares. Its call is that of the batch, for one element.
template <class V>
struct Preparation {
  Solver<V> solver;

  OPTLAYER_METHOD Preparation(const SolveCall& call, Arena& arena) : solver(call, arena) {}
  OPTLAYER_METHOD void run(const Elements<V>& elements) { solver.share(elements); }

  // The values that it leaves in call.prepared for this batch; 0 where nothing is shared, which needs no such launch.
  static size_t size(const SolveCall& call) {
    Arena arena(nullptr);
    Solver<V> solver(call, arena);
    return solver.shared ? solver.share_size() : 0;
  }
};

// `Worker` is a Preparation, a Solver or a Backward: it lays its workspace out once.
template <class Worker, class Call>
OPTLAYER_METHOD void work(const Call& call, char* fast, char* slow, const Room& room, unsigned long long* counter) {
  Arena arena(fast, slow, room);
  Worker worker(call, arena);
  for (int64_t e = team_next(counter); e < call.B; e = team_next(counter)) {
    worker.run(Elements<double>(e, e + 1));
    sync();
  }
}

}  // namespace OPTLAYER_ISA
}  // namespace optlayer
