// SPDX-License-Identifier: Apache-2.0
// How a batch is laid on a GPU: how many threads work on one problem, and where their memory lies. Plain arithmetic, no
// CUDA: the tests ask it about GPUs that are not there.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../../common/room.h"

namespace optlayer {

// What a GPU has.
struct Limits {
  int processors = 0;        // that run blocks independently of each other
  int threads = 0;           // at once, of one processor
  size_t shared = 0;         // fast memory of a processor, in bytes
  size_t shared_block = 0;   // the most of it that one block may have
  size_t reserved = 0;       // what the system takes of it for each block
  int registers = 0;         // of a processor
};

// The sizes of a workspace, in bytes: all of it, and the part of it in pieces of at most `vector` bytes.
struct Need {
  size_t vector = 0, vectors = 0, all = 0;
};

// A team of `team` threads a problem for programs with max(n, min(rows, 2 n)) up to `size`.
struct Step {
  int size, team;
};
constexpr Step STEPS_OF_TEAMS[] = {{4, 1}, {12, 8}, {40, 32}, {1 << 30, 128}};

constexpr int TEAMS[] = {1, 8, 32, 128};
constexpr size_t MOST_WORKSPACE = (size_t)2 << 30;  // slow memory of all teams

inline int team_for(int n, int rows) {
  const int size = rows < 2 * n ? (rows > n ? rows : n) : 2 * n;
  for (const Step& step : STEPS_OF_TEAMS)
    if (size <= step.size) return step.team;
  return TEAMS[sizeof TEAMS / sizeof *TEAMS - 1];
}

struct Mapping {
  int team = 1;      // threads a problem
  int threads = 32;  // of a block
  int blocks = 0;
  Room room;               // fast memory of a team
  size_t fast = 0;         // of a block
  int teams() const { return threads / team; }  // of a block
};

// Teams whose workspaces a processor holds when it has as many threads as their registers permit: so much fast memory is
// there for each. `registers` are those of one thread.
inline Mapping mapping(const Limits& gpu, int team, int registers, int64_t B, const Need& need) {
  Mapping to;
  to.team = team;
  to.threads = team < 32 ? 32 : team;
  const int64_t teams = to.teams();
  // registers are dealt out to warps, eight a thread at a time, by each of a processor's four parts
  const int of_warp = (registers + 7) / 8 * 8 * 32, warps = to.threads / 32;
  const int by_registers = of_warp > 0 ? gpu.registers / 4 / of_warp * 4 / warps : 1;
  int64_t blocks = gpu.threads / to.threads;
  if (blocks > by_registers) blocks = by_registers;
  if (blocks > 16) blocks = 16;
  if (blocks < 1) blocks = 1;
  const int64_t wanted = (B + teams - 1) / teams, each = (wanted + gpu.processors - 1) / gpu.processors;
  if (blocks > each) blocks = each;  // fewer blocks than would fit have more room
  size_t budget = gpu.shared / (size_t)blocks / 256 * 256;  // a block's share is dealt out in such pieces at most
  budget = budget > gpu.reserved ? budget - gpu.reserved : 0;
  if (budget > gpu.shared_block) budget = gpu.shared_block;
  budget = budget / (size_t)teams / 16 * 16;
  if (team == 1) budget = 0;  // the caches serve threads that go their own ways better
  to.room.vector = need.vector;
  to.room.vectors = need.vectors < budget ? need.vectors : budget;
  const size_t left = budget - to.room.vectors, matrices = need.all - need.vectors;
  to.room.matrices = matrices < left ? matrices : left;
  to.fast = (to.room.vectors + to.room.matrices) * (size_t)teams;
  const int64_t most = blocks * gpu.processors;
  to.blocks = (int)(wanted < most ? wanted : most);
  return to;
}

// No more blocks than the slow memory holds the workspaces of: `slow` bytes a team.
inline void bound(Mapping& to, size_t slow) {
  if (slow == 0) return;
  const size_t blocks = MOST_WORKSPACE / (slow * (size_t)to.teams());
  if ((size_t)to.blocks > blocks) to.blocks = blocks > 0 ? (int)blocks : 1;
}

}  // namespace optlayer
