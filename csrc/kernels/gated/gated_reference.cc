// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/gated/gated.h"

namespace capibara::scalar {
namespace {

template <class F>
void for_each_element(const GatedArgs& a, int64_t begin, int64_t end, const F& activation) {
  dispatch(a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = begin; r < end; ++r) {
      const T* gate = static_cast<const T*>(a.gate) + r * a.gate_stride;
      const T* up = static_cast<const T*>(a.up) + r * a.up_stride;
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      for (int64_t i = 0; i < a.cols; ++i) {
        y[i] = from_f32<T>(activation(to_f32(gate[i])) * to_f32(up[i]));
      }
    }
  });
}

}  // namespace

void silu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end, [](float x) { return x / (1.0f + std::exp(-x)); });
}

void gelu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  // 1 + erf(x / sqrt(2)) by erfc, which keeps its digits in the lower tail.
  for_each_element(a, begin, end, [](float x) { return 0.5f * x * std::erfc(x * -0.70710678f); });
}

void gelu_tanh_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), which keeps its digits where tanh is near -1.
  for_each_element(a, begin, end, [](float x) {
    return x / (1.0f + std::exp(-2 * 0.79788456f * (x + 0.044715f * x * x * x)));
  });
}

}  // namespace capibara::scalar
