// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/epilogue.h"
#include "kernels/math/activation-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using V = hn::Vec<FullF32>;

// Columns of integers that wait for their activation as f32.
constexpr int64_t kChunk = 256;

// A row of a block, or some of its columns.
struct Row {
  const void* c;
  float scale;
  const float* col_scales;
  const int32_t* col_offsets;
  const float* bias;
  const void* residual;
};

template <class T>
const T* advanced(const T* p, int64_t n) {
  return p ? p + n : nullptr;
}

template <size_t n>
HWY_INLINE void load_integers(const int32_t* p, Whole<n>, hn::Vec<hn::RebindToSigned<FullF32>>* x) {
  const hn::RebindToSigned<FullF32> di;
  for (size_t k = 0; k < n; ++k) x[k] = hn::LoadU(di, p + k * hn::Lanes(di));
}
HWY_INLINE void load_integers(const int32_t* p, Part part,
                              hn::Vec<hn::RebindToSigned<FullF32>>* x) {
  int32_t buffer[2 * hn::MaxLanes(FullF32())] = {};
  std::memcpy(buffer, p, part.count * sizeof(int32_t));
  load_integers(buffer, Whole<2>{}, x);
}

HWY_INLINE V sum_of(V a, V b) { return hn::Add(a, b); }

// The products at column i, scaled if they are integers.
template <class C, bool extras, class Extent>
HWY_INLINE auto products(const Row& row, size_t i, Extent extent) {
  const FullF32 d;
  const C* c = static_cast<const C*>(row.c) + i;
  if constexpr (std::is_same_v<C, float>) {
    return load<Order::kSequential>(d, c, extent);
  } else {
    constexpr size_t n = Extent::vectors;
    hn::Vec<hn::RebindToSigned<FullF32>> sums[n], offsets[n];
    load_integers(c, extent, sums);
    if (extras && row.col_offsets) {
      load_integers(row.col_offsets + i, extent, offsets);
      for (size_t k = 0; k < n; ++k) sums[k] = hn::Sub(sums[k], offsets[k]);
    }
    const V row_scale = hn::Set(d, row.scale);
    auto x = load<Order::kSequential>(d, row.col_scales + i, extent);
    for (size_t k = 0; k < n; ++k) {
      x.v[k] = hn::Mul(hn::ConvertTo(d, sums[k]), hn::Mul(row_scale, x.v[k]));
    }
    return x;
  }
}

// `extras`: whether there may be offsets, a bias or a residual.
template <class C, bool extras, size_t step = kVectorsAStep, class T, class F>
HWY_INLINE void finish(const Row& row, int64_t cols, T* y, const F& activation) {
  const FullF32 d;
  const T* residual = static_cast<const T*>(row.residual);
  for_each_extent<step>(d, static_cast<size_t>(cols), [&](size_t i, auto extent) CAPIBARA_INLINE {
    auto x = products<C, extras>(row, i, extent);
    if (extras && row.bias) {
      x = map(x, load<Order::kSequential>(d, row.bias + i, extent), sum_of);
    }
    x = activation(x);
    if (extras && residual) {
      x = map(x, load<Order::kSequential>(d, residual + i, extent), sum_of);
    }
    store<Order::kSequential>(d, y + i, x, extent);
  });
}

template <class T, class F>
HWY_INLINE void for_each_row(const EpilogueArgs& a, const F& f) {
  constexpr int64_t kSumBytes = 4;
  for (int64_t r = 0; r < a.rows; ++r) {
    const Row row = {static_cast<const char*>(a.c) + r * a.ldc * kSumBytes,
                     a.row_scales ? a.row_scales[r] : 1.0f,
                     a.col_scales,
                     a.col_offsets,
                     a.bias,
                     advanced(static_cast<const T*>(a.residual), r * a.residual_stride)};
    f(row, static_cast<T*>(a.y) + r * a.y_stride);
  }
}

template <class C, bool extras, class T>
HWY_INLINE void without_activation(const EpilogueArgs& a) {
  for_each_row<T>(a, [&](const Row& row, T* y) CAPIBARA_INLINE {
    finish<C, extras>(row, a.cols, y, [](auto x) CAPIBARA_INLINE { return x; });
  });
}

// Integers, with all but activation and residual, as f32.
HWY_NOINLINE void scale_integers(const Row& row, int64_t cols, float* y) {
  finish<int32_t, true>(row, cols, y, [](auto x) CAPIBARA_INLINE { return x; });
}

// One loop for both kinds of products: of integers, a chunk at a time becomes f32 first.
template <size_t step = kVectorsAStep, class T, class F>
HWY_INLINE void with_activation(const EpilogueArgs& a, T, const F& activation) {
  // As in kernels/gated: eight loaded vectors of f32 would leave no registers to compute with.
  constexpr size_t vectors = sizeof(T) == 4 ? 4 : step;
  const int64_t chunk = a.row_scales ? kChunk : a.cols;
  HWY_ALIGN float scaled[kChunk];
  for_each_row<T>(a, [&](const Row& row, T* y) CAPIBARA_INLINE {
    for (int64_t j = 0; j < a.cols; j += chunk) {
      const int64_t cols = HWY_MIN(chunk, a.cols - j);
      Row part = {row.c,   1.0f,     nullptr,
                  nullptr, row.bias, advanced(static_cast<const T*>(row.residual), j)};
      if (a.row_scales) {
        scale_integers({static_cast<const int32_t*>(row.c) + j, row.scale, row.col_scales + j,
                        advanced(row.col_offsets, j), advanced(row.bias, j), nullptr},
                       cols, scaled);
        part.c = scaled;
        part.bias = nullptr;
      }
      finish<float, true, vectors>(part, cols, y + j,
                                   [&](auto x) CAPIBARA_INLINE { return by_four(x, activation); });
    }
  });
}

}  // namespace

void gemm_epilogue(const EpilogueArgs& a) noexcept {
  dispatch(a.dtype, [&](auto element) CAPIBARA_INLINE {
    using T = decltype(element);
    const bool extras = a.col_offsets || a.bias || a.residual;
    switch (a.activation) {
      case Activation::kSilu:
        return with_activation(a, element,
                               [=](auto x) CAPIBARA_INLINE { return silu(element, x); });
      case Activation::kGelu:
        return with_activation<4>(a, element,
                                  [=](auto x) CAPIBARA_INLINE { return gelu(element, x); });
      case Activation::kGeluTanh:
        return with_activation(a, element,
                               [=](auto x) CAPIBARA_INLINE { return gelu_tanh(element, x); });
      default:
        if (a.row_scales) {
          return extras ? without_activation<int32_t, true, T>(a)
                        : without_activation<int32_t, false, T>(a);
        }
        return extras ? without_activation<float, true, T>(a)
                      : without_activation<float, false, T>(a);
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
