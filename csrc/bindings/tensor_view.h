// SPDX-License-Identifier: Apache-2.0
// What the operators need to know of an argument, whether NumPy or torch brought it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "base/dtype.h"

namespace capibara {

// The argument has the wrong type (Python's TypeError); std::invalid_argument is its ValueError.
struct TypeMismatch : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

constexpr int kMaxDims = 8;

// Element types that are no values: indices, and the bytes of packed weights.
enum class IndexType : uint8_t { kNone, kInt32, kInt64, kUInt8 };

struct TensorView {
  const char* name;  // the argument's, for error messages
  void* data;
  DType dtype;      // if index == kNone
  IndexType index;  // of positions, lengths and packed weights
  int dims;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxDims];  // in elements
  bool writable;
  bool whole_strides;  // false: some stride is no whole number of elements

  int64_t last() const { return shape[dims - 1]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < dims; ++i) n *= shape[i];
    return n;
  }
  size_t element_size() const {
    if (index == IndexType::kNone) return size_of(dtype);
    return index == IndexType::kInt64 ? 8 : index == IndexType::kInt32 ? 4 : 1;
  }
  // Elements of a row follow one another.
  bool rows_contiguous() const { return dims == 0 || last() <= 1 || strides[dims - 1] == 1; }
  bool contiguous() const;
  bool aligned() const {
    return whole_strides && reinterpret_cast<uintptr_t>(data) % element_size() == 0;
  }
  std::string shape_text() const;  // "[2, 3]"
};

}  // namespace capibara
