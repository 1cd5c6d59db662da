// SPDX-License-Identifier: Apache-2.0
// A float's bits, and the float of some bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace capibara {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace capibara
