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
struct Integers {
  hn::Vec<hn::RebindToSigned<FullF32>> v[n];
};

// Loads move their pointers past what they loaded.
#if HWY_ARCH_ARM_A64
HWY_INLINE float32x4x4_t load_four(const float* p) { return vld1q_f32_x4(p); }
HWY_INLINE int32x4x4_t load_four(const int32_t* p) { return vld1q_s32_x4(p); }

// LD1 loads four vectors and moves its pointer; LDP loads two.
template <class T, class X>
HWY_INLINE void load_eight(const T*& p, X& x) {
  for (size_t k = 0; k < 8; k += 4) {
    const auto four = load_four(p);
    for (size_t i = 0; i < 4; ++i) x.v[k + i].raw = four.val[i];
    p += 16;
    // No instruction. The compiler would otherwise compute the place from the loop's index.
    __asm__("" : "+r"(p));
  }
}
#endif

template <size_t n>
HWY_INLINE Vecs<FullF32, n> load_floats(const float*& p, Whole<n> whole) {
  const FullF32 d;
#if HWY_ARCH_ARM_A64
  if constexpr (n == 8) {
    Vecs<FullF32, n> x;
    load_eight(p, x);
    return x;
  }
#endif
  const float* here = p;
  p += n * hn::Lanes(d);
  return load<Order::kSequential>(d, here, whole);
}
HWY_INLINE Pair<FullF32> load_floats(const float*& p, Part part) {
  return load<Order::kSequential>(FullF32(), p, part);
}

template <size_t n>
HWY_INLINE Integers<n> load_integers(const int32_t*& p, Whole<n>) {
  Integers<n> x;
#if HWY_ARCH_ARM_A64
  if constexpr (n == 8) {
    load_eight(p, x);
    return x;
  }
#endif
  const hn::RebindToSigned<FullF32> d;
  for (size_t k = 0; k < n; ++k) x.v[k] = hn::LoadU(d, p + k * hn::Lanes(d));
  p += n * hn::Lanes(d);
  return x;
}
HWY_INLINE Integers<2> load_integers(const int32_t*& p, Part part) {
  int32_t buffer[2 * hn::MaxLanes(FullF32())] = {};
  std::memcpy(buffer, p, part.count * sizeof(int32_t));
  const int32_t* copy = buffer;
  return load_integers(copy, Whole<2>{});
}

HWY_INLINE V sum_of(V a, V b) { return hn::Add(a, b); }

// What a loop adds to products: just this, or, kAny, whatever there is of offsets, bias and
// residual.
enum class Extras { kNone, kBias, kResidual, kBoth, kAny };
constexpr bool any_or(Extras extras, Extras one) {
  return extras == Extras::kAny || extras == Extras::kBoth || extras == one;
}

// The next products, scaled if they are integers.
template <class C, Extras extras, class Extent>
HWY_INLINE auto products(Row& row, const C*& c, Extent extent) {
  const FullF32 d;
  if constexpr (std::is_same_v<C, float>) {
    return load_floats(c, extent);
  } else {
    constexpr size_t n = Extent::vectors;
    Integers<n> sums = load_integers(c, extent);
    if (extras == Extras::kAny && row.col_offsets) {
      const Integers<n> offsets = load_integers(row.col_offsets, extent);
      for (size_t k = 0; k < n; ++k) sums.v[k] = hn::Sub(sums.v[k], offsets.v[k]);
    }
    const V row_scale = hn::Set(d, row.scale);
    auto x = load_floats(row.col_scales, extent);
    for (size_t k = 0; k < n; ++k) {
      x.v[k] = hn::Mul(hn::ConvertTo(d, sums.v[k]), hn::Mul(row_scale, x.v[k]));
    }
    return x;
  }
}

template <class C, Extras extras, size_t step = kVectorsAStep, class T, class F>
HWY_INLINE void finish(Row row, int64_t cols, T* y, const F& activation) {
  const FullF32 d;
  const C* c = static_cast<const C*>(row.c);
  const T* residual = static_cast<const T*>(row.residual);
  for_each_extent<step>(d, static_cast<size_t>(cols), [&](size_t i, auto extent) CAPIBARA_INLINE {
    auto x = products<C, extras>(row, c, extent);
    if (any_or(extras, Extras::kBias) && (extras != Extras::kAny || row.bias)) {
      x = map(x, load_floats(row.bias, extent), sum_of);
    }
    x = activation(x);
    if (any_or(extras, Extras::kResidual) && (extras != Extras::kAny || residual)) {
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

template <class C, Extras extras, class T>
HWY_INLINE void without_activation(const EpilogueArgs& a, T) {
  for_each_row<T>(a, [&](const Row& row, T* y) CAPIBARA_INLINE {
    finish<C, extras>(row, a.cols, y, [](auto x) CAPIBARA_INLINE { return x; });
  });
}

template <class C, class T>
HWY_INLINE void without_activation(const EpilogueArgs& a, T element) {
  if constexpr (std::is_same_v<C, int32_t>) {
    if (a.col_offsets || a.residual) return without_activation<C, Extras::kAny>(a, element);
  } else {
    if (a.bias && a.residual) return without_activation<C, Extras::kBoth>(a, element);
    if (a.residual) return without_activation<C, Extras::kResidual>(a, element);
  }
  if (a.bias) return without_activation<C, Extras::kBias>(a, element);
  without_activation<C, Extras::kNone>(a, element);
}

// Integers, with all but activation and residual, as f32.
HWY_NOINLINE void scale_integers(const Row& row, int64_t cols, float* y) {
  finish<int32_t, Extras::kAny>(row, cols, y, [](auto x) CAPIBARA_INLINE { return x; });
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
      finish<float, Extras::kAny, vectors>(
          part, cols, y + j, [&](auto x) CAPIBARA_INLINE { return by_four(x, activation); });
    }
  });
}

}  // namespace

void gemm_epilogue(const EpilogueArgs& a) noexcept {
  dispatch(a.dtype, [&](auto element) CAPIBARA_INLINE {
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
        return a.row_scales ? without_activation<int32_t>(a, element)
                            : without_activation<float>(a, element);
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
