// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/common/vec-inl.h"
#include "kernels/norm/norm.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using V = hn::Vec<FullF32>;

HWY_INLINE V plus(V x, V y) { return hn::Add(x, y); }

// The sum over all elements of f(i, extent), or of their squares.
template <class F>
HWY_INLINE float sum_of(size_t n, const F& f) {
  const FullF32 d;
  return hn::GetLane(hn::SumOfLanes(d, reduce(d, n, hn::Zero(d), plus, plus, f)));
}

template <class F>
HWY_INLINE float sum_of_squares(size_t n, const F& f) {
  const FullF32 d;
  const auto add_square = [](V total, V x) CAPIBARA_INLINE { return hn::MulAdd(x, x, total); };
  return hn::GetLane(hn::SumOfLanes(d, reduce(d, n, hn::Zero(d), add_square, plus, f)));
}

// Calls f with the typed row pointers of each row; W is f32 or the rows' own type.
template <class F>
HWY_INLINE void for_each_row(const NormArgs& a, int64_t begin, int64_t end, const F& f) {
  const auto rows = [&](auto element, auto weight_element) CAPIBARA_INLINE {
    using T = decltype(element);
    using W = decltype(weight_element);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t weight_row = a.weight_rows == 1 ? 0 : r % a.weight_rows;
      f(static_cast<const T*>(a.x) + r * a.x_stride, static_cast<T*>(a.y) + r * a.y_stride,
        static_cast<T*>(a.residual) + r * a.residual_stride,
        static_cast<const W*>(a.weight) + weight_row * a.cols);
    }
  };
  dispatch(a.dtype, [&](auto element) CAPIBARA_INLINE {
    if (a.weight_dtype == a.dtype) {
      rows(element, element);
    } else {
      rows(element, float{});
    }
  });
}

// y = x * scale * w
template <Order order, class T, class W>
HWY_INLINE void scale_row(const T* x, T* y, const W* weight, size_t n, float scale) {
  const FullF32 d;
  const V s = hn::Set(d, scale);
  for_each_extent(d, n, [&](size_t i, auto extent) CAPIBARA_INLINE {
    CAPIBARA_LOOP_VARIANT(scale, T, kWholeVectors<decltype(extent)>, sizeof(W));
    const auto w = load<order>(d, weight + i, extent);
    const auto v = load<order>(d, x + i, extent);
    const auto scaled =
        map(v, w, [&](V p, V gain) CAPIBARA_INLINE { return hn::Mul(hn::Mul(p, s), gain); });
    store<order>(d, y + i, scaled, extent);
  });
}

HWY_INLINE float reciprocal_root(float sum, size_t n, float eps) {
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}

}  // namespace

void rms_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const size_t n = static_cast<size_t>(a.cols);
  for_each_row(a, begin, end,
               [&](const auto* x, auto* y, auto*, const auto* weight) CAPIBARA_INLINE {
                 constexpr Order order =
                     order_of<std::decay_t<decltype(*x)>, std::decay_t<decltype(*weight)>>();
                 const float sum = sum_of_squares(n, [&](size_t i, auto extent) CAPIBARA_INLINE {
                   CAPIBARA_LOOP_VARIANT(sum_of_squares, decltype(*x),
                                         kWholeVectors<decltype(extent)>, sizeof(*weight));
                   return load<order>(d, x + i, extent);
                 });
                 scale_row<order>(x, y, weight, n, reciprocal_root(sum, n, a.eps));
               });
}

void fused_add_rms_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const size_t n = static_cast<size_t>(a.cols);
  for_each_row(a, begin, end,
               [&](const auto* x, auto* y, auto* residual, const auto* weight) CAPIBARA_INLINE {
                 constexpr Order order =
                     order_of<std::decay_t<decltype(*x)>, std::decay_t<decltype(*weight)>>();
                 const float sum = sum_of_squares(n, [&](size_t i, auto extent) CAPIBARA_INLINE {
                   CAPIBARA_LOOP_VARIANT(add, decltype(*x), kWholeVectors<decltype(extent)>,
                                         sizeof(*weight));
                   const auto added = map(load<order>(d, x + i, extent),
                                          load<order>(d, residual + i, extent), plus);
                   return store<order>(d, residual + i, added, extent);
                 });
                 scale_row<order>(residual, y, weight, n, reciprocal_root(sum, n, a.eps));
               });
}

void layer_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const size_t n = static_cast<size_t>(a.cols);
  for_each_row(
      a, begin, end, [&](const auto* x, auto* y, auto*, const auto* weight) CAPIBARA_INLINE {
        constexpr Order order =
            order_of<std::decay_t<decltype(*x)>, std::decay_t<decltype(*weight)>>();
        const float sum = sum_of(n, [&](size_t i, auto extent) CAPIBARA_INLINE {
          CAPIBARA_LOOP_VARIANT(sum, decltype(*x), kWholeVectors<decltype(extent)>,
                                sizeof(*weight));
          return load<order>(d, x + i, extent);
        });
        const V mean = hn::Set(d, sum / static_cast<float>(n));
        // Two passes: E[x^2] - mean^2 would cancel where the mean is large.
        const float centred_sum = sum_of_squares(n, [&](size_t i, auto extent) CAPIBARA_INLINE {
          CAPIBARA_LOOP_VARIANT(sum_of_squares, decltype(*x), kWholeVectors<decltype(extent)>,
                                sizeof(*weight));
          const auto v = load<order>(d, x + i, extent);
          const auto centred = map(v, [&](V p) CAPIBARA_INLINE { return hn::Sub(p, mean); });
          return replace_outside<order>(d, centred, hn::Zero(d), extent);
        });
        const V scale = hn::Set(d, reciprocal_root(centred_sum, n, a.eps));
        for_each_extent(d, n, [&](size_t i, auto extent) CAPIBARA_INLINE {
          CAPIBARA_LOOP_VARIANT(scale, decltype(*x), kWholeVectors<decltype(extent)>,
                                sizeof(*weight));
          const auto w = load<order>(d, weight + i, extent);
          const auto v = load<order>(d, x + i, extent);
          const auto scaled = map(v, w, [&](V p, V gain) CAPIBARA_INLINE {
            return hn::Mul(hn::Mul(hn::Sub(p, mean), scale), gain);
          });
          store<order>(d, y + i, scaled, extent);
        });
      });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
