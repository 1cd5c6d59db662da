// SPDX-License-Identifier: Apache-2.0
#include "kernels/gated/gated.h"

#include "kernels/math/math-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using V = hn::Vec<FullF32>;

template <class F>
HWY_INLINE void for_each_element(const GatedArgs& a, int64_t begin, int64_t end,
                                 const F& activation) {
  const FullF32 d;
  dispatch(a.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr Order order = order_of<T>();
    for (int64_t r = begin; r < end; ++r) {
      const T* gate = static_cast<const T*>(a.gate) + r * a.gate_stride;
      const T* up = static_cast<const T*>(a.up) + r * a.up_stride;
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      for_each_pair(d, static_cast<size_t>(a.cols), [&](size_t i, auto extent) {
        const auto g = load<order>(d, gate + i, extent);
        const auto u = load<order>(d, up + i, extent);
        store<order>(d, y + i,
                     map(g, u, [&](V x, V times) { return hn::Mul(activation(x), times); }),
                     extent);
      });
    }
  });
}

// x / (1 + e^-y), which is x sigmoid(y)
HWY_INLINE V times_sigmoid(V x, V y) {
  const FullF32 d;
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), exp(d, hn::Neg(y))));
}

}  // namespace

void silu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end, [](V x) { return times_sigmoid(x, x); });
}

void gelu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end, [](V x) {
    const FullF32 d;
    // Phi(x) = erfc(-x / sqrt(2)) / 2, by the tail on the side of x, where it keeps its digits.
    const auto tail = hn::Mul(hn::Set(d, 0.5f),
                              erfc_nonnegative(d, hn::Mul(hn::Abs(x), hn::Set(d, 0.70710678f))));
    const auto phi =
        hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(hn::Set(d, 1.0f), tail));
    return hn::Mul(x, phi);
  });
}

void gelu_tanh_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  // (1 + tanh(u)) / 2 = sigmoid(2 u): no cancellation where tanh is near -1, and one exponential.
  for_each_element(a, begin, end, [](V x) {
    const FullF32 d;
    const auto cubic = hn::MulAdd(hn::Mul(x, x), hn::Set(d, 2 * 0.79788456f * 0.044715f),
                                  hn::Set(d, 2 * 0.79788456f));
    return times_sigmoid(x, hn::Mul(x, cubic));
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
