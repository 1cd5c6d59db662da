// SPDX-License-Identifier: Apache-2.0
#include "base/fp8.h"

#include <cmath>

#include "base/float_bits.h"

namespace capibara {
namespace {

struct Layout {
  int mantissa_bits, bias;
  uint32_t infinity;  // the first magnitude that is no number
  uint32_t nan;
};

constexpr Layout layout_of(Fp8 format) {
  return format == Fp8::kE4M3 ? Layout{3, 7, 0x7f, 0x7f} : Layout{2, 15, 0x7c, 0x7e};
}

}  // namespace

const char* name_of(Fp8 format) { return format == Fp8::kE4M3 ? "fp8_e4m3" : "fp8_e5m2"; }

float to_f32(Fp8 format, uint8_t code) {
  const Layout layout = layout_of(format);
  const uint32_t sign = uint32_t{code & 0x80u} << 24;
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude >= layout.infinity) {
    const bool nan = format == Fp8::kE4M3 || magnitude > layout.infinity;
    return from_bits(sign | (nan ? 0x7fc00000u : 0x7f800000u));
  }
  const int exponent = static_cast<int>(magnitude >> layout.mantissa_bits);
  const uint32_t mantissa = magnitude & ((1u << layout.mantissa_bits) - 1);
  const uint32_t implicit = exponent ? 1u << layout.mantissa_bits : 0u;
  const int scale = (exponent ? exponent : 1) - layout.bias - layout.mantissa_bits;
  const float value = std::ldexp(static_cast<float>(implicit | mantissa), scale);
  return from_bits(sign | bits_of(value));
}

uint8_t to_fp8(Fp8 format, float x) {
  const Layout layout = layout_of(format);
  const uint32_t sign = (bits_of(x) >> 24) & 0x80u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | layout.nan);
  const uint32_t largest = bits_of(largest_of(format));
  const uint32_t saturated = magnitude < largest ? magnitude : largest;

  const int dropped = 23 - layout.mantissa_bits;
  const uint32_t smallest_normal = static_cast<uint32_t>(127 + 1 - layout.bias) << 23;
  if (saturated < smallest_normal) {
    // A number whose last place is the subnormals' unit, so that the addition itself rounds to
    // nearest even.
    const uint32_t magic = smallest_normal + (static_cast<uint32_t>(dropped) << 23);
    return static_cast<uint8_t>(sign | (bits_of(from_bits(saturated) + from_bits(magic)) - magic));
  }
  const uint32_t odd = (saturated >> dropped) & 1u;
  const uint32_t rounded = (saturated + (1u << (dropped - 1)) - 1 + odd) >> dropped;
  const uint32_t rebias = static_cast<uint32_t>(127 - layout.bias) << layout.mantissa_bits;
  return static_cast<uint8_t>(sign | (rounded - rebias));
}

}  // namespace capibara
