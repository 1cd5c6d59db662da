// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/math/math.h"

namespace capibara::scalar {

void exp(const float* x, float* y, size_t n) noexcept {
  for (size_t i = 0; i < n; ++i) y[i] = std::exp(x[i]);
}

void sigmoid(const float* x, float* y, size_t n) noexcept {
  // In double, 1 + exp(-x) does not overflow and e^x is not lost beside the 1.
  for (size_t i = 0; i < n; ++i) y[i] = static_cast<float>(1.0 / (1.0 + std::exp(-double{x[i]})));
}

void tanh(const float* x, float* y, size_t n) noexcept {
  for (size_t i = 0; i < n; ++i) y[i] = std::tanh(x[i]);
}

void erfc(const float* x, float* y, size_t n) noexcept {
  for (size_t i = 0; i < n; ++i) y[i] = std::erfc(x[i]);
}

}  // namespace capibara::scalar
