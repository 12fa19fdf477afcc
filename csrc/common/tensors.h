// SPDX-License-Identifier: Apache-2.0
// From torch's tensors to the plain records of qp/call.h, and back: broadcasting without copies.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "../qp/call.h"

namespace optlayer {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

constexpr int64_t MOST_DIMENSIONS = 64;  // torch's own limit

// The leading dimensions that some tensors broadcast to.
struct Batch {
  int64_t rank = 0;
  int64_t size[MOST_DIMENSIONS];

  // Numbers of elements in the dimensions [from, to).
  int64_t count(int64_t from, int64_t to) const {
    int64_t product = 1;
    for (int64_t d = from; d < to; d++) product *= size[d];
    return product;
  }
  int64_t count() const { return count(0, rank); }

  // Broadcast with the leading dimensions of t; its last `core` are not batch.
  void join(const Tensor& t, int64_t core) {
    const int64_t lead = t.dim() - core;
    STD_TORCH_CHECK(lead >= 0, "a tensor has ", t.dim(), " dimensions, expected at least ", core);
    const auto sizes = t.sizes();
    if (lead > rank) {
      for (int64_t d = rank - 1; d >= 0; d--) size[d + lead - rank] = size[d];
      for (int64_t d = 0; d < lead - rank; d++) size[d] = 1;
      rank = lead;
    }
    for (int64_t d = 0; d < lead; d++) {
      int64_t& own = size[rank - lead + d];
      if (own == 1) own = sizes[d];
      STD_TORCH_CHECK(sizes[d] == own || sizes[d] == 1, "batch dimensions of ", sizes[d], " and ", own, " do not broadcast");
    }
  }
  void join(const Optional& t, int64_t core) {
    if (t.has_value()) join(*t, core);
  }
};

// The last dimension, or 0 for an absent tensor.
inline int64_t length(const Optional& t) {
  if (!t.has_value()) return 0;
  STD_TORCH_CHECK(t->dim() >= 1, "a block of the program has no dimensions");
  return t->size(t->dim() - 1);
}

// Where the tensors of a call live.
struct Place {
  int32_t type, index;
  // The offset of every element of a batch for a tensor with these strides, written to memory of this place.
  void (*tabulate)(const Place&, const Batch&, const int64_t* strides, int64_t* offsets);
};

inline void tabulate_on_host(const Place&, const Batch& batch, const int64_t* strides, int64_t* offsets) {
  int64_t filled = 1;
  offsets[0] = 0;
  for (int64_t d = batch.rank - 1, block = 1; d >= 0; d--) {  // the first `block` offsets are those of the last dimensions
    for (; filled < block * batch.size[d]; filled++)
      offsets[filled] = offsets[filled % block] + filled / block * strides[d];
    block = filled;
  }
}

// A new contiguous tensor of shape (*batch, last), or of the shape of the batch where `last` is negative.
inline Tensor make(const Place& place, const Batch& batch, int64_t last, ScalarType type) {
  int64_t size[MOST_DIMENSIONS + 1], stride[MOST_DIMENSIONS + 1];
  int64_t rank = batch.rank;
  for (int64_t d = 0; d < rank; d++) size[d] = batch.size[d];
  if (last >= 0) size[rank++] = last;
  int64_t step = 1;
  for (int64_t d = rank - 1; d >= 0; d--) {
    stride[d] = step;
    step *= size[d] > 1 ? size[d] : 1;
  }
  const int32_t code = type == ScalarType::Double  ? aoti_torch_dtype_float64()
                       : type == ScalarType::Float ? aoti_torch_dtype_float32()
                                                   : aoti_torch_dtype_int64();
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(rank, size, stride, code, place.type, place.index, &made));
  return Tensor(made);
}

// The step between consecutive elements of the dimensions [from, to) of a batch for a tensor with these strides (0 where
// it is expanded). False where no single step will do.
inline bool uniform(const Batch& batch, const int64_t* strides, int64_t from, int64_t to, int64_t* step) {
  bool first = true;
  int64_t next = 0;
  *step = 0;
  for (int64_t d = to - 1; d >= from; d--) {
    if (batch.size[d] == 1) continue;
    if (first) {
      *step = next = strides[d];
      first = false;
    } else if (strides[d] != next) {
      return false;
    }
    next *= batch.size[d];
  }
  return true;
}

// Reads the arguments of one call. What it had to copy or to tabulate lives as long as the reader.
class Reader {
 public:
  Reader(const Place& place, const Batch& batch, ScalarType type) : place_(place), batch_(batch), type_(type) {}

  Input vector(const Optional& t, int64_t size, const char* name) { return read(t, 1, 1, size, type_, name, false); }
  Input matrix(const Optional& t, int64_t rows, int64_t columns, const char* name, bool symmetric = false) {
    return read(t, 2, rows, columns, type_, name, symmetric);
  }
  Input vector(const Tensor& t, int64_t size, ScalarType type, const char* name) {
    return read(t, 1, 1, size, type, name, false);
  }

  // Right-hand sides over a batch whose first `extra` dimensions count further ones.
  Columns columns(const Tensor& t, int64_t size, int64_t extra, const char* name) {
    check(t, 1, 1, size, type_, name);
    int64_t strides[MOST_DIMENSIONS];
    Columns out;
    spread(t, 1, strides);
    if (dense(t, 1, 1, size, false) && uniform(batch_, strides, 0, extra, &out.outer) &&
        uniform(batch_, strides, extra, batch_.rank, &out.stride)) {
      out.data = t.const_data_ptr();
      return out;
    }
    Tensor whole = make(place_, batch_, size, type_);
    torch::stable::copy_(whole, t);
    copies_.push_back(whole);
    out.data = whole.const_data_ptr();
    out.stride = size;
    out.outer = size * batch_.count(extra, batch_.rank);
    return out;
  }

 private:
  void check(const Tensor& t, int64_t core, int64_t rows, int64_t columns, ScalarType type, const char* name) const {
    int32_t device;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device));
    STD_TORCH_CHECK(device == place_.type && (device == aoti_torch_device_type_cpu() || t.get_device_index() == place_.index) &&
                        t.scalar_type() == type,
                    name, " has another dtype or device than expected");
    const int64_t dim = t.dim();
    STD_TORCH_CHECK(dim >= core && t.size(dim - 1) == columns && (core == 1 || t.size(dim - 2) == rows), name,
                    " has another shape than expected");
  }

  // Whether the elements of t are contiguous; a symmetric matrix may also be transposed.
  static bool dense(const Tensor& t, int64_t core, int64_t rows, int64_t columns, bool symmetric) {
    const auto strides = t.strides();
    const int64_t dim = t.dim(), inner = strides[dim - 1], outer = core == 2 ? strides[dim - 2] : columns;
    return ((columns <= 1 || inner == 1) && (rows <= 1 || outer == columns)) ||
           (symmetric && outer == 1 && inner == rows) || rows * columns == 0;
  }

  // The strides of t over the batch, 0 where it broadcasts.
  void spread(const Tensor& t, int64_t core, int64_t* strides) const {
    const int64_t lead = t.dim() - core, missing = batch_.rank - lead;
    const auto sizes = t.sizes(), own = t.strides();
    for (int64_t d = 0; d < batch_.rank; d++)
      strides[d] = d < missing || sizes[d - missing] == 1 ? 0 : own[d - missing];
  }

  Input read(const Optional& given, int64_t core, int64_t rows, int64_t columns, ScalarType type, const char* name,
             bool symmetric) {
    Input out;
    if (!given.has_value()) return out;
    Tensor t = *given;
    check(t, core, rows, columns, type, name);
    if (!dense(t, core, rows, columns, symmetric)) {
      for (int64_t d = 0; d < t.dim() - core; d++)
        if (t.stride(d) == 0 && t.size(d) > 1) t = torch::stable::narrow(t, d, 0, 1);
      t = torch::stable::contiguous(t);
      copies_.push_back(t);
    }
    int64_t strides[MOST_DIMENSIONS];
    spread(t, core, strides);
    out.data = t.const_data_ptr();
    if (!uniform(batch_, strides, 0, batch_.rank, &out.stride)) {
      out.offsets = table(strides);
      out.stride = 0;
    }
    return out;
  }

  const int64_t* table(const int64_t* strides) {
    Batch all;
    all.size[all.rank++] = batch_.count();
    copies_.push_back(make(place_, all, -1, ScalarType::Long));
    int64_t* offsets = static_cast<int64_t*>(copies_.back().mutable_data_ptr());
    if (all.size[0] > 0) place_.tabulate(place_, batch_, strides, offsets);
    return offsets;
  }

  const Place& place_;
  const Batch& batch_;
  ScalarType type_;
  std::vector<Tensor> copies_;
};

}  // namespace optlayer
