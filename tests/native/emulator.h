// SPDX-License-Identifier: Apache-2.0
// The threads of a CUDA block as fibers on one CPU thread, so that the kernels run, and are tested, without a GPU.
//
// A fiber runs until it meets the others of its team; then one that may run is drawn at random. Whoever reads what
// another writes without a barrier between them finds, on some seed, an old value or NaN, with which shared memory is
// filled. Blocks run one after another. A meeting that cannot take place is reported with its place in the source:
// threads at different places, threads that have ended, threads that wait for each other.
//
// Compiled with -fsanitize=thread the barriers, and they alone, order the accesses of fibers to memory: ThreadSanitizer
// reports every pair of accesses that no barrier orders, whatever the schedule and the values were.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <map>
#include <string>

namespace optlayer {
namespace emulator {

struct Launch {
  int blocks = 1;
  int threads = 1;          // of a block
  size_t shared = 0;        // bytes of a block's shared memory
  uint64_t seed = 0;        // of the schedule
  int64_t left_out = -1;    // the barrier, counted by each thread, that is left out: a planted mistake
  std::string left_out_at;  // or "FILE:LINE", the file told from csrc on, of one that always is
};

// Every thread of every block runs the body. Throws std::logic_error with a report where threads cannot meet; returns
// how many barriers a thread met, the most of all threads.
int64_t launch(const Launch& launch, const std::function<void()>& body);

// ---- for a thread that runs ------------------------------------------------------------------------------------------

int thread();   // within its block
int threads();  // of a block
int block();
void* shared();  // 64-byte aligned

// A barrier of the threads [first, first + count), which includes this one.
void meet(int first, int count, const char* file, int line);

// How often each barrier of the source, "FILE:LINE", has been met by a thread, over all launches.
std::map<std::string, int64_t> barriers();

// Threads [first, first + count) show a value each; returns that of thread `source`. Orders no memory.
uint64_t exchange(uint64_t mine, int source, int first, int count, const char* file, int line);

}  // namespace emulator
}  // namespace optlayer
