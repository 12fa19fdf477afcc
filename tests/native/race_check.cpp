// SPDX-License-Identifier: Apache-2.0
// The whole of csrc/qp and csrc/entropic as a team of -DOPTLAYER_TEAM threads runs it on a GPU, under the emulator: are all accesses of
// several threads to one place in memory ordered by barriers?
//
// Small programs of every kind are solved and differentiated. Compiled with -fsanitize=thread an access that no barrier
// orders is reported, whatever the schedule was. What a schedule makes of one is seen too: results that differ from those
// of the first schedule, or threads that wait in vain.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator.h"
#include "entropic/adjoint.h"
#include "entropic/solve.h"
#include "qp/cuda/work.h"

using namespace optlayer;
using namespace optlayer::OPTLAYER_ISA;

namespace {

int reports = 0;

struct Kind {
  const char* name;
  int n, m, p;
  bool bounds = false, singular = false, infeasible = false, shared = false, warm = false, single = false, split = false;
  bool open = false, fixed = false, redundant = false, recompute = false, unbounded = false, bad = false;
};

// Of the fields, in their order.
constexpr bool YES = true, NO = false;
const Kind KINDS[] = {
    {"range space", 5, 6, 2},
    {"no rows", 6, 0, 0},
    {"equalities", 6, 0, 3},
    {"more rows than are kept", 3, 8, 1},
    {"bounds", 5, 6, 2, YES},
    {"bounds, no rows", 9, 0, 0, YES},
    {"singular", 6, 6, 1, NO, YES},
    {"singular, bounds", 6, 4, 1, YES, YES},
    {"infeasible", 5, 6, 1, NO, NO, YES},
    {"infeasible, bounds", 5, 6, 1, YES, YES, YES},
    {"shared", 5, 6, 2, NO, NO, NO, YES},
    {"shared, split", 5, 6, 2, NO, YES, NO, YES},
    {"warm", 5, 6, 2, NO, NO, NO, NO, YES},
    {"warm, bounds", 5, 6, 2, YES, NO, NO, NO, YES},
    {"single", 5, 6, 2, YES, NO, NO, NO, NO, YES},
    {"split", 5, 6, 2, NO, NO, NO, NO, NO, NO, YES},
    {"open rows, fixed variables", 5, 6, 1, YES, NO, NO, NO, NO, NO, NO, YES, YES},
    {"redundant", 5, 6, 3, NO, YES, NO, NO, NO, NO, YES, NO, NO, YES},
    {"recompute", 5, 6, 2, YES, NO, NO, NO, NO, NO, NO, NO, NO, NO, YES},
    {"unbounded", 5, 3, 1, NO, YES, NO, NO, NO, NO, NO, NO, NO, NO, NO, YES},
    {"data that are none", 5, 6, 1, YES, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, YES},
    {"larger than a tile", 20, 24, 3, NO, NO, NO, NO, NO, NO, YES},
};

// The work on a call as one block of two teams at most.
template <class Worker, class Call>
void launch(const Call& call, uint64_t seed, const std::string& left_out) {
  const Need sizes = need<Worker>(call);
  Room room;
  room.vector = sizes.vector, room.kept = sizes.vectors;
  room.fast = sizes.vectors + (sizes.all - sizes.vectors) / 16 * 8;
  emulator::Launch how;
  how.threads = TEAM > 32 ? TEAM : 2 * TEAM, how.seed = seed, how.left_out_at = left_out;
  const int teams = how.threads / TEAM;
  how.shared = (size_t)teams * room.fast;
  const size_t each = slow<Worker>(call, room);
  std::vector<double> memory(each / sizeof(double) * teams, NAN);
  unsigned long long counter = 0;
  emulator::launch(how, [&] {
    char* fast = static_cast<char*>(emulator::shared()) + team_in_block() * room.fast;
    work<Worker>(call, fast, reinterpret_cast<char*>(memory.data()) + team_number() * each, room, &counter);
  });
}

// A batch of programs, and room for all that is found out about them.
class Batch {
 public:
  static constexpr int B = 3;

  explicit Batch(const Kind& of) : kind(of), n(of.n), m(of.m), p(of.p) {
    std::mt19937_64 random(17 * n + m);
    const auto normal = [&] { return std::normal_distribution<double>()(random); };
    const int slots = m + p < 2 * n ? m + p : 2 * n;
    const size_t state = 2 * (size_t)(n + m + p) + 2, factor = (size_t)(n * (n + 1) / 2 + slots * (slots + 1) / 2);
    Input* const inputs[] = {&solve.P, &solve.q, &solve.G, &solve.h, &solve.A, &solve.b, &solve.lb, &solve.ub, &solve.x0};
    const int sizes[] = {n * n, n, m * n, m, p * n, p, n, n, n};
    double* data[9];
    for (int i = 0; i < 9; i++) {
      data[i] = numbers((size_t)B * sizes[i]);
      const bool there = i < 6 ? sizes[i] > 0 : i < 8 ? kind.bounds : kind.warm;
      if (there) inputs[i]->data = data[i], inputs[i]->stride = kind.shared && (i == 0 || i == 2 || i == 4) ? 0 : sizes[i];
    }
    auto [P, q, G, h, A, b, lb, ub, x0] = data;
    const int rank = kind.singular ? n / 2 : n;
    for (int e = 0; e < B; e++) {
      std::vector<double> L((size_t)n * rank), x(n);
      for (double& a : L) a = normal();
      for (int j = 0; j < n; j++) {
        x[j] = normal(), q[e * n + j] = normal(), x0[e * n + j] = x[j] + 0.01 * normal();
        lb[e * n + j] = x[j] - 0.5 + 0.4 * normal() * (j % 2), ub[e * n + j] = lb[e * n + j] + 1;
        if (kind.fixed && j % 3 == 0) lb[e * n + j] = -INFINITY;
        if (kind.fixed && j % 3 == 1) lb[e * n + j] = ub[e * n + j];
      }
      for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
          double sum = kind.singular ? 0 : i == j;
          for (int k = 0; k < rank; k++) sum += L[i * rank + k] * L[j * rank + k];
          P[(e * n + i) * n + j] = kind.unbounded ? 0 : sum;
        }
      for (int i = 0; i < m + p; i++) {
        double *row = i < m ? G + (e * m + i) * n : A + (e * p + i - m) * n, sum = 0;
        for (int j = 0; j < n; j++) row[j] = normal(), sum += row[j] * x[j];
        (i < m ? h[e * m + i] : b[e * p + i - m]) = sum + (i < m) * 0.3 * (i % 3);
      }
      if (kind.open && m > 2) h[e * m + 2] = INFINITY;
      if (kind.infeasible && e != 1) {  // 0 row <= -1
        for (int j = 0; j < n; j++) G[e * m * n + j] = -G[(e * m + 1) * n + j];
        h[e * m] = -h[e * m + 1] - 1;
      }
      if (kind.redundant) {  // the last equality and the last row once more
        for (int j = 0; j < n; j++) A[(e * p + p - 1) * n + j] = A[(e * p) * n + j], G[(e * m + m - 1) * n + j] = G[e * m * n + j];
        b[e * p + p - 1] = b[e * p], h[e * m + m - 1] = h[e * m];
      }
      if (kind.bad && e == 1) q[e * n] = NAN;
      if (kind.bad && e == 2) lb[e * n] = ub[e * n] + 1;
    }
    if (kind.single) to_single();
    solve.B = B, solve.n = n, solve.m = m, solve.p = p, solve.single = kind.single;
    solve.eps_abs = solve.eps_rel = kind.single ? 1e-5 : 1e-9, solve.max_iter = 100;
    solve.formulation = kind.split ? Formulation::split : Formulation::automatic;
    solve.nan_failures = true, solve.keep_factor = !kind.recompute;
    for (void** to : {&solve.x, &solve.z_box, &solve.lower_share, &adjoint.ux, &adjoint.u_box})
      *to = numbers(B * n);
    for (void** to : {&solve.y, &adjoint.uy}) *to = numbers(B * p);
    for (void** to : {&solve.z, &solve.s, &adjoint.uz}) *to = numbers(B * m);
    for (int64_t** to : {&solve.status, &solve.iterations, &solve.weakly_active}) *to = counts(B);
    solve.ray = numbers(B * (size_t)(2 * n + m + p));
    solve.state = numbers(B * state), solve.factor = numbers(B * factor), solve.index = counts((size_t)B * slots);
    adjoint.B = B, adjoint.n = n, adjoint.m = m, adjoint.p = p, adjoint.single = kind.single;
    adjoint.P = solve.P, adjoint.G = solve.G, adjoint.A = solve.A;
    adjoint.state = {solve.state, (int64_t)state}, adjoint.index = {solve.index, slots};
    if (!kind.recompute) adjoint.factor = {solve.factor, (int64_t)factor};
    adjoint.rx = {solve.q.data, n}, adjoint.r_box = {solve.q.data, 0};
    if (p > 0) adjoint.ry = {solve.b.data, p};
    if (m > 0) adjoint.rz = {solve.h.data, m};
    adjoint.wx = {solve.x, n}, adjoint.wy = {solve.y, p}, adjoint.wz = {solve.z, m};
    adjoint.dP = numbers(B * n * n), adjoint.dG = numbers(B * m * n), adjoint.dA = numbers(B * p * n);
  }

  // Solve and differentiate; all numbers that were written.
  std::vector<double> run(uint64_t seed, const std::string& left_out) {
    prepared_.assign(Preparation<double>::size(solve), NAN);
    if (!prepared_.empty()) {
      solve.prepared = prepared_.data();
      SolveCall one = solve;
      one.B = 1;
      launch<Preparation<double>>(one, seed, left_out);
    }
    launch<Solver<double>>(solve, seed, left_out);
    launch<Backward<double>>(adjoint, seed, left_out);
    std::vector<double> all;
    for (const auto& array : arrays_) all.insert(all.end(), array->begin(), array->end());
    return all;
  }

  const Kind& kind;

 private:
  double* numbers(size_t count) {
    arrays_.push_back(std::make_unique<std::vector<double>>(count + 1, 0.0));
    return arrays_.back()->data();
  }
  int64_t* counts(size_t count) { return reinterpret_cast<int64_t*>(numbers(count)); }

  // The data so far, rounded, in the first half of their arrays.
  void to_single() {
    for (auto& array : arrays_)
      for (size_t i = 0; i < array->size(); i++) {
        const float a = (float)(*array)[i];
        memcpy(reinterpret_cast<char*>(array->data()) + i * sizeof a, &a, sizeof a);
      }
  }

  int n, m, p;
  SolveCall solve;
  BackwardCall adjoint;
  std::vector<double> prepared_;
  std::vector<std::unique_ptr<std::vector<double>>> arrays_;
};

// Entropic programs: sum(x) = 1 and, of some, equalities or rows, caps and floors, a variable that is fixed.
struct EntropicKind {
  const char* name;
  int n, m, p, curvature;  // of P: 0 none, 1 diagonal, 2 full
  bool bounds = false, infeasible = false, bad = false;
};
const EntropicKind ENTROPIC_KINDS[] = {
    {"softmax", 6, 0, 1, 0},
    {"softmax, more than a team", 20, 0, 1, 1},
    {"no rows", 6, 0, 0, 1, YES},
    {"caps and floors", 6, 0, 1, 0, YES},
    {"rows", 7, 4, 2, 0},
    {"rows, diagonal", 7, 4, 2, 1, YES},
    {"rows, full", 9, 3, 3, 2, YES},
    {"rows, full, more than a team", 18, 10, 3, 2},
    {"infeasible", 6, 2, 1, 0, NO, YES},
    {"infeasible, full", 6, 2, 1, 2, YES, YES},
    {"data that are none", 6, 2, 1, 2, YES, NO, YES},
};

class EntropicBatch {
 public:
  static constexpr int B = 3;

  explicit EntropicBatch(const EntropicKind& kind) {
    const int n = kind.n, m = kind.m, p = kind.p, entries = kind.curvature == 0 ? 0 : kind.curvature == 1 ? n : n * n;
    std::mt19937_64 random(17 * n + m);
    const auto normal = [&] { return std::normal_distribution<double>()(random); };
    const auto size = optlayer::entropic::state_size(n, m + p);
    Input* const inputs[] = {&solve.P, &solve.q, &solve.G, &solve.h, &solve.A, &solve.b, &solve.lb, &solve.ub, &solve.tau};
    const int sizes[] = {entries, n, m * n, m, p * n, p, n, n, n};
    double* data[9];
    for (int i = 0; i < 9; i++) {
      data[i] = numbers((size_t)B * sizes[i]);
      if (sizes[i] > 0 && (kind.bounds || (i != 6 && i != 7))) inputs[i]->data = data[i], inputs[i]->stride = sizes[i];
    }
    auto [P, q, G, h, A, b, lb, ub, tau] = data;
    for (int e = 0; e < B; e++) {
      for (int j = 0; j < n; j++) {
        const double x = 1.0 / n;
        q[e * n + j] = 3 * normal(), tau[e * n + j] = 0.5 + 0.1 * (j % 5);
        lb[e * n + j] = j == 2 ? x : j % 3 == 0 ? 0.2 * x : 0, ub[e * n + j] = j == 2 ? x : j % 3 == 1 ? 1.5 * x : INFINITY;
        if (kind.curvature == 1) P[e * n + j] = 0.5 + j % 2;
      }
      for (int i = 0; i < n && kind.curvature == 2; i++)
        for (int j = 0; j < n; j++) P[(e * n + i) * n + j] = (i == j) + 0.3 / (1 + abs(i - j));
      for (int i = 0; i < m + p; i++) {  // the first equality is sum(x) = 1
        double *row = i < m ? G + (e * m + i) * n : A + (e * p + i - m) * n, sum = 0;
        for (int j = 0; j < n; j++) row[j] = i == m ? 1 : normal(), sum += row[j] / n;
        (i < m ? h[e * m + i] : b[e * p + i - m]) = sum + (i < m) * 0.1 * (i % 3);
      }
      if (kind.infeasible && e != 1) {  // sum(x) <= 1/2
        for (int j = 0; j < n; j++) G[e * m * n + j] = 1;
        h[e * m] = 0.5;
      }
      if (kind.bad && e == 1) q[e * n] = NAN;
      if (kind.bad && e == 2) lb[e * n] = ub[e * n] + 1;
    }
    solve.B = B, solve.n = n, solve.m = m, solve.p = p, solve.diagonal = kind.curvature == 1;
    solve.eps_abs = solve.eps_rel = 1e-9, solve.max_iter = 100, solve.nan_failures = true;
    for (void** to : {&solve.x, &solve.z_box, &solve.log_x, &solve.lower_share, &solve.ray_box, &adjoint.ux, &adjoint.u_box, &adjoint.t})
      *to = numbers(B * n);
    for (void** to : {&solve.y, &solve.ray_y, &adjoint.uy}) *to = numbers(B * p);
    for (void** to : {&solve.z, &solve.s, &solve.ray_z, &adjoint.uz}) *to = numbers(B * m);
    for (int64_t** to : {&solve.status, &solve.iterations, &solve.weakly_active})
      *to = reinterpret_cast<int64_t*>(numbers(B));
    solve.state = numbers(B * (size_t)size);
    adjoint.B = B, adjoint.n = n, adjoint.m = m, adjoint.p = p, adjoint.diagonal = solve.diagonal;
    adjoint.P = solve.P, adjoint.G = solve.G, adjoint.A = solve.A, adjoint.state = {solve.state, size};
    adjoint.rx = {solve.q.data, n}, adjoint.r_box = {solve.tau.data, 0};
    if (p > 0) adjoint.ry = {solve.b.data, p};
    if (m > 0) adjoint.rz = {solve.h.data, m};
  }

  // Solve and differentiate; all numbers that were written.
  std::vector<double> run(uint64_t seed) {
    launch<OPTLAYER_ISA::entropic::Solver<double>>(solve, seed, "");
    launch<OPTLAYER_ISA::entropic::Adjoint<double>>(adjoint, seed, "");
    std::vector<double> all;
    for (const auto& array : arrays_) all.insert(all.end(), array->begin(), array->end());
    return all;
  }
  bool solved(int e) const { return solve.status[e] == SOLVED; }

 private:
  double* numbers(size_t count) {
    arrays_.push_back(std::make_unique<std::vector<double>>(count + 1, 0.0));
    return arrays_.back()->data();
  }

  optlayer::entropic::SolveCall solve;
  optlayer::entropic::KktCall adjoint;
  std::vector<std::unique_ptr<std::vector<double>>> arrays_;
};

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// Whether anything shows that a barrier is left out.
bool missed(const std::string& barrier, const std::vector<std::vector<double>>& right) {
  const int before = reports;
  for (size_t i = 0; i < right.size(); i++) {
    try {
      if (!same(Batch(KINDS[i]).run(1, barrier), right[i])) return true;
    } catch (const std::logic_error&) {
      return true;
    }
    if (reports > before) return true;
  }
  return false;
}

}  // namespace

// ThreadSanitizer calls it at every report; those equal to an earlier one it keeps back.
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_on_report(void*) { reports++; }
extern "C" __attribute__((no_sanitize("thread"))) const char* __tsan_default_options() {
  return "exitcode=0";
}

// race_check           all kinds of programs, quadratic and entropic, on several schedules
// race_check plant     the barriers of csrc/qp are left out one by one, and those are told that nobody misses
int main(int count, char** arguments) {
  const bool plant = count > 1 && strcmp(arguments[1], "plant") == 0;
  int failures = 0;
  std::vector<std::vector<double>> right;
  for (const Kind& kind : KINDS)
    for (uint64_t seed = 1; seed <= (plant ? 1 : 3); seed++) {
      const std::vector<double> found = Batch(kind).run(seed, "");
      if (seed == 1) right.push_back(found);
      if (same(found, right.back())) continue;
      failures++, printf("%s: schedule %d gives something else\n", kind.name, (int)seed);
    }
  for (const EntropicKind& kind : ENTROPIC_KINDS) {
    std::vector<double> first;
    for (uint64_t seed = 1; seed <= 3 && !plant; seed++) {
      EntropicBatch batch(kind);
      const std::vector<double> found = batch.run(seed);
      if (seed == 1) first = found;
      if (!same(found, first)) failures++, printf("%s: schedule %d gives something else\n", kind.name, (int)seed);
      if (batch.solved(1) == kind.bad) failures++, printf("%s: the second is not as expected\n", kind.name);
    }
  }
  if (reports > 0) failures++;
  if (plant) {
    int planted = 0, caught = 0;
    for (const auto& [barrier, met] : emulator::barriers()) {
      if (barrier.rfind("qp/", 0) != 0) continue;
      const bool found = missed(barrier, right);
      planted++, caught += found;
      if (!found) printf("not missed: %s\n", barrier.c_str());
    }
    printf("%d of %d left out barriers caught\n", caught, planted);
  }
  printf("%d reports, %d failures\n", reports, failures);
  return failures != 0;
}
