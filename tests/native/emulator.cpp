// SPDX-License-Identifier: Apache-2.0
// Fibers are made with ucontext and change places with setjmp and longjmp, which need no system call.
#undef _FORTIFY_SOURCE  // its longjmp takes another fiber's stack for a mistake
#include "emulator.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

// ThreadSanitizer's, where the program is linked with it.
extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned);
__attribute__((weak)) void __tsan_destroy_fiber(void*);
__attribute__((weak)) void __tsan_switch_to_fiber(void*, unsigned);
__attribute__((weak)) void __tsan_acquire(void*);
__attribute__((weak)) void __tsan_release(void*);
}

namespace optlayer {
namespace emulator {
namespace {

constexpr size_t STACK = 1 << 19;

bool sanitized() { return __tsan_create_fiber != nullptr; }
void acquire(void* of) {
  if (sanitized()) __tsan_acquire(of);
}
void release(void* to) {
  if (sanitized()) __tsan_release(to);
}

// Where a processor is in a program.
struct Place {
  ucontext_t context;
  jmp_buf jump;
  bool jumped = false;  // has left by `change`, and so comes back by it
  void* fiber = nullptr;
};

void change(Place& from, Place& to) {
  if (sanitized()) {  // it follows longjmp, but not from stack to stack
    __tsan_switch_to_fiber(to.fiber, 1);
    swapcontext(&from.context, &to.context);
    return;
  }
  if (_setjmp(from.jump) != 0) return;
  from.jumped = true;
  if (to.jumped) _longjmp(to.jump, 1);
  setcontext(&to.context);
}

std::string at(const std::string& file, int line) { return file + ":" + std::to_string(line); }

struct Thread {
  Place place;
  char* stack = nullptr;
  bool ended, waits;
  int64_t meetings;        // so far
  uint64_t shown[2];       // the values of the last two exchanges
  unsigned exchanges;
};

// A barrier that some threads have reached.
struct Meeting {
  int arrived = 0, count = 0, line = 0;
  const char* file = nullptr;
};

struct Block {
  Launch launch;
  const std::function<void()>* body;
  std::vector<Thread> threads;
  std::vector<Meeting> meetings;  // by the first thread
  std::vector<int> ready;
  Place scheduler;
  int current = 0, number = 0;
  double* shared = nullptr;
  std::string mistake;
  char start, end;  // what ThreadSanitizer orders threads by
};
Block here;

// A barrier of the source: how often it has been met, and whether this launch leaves it out. Nothing is allocated while
// fibers run: ThreadSanitizer would see their allocations meet.
struct Site {
  const char* file = nullptr;
  int line = 0;
  int64_t met = 0;
  bool left_out = false;

  std::string name() const {
    const std::string path = std::filesystem::path(file).lexically_normal().string();
    const size_t inside = path.rfind("csrc/");
    return at(inside == std::string::npos ? path : path.substr(inside + 5), line);
  }
};
constexpr size_t MOST_SITES = 4096;
Site sites[MOST_SITES];

Site& site(const char* file, int line) {
  size_t place = ((uintptr_t)file / 8 + (size_t)line * 31) % MOST_SITES;
  while (sites[place].file != nullptr && (sites[place].file != file || sites[place].line != line))
    place = (place + 1) % MOST_SITES;
  Site& to = sites[place];
  if (to.file == nullptr) {
    to.file = file, to.line = line;
    to.left_out = !here.launch.left_out_at.empty() && to.name() == here.launch.left_out_at;
  }
  return to;
}

void leave() { change(here.threads[here.current].place, here.scheduler); }

void run_thread() {
  acquire(&here.start);
  (*here.body)();
  release(&here.end);
  here.threads[here.current].ended = true;
  leave();
}

void wait(int first, int count, const char* file, int line) {
  Meeting& meeting = here.meetings[first];
  if (meeting.arrived == 0) {
    meeting.count = count, meeting.file = file, meeting.line = line;
  } else if (meeting.line != line || meeting.count != count || strcmp(meeting.file, file) != 0) {
    here.mistake = "threads of a team meet at " + at(meeting.file, meeting.line) + " and at " + at(file, line);
    leave();
  }
  if (++meeting.arrived < count) {
    here.threads[here.current].waits = true;
    leave();
    return;
  }
  meeting.arrived = 0;
  for (int t = first; t < first + count; t++)
    if (here.threads[t].waits) here.threads[t].waits = false, here.ready.push_back(t);
  here.ready.push_back(here.current);
  leave();
}

void run_block(std::mt19937_64& random) {
  const int count = here.launch.threads;
  release(&here.start);
  here.ready.clear();
  for (int t = 0; t < count; t++) {
    Thread& thread = here.threads[t];
    thread.ended = thread.waits = thread.place.jumped = false, thread.meetings = 0, thread.exchanges = 0;
    getcontext(&thread.place.context);
    thread.place.context.uc_stack.ss_sp = thread.stack, thread.place.context.uc_stack.ss_size = STACK;
    thread.place.context.uc_link = nullptr;
    makecontext(&thread.place.context, run_thread, 0);
    if (sanitized()) thread.place.fiber = __tsan_create_fiber(0);
    here.ready.push_back(t);
  }
  while (!here.ready.empty() && here.mistake.empty()) {
    std::swap(here.ready[random() % here.ready.size()], here.ready.back());
    here.current = here.ready.back();
    here.ready.pop_back();
    change(here.scheduler, here.threads[here.current].place);
  }
  acquire(&here.end);
  for (int first = 0; first < count && here.mistake.empty(); first++) {
    const Meeting& meeting = here.meetings[first];
    if (meeting.arrived == 0) continue;
    int ended = 0;
    for (int t = first; t < first + meeting.count; t++) ended += here.threads[t].ended;
    here.mistake = std::to_string(meeting.arrived) + " of " + std::to_string(meeting.count) + " threads wait at " +
                   at(meeting.file, meeting.line) + ", " + std::to_string(ended) + " have ended";
  }
  for (int t = 0; t < count && sanitized(); t++) __tsan_destroy_fiber(here.threads[t].place.fiber);
}

}  // namespace

int64_t launch(const Launch& launch, const std::function<void()>& body) {
  here.launch = launch, here.body = &body, here.mistake.clear();
  for (Site& site : sites)
    if (site.file != nullptr) site.left_out = !launch.left_out_at.empty() && site.name() == launch.left_out_at;
  while ((int)here.threads.size() < launch.threads) {
    here.threads.emplace_back();
    here.threads.back().stack = static_cast<char*>(
        mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  here.meetings.assign(launch.threads, Meeting());
  if (sanitized()) here.scheduler.fiber = __tsan_get_current_fiber();
  const size_t numbers = launch.shared / sizeof(double) + 8;
  std::mt19937_64 random(launch.seed);
  int64_t most = 0;
  for (here.number = 0; here.number < launch.blocks && here.mistake.empty(); here.number++) {
    here.shared = static_cast<double*>(aligned_alloc(64, (numbers + 7) / 8 * 64));
    for (size_t i = 0; i < numbers; i++) here.shared[i] = NAN;
    run_block(random);
    for (int t = 0; t < launch.threads; t++) most = std::max(most, here.threads[t].meetings);
    free(here.shared);
  }
  if (!here.mistake.empty()) throw std::logic_error(here.mistake);
  return most;
}

std::map<std::string, int64_t> barriers() {
  std::map<std::string, int64_t> all;
  for (const Site& site : sites)
    if (site.file != nullptr) all[site.name()] += site.met;
  return all;
}

int thread() { return here.current; }
int threads() { return here.launch.threads; }
int block() { return here.number; }
void* shared() { return here.shared; }

void meet(int first, int count, const char* file, int line) {
  Site& barrier = site(file, line);
  barrier.met++;
  if (here.threads[here.current].meetings++ == here.launch.left_out || barrier.left_out) return;
  release(&here.meetings[first]);
  wait(first, count, file, line);
  acquire(&here.meetings[first]);
}

uint64_t exchange(uint64_t mine, int source, int first, int count, const char* file, int line) {
  Thread& thread = here.threads[here.current];
  const unsigned turn = thread.exchanges++ % 2;
  thread.shown[turn] = mine;
  wait(first, count, file, line);
  return here.threads[source].shown[turn];
}

}  // namespace emulator
}  // namespace optlayer
