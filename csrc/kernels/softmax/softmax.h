// SPDX-License-Identifier: Apache-2.0
// Contract: y[r, i] = exp(s x[r, i] - m) / sum_j exp(s x[r, j] - m), m the maximum of s x[r, :],
// over the first lengths[r] elements of each row; the others become zero, and so does a row of
// length zero. Three passes over the row, the exponentials kept in f32 between them.
// A row with NaN or +infinity, or with nothing but -infinity, gives NaN, as in IEEE arithmetic.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

// Strides in elements.
struct SoftmaxArgs {
  DType dtype;
  int64_t cols;
  const void* x;
  int64_t x_stride;
  void* y;  // may be x
  int64_t y_stride;
  float scale;             // s, finite
  const int32_t* lengths;  // per row, each in [0, cols]; null: cols
};

// Rows [begin, end). `scratch`: the calling thread's own, cols f32 rounded up to a multiple of
// kSoftmaxScratchMultiple; unused where y is f32.
constexpr int64_t kSoftmaxScratchMultiple = 32;
using SoftmaxFn = void(const SoftmaxArgs& args, int64_t begin, int64_t end,
                       float* scratch) noexcept;

namespace scalar {
SoftmaxFn softmax;
}

const KernelTable<SoftmaxFn>& softmax_kernels();

}  // namespace capibara
