// SPDX-License-Identifier: Apache-2.0
// Contract: normalisation over rows of `cols` elements, in f32 inside.
//   rms_norm            y = x / sqrt(mean(x^2) + eps) * w
//                       (B. Zhang and R. Sennrich, "Root Mean Square Layer Normalization", 2019)
//   fused_add_rms_norm  residual = round(x + residual); x = rms_norm(residual)
//   layer_norm          y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w, no bias
//                       (J. Ba, J. Kiros and G. Hinton, "Layer Normalization", 2016)
// Rows are independent: the result does not depend on how they are split over calls.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

// Strides in elements, from row to row; within a row elements are contiguous.
struct NormArgs {
  DType dtype;         // of x, y and residual
  DType weight_dtype;  // dtype, or f32
  int64_t cols;
  const void* x;
  int64_t x_stride;
  void* y;  // may be x
  int64_t y_stride;
  void* residual;  // fused_add_rms_norm only
  int64_t residual_stride;
  const void* weight;  // [weight_rows, cols], contiguous; row r takes weight row r % weight_rows
  int64_t weight_rows;
  float eps;
};

// Rows [begin, end).
using NormFn = void(const NormArgs& args, int64_t begin, int64_t end) noexcept;

namespace scalar {
NormFn rms_norm, fused_add_rms_norm, layer_norm;
}

const KernelTable<NormFn>& rms_norm_kernels();
const KernelTable<NormFn>& fused_add_rms_norm_kernels();
const KernelTable<NormFn>& layer_norm_kernels();

}  // namespace capibara
