// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm_batch.h"

#include <algorithm>

#include "ops/parallel.h"

namespace capibara {
namespace {

void gemm_at(GemmCall call, const GemmBatchDim* dims, int count, int64_t index) {
  int64_t x = 0, b = 0, y = 0;
  for (int i = count - 1; i >= 0; --i) {
    const int64_t at = index % dims[i].size;
    index /= dims[i].size;
    x += at * dims[i].x_stride;
    b += at * dims[i].b_stride;
    y += at * dims[i].y_stride;
  }
  const auto bytes = [](int64_t elements, DType dtype) {
    return elements * static_cast<int64_t>(size_of(dtype));
  };
  call.x.data = static_cast<const char*>(call.x.data) + bytes(x, call.x.dtype);
  call.b.data = static_cast<const char*>(call.b.data) + bytes(b, call.b.dtype);
  call.y = static_cast<char*>(call.y) + bytes(y, call.y_dtype);
  gemm(call);
}

}  // namespace

void gemm_batch(const GemmCall& first, const GemmBatchDim* dims, int count) {
  int64_t items = 1;
  for (int i = 0; i < count; ++i) items *= dims[i].size;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) gemm_at(first, dims, count, i);
  };
  // Fewer matrices than threads: the threads share each of them. A multiplication counts as in
  // gemm.cc.
  const int64_t m = first.m, n = first.n, k = first.k;
  const int64_t work = std::max(m * n * k / 8, (m * k + k * n + m * n) * int64_t{4});
  if (items < num_threads()) {
    range(0, items);
  } else {
    parallel_for(items, items * work, range);
  }
}

}  // namespace capibara
