// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax/softmax.h"

#include "kernels/math/math-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using V = hn::Vec<FullF32>;

// With scaled == false the multiplication is left out: the usual case, and an instruction of about
// twenty.
template <bool scaled, class T>
HWY_INLINE void softmax_row(const T* x, T* y, size_t n, float factor, float* scratch) {
  const FullF32 d;
  constexpr Order order = order_of<T>();
  const size_t lanes = hn::Lanes(d);
  const V s = hn::Set(d, factor);
  const V lowest = hn::Set(d, -__builtin_inff());
  // Past the row's end stands -infinity: it is no maximum, and its exponential adds nothing.
  const auto load_scaled = [&](size_t i, auto extent) {
    Pair<FullF32> v = load<order>(d, x + i, extent);
    if constexpr (scaled) v = map(v, [&](V p) { return hn::Mul(p, s); });
    return replace_outside<order>(d, v, lowest, extent);
  };

  Pair<FullF32> top = {lowest, lowest};
  for_each_pair(d, n, [&](size_t i, auto extent) {
    top = map(load_scaled(i, extent), top, [](V p, V q) { return hn::Max(p, q); });
  });
  const V maximum = hn::MaxOfLanes(d, hn::Max(top.a, top.b));

  // Exponentials stay in the order of their pair: the last pass reads them as they were written.
  Pair<FullF32> total = {hn::Zero(d), hn::Zero(d)};
  for_each_pair(d, n, [&](size_t i, auto extent) {
    const Pair<FullF32> e = map(load_scaled(i, extent), [&](V p) {
      return exp_nonpositive(d, hn::Sub(p, maximum));
    });
    total = map(total, e, [](V p, V q) { return hn::Add(p, q); });
    if constexpr (DTypeOf<T>::value == DType::kF32) {
      store<order>(d, y + i, e, extent);
    } else {
      hn::StoreU(e.a, d, scratch + i);
      hn::StoreU(e.b, d, scratch + i + lanes);
    }
  });
  const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(total.a, total.b)));
  const V inverse = hn::Set(d, 1.0f / sum);

  for_each_pair(d, n, [&](size_t i, auto extent) {
    Pair<FullF32> e;
    if constexpr (DTypeOf<T>::value == DType::kF32) {
      e = load<order>(d, y + i, extent);
    } else {
      e = {hn::LoadU(d, scratch + i), hn::LoadU(d, scratch + i + lanes)};
    }
    store<order>(d, y + i, map(e, [&](V p) { return hn::Mul(p, inverse); }), extent);
  });
}

}  // namespace

void softmax(const SoftmaxArgs& a, int64_t begin, int64_t end, float* scratch) noexcept {
  dispatch(a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      const size_t length = static_cast<size_t>(a.lengths ? a.lengths[r] : a.cols);
      if (a.scale == 1.0f) {
        softmax_row<false>(x, y, length, 1.0f, scratch);
      } else {
        softmax_row<true>(x, y, length, a.scale, scratch);
      }
      std::memset(static_cast<void*>(y + length), 0,
                  (static_cast<size_t>(a.cols) - length) * sizeof(T));
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
