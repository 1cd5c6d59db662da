// SPDX-License-Identifier: Apache-2.0
// How a group's scale comes from its largest magnitude, once for the reference and for vectors;
// local to the including source, as vecs-inl.h says.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/float_bits.h"

namespace capibara {

// Integers are x * factor, rounded, and stand for scale times themselves.
struct Int4Scale {
  float scale, factor;
};

static inline Int4Scale int4_scale(float largest, int digits) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  if (!std::isfinite(largest)) return {kNaN, kNaN};
  if (largest == 0.0f) return {0.0f, 0.0f};
  // A factor that overflows would make infinities of what is to be 127.
  if (digits == 1) {
    return {largest / 127.0f, std::min(127.0f / largest, std::numeric_limits<float>::max())};
  }
  // Fields of exponents. What is added carries from 1.988 on, a bit below where 256 q1 + q0 would
  // need q1 = 128. At least 1 - 14: scale stays normal.
  constexpr uint32_t kCarry = 0x18000;
  const uint32_t exponent = (bits_of(largest) + kCarry) >> 23;
  const uint32_t field = std::max(exponent, uint32_t{15}) - 14;
  return {from_bits(field << 23), from_bits((254 - field) << 23)};
}

}  // namespace capibara
