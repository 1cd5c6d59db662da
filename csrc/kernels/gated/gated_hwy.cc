// SPDX-License-Identifier: Apache-2.0
#include "kernels/gated/gated.h"
#include "kernels/math/activation-inl.h"

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

}  // namespace

void silu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end,
                   [](auto x, auto element) CAPIBARA_INLINE { return silu(element, x); });
}

void gelu_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element<4>(a, begin, end,
                      [](auto x, auto element) CAPIBARA_INLINE { return gelu(element, x); });
}

void gelu_tanh_and_mul(const GatedArgs& a, int64_t begin, int64_t end) noexcept {
  for_each_element(a, begin, end,
                   [](auto x, auto element) CAPIBARA_INLINE { return gelu_tanh(element, x); });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
