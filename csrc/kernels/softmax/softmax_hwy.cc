// SPDX-License-Identifier: Apache-2.0
#include "kernels/math/math-inl.h"
#include "kernels/softmax/softmax.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using V = hn::Vec<FullF32>;

// More chains of an exponential side by side take more registers than there are.
constexpr size_t kVectorsOfExp = 4;

// As exactly as T can hold it.
template <class T, class X>
HWY_INLINE X exp_of(X x) {
  if constexpr (DTypeOf<T>::value == DType::kF32) {
    return exp_nonpositive_flushed(FullF32(), x);
  } else {
    return exp_for_16_bits(FullF32(), x);
  }
}

// With scaled == false the multiplication is left out: the usual case, and an instruction of about
// twenty.
template <bool scaled, class T>
HWY_INLINE void softmax_row(const T* x, T* y, size_t n, float factor, float* scratch) {
  const FullF32 d;
  constexpr Order order = order_of<T>();
  const V s = hn::Set(d, factor);
  const V lowest = hn::Set(d, -__builtin_inff());
  // Past the row's end stands -infinity: it is no maximum, and its exponential adds nothing.
  const auto load_scaled = [&](size_t i, auto extent) CAPIBARA_INLINE {
    auto v = load<order>(d, x + i, extent);
    if constexpr (scaled) v = map(v, [&](V p) CAPIBARA_INLINE { return hn::Mul(p, s); });
    return replace_outside<order>(d, v, lowest, extent);
  };
  const auto larger = [](V p, V q) CAPIBARA_INLINE { return hn::Max(p, q); };
  const auto add = [](V p, V q) CAPIBARA_INLINE { return hn::Add(p, q); };

  const V maximum = hn::MaxOfLanes(
      d, reduce(d, n, lowest, larger, larger, [&](size_t i, auto extent) CAPIBARA_INLINE {
        CAPIBARA_LOOP_VARIANT(max, T, kWholeVectors<decltype(extent)>, scaled);
        return load_scaled(i, extent);
      }));

  // Exponentials stay in the order of their vectors: the last pass reads them as they were written.
  const V sum = hn::SumOfLanes(
      d, reduce<kVectorsOfExp>(
             d, n, hn::Zero(d), add, add, [&](size_t i, auto extent) CAPIBARA_INLINE {
               CAPIBARA_LOOP_VARIANT(exp, T, kWholeVectors<decltype(extent)>, scaled);
               const auto e = exp_of<T>(map(load_scaled(i, extent), [&](V p) CAPIBARA_INLINE {
                 return hn::Sub(p, maximum);
               }));
               if constexpr (DTypeOf<T>::value == DType::kF32) {
                 store<order>(d, y + i, e, extent);
               } else {
                 store<Order::kSequential>(d, scratch + i, e, Whole<decltype(extent)::vectors>{});
               }
               return e;
             }));
  const V inverse = hn::Div(hn::Set(d, 1.0f), sum);

  for_each_extent(d, n, [&](size_t i, auto extent) CAPIBARA_INLINE {
    CAPIBARA_LOOP_VARIANT(normalise, T, kWholeVectors<decltype(extent)>, scaled);
    const auto normalised = [&](auto e) CAPIBARA_INLINE {
      return map(e, [&](V p) CAPIBARA_INLINE { return hn::Mul(p, inverse); });
    };
    if constexpr (DTypeOf<T>::value == DType::kF32) {
      store<order>(d, y + i, normalised(load<order>(d, y + i, extent)), extent);
    } else {
      constexpr Whole<decltype(extent)::vectors> whole;
      store<order>(d, y + i, normalised(load<Order::kSequential>(d, scratch + i, whole)), extent);
    }
  });
}

}  // namespace

void softmax(const SoftmaxArgs& a, int64_t begin, int64_t end, float* scratch) noexcept {
  dispatch(a.dtype, [&](auto element) CAPIBARA_INLINE {
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
