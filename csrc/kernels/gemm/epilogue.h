// SPDX-License-Identifier: Apache-2.0
// Contract: what becomes of a block of products before it is stored:
//   y[r, j] = round(activation(row_scales[r] * col_scales[j] * (c[r, j] - col_offsets[j]) +
//   bias[j])
//                   + residual[r, j])
// computed in f32 and rounded once. c is f32 without scales and offsets, int32 with them.
// Activations are those of kernels/gated: silu, gelu by erf, gelu by tanh.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

enum class Activation : uint8_t { kNone, kSilu, kGelu, kGeluTanh };
constexpr int kActivations = 4;

// Strides in elements. Pointers of columns begin at the block's first one.
struct EpilogueArgs {
  int64_t rows, cols;
  const void* c;
  int64_t ldc;
  const float* row_scales;     // int32 alone
  const float* col_scales;     // int32 alone
  const int32_t* col_offsets;  // or null
  const float* bias;           // or null
  Activation activation;
  const void* residual;  // of y's type; or null; may be y
  int64_t residual_stride;
  DType dtype;
  void* y;
  int64_t y_stride;
};
using EpilogueFn = void(const EpilogueArgs& args) noexcept;

namespace scalar {
EpilogueFn gemm_epilogue;
}

const KernelTable<EpilogueFn>& gemm_epilogue_kernels();

}  // namespace capibara
