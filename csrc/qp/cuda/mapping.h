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
// Of a processor's fast memory, in percent: more goes to workspaces only for what every step reads. Its cache, which is the
// same memory, has the threads' own variables: most are pointers into the workspace, and there are more reads of them than
// of the workspace.
constexpr int SHARE = 53;
// Blocks of a processor where threads work alone: a warp for each of its four parts. More would have less memory each.
constexpr int MOST_BLOCKS_ALONE = 4;

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
  int together = 1;        // blocks of a processor at once
  Room room;               // fast memory of a team
  size_t fast = 0;         // of a block
  int teams() const { return threads / team; }  // of a block
};

// Bytes of fast memory for each of a block's teams: as many of `most` as a workspace of `all` wants. Teams of one warp read
// the same entry of their workspaces at once, each of its own: workspaces that are an odd number of such reads apart lie
// in different banks.
inline size_t fast_memory(int team, size_t all, size_t most) {
  if (team >= 32) return all < most ? all : most / 16 * 16;
  const size_t read = sizeof(double) * (size_t)team, wanted = ((all + read - 1) / read) | 1, there = most / read;
  return read * (wanted <= there ? wanted : there == 0 ? 0 : (there - 1) | 1);
}

// Teams whose workspaces a processor holds when it has as many threads as their registers permit: so much fast memory is
// there for each. `registers` are those of one thread.
inline Mapping mapping(const Limits& gpu, int team, int registers, int64_t B, const Need& need, int share = SHARE) {
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
  if (team == 1 && blocks > MOST_BLOCKS_ALONE) blocks = MOST_BLOCKS_ALONE;
  if (blocks < 1) blocks = 1;
  const int64_t wanted = (B + teams - 1) / teams, each = (wanted + gpu.processors - 1) / gpu.processors;
  if (blocks > each) blocks = each;  // fewer blocks than would fit have more room
  size_t budget = gpu.shared / (size_t)blocks / 256 * 256;  // a block's share is dealt out in such pieces at most
  budget = budget > gpu.reserved ? budget - gpu.reserved : 0;
  if (budget > gpu.shared_block) budget = gpu.shared_block;
  to.together = (int)blocks;
  to.room.vector = need.vector;
  to.room.kept = need.vectors / 3;  // about those of the interior point method, which are taken first
  const size_t hot = (to.room.kept + (need.all - need.vectors) / 6) * (size_t)teams;  // and one matrix, its factor
  const size_t usual = budget / 100 * (size_t)share, enough = hot > usual ? hot : usual;
  if (budget > enough) budget = enough;
  to.room.fast = fast_memory(team, need.all, budget / (size_t)teams);
  to.fast = to.room.fast * (size_t)teams;
  const int64_t most = blocks * gpu.processors;
  to.blocks = (int)(wanted < most ? wanted : most);
  return to;
}

// The part of a processor's memory that its blocks want for fast memory, in percent; the rest is left to the cache, where
// the threads' own variables are.
inline int fast_share(const Limits& gpu, const Mapping& to) {
  const size_t wanted = ((to.fast + gpu.reserved + 255) / 256 * 256) * (size_t)to.together;
  const size_t share = (100 * wanted + gpu.shared - 1) / gpu.shared;
  return share < 100 ? (int)share : 100;
}

// No more blocks than the slow memory holds the workspaces of: `slow` bytes a team.
inline void bound(Mapping& to, size_t slow) {
  if (slow == 0) return;
  const size_t blocks = MOST_WORKSPACE / (slow * (size_t)to.teams());
  if ((size_t)to.blocks > blocks) to.blocks = blocks > 0 ? (int)blocks : 1;
}

}  // namespace optlayer
