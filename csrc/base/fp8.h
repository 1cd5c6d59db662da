// SPDX-License-Identifier: Apache-2.0
// 8-bit floats (P. Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433; Open
// Compute Project, "8-bit Floating Point Specification"): their scalar conversions are the
// definition that the vector code is tested against.
//
//            sign  exponent  bias  mantissa   largest   subnormals        infinity   NaN
//   E4M3FN    1       4        7       3         448    multiples of 2^-9      none   S.1111.111
//   E5M2      1       5       15       2      57,344    multiples of 2^-16     yes    S.11111.xx
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace capibara {

enum class Fp8 : uint8_t { kE4M3, kE5M2 };
const char* name_of(Fp8 format);
constexpr float largest_of(Fp8 format) { return format == Fp8::kE4M3 ? 448.0f : 57344.0f; }

float to_f32(Fp8 format, uint8_t code);

// Round to nearest, ties to even. Saturating: what is larger than the largest value becomes it,
// infinities too. NaN stays NaN (the sign is kept).
uint8_t to_fp8(Fp8 format, float x);

}  // namespace capibara
