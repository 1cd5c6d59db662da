// SPDX-License-Identifier: Apache-2.0
#include "kernels/gated/gated.h"

#include "ops/ops.h"
#include "ops/registry.h"

namespace capibara {
namespace {

void run(GatedFn* kernel, const GatedCall& call) {
  const size_t size = size_of(call.dtype);
  const int64_t bytes_per_row = 3 * call.cols * static_cast<int64_t>(size);
  parallel_rows(call.shape, bytes_per_row, [&](int64_t outer, int64_t begin, int64_t end) {
    const GatedArgs args = {
        call.dtype,
        call.cols,
        call.gate.outer(outer, size),
        call.gate.inner_stride,
        call.up.outer(outer, size),
        call.up.inner_stride,
        call.y.outer(outer, size),
        call.y.inner_stride,
    };
    kernel(args, begin, end);
  });
}

}  // namespace

void silu_and_mul(const GatedCall& call) {
  static GatedFn* const kernel = silu_and_mul_kernels().chosen().run;
  count_call(Op::silu_and_mul);
  run(kernel, call);
}

void gelu_and_mul(const GatedCall& call) {
  static GatedFn* const kernel = gelu_and_mul_kernels().chosen().run;
  count_call(Op::gelu_and_mul);
  run(kernel, call);
}

void gelu_tanh_and_mul(const GatedCall& call) {
  static GatedFn* const kernel = gelu_tanh_and_mul_kernels().chosen().run;
  count_call(Op::gelu_tanh_and_mul);
  run(kernel, call);
}

}  // namespace capibara
