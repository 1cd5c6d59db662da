// SPDX-License-Identifier: Apache-2.0
// Matrix products of many pairs of matrices of one shape.
#pragma once

#include "ops/gemm.h"

namespace capibara {

// Strides of x, b and y, in elements; 0: the same matrix again.
struct GemmBatchDim {
  int64_t size, x_stride, b_stride, y_stride;
};
constexpr int kMaxGemmBatchDims = 6;

// Each matrix counts as one call. The result does not depend on the number of threads.
// first: of the first matrices, neither packed nor with a bias or a residual.
void gemm_batch(const GemmCall& first, const GemmBatchDim* dims, int count);

}  // namespace capibara
