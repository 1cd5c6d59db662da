// SPDX-License-Identifier: Apache-2.0
// Contract: gated activations, y[r, i] = f(gate[r, i]) * up[r, i], in one pass over memory.
//   silu       f(x) = x / (1 + e^-x): SwiGLU (N. Shazeer, "GLU Variants Improve Transformer", 2020)
//   gelu       f(x) = x Phi(x), by erf (D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units",
//              2016): GeGLU
//   gelu_tanh  its approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
// Packed [gate | up] rows are the case up = gate + cols with equal strides.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

// Strides in elements.
struct GatedArgs {
  DType dtype;
  int64_t cols;
  const void* gate;
  int64_t gate_stride;
  const void* up;
  int64_t up_stride;
  void* y;  // may be gate or up
  int64_t y_stride;
};

// Rows [begin, end).
using GatedFn = void(const GatedArgs& args, int64_t begin, int64_t end) noexcept;

namespace scalar {
GatedFn silu_and_mul, gelu_and_mul, gelu_tanh_and_mul;
}

const KernelTable<GatedFn>& silu_and_mul_kernels();
const KernelTable<GatedFn>& gelu_and_mul_kernels();
const KernelTable<GatedFn>& gelu_tanh_and_mul_kernels();

}  // namespace capibara
