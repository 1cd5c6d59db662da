// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax/softmax.h"

#include <vector>

#include "ops/ops.h"
#include "ops/registry.h"

namespace capibara {
namespace {

// Kept from call to call: a row's worth, at most a vocabulary's 600 KB a thread.
float* scratch_of(int64_t elements) {
  thread_local std::vector<float> scratch;
  if (scratch.size() < static_cast<size_t>(elements)) scratch.resize(elements);
  return scratch.data();
}

}  // namespace

void softmax(const SoftmaxCall& call) {
  static SoftmaxFn* const kernel = softmax_kernels().chosen().run;
  count_call(Op::softmax);
  const size_t size = size_of(call.dtype);
  const int64_t multiple = kSoftmaxScratchMultiple;
  const int64_t scratch_elements =
      call.dtype == DType::kF32 ? 0 : (call.cols + multiple - 1) / multiple * multiple;
  const int64_t bytes_per_row = 2 * call.cols * static_cast<int64_t>(size);
  parallel_rows(call.shape, bytes_per_row, [&](int64_t outer, int64_t begin, int64_t end) {
    const SoftmaxArgs args = {
        call.dtype,
        call.cols,
        call.x.outer(outer, size),
        call.x.inner_stride,
        call.y.outer(outer, size),
        call.y.inner_stride,
        call.scale,
        call.lengths ? call.lengths + outer * call.shape.inner : nullptr,
    };
    kernel(args, begin, end, scratch_of(scratch_elements));
  });
}

}  // namespace capibara
