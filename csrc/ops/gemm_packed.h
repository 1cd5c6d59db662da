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

struct PackedParts {
  const float* scales = nullptr;     // of int8, one a column, zero past the last
  const int32_t* offsets = nullptr;  // where the tiles add 128 to A: 128 times each column's sum
  const char* panels = nullptr;

  PackedParts() = default;
  explicit PackedParts(const void* packed);
};

}  // namespace capibara
