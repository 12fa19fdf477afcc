// SPDX-License-Identifier: Apache-2.0
// The operators of csrc/library.cpp on CUDA tensors, in a library of its own, which is loaded where torch has CUDA. Every
// operator is a few launches on the current stream, and nothing waits for them: a CUDA graph may record it.
//
// torch's CUDA library is not linked, for the one that is loaded is not known here: of the one function that is needed
// from it, the address is asked for when a call comes.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../../entropic/cuda/engines.h"
#include "../../entropic/operators.h"
#include "../../operators.h"
#include "engines.h"

namespace optlayer {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) cudaGetLastError();  // the next launch would report it once more
  STD_TORCH_CHECK(error == cudaSuccess, "optlayer on CUDA: ", what, ": ", cudaGetErrorString(error));
}

cudaStream_t current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return reinterpret_cast<Get>(library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// What a device has, asked once.
const Limits& limits_of(int32_t device) {
  static std::mutex mutex;
  static std::map<int32_t, Limits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "the properties of the device");
    return value;
  };
  Limits limits;
  limits.processors = ask(cudaDevAttrMultiProcessorCount);
  limits.threads = ask(cudaDevAttrMaxThreadsPerMultiProcessor);
  limits.shared = (size_t)ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits.shared_block = (size_t)ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.reserved = (size_t)ask(cudaDevAttrReservedSharedMemoryPerBlock);
  limits.registers = ask(cudaDevAttrMaxRegistersPerMultiprocessor);
  return known.emplace(device, limits).first->second;
}

// What a kernel of that device may have, without the fast memory that it declares itself; `registers` are those of a
// thread. The first time the kernel is permitted all fast memory that there is.
struct Allowed {
  Limits limits;
  int registers = 0;
  std::atomic<int> share{-1};  // of a processor's memory that is fast, in percent, as the driver was told last
};
Allowed& prepared(int32_t device, const void* function) {
  const Limits& limits = limits_of(device);
  static std::mutex mutex;
  static std::map<std::pair<int32_t, const void*>, Allowed> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({device, function});
  if (found != known.end()) return found->second;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, function), "no kernel for this device");
  const int most = (int)(limits.shared_block - attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "fast memory");
  Allowed& to = known[{device, function}];
  to.limits = limits, to.registers = attributes.numRegs;
  to.limits.shared_block -= attributes.sharedSizeBytes;
  to.limits.reserved += attributes.sharedSizeBytes;
  return to;
}

const std::vector<const TeamEngine*>& team_engines() {
  static const std::vector<const TeamEngine*> all = {team_engine_1(), team_engine_8(), team_engine_32(),
                                                     team_engine_128()};
  return all;
}

const std::vector<const entropic::TeamEngine*>& entropic_team_engines() {
  static const std::vector<const entropic::TeamEngine*> all = {
      entropic::team_engine_1(), entropic::team_engine_8(), entropic::team_engine_32(), entropic::team_engine_128()};
  return all;
}

// Of the kernels those for a program of such a size, or those that the environment variable OPTLAYER_TEAM names.
template <class Engine>
const Engine& team_engine(const std::vector<const Engine*>& engines, int n, int rows) {
  const char* wanted = getenv("OPTLAYER_TEAM");
  const int team = wanted != nullptr && *wanted != 0 ? atoi(wanted) : team_for(n, rows);
  for (const Engine* engine : engines)
    if (engine->team == team) return *engine;
  STD_TORCH_CHECK(false, "OPTLAYER_TEAM is ", wanted, ", expected one of 1, 8, 32, 128");
}

// The percentage of mapping.h, or that of the environment variable OPTLAYER_FAST.
int fast_percent() {
  const char* wanted = getenv("OPTLAYER_FAST");
  if (wanted == nullptr || *wanted == 0) return SHARE;
  char* end;
  const long percent = strtol(wanted, &end, 10);
  const bool right = *end == 0 && percent >= 0 && percent <= 100;
  STD_TORCH_CHECK(right, "OPTLAYER_FAST is ", wanted, ", expected a number from 0 to 100");
  return (int)percent;
}

template <class Call>
void run(const Place& place, const Call& call, int team, const Kernel<Call>& kernel) {
  const torch::stable::accelerator::DeviceGuard guard(place.index);
  const cudaStream_t stream = current_stream(place.index);
  Allowed& allowed = prepared(place.index, kernel.function);
  Grounds grounds;
  Mapping& to = grounds.mapping;
  to = mapping(allowed.limits, team, allowed.registers, call.B, kernel.need(call), fast_percent());
  grounds.slow = kernel.slow(call, to.room);
  bound(to, grounds.slow);
  const int share = fast_share(allowed.limits, to);
  if (allowed.share.exchange(share) != share)
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributePreferredSharedMemoryCarveout, share), "fast memory");
  Batch numbers;  // the counter, on a cache line of its own, and the slow memory
  numbers.size[numbers.rank++] = 16 + (int64_t)(grounds.slow / sizeof(double)) * to.blocks * to.teams();
  Tensor memory = make(place, numbers, -1, ScalarType::Double);
  char* start = static_cast<char*>(memory.mutable_data_ptr());
  grounds.counter = reinterpret_cast<unsigned long long*>(start);
  grounds.memory = start + 16 * sizeof(double);
  check(cudaMemsetAsync(start, 0, 16 * sizeof(double), stream), "the counter");
  check(kernel.launch(call, grounds, stream), "the launch");
}

struct Gpu {
  static Place place(const Tensor& like) {
    STD_TORCH_CHECK(like.is_cuda(), "expected CUDA tensors");
    return {aoti_torch_device_type_cuda(), like.get_device_index(), fill};
  }

  static void fill(const Place& place, const Batch& batch, const int64_t* strides, int64_t* offsets) {
    const torch::stable::accelerator::DeviceGuard guard(place.index);
    Offsets table;
    table.rank = (int)batch.rank, table.count = batch.count(), table.offsets = offsets;
    for (int64_t d = 0; d < batch.rank; d++) table.size[d] = batch.size[d], table.stride[d] = strides[d];
    check(tabulate(table, current_stream(place.index)), "offsets");
  }

  static int64_t solve(const Place& place, SolveCall call) {
    const TeamEngine& use = team_engine(team_engines(), call.n, call.m + call.p);
    Tensor prepared;
    if (const size_t size = use.shared(call); size > 0) {
      Batch numbers;
      numbers.size[numbers.rank++] = (int64_t)size;
      prepared = make(place, numbers, -1, ScalarType::Double);
      call.prepared = prepared.mutable_data_ptr();
      SolveCall one = call;
      one.B = 1;
      run(place, one, use.team, use.prepare);
    }
    run(place, call, use.team, use.solve);
    return -1;
  }

  static int64_t entropic(const Place& place, const entropic::SolveCall& call) {
    const entropic::TeamEngine& use = team_engine(entropic_team_engines(), call.n, call.m + call.p);
    run(place, call, use.team, use.solve);
    return -1;
  }

  static void entropic(const Place& place, const entropic::KktCall& call) {
    const entropic::TeamEngine& use = team_engine(entropic_team_engines(), call.n, call.m + call.p);
    run(place, call, use.team, use.kkt);
  }

  static void kkt(const Place& place, const KktCall& call) { backward(place, BackwardCall{call, {}, {}, {}}); }

  static void pull(const Place& place, const PullCall& call) {
    const torch::stable::accelerator::DeviceGuard guard(place.index);
    Batch numbers;
    numbers.size[numbers.rank++] = pull_partial(call);
    Tensor partial = make(place, numbers, -1, ScalarType::Double);
    check(optlayer::pull(call, static_cast<double*>(partial.mutable_data_ptr()), current_stream(place.index)),
          "the gradients");
  }

  // Gradients of single elements by the kernel that solves, sums by their own (backward.h).
  static void kkt_pull(const Place& place, const KktCall& system, const PullCall& gradients) {
    const auto [each, sums] = shares(system, gradients);
    if (each.B > 0) backward(place, each);
    if (sums.dP != nullptr || sums.dG != nullptr || sums.dA != nullptr) pull(place, sums);
  }

 private:
  static void backward(const Place& place, const BackwardCall& call) {
    const TeamEngine& use = team_engine(team_engines(), call.n, call.m + call.p);
    run(place, call, use.team, use.kkt);
  }
};

std::string cuda_info() {
  std::string teams;
  for (const TeamEngine* engine : team_engines()) teams += (teams.empty() ? "" : ", ") + std::to_string(engine->team);
  return "teams=" + teams + "\narchitectures=" OPTLAYER_ARCHITECTURES "\ntoolkit=" +
         std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) + "\n";
}

int64_t cuda_driver() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "the driver");
  return version;
}

}  // namespace
}  // namespace optlayer

STABLE_TORCH_LIBRARY_FRAGMENT(optlayer_native, m) {
  // What was built for CUDA, as lines "key=value".
  m.def("cuda_info() -> str");
  // The newest CUDA that the driver runs, 13020 for 13.2; 0 where there is no driver.
  m.def("cuda_driver() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CUDA, m) {
  m.impl("entropic_qp", TORCH_BOX(&optlayer::entropic::qp<optlayer::Gpu>));
  m.impl("entropic_kkt_solve", TORCH_BOX(&optlayer::entropic::kkt_solve<optlayer::Gpu>));
  m.impl("qp", TORCH_BOX(&optlayer::qp<optlayer::Gpu>));
  m.impl("kkt_solve", TORCH_BOX(&optlayer::kkt_solve<optlayer::Gpu>));
  m.impl("pull", TORCH_BOX(&optlayer::pull<optlayer::Gpu>));
  m.impl("kkt_pull", TORCH_BOX(&optlayer::kkt_pull<optlayer::Gpu>));
}
STABLE_TORCH_LIBRARY_IMPL(optlayer_native, CompositeExplicitAutograd, m) {
  m.impl("cuda_info", TORCH_BOX(&optlayer::cuda_info));
  m.impl("cuda_driver", TORCH_BOX(&optlayer::cuda_driver));
}
