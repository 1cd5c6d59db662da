// SPDX-License-Identifier: Apache-2.0
#include "kernels/norm/norm.h"

#include "ops/ops.h"
#include "ops/registry.h"

namespace capibara {
namespace {

// `streams`: how many times a row's bytes are read or written.
void run(NormFn* kernel, const NormCall& call, int64_t streams) {
  const size_t size = size_of(call.dtype);
  const int64_t bytes_per_row = streams * call.cols * static_cast<int64_t>(size);
  parallel_rows(call.shape, bytes_per_row, [&](int64_t outer, int64_t begin, int64_t end) {
    const NormArgs args = {
        call.dtype,
        call.weight_dtype,
        call.cols,
        call.x.outer(outer, size),
        call.x.inner_stride,
        call.y.outer(outer, size),
        call.y.inner_stride,
        call.residual.outer(outer, size),
        call.residual.inner_stride,
        call.weight,
        call.weight_rows,
        call.eps,
    };
    kernel(args, begin, end);
  });
}

}  // namespace

void rms_norm(const NormCall& call) {
  static NormFn* const kernel = rms_norm_kernels().chosen().run;
  count_call(Op::rms_norm);
  run(kernel, call, 2);
}

void fused_add_rms_norm(const NormCall& call) {
  static NormFn* const kernel = fused_add_rms_norm_kernels().chosen().run;
  count_call(Op::fused_add_rms_norm);
  run(kernel, call, 4);
}

void layer_norm(const NormCall& call) {
  static NormFn* const kernel = layer_norm_kernels().chosen().run;
  count_call(Op::layer_norm);
  run(kernel, call, 2);
}

}  // namespace capibara
