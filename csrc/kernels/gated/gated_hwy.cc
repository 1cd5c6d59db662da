// SPDX-License-Identifier: Apache-2.0
#include "kernels/gated/gated.h"
#include "kernels/math/math-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using V = hn::Vec<FullF32>;

template <size_t step = kVectorsAStep, class F>
HWY_INLINE void for_each_element(const GatedArgs& a, int64_t begin, int64_t end,
                                 const F& activation) {
  const FullF32 d;
  dispatch(a.dtype, [&](auto element) CAPIBARA_INLINE {
    using T = decltype(element);
    constexpr Order order = order_of<T>();
    // Eight loaded vectors of f32 would leave no registers to compute with.
    constexpr size_t vectors = sizeof(T) == 4 ? 4 : step;
    for (int64_t r = begin; r < end; ++r) {
      const T* gate = static_cast<const T*>(a.gate) + r * a.gate_stride;
      const T* up = static_cast<const T*>(a.up) + r * a.up_stride;
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      for_each_extent<vectors>(
          d, static_cast<size_t>(a.cols), [&](size_t i, auto extent) CAPIBARA_INLINE {
            CAPIBARA_LOOP(product, T, kWholeVectors<decltype(extent)>);
            const auto g = load<order>(d, gate + i, extent);
            const auto activated =
                by_four(g, [&](auto x) CAPIBARA_INLINE { return activation(x, element); });
            const auto u = load<order>(d, after(activated, up + i), extent);
            const auto product =
                map(activated, u, [](V x, V times) CAPIBARA_INLINE { return hn::Mul(x, times); });
            store<order>(d, y + i, product, extent);
          });
    }
  });
}

// x sigmoid(y), as exactly as T can hold it.
template <class T, class X>
HWY_INLINE X times_sigmoid_of(T, X x, X y) {
  if constexpr (DTypeOf<T>::value == DType::kF32) {
    return times_sigmoid(FullF32(), x, y);
  } else {
    return times_sigmoid_for_16_bits(FullF32(), x, y);
  }
}

}  // namespace

void silu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end, [](auto x, auto element) CAPIBARA_INLINE {
    return times_sigmoid_of(element, x, x);
  });
}

void gelu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const V root_half = hn::Set(d, 0.70710678f), half = hn::Set(d, 0.5f), one = hn::Set(d, 1.0f);
  for_each_element<4>(a, begin, end, [&](auto x, auto) CAPIBARA_INLINE {
    // Phi(x) = erfc(-x / sqrt(2)) / 2, by the tail on the side of x, where it keeps its digits.
    const auto z = map(x, [&](V v) CAPIBARA_INLINE { return hn::Mul(hn::Abs(v), root_half); });
    return map(x, erfc_nonnegative(d, z), [&](V v, V tail) CAPIBARA_INLINE {
      tail = hn::Mul(tail, half);
      return hn::Mul(v, hn::IfThenElse(hn::Lt(v, hn::Zero(d)), tail, hn::Sub(one, tail)));
    });
  });
}

namespace {
constexpr Addend kLinear{2 * 0.79788456f};
}

void gelu_tanh_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const V cubic = hn::Set(d, 2 * 0.79788456f * 0.044715f);
  // (1 + tanh(u)) / 2 = sigmoid(2 u): no cancellation where tanh is near -1, and one exponential.
  for_each_element(a, begin, end, [&](auto x, auto element) CAPIBARA_INLINE {
    const auto linear = addends<kLinear>(d, x);
    const auto u = map(x, linear, [&](V v, V slope) CAPIBARA_INLINE {
      return hn::Mul(v, hn::MulAdd(hn::Mul(v, v), cubic, slope));
    });
    return times_sigmoid_of(element, x, u);
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
