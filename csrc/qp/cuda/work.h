// SPDX-License-Identifier: Apache-2.0
// What one team of a launch does: it takes problems from a counter until there are none left. A problem that is solved
// costs nothing more, and nothing waits for the slowest one.
#pragma once

#include "../adjoint.h"
#include "../solve.h"

namespace optlayer {
namespace OPTLAYER_ISA {

// `Worker` is a Solver or an Adjoint: it lays its workspace out once, and what the batch shares is set up once a team.
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
