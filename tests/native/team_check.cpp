// SPDX-License-Identifier: Apache-2.0
// Every kernel of csrc/linalg as a team of -DOPTLAYER_TEAM threads runs it on a GPU, against its plain form
// (csrc/linalg/plain.h): under the emulator, for many sizes and schedules.
//
// All of a kernel's arguments lie in one image of memory. Each thread writes its share of the image, the team runs the
// kernel, and each thread reads another's share: the image so read is compared with the one that the plain form makes.
// Sums may be added in another order, so numbers of size one may differ by TOLERANCE times the size; from one schedule,
// and from one team of the block, to the next not a bit may differ.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "linalg/matrix.h"

using namespace optlayer::OPTLAYER_ISA;
namespace emulator = optlayer::emulator;

namespace {

int failures = 0;

void expect(bool condition, const std::string& what, int rows, int n) {
  if (condition) return;
  if (failures++ < 20) printf("team of %d, %d rows, n = %d: %s\n", TEAM, rows, n, what.c_str());
}

uint64_t seed = 1;
double uniform() {  // in [-1, 1)
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return (double)(int64_t)seed / 9223372036854775808.0;
}

// Numbers one after the other; what has not been set is NaN.
template <class V>
struct Image {
  std::vector<V> numbers;

  size_t gap(size_t count) {
    numbers.resize(numbers.size() + count, V(NAN));
    return numbers.size() - count;
  }
  size_t matrix(int rows, int cols, int ld) {
    const size_t start = gap((size_t)rows * ld);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < cols; j++) numbers[start + (size_t)i * ld + j] = V(uniform());
    return start;
  }
  size_t vector(int n) { return matrix(1, n, n); }
  // Eigenvalues between 1 and about 3, the lower triangle only: solves do not magnify rounding.
  size_t definite(int n, int ld) {
    const size_t start = gap((size_t)n * ld);
    for (int i = 0; i < n; i++)
      for (int j = 0; j <= i; j++)
        numbers[start + (size_t)i * ld + j] = V(i == j ? 2 + uniform() / 2 : uniform() / (1 + sqrt((double)n)) / 2);
    return start;
  }
};

constexpr int TEAMS = 2;  // of a block

struct Run {
  int64_t barriers = 0;
  bool met = true;  // no thread waited in vain
};

template <class V>
using Kernel = std::function<void(V*)>;

// kernel(memory) by each team, and what is then in each team's memory, as other threads see it.
template <class V>
Run run(const Image<V>& start, const Kernel<V>& kernel, std::vector<V>& seen, uint64_t schedule, int64_t left_out = -1) {
  const size_t size = start.numbers.size();
  seen.assign(TEAMS * size, V(0));
  emulator::Launch launch;
  launch.threads = TEAM > 32 ? TEAM : TEAMS * TEAM, launch.blocks = TEAM > 32 ? TEAMS : 1;
  launch.shared = TEAMS * size * sizeof(V), launch.seed = schedule, launch.left_out = left_out;
  Run result;
  try {
    result.barriers = emulator::launch(launch, [&] {
      V* memory = static_cast<V*>(emulator::shared()) + team_in_block() * size;
      for (size_t i = own((size_t)0); i < size; i += TEAM) memory[i] = start.numbers[i];
      kernel(memory);
      V* to = seen.data() + team_number() * size;
      for (size_t begin = 0; begin < size; begin += TEAM) {
        const size_t i = begin + (rank() + begin / TEAM * 5 + TEAM / 2) % TEAM;
        if (i < size) to[i] = memory[i];
      }
    });
  } catch (const std::logic_error& error) {
    result.met = false;
    if (left_out < 0) expect(false, error.what(), 0, 0);
  }
  return result;
}

// The largest difference, with NaN equal to NaN only; infinite where one is NaN.
template <class V>
double distance(const V* a, const V* b, size_t size) {
  double most = 0;
  for (size_t i = 0; i < size; i++) {
    const double u = a[i], v = b[i];
    if (u != u && v != v) continue;
    if (!(fabs(u - v) <= most)) most = u == u && v == v ? fabs(u - v) : INFINITY;
  }
  return most;
}

double worst = 0;           // difference there was, in units of the tolerance
bool planting = false;      // leave barriers out
int planted = 0, caught = 0;

template <class V>
void check(const char* what, int rows, int n, const Image<V>& start, const Kernel<V>& kernel, const Kernel<V>& plain) {
  const double tolerance = (sizeof(V) == 8 ? 1e-14 : 5e-6) * (1 + rows + n);
  Image<V> expected(start);
  plain(expected.numbers.data());
  const size_t size = expected.numbers.size();
  std::vector<V> first, seen;
  const Run complete = run(start, kernel, first, 1);
  for (int team = 0; team < TEAMS; team++) {
    const double error = distance(first.data() + team * size, expected.numbers.data(), size);
    expect(error <= tolerance, std::string(what) + " differs by " + std::to_string(error), rows, n);
    worst = error / tolerance > worst ? error / tolerance : worst;
  }
  for (uint64_t schedule = 2; schedule <= 3; schedule++) {
    run(start, kernel, seen, schedule);
    bool same = true;
    for (size_t i = 0; i < TEAMS * size; i++) same = same && memcmp(&seen[i], &first[i % size], sizeof(V)) == 0;
    expect(same, std::string(what) + " depends on the schedule or on the team", rows, n);
  }
  for (int64_t barrier = 0; planting && barrier < complete.barriers; barrier++) {
    bool found = false;
    for (uint64_t schedule = 1; schedule <= 40 && !found; schedule++)
      found = !run(start, kernel, seen, schedule, barrier).met ||
              memcmp(seen.data(), first.data(), seen.size() * sizeof(V)) != 0;
    planted++, caught += found;
    expect(found, std::string(what) + " without barrier " + std::to_string(barrier), rows, n);
  }
}

template <class V>
void check_products(int rows, int n) {
  const int ld = leading<V>(n) + n % 2, ldk = leading<V>(rows) + rows % 3;
  Image<V> image;
  const size_t M = image.matrix(rows, n, ld), x = image.vector(n), y = image.vector(rows), u = image.vector(n),
               v = image.vector(rows), K = image.gap((size_t)rows * ldk);
  for (bool add : {false, true})
    check<V>(
        add ? "product, added" : "product", rows, n, image,
        [&](V* m) { product<V>(m + M, ld, rows, n, m + x, m + y, add); },
        [&](V* m) { plain::product<V>(m + M, ld, rows, n, m + x, m + y, add); });
  check<V>(
      "product_transposed", rows, n, image,
      [&](V* m) { product_transposed<V>(m + M, ld, rows, n, m + y, m + x); },
      [&](V* m) { plain::product_transposed<V>(m + M, ld, rows, n, m + y, m + x); });
  check<V>(
      "product_pair", rows, n, image,
      [&](V* m) { product_pair<V>(m + M, ld, rows, n, m + x, m + y, m + v, m + u); },
      [&](V* m) {
        plain::product<V>(m + M, ld, rows, n, m + x, m + y, false);
        plain::product_transposed<V>(m + M, ld, rows, n, m + v, m + u);
      });
  check<V>(
      "row_products", rows, n, image, [&](V* m) { row_products<V>(m + M, ld, rows, n, m + K, ldk); },
      [&](V* m) { plain::row_products<V>(m + M, ld, rows, n, m + K, ldk); });
  for (int weights = planting; weights < 3; weights++) {  // none, one in three, all
    Image<V> grams;
    const size_t P = grams.definite(n, ld), C = grams.matrix(rows, n, ld), g = grams.vector(rows),
                 H = grams.gap((size_t)n * ld);
    for (int k = 0; k < rows; k++)
      if (weights == 0 || (weights == 1 && k % 3 != 0)) grams.numbers[g + k] = V(0);
    for (bool in_place : {false, true})
      check<V>(
          in_place ? "weighted_gram in place" : "weighted_gram", rows, n, grams,
          [&](V* m) { weighted_gram<V>(m + P, ld, m + C, ld, m + g, rows, n, m + (in_place ? P : H), ld); },
          [&](V* m) { plain::weighted_gram<V>(m + P, ld, m + C, ld, m + g, rows, n, m + (in_place ? P : H), ld); });
  }
}

// What the threads of a team return is the same in all of them.
template <class V>
void check_vectors(int n) {
  Image<V> image;
  const int padded = (n + TEAM - 1) / TEAM * TEAM;  // a thread's share of the image is its share of each vector
  const size_t a = image.vector(padded), b = image.vector(padded), dots = image.gap(TEAM), norms = image.gap(TEAM);
  check<V>(
      "dot and norm", 0, n, image,
      [&](V* m) {
        const V product = dot<V>(m + a, m + b, n), most = norm<V>(m + a, n);
        m[dots + rank()] = product, m[norms + rank()] = most;
        sync();
      },
      [&](V* m) {
        for (int t = 0; t < TEAM; t++) m[dots + t] = plain::dot<V>(m + a, m + b, n), m[norms + t] = plain::norm<V>(m + a, n);
      });
}

template <class V>
void check_factor(int n) {
  const int ld = leading<V>(n) + n % 2;
  for (bool diagonal : {false, true})
    for (bool in_place : {false, true}) {
      Image<V> image;
      const size_t K = image.definite(n, ld), add = image.vector(n), inv = image.gap(n),
                   L = in_place ? K : image.gap((size_t)n * ld);
      for (int i = 0; i < n; i++) image.numbers[add + i] = absolute(image.numbers[add + i]);
      check<V>(
          in_place ? "cholesky in place" : "cholesky", n, n, image,
          [&](V* m) {
            const bool found = cholesky<V>(m + K, ld, diagonal ? m + add : nullptr, m + L, ld, m + inv, n);
            if (!found) m[K] = V(-1);
          },
          [&](V* m) { plain::cholesky<V>(m + K, ld, diagonal ? m + add : nullptr, m + L, ld, m + inv, n); });
    }
}

template <class V>
void check_solves(int rows, int n) {
  const int ld = leading<V>(n) + n % 2;
  Image<V> image;
  const size_t L = image.definite(n, ld), inv = image.gap(n), x = image.vector(n), X = image.matrix(rows, n, ld);
  plain::cholesky<V>(&image.numbers[L], ld, (V*)nullptr, &image.numbers[L], ld, &image.numbers[inv], n);
  check<V>(
      "solve_rows", rows, n, image, [&](V* m) { solve_rows<V>(m + L, ld, m + inv, n, m + X, ld, rows); },
      [&](V* m) { plain::solve_rows<V>(m + L, ld, m + inv, n, m + X, ld, rows); });
  if (rows > 1) return;
  check<V>(
      "lower_solve", rows, n, image, [&](V* m) { lower_solve<V>(m + L, ld, m + inv, n, m + x); },
      [&](V* m) { plain::lower_solve<V>(m + L, ld, m + inv, n, m + x); });
  check<V>(
      "lower_solve_transposed", rows, n, image,
      [&](V* m) { lower_solve_transposed<V>(m + L, ld, m + inv, n, m + x); },
      [&](V* m) { plain::lower_solve_transposed<V>(m + L, ld, m + inv, n, m + x); });
}

// A bad pivot (0, negative, NaN, infinite) at any place is seen by all threads.
template <class V>
void check_breakdown(int n) {
  const int ld = leading<V>(n);
  for (double bad : {-1.0, (double)NAN, -(double)INFINITY, (double)INFINITY, 0.0})
    for (int place = 0; place < n; place += 1 + n / 5) {
      Image<V> image;
      const size_t K = image.definite(n, ld), L = image.gap((size_t)n * ld), inv = image.gap(n), ok = image.gap(TEAM);
      image.numbers[K + (size_t)place * ld + place] = V(bad);
      if (bad == 0)
        for (int j = 0; j < place; j++) image.numbers[K + (size_t)place * ld + j] = V(0);
      std::vector<V> seen;
      run<V>(
          image,
          [&](V* m) {
            m[ok + rank()] = V(cholesky<V>(m + K, ld, (V*)nullptr, m + L, ld, m + inv, n));
            sync();
          },
          seen, 1);
      bool found = true;
      for (int t = 0; t < TEAMS * TEAM; t++) found = found && seen[t / TEAM * image.numbers.size() + ok + t % TEAM] == V(0);
      expect(found, "a bad pivot is seen", place, n);
    }
}

template <class V>
void check_size(int n) {
  check_vectors<V>(n), check_factor<V>(n);
  for (int rows : {1, 2, 3, 5, 16, 33, 70}) check_solves<V>(rows, n), check_products<V>(rows, n);
}

// Threads that cannot meet are reported with their places.
void check_reports() {
  if (TEAM == 1) return;
  const auto report = [](const std::function<void()>& body) -> std::string {
    emulator::Launch launch;
    launch.threads = TEAM;
    try {
      emulator::launch(launch, body);
    } catch (const std::logic_error& error) {
      return error.what();
    }
    return "";
  };
  const auto apart = [] {
    if (rank() == 0) sync();
    if (rank() != 0) sync();
  };
  expect(report(apart).find("meet at") != std::string::npos, "barriers at two places are reported", 0, 0);
  const auto alone = [] {
    if (rank() == 0) sync();
  };
  expect(report(alone).find("have ended") != std::string::npos, "a barrier that others do not reach is reported", 0, 0);
}

// Every problem is taken by one team.
void check_counter() {
  constexpr int PROBLEMS = 20;
  unsigned long long counter = 0;
  int taken[PROBLEMS] = {};
  emulator::Launch launch;
  launch.blocks = 3, launch.threads = TEAM > 32 ? TEAM : 4 * TEAM;
  emulator::launch(launch, [&] {
    for (int64_t e; (e = team_next(&counter)) < PROBLEMS;) __atomic_fetch_add(&taken[e], 1, __ATOMIC_RELAXED);
  });
  for (int e = 0; e < PROBLEMS; e++) expect(taken[e] == TEAM, "a problem is taken by one team", e, 0);
}

}  // namespace

// team_check         agreement, for many sizes
// team_check few     the same for some, where every access to memory is looked at
// team_check plant   barriers are left out one by one, and each must be missed
int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  planting = mode == "plant";
  check_counter();
  if (mode != "") {
    for (int n : {7, team::CLASSES < 4 ? 15 : 20}) {
      check_vectors<double>(n), check_factor<double>(n), check_solves<double>(1, n);
      for (int rows : {6, 23}) check_solves<double>(rows, n), check_products<double>(rows, n);
    }
    if (planting) printf("%d of %d left out barriers caught\n", caught, planted);
  } else {
    check_reports();
    for (int n = 1; n <= 70; n += n < 20 ? 1 : 7) check_size<double>(n);
    for (int n : {5, 32, 50}) check_size<float>(n);
    for (int n : {1, 6, 31, 64}) check_breakdown<double>(n);
    for (int n : {100, 129}) check_factor<double>(n), check_solves<double>(1, n), check_solves<double>(100, n);
  }
  printf("worst difference %.3f of the tolerance; %d failures\n", worst, failures);
  return failures != 0;
}
