// SPDX-License-Identifier: Apache-2.0
// Element types of tensors, and their scalar conversions: the definition that the vector code is
// tested against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace capibara {

enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t size_of(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
const char* name_of(DType dtype);

// 16-bit floats are stored as their bits: the kernels never compute in them.
struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<F16> {
  static constexpr DType value = DType::kF16;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::kBF16;
};

float to_f32(BF16 x);
float to_f32(F16 x);
inline float to_f32(float x) { return x; }

// Round to nearest, ties to even; NaN stays NaN (quiet, sign and leading payload kept).
BF16 to_bf16(float x);
F16 to_f16(float x);

template <class T>
T from_f32(float x);
template <>
inline float from_f32<float>(float x) {
  return x;
}
template <>
inline BF16 from_f32<BF16>(float x) {
  return to_bf16(x);
}
template <>
inline F16 from_f32<F16>(float x) {
  return to_f16(x);
}

// Calls `f` with a value of the element type that `dtype` names.
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF16:
      return f(F16{});
    case DType::kBF16:
      return f(BF16{});
    default:
      return f(float{});
  }
}

}  // namespace capibara
