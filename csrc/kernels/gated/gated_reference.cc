// SPDX-License-Identifier: Apache-2.0
#include "kernels/gated/gated.h"
#include "kernels/math/activation.h"

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
  for_each_element(a, begin, end, silu);
}

void gelu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end, gelu);
}

void gelu_tanh_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end, gelu_tanh);
}

}  // namespace capibara::scalar
