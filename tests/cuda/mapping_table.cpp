// SPDX-License-Identifier: Apache-2.0
// Tells how csrc/qp/cuda/mapping.h lays batches on GPUs: reads lines of
//     processors threads shared shared_block reserved registers   team registers_of_kernel B   vector vectors all
// and n and rows after the word "team", and answers each with a line.
#include <cstring>
#include <iostream>
#include <string>

#include "qp/cuda/mapping.h"

int main() {
  using namespace optlayer;
  std::string word;
  while (std::cin >> word) {
    if (word == "team") {
      int n, rows;
      std::cin >> n >> rows;
      std::cout << team_for(n, rows) << "\n";
      continue;
    }
    Limits gpu;
    Need need;
    int team, registers;
    int64_t B;
    gpu.processors = std::stoi(word);
    std::cin >> gpu.threads >> gpu.shared >> gpu.shared_block >> gpu.reserved >> gpu.registers >> team >> registers >> B >>
        need.vector >> need.vectors >> need.all;
    Mapping to = mapping(gpu, team, registers, B, need);
    bound(to, need.all > to.room.fast ? need.all - to.room.fast : 0);
    std::cout << to.threads << " " << to.blocks << " " << to.room.fast << " " << to.fast << " " << fast_share(gpu, to) << "\n";
  }
}
