// SPDX-License-Identifier: Apache-2.0
// How the two bytes of a 16-bit float follow from an 8-bit code, and the tables for it, computed by
// the compiler. All of it has internal linkage: the *_hwy.cc are compiled for several ISAs.
//
// Normal numbers are a shift and another bias:
//
//   base(code) = sign, magnitude << (T - M), plus the difference of the biases << T
//
// with M and T the mantissas' bits. Its low byte depends on the code's lowest four bits at most.
// What is no normal number (subnormals, NaN, infinity) has other bytes. Those magnitudes lie at
// both ends of [0, 128), so that after one addition modulo 128, which drops the sign too, they are
// together below kSlots: the index into a table of one vector, which has the sixteen magnitudes'
// bytes.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/fp8.h"

namespace capibara {
namespace {

struct Float {
  int mantissa_bits, bias;
};
constexpr Float float_of(Fp8 format) { return format == Fp8::kE4M3 ? Float{3, 7} : Float{2, 15}; }
constexpr Float float_of(DType type) { return type == DType::kF16 ? Float{10, 15} : Float{7, 127}; }

constexpr unsigned kSlots = 16;

struct Table {
  uint8_t at[kSlots];
};

template <Fp8 format, DType to>
struct Fp8Bytes {
  static constexpr Float from = float_of(format), target = float_of(to);
  static constexpr int kShift = target.mantissa_bits - from.mantissa_bits;
  // NaN of E4M3 is one magnitude; infinity and NaN of E5M2 are four.
  static constexpr unsigned kSlotOfZero = format == Fp8::kE4M3 ? 1 : 4;

  static constexpr unsigned base(unsigned code) {
    const unsigned rebias = static_cast<unsigned>(target.bias - from.bias) << target.mantissa_bits;
    return ((code & 0x80u) << 8) | (((code & 0x7fu) << kShift) + rebias);
  }

  // NaN gets its quiet bit.
  static constexpr unsigned exact(unsigned magnitude) {
    const unsigned implicit = 1u << from.mantissa_bits;
    const unsigned infinity = format == Fp8::kE4M3 ? 0x7fu : 0x7cu;
    if (magnitude >= infinity) {
      const unsigned exponent = (0x7fffu >> target.mantissa_bits) << target.mantissa_bits;
      const bool nan = format == Fp8::kE4M3 || magnitude > infinity;
      return exponent | (nan ? 1u << (target.mantissa_bits - 1) : 0u);
    }
    if (magnitude >= implicit) return base(magnitude);
    if (magnitude == 0) return 0;
    int exponent = 1 - from.bias;
    unsigned mantissa = magnitude;
    for (; mantissa < implicit; mantissa *= 2) --exponent;
    return (static_cast<unsigned>(exponent + target.bias) << target.mantissa_bits) |
           ((mantissa - implicit) << kShift);
  }

  static constexpr unsigned magnitude_in(unsigned slot) { return (slot - kSlotOfZero) & 0x7fu; }

  // By slot: the low byte, and what is wrong with that and the high byte of base, as bits to flip.
  static constexpr Table low() {
    Table table{};
    for (unsigned slot = 0; slot < kSlots; ++slot) {
      table.at[slot] = static_cast<uint8_t>(exact(magnitude_in(slot)));
    }
    return table;
  }
  static constexpr Table flips(int byte) {
    Table table{};
    for (unsigned slot = 0; slot < kSlots; ++slot) {
      const unsigned magnitude = magnitude_in(slot);
      table.at[slot] = static_cast<uint8_t>((exact(magnitude) ^ base(magnitude)) >> (8 * byte));
    }
    return table;
  }

  // base's low byte, by a slot modulo 16.
  static constexpr Table base_low() {
    Table table{};
    for (unsigned slot = 0; slot < kSlots; ++slot) {
      table.at[slot] = static_cast<uint8_t>(base(magnitude_in(slot)));
    }
    return table;
  }
  // base's high byte, sixteen entries of those by code >> shift.
  static constexpr Table base_high(int shift, unsigned begin = 0) {
    Table table{};
    for (unsigned i = 0; i < kSlots; ++i) {
      table.at[i] = static_cast<uint8_t>(base((begin + i) << shift) >> 8);
    }
    return table;
  }
};

}  // namespace
}  // namespace capibara
