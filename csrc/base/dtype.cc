// SPDX-License-Identifier: Apache-2.0
#include "base/dtype.h"

#include "base/float_bits.h"

namespace capibara {
const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      return "float32";
  }
}

float to_f32(BF16 x) { return from_bits(uint32_t{x.bits} << 16); }

BF16 to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

float to_f32(F16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 31) {
    const uint32_t quiet = mantissa ? 0x400000u : 0u;
    return from_bits(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  if (exponent) return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // A subnormal is mantissa * 2^-24, exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return from_bits(sign | bits_of(magnitude));
}

F16 to_f16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  }
  // 65520 is half way between the largest f16 and the next power of two: from there on, infinity.
  if (magnitude >= bits_of(65520.0f)) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < bits_of(0x1p-14f)) {
    // Adding 0.5 puts the f16 subnormal's last place at the f32's last place, so that the
    // addition itself rounds to nearest even.
    const float shifted = from_bits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits_of(shifted) - bits_of(0.5f)))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)))};
}

}  // namespace capibara
