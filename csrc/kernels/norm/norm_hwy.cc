// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/common/vec-inl.h"
#include "kernels/norm/norm.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using V = hn::Vec<FullF32>;

// Sums f(i, extent, accumulators) over a row. FMA latency 4 at two a cycle wants eight
// accumulators; four (two pairs an iteration) already keep up with the loads from L2.
template <class F>
HWY_INLINE float sum_over(size_t n, const F& f) {
  const FullF32 d;
  const size_t step = 2 * hn::Lanes(d);
  Pair<FullF32> first = {hn::Zero(d), hn::Zero(d)}, second = first;
  size_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    first = f(i, Whole{}, first);
    second = f(i + step, Whole{}, second);
  }
  if (i + step <= n) {
    first = f(i, Whole{}, first);
    i += step;
  }
  if (i < n) second = f(i, Part{n - i}, second);
  const V sum = hn::Add(hn::Add(first.a, second.a), hn::Add(first.b, second.b));
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_INLINE Pair<FullF32> add_squares(Pair<FullF32> x, Pair<FullF32> sum) {
  return {hn::MulAdd(x.a, x.a, sum.a), hn::MulAdd(x.b, x.b, sum.b)};
}

// Calls f with the typed row pointers of each row; W is f32 or the rows' own type.
template <class F>
HWY_INLINE void for_each_row(const NormArgs& a, int64_t begin, int64_t end, const F& f) {
  const auto rows = [&](auto element, auto weight_element) {
    using T = decltype(element);
    using W = decltype(weight_element);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t weight_row = a.weight_rows == 1 ? 0 : r % a.weight_rows;
      f(static_cast<const T*>(a.x) + r * a.x_stride, static_cast<T*>(a.y) + r * a.y_stride,
        static_cast<T*>(a.residual) + r * a.residual_stride,
        static_cast<const W*>(a.weight) + weight_row * a.cols);
    }
  };
  dispatch(a.dtype, [&](auto element) {
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
  for_each_pair(d, n, [&](size_t i, auto extent) {
    const auto w = load<order>(d, weight + i, extent);
    const auto v = load<order>(d, x + i, extent);
    store<order>(d, y + i,
                 map(v, w, [&](V value, V gain) { return hn::Mul(hn::Mul(value, s), gain); }),
                 extent);
  });
}

HWY_INLINE float reciprocal_root(float sum, size_t n, float eps) {
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}

}  // namespace

void rms_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const size_t n = static_cast<size_t>(a.cols);
  for_each_row(a, begin, end, [&](const auto* x, auto* y, auto*, const auto* weight) {
    constexpr Order order = order_of<std::decay_t<decltype(*x)>, std::decay_t<decltype(*weight)>>();
    const float sum = sum_over(n, [&](size_t i, auto extent, Pair<FullF32> squares) {
      return add_squares(load<order>(d, x + i, extent), squares);
    });
    scale_row<order>(x, y, weight, n, reciprocal_root(sum, n, a.eps));
  });
}

void fused_add_rms_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const size_t n = static_cast<size_t>(a.cols);
  for_each_row(a, begin, end, [&](const auto* x, auto* y, auto* residual, const auto* weight) {
    constexpr Order order = order_of<std::decay_t<decltype(*x)>, std::decay_t<decltype(*weight)>>();
    const float sum = sum_over(n, [&](size_t i, auto extent, Pair<FullF32> squares) {
      const auto added = map(load<order>(d, x + i, extent), load<order>(d, residual + i, extent),
                             [](V p, V q) { return hn::Add(p, q); });
      return add_squares(store<order>(d, residual + i, added, extent), squares);
    });
    scale_row<order>(residual, y, weight, n, reciprocal_root(sum, n, a.eps));
  });
}

void layer_norm(const NormArgs& a, int64_t begin, int64_t end) noexcept {
  const FullF32 d;
  const size_t n = static_cast<size_t>(a.cols);
  for_each_row(a, begin, end, [&](const auto* x, auto* y, auto*, const auto* weight) {
    constexpr Order order = order_of<std::decay_t<decltype(*x)>, std::decay_t<decltype(*weight)>>();
    const float sum = sum_over(n, [&](size_t i, auto extent, Pair<FullF32> total) {
      return map(load<order>(d, x + i, extent), total, [](V p, V q) { return hn::Add(p, q); });
    });
    const float mean = sum / static_cast<float>(n);
    const V m = hn::Set(d, mean);
    // Two passes: E[x^2] - mean^2 would cancel where the mean is large.
    const float squares = sum_over(n, [&](size_t i, auto extent, Pair<FullF32> total) {
      const auto centred = map(load<order>(d, x + i, extent), [&](V p) { return hn::Sub(p, m); });
      return add_squares(replace_outside<order>(d, centred, hn::Zero(d), extent), total);
    });
    const V scale = hn::Set(d, reciprocal_root(squares, n, a.eps));
    for_each_pair(d, n, [&](size_t i, auto extent) {
      const auto w = load<order>(d, weight + i, extent);
      const auto v = load<order>(d, x + i, extent);
      store<order>(
          d, y + i,
          map(v, w, [&](V p, V gain) { return hn::Mul(hn::Mul(hn::Sub(p, m), scale), gain); }),
          extent);
    });
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
