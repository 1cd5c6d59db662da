// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/epilogue.h"
#include "kernels/math/activation.h"

namespace capibara::scalar {
namespace {

float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return silu(x);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    default:
      return x;
  }
}

}  // namespace

void gemm_epilogue(const EpilogueArgs& a) noexcept {
  dispatch(a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = 0; r < a.rows; ++r) {
      const T* residual =
          static_cast<const T*>(a.residual) + (a.residual ? r * a.residual_stride : 0);
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      for (int64_t j = 0; j < a.cols; ++j) {
        float x;
        if (a.row_scales) {
          const int32_t offset = a.col_offsets ? a.col_offsets[j] : 0;
          const int32_t c = static_cast<const int32_t*>(a.c)[r * a.ldc + j] - offset;
          x = static_cast<float>(c) * (a.row_scales[r] * a.col_scales[j]);
        } else {
          x = static_cast<const float*>(a.c)[r * a.ldc + j];
        }
        if (a.bias) x += a.bias[j];
        x = activated(a.activation, x);
        if (a.residual) x += to_f32(residual[j]);
        y[j] = from_f32<T>(x);
      }
    }
  });
}

}  // namespace capibara::scalar
