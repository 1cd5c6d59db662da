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
  for_each_pair(d, n, [&](size_t i, auto extent) {
    store<order>(d, y + i, map(load<order>(d, x + i, extent), f), extent);
  });
}

}  // namespace

void exp(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](hn::Vec<FullF32> v) { return exp(FullF32(), v); });
}

void sigmoid(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](hn::Vec<FullF32> v) { return sigmoid(FullF32(), v); });
}

void tanh(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](hn::Vec<FullF32> v) { return tanh(FullF32(), v); });
}

void erfc(const float* x, float* y, size_t n) noexcept {
  for_each(x, y, n, [](hn::Vec<FullF32> v) { return erfc(FullF32(), v); });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
