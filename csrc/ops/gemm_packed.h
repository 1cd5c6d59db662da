// SPDX-License-Identifier: Apache-2.0
// What the driver finds in packed weights.
#pragma once

#include "ops/gemm.h"
#include "ops/registry.h"

namespace capibara {

inline const GemmKernel& gemm_kernel(GemmType type) { return *gemm_kernels(type).chosen().run; }

inline Op op_of(GemmType type) {
  return static_cast<Op>(static_cast<int>(Op::gemm_f32) + static_cast<int>(type));
}

constexpr int64_t kPackedAlignment = 64;
constexpr int64_t kPackedHeaderBytes = 128;
static_assert(sizeof(PackedHeader) <= kPackedHeaderBytes);

// With a number of its own; what lies in the panels and how many bytes they are is not in it yet.
PackedHeader new_packed_header(GemmType type, int64_t n, int64_t k);

struct PackedParts {
  const float* scales = nullptr;     // of int8, one a column, zero past the last
  const int32_t* offsets = nullptr;  // where the tiles add 128 to A: 128 times each column's sum
  const char* panels = nullptr;

  PackedParts() = default;
  explicit PackedParts(const void* packed);
};

}  // namespace capibara
