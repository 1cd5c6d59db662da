// SPDX-License-Identifier: Apache-2.0
#include "kernels/math/math-inl.h"
#include "kernels/math/math.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

template <class F>
HWY_INLINE void for_each(const float* x, float* y, size_t n, const F& f) {
  const FullF32 d;
  constexpr Order order = Order::kSequential;
  for_each_extent(d, n, [&](size_t i, auto extent) CAPIBARA_INLINE {
    store<order>(d, y + i, f(load<order>(d, x + i, extent)), extent);
  });
}

}  // namespace

void exp(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](auto v) CAPIBARA_INLINE { return exp(FullF32(), v); });
}

void sigmoid(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](auto v) CAPIBARA_INLINE { return sigmoid(FullF32(), v); });
}

void tanh(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](auto v) CAPIBARA_INLINE { return tanh(FullF32(), v); });
}

void erfc(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](auto v) CAPIBARA_INLINE { return erfc(FullF32(), v); });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
