// SPDX-License-Identifier: Apache-2.0
// The scalar definitions of activations; kernels/gated/gated.h says where they come from.
#pragma once

#include <cmath>

namespace capibara::scalar {

inline float silu(float x) { return x / (1.0f + std::exp(-x)); }

// 1 + erf(x / sqrt(2)) by erfc, which keeps its digits in the lower tail.
inline float gelu(float x) { return 0.5f * x * std::erfc(x * -0.70710678f); }

// (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), which keeps its digits where tanh is near -1.
inline float gelu_tanh(float x) {
  return x / (1.0f + std::exp(-2 * 0.79788456f * (x + 0.044715f * x * x * x)));
}

}  // namespace capibara::scalar
