// SPDX-License-Identifier: Apache-2.0
// The operators: each chooses its kernel for this CPU, splits its rows over threads and runs.
// Arguments are valid (bindings/check.h): a driver does not check again.
#pragma once

#include "base/dtype.h"
#include "kernels/rope/rope.h"
#include "ops/rows.h"

namespace capibara {

struct NormCall {
  DType dtype, weight_dtype;  // weight: dtype, or f32
  RowShape shape;
  int64_t cols;
  Rows x, y, residual;  // y may be x; residual: fused_add_rms_norm only
  const void* weight;   // [weight_rows, cols], contiguous
  int64_t weight_rows;  // divides shape.inner
  float eps;
};

void rms_norm(const NormCall& call);
void fused_add_rms_norm(const NormCall& call);
void layer_norm(const NormCall& call);

struct SoftmaxCall {
  DType dtype;
  RowShape shape;
  int64_t cols;
  Rows x, y;  // y may be x
  float scale;
  const int32_t* lengths;  // one a row, each in [0, cols]; or null
};

void softmax(const SoftmaxCall& call);

// Tokens of `call`, which is the kernel's own contract.
void rope(const RopeArgs& call, int64_t tokens);

struct GatedCall {
  DType dtype;
  RowShape shape;
  int64_t cols;
  Rows gate, up, y;  // y may be gate or up
};

void silu_and_mul(const GatedCall& call);
void gelu_and_mul(const GatedCall& call);
void gelu_tanh_and_mul(const GatedCall& call);

}  // namespace capibara
