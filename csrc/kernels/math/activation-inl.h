// SPDX-License-Identifier: Apache-2.0
// Activations on f32 vectors, as exactly as a result of type T can hold them. Definitions:
// activation.h.
#pragma once

#include "kernels/math/math-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// x sigmoid(y).
template <class T, class X>
HWY_INLINE X times_sigmoid_of(T, X x, X y) {
  if constexpr (DTypeOf<T>::value == DType::kF32) {
    return times_sigmoid(FullF32(), x, y);
  } else {
    return times_sigmoid_for_16_bits(FullF32(), x, y);
  }
}

template <class T, class X>
HWY_INLINE X silu(T result, X x) {
  return times_sigmoid_of(result, x, x);
}

template <class T, class X>
HWY_INLINE X gelu(T, X x) {
  using V = hn::Vec<FullF32>;
  const FullF32 d;
  const V root_half = hn::Set(d, 0.70710678f), half = hn::Set(d, 0.5f), one = hn::Set(d, 1.0f);
  // Phi(x) = erfc(-x / sqrt(2)) / 2, by the tail on the side of x, where it keeps its digits.
  const auto z = map(x, [&](V v) CAPIBARA_INLINE { return hn::Mul(hn::Abs(v), root_half); });
  return map(x, erfc_nonnegative(d, z), [&](V v, V tail) CAPIBARA_INLINE {
    tail = hn::Mul(tail, half);
    return hn::Mul(v, hn::IfThenElse(hn::Lt(v, hn::Zero(d)), tail, hn::Sub(one, tail)));
  });
}

constexpr Addend kGeluLinear{2 * 0.79788456f};

template <class T, class X>
HWY_INLINE X gelu_tanh(T result, X x) {
  using V = hn::Vec<FullF32>;
  const FullF32 d;
  const V cubic = hn::Set(d, 2 * 0.79788456f * 0.044715f);
  // (1 + tanh(u)) / 2 = sigmoid(2 u): no cancellation where tanh is near -1, and one exponential.
  const auto linear = addends<kGeluLinear>(d, x);
  const auto u = map(x, linear, [&](V v, V slope) CAPIBARA_INLINE {
    return hn::Mul(v, hn::MulAdd(hn::Mul(v, v), cubic, slope));
  });
  return times_sigmoid_of(result, x, u);
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
