// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/softmax/softmax.h"

namespace capibara::scalar {

void softmax(const SoftmaxArgs& a, int64_t begin, int64_t end, float* scratch) noexcept {
  dispatch(a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      const int64_t length = a.lengths ? a.lengths[r] : a.cols;
      float* e = a.dtype == DType::kF32 ? reinterpret_cast<float*>(y) : scratch;
      float maximum = -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < length; ++i) {
        const float value = to_f32(x[i]) * a.scale;
        if (value > maximum) maximum = value;
      }
      float sum = 0.0f;
      for (int64_t i = 0; i < length; ++i) {
        e[i] = std::exp(to_f32(x[i]) * a.scale - maximum);
        sum += e[i];
      }
      for (int64_t i = 0; i < length; ++i) y[i] = from_f32<T>(e[i] / sum);
      for (int64_t i = length; i < a.cols; ++i) y[i] = from_f32<T>(0.0f);
    }
  });
}

}  // namespace capibara::scalar
