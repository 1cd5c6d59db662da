// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/norm/norm.h"

namespace capibara::scalar {
namespace {

// Calls f(x, y, residual, weight) with the typed rows of each r in [begin, end).
template <class F>
void for_each_row(const NormArgs& a, int64_t begin, int64_t end, const F& f) {
  dispatch(a.dtype, [&](auto element) {
    dispatch(a.weight_dtype, [&](auto weight_element) {
      using T = decltype(element);
      using W = decltype(weight_element);
      for (int64_t r = begin; r < end; ++r) {
        f(static_cast<const T*>(a.x) + r * a.x_stride, static_cast<T*>(a.y) + r * a.y_stride,
          static_cast<T*>(a.residual) + r * a.residual_stride,
          static_cast<const W*>(a.weight) + r % a.weight_rows * a.cols);
      }
    });
  });
}

template <class T, class W>
void rms_norm_row(const T* x, T* y, const W* weight, int64_t cols, float eps) {
  float sum = 0.0f;
  for (int64_t i = 0; i < cols; ++i) sum += to_f32(x[i]) * to_f32(x[i]);
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(cols) + eps);
  for (int64_t i = 0; i < cols; ++i) y[i] = from_f32<T>(to_f32(x[i]) * scale * to_f32(weight[i]));
}

}  // namespace

void rms_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_row(a, begin, end, [&](const auto* x, auto* y, auto*, const auto* weight) {
    rms_norm_row(x, y, weight, a.cols, a.eps);
  });
}

void fused_add_rms_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_row(a, begin, end, [&](const auto* x, auto* y, auto* residual, const auto* weight) {
    for (int64_t i = 0; i < a.cols; ++i) {
      using T = std::remove_pointer_t<decltype(y)>;
      residual[i] = from_f32<T>(to_f32(x[i]) + to_f32(residual[i]));
    }
    rms_norm_row(static_cast<decltype(x)>(residual), y, weight, a.cols, a.eps);
  });
}

void layer_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_row(a, begin, end, [&](const auto* x, auto* y, auto*, const auto* weight) {
    using T = std::remove_pointer_t<decltype(y)>;
    const float cols = static_cast<float>(a.cols);
    float sum = 0.0f;
    for (int64_t i = 0; i < a.cols; ++i) sum += to_f32(x[i]);
    const float mean = sum / cols;
    float squares = 0.0f;
    for (int64_t i = 0; i < a.cols; ++i) {
      squares += (to_f32(x[i]) - mean) * (to_f32(x[i]) - mean);
    }
    const float scale = 1.0f / std::sqrt(squares / cols + a.eps);
    for (int64_t i = 0; i < a.cols; ++i) {
      y[i] = from_f32<T>((to_f32(x[i]) - mean) * scale * to_f32(weight[i]));
    }
  });
}

}  // namespace capibara::scalar
