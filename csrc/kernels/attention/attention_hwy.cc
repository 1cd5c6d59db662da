// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/attention/attention.h"
#include "kernels/math/exp2-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using D = FullF32;
using V = hn::Vec<D>;

constexpr float kLog2E = 1.44269504f;
constexpr size_t kLanes = hn::MaxLanes(D());
// Chains of an exponential side by side: see softmax_hwy.cc.
constexpr size_t kVectors = 4;

// f(j, Whole<n>) over [0, keys) in steps of n vectors, the rest vector by vector.
template <size_t n, class F>
HWY_INLINE void for_each_step(int64_t keys, const F& f) {
  constexpr int64_t step = n * kLanes;
  int64_t j = 0;
  for (int64_t steps = keys / step; steps != 0; --steps, j += step) f(j, Whole<n>{});
  if constexpr (kAttentionKeysUnit % step != 0) {
    for (; j < keys; j += kLanes) f(j, Whole<1>{});
  }
}

template <size_t n>
HWY_INLINE Vecs<D, n> load_vectors(const float* p) {
  Vecs<D, n> x;
  for (size_t i = 0; i < n; ++i) x.v[i] = hn::LoadU(D(), p + i * kLanes);
  return x;
}

template <size_t n>
HWY_INLINE void store_vectors(float* p, const Vecs<D, n>& x) {
  for (size_t i = 0; i < n; ++i) hn::StoreU(x.v[i], D(), p + i * kLanes);
}

// Values that no f32 NaN with an arbitrary payload is among: see bf16_bits_in_upper_half.
template <size_t n>
HWY_INLINE void store_vectors(BF16* p, const Vecs<D, n>& x) {
#if HWY_ARCH_ARM_A64
  if constexpr (n % 2 == 0) {
    for (size_t i = 0; i < n; i += 2) {
      vst1q_u16(&p[i * kLanes].bits, narrow(BF16{}, {{x.v[i], x.v[i + 1]}}));
    }
    return;
  }
#endif
  const hn::Rebind<uint16_t, D> half;
  for (size_t i = 0; i < n; ++i) {
    const auto bits = hn::ShiftRight<16>(bf16_bits_in_upper_half(D(), x.v[i]));
    hn::StoreU(hn::TruncateTo(half, bits), half, &p[i * kLanes].bits);
  }
}

template <size_t n>
HWY_INLINE void store_vectors(F16* p, const Vecs<D, n>& x) {
  for (size_t i = 0; i < n; ++i) store_one(D(), p + i * kLanes, x.v[i]);
}

// Scores become logits, times log2(e), wherever that is more than one factor.
HWY_INLINE void transform_row(const AttentionSoftmaxArgs& a, int64_t r) {
  const D d;
  const V scale = hn::Set(d, a.scale * (a.softcap == 0.0f ? 1.0f : 1.0f / a.softcap));
  const V cap = hn::Set(d, a.softcap), log2e = hn::Set(d, kLog2E);
  float* scores = a.scores + r * a.stride;
  for_each_step<kVectors>(a.keys, [&](int64_t j, auto whole) CAPIBARA_INLINE {
    constexpr size_t n = decltype(whole)::vectors;
    auto z =
        map(load_vectors<n>(scores + j), [&](V x) CAPIBARA_INLINE { return hn::Mul(x, scale); });
    if (a.key_scales) {
      z = map(z, load_vectors<n>(a.key_scales + j),
              [](V x, V y) CAPIBARA_INLINE { return hn::Mul(x, y); });
    }
    if (a.softcap != 0.0f) {
      z = map(tanh(d, z), [&](V x) CAPIBARA_INLINE { return hn::Mul(x, cap); });
    }
    if (a.slopes) {
      const V slope = hn::Set(d, a.slopes[r]), offset = hn::Set(d, a.offsets[r]);
      for (size_t i = 0; i < n; ++i) {
        const V column = hn::Iota(d, static_cast<float>(j + static_cast<int64_t>(i * kLanes)));
        z.v[i] = hn::Add(z.v[i], hn::MulAdd(column, slope, offset));
      }
    }
    store_vectors(scores + j, map(z, [&](V x) CAPIBARA_INLINE { return hn::Mul(x, log2e); }));
  });
}

HWY_INLINE float largest_of_row(const float* scores, int64_t keys) {
  const D d;
  const auto larger = [](V x, V y) CAPIBARA_INLINE { return hn::Max(x, y); };
  auto most = fill<kVectors>(d, hn::Set(d, -__builtin_inff()));
  for_each_step<kVectors>(keys, [&](int64_t j, auto whole) CAPIBARA_INLINE {
    constexpr size_t n = decltype(whole)::vectors;
    CAPIBARA_LOOP(attention_max, float, n);
    const auto x = load_vectors<n>(scores + j);
    for (size_t i = 0; i < n; ++i) most.v[i] = larger(most.v[i], x.v[i]);
  });
  return hn::GetLane(
      hn::MaxOfLanes(d, larger(larger(most.v[0], most.v[1]), larger(most.v[2], most.v[3]))));
}

// What every row has: the factor of its scores, and what is subtracted then.
struct Rows {
  float factor;
  float subtrahends[kMaxTileRows];
};

// Exponentials of `rows` rows from r on; their sums. Two rows at a time fill whole registers of
// `atoms`. `weighted`: with value_scales.
template <class T, int rows, bool atoms, bool weighted>
HWY_INLINE void exponentials(const AttentionSoftmaxArgs& a, const Rows& all, int64_t r,
                             float* sums) {
  const D d;
  constexpr size_t each = kVectors / rows;
  const V factor = hn::Set(d, all.factor);
  V sum[rows];
  for (V& s : sum) s = hn::Zero(d);
  // FMLA overwrites its addend: on Arm it is loaded anew, as Addend says.
  HWY_ALIGN float addends[kVectors * kLanes];
  for (size_t i = 0; i < kVectors; ++i) {
    hn::Store(hn::Set(d, -all.subtrahends[r + static_cast<int64_t>(i / each)]), d,
              addends + i * kLanes);
  }
  // Copies: what is stored might otherwise be the arguments.
  const float* const scores = a.scores + r * a.stride;
  const float* const weights = a.value_scales;
  const int64_t stride = a.stride, p_stride = a.p_stride;
  [[maybe_unused]] const int64_t group = 4 * a.rows;
  T* p = static_cast<T*>(a.p) + r * (atoms ? 4 : p_stride);
  for_each_step<each>(a.keys, [&](int64_t j, auto whole) CAPIBARA_INLINE {
    constexpr size_t n = decltype(whole)::vectors, total = n * rows;
    CAPIBARA_LOOP_VARIANT(attention_exp, T, total, 2 * weighted + atoms);
    Vecs<D, total> t;
    for (size_t i = 0; i < total; ++i) {
      const V score = hn::LoadU(d, scores + static_cast<int64_t>(i / n) * stride + j +
                                       static_cast<int64_t>(i % n * kLanes));
      t.v[i] = hn::MulAdd(score, factor, hn::Load(d, addends + i / n * each * kLanes));
    }
    auto e = exp2_nonpositive<T>(d, t);
    for (size_t i = 0; i < total; ++i) sum[i / n] = hn::Add(sum[i / n], e.v[i]);
    if constexpr (weighted) {
      for (size_t i = 0; i < total; ++i) {
        e.v[i] = hn::Mul(e.v[i], hn::LoadU(d, weights + j + static_cast<int64_t>(i % n * kLanes)));
      }
    }
#if HWY_ARCH_ARM_A64
    if constexpr (atoms) {
      static_assert(rows == 2 && n == 2);
      vst1q_u16(&p->bits, narrow(BF16{}, {{e.v[0], e.v[2]}}));
      vst1q_u16(&p[group].bits, narrow(BF16{}, {{e.v[1], e.v[3]}}));
      p += 2 * group;
      return;
    }
#endif
    for (int i = 0; i < rows; ++i) {
      Vecs<D, n> row;
      for (size_t k = 0; k < n; ++k) row.v[k] = e.v[static_cast<size_t>(i) * n + k];
      store_vectors(p + i * p_stride + j, row);
    }
  });
  for (int i = 0; i < rows; ++i) sums[r + i] = hn::GetLane(hn::SumOfLanes(d, sum[i]));
}

template <class T, bool weighted>
HWY_INLINE void all_exponentials(const AttentionSoftmaxArgs& a, const Rows& all, float* sums) {
  int64_t r = 0;
#if HWY_ARCH_ARM_A64
  if constexpr (DTypeOf<T>::value == DType::kBF16) {
    if (a.atoms && a.rows > 1) {
      for (; r < a.rows; r += 2) exponentials<T, 2, true, weighted>(a, all, r, sums);
    }
  }
#endif
  for (; r < a.rows; ++r) exponentials<T, 1, false, weighted>(a, all, r, sums);
}

template <class T>
HWY_INLINE void softmax_panel(const AttentionSoftmaxArgs& a) {
  const D d;
  const float lowest = -__builtin_inff();
  const bool transformed = a.key_scales || a.softcap != 0.0f || a.slopes || !(a.scale > 0.0f);
  Rows all;
  all.factor = transformed ? 1.0f : a.scale * kLog2E;
  HWY_ALIGN float maxima[kMaxTileRows], sums[kMaxTileRows] = {};
  std::fill(maxima, maxima + kMaxTileRows, lowest);
  for (int64_t r = 0; r < a.rows; ++r) {
    float* scores = a.scores + r * a.stride;
    if (transformed) transform_row(a, r);
    std::fill(scores, scores + a.begin[r], lowest);
    std::fill(scores + a.end[r], scores + a.keys, lowest);
    maxima[r] = std::max(a.maxima[r], largest_of_row(scores, a.keys) * all.factor);
    all.subtrahends[r] = maxima[r] == lowest ? 0.0f : maxima[r];
  }
  if (a.value_scales) {
    all_exponentials<T, true>(a, all, sums);
  } else {
    all_exponentials<T, false>(a, all, sums);
  }

  for (size_t i = 0; i < kMaxTileRows; i += kLanes) {
    const V now = hn::Load(d, maxima + i);
    const V subtrahend = hn::IfThenZeroElse(hn::Eq(now, hn::Set(d, lowest)), now);
    const Vecs<D, 1> change = {{hn::Sub(hn::LoadU(d, a.maxima + i), subtrahend)}};
    const V correction = exp2_nonpositive<float>(d, change).v[0];
    hn::StoreU(correction, d, a.corrections + i);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, a.sums + i), correction, hn::Load(d, sums + i)), d,
               a.sums + i);
    hn::StoreU(now, d, a.maxima + i);
  }
}

}  // namespace

void attention_softmax(const AttentionSoftmaxArgs& args) noexcept {
  if (args.to == Packed::kF32) {
    softmax_panel<float>(args);
  } else if (args.to == Packed::kF16) {
    softmax_panel<F16>(args);
  } else {
    softmax_panel<BF16>(args);
  }
}

void attention_rescale(const AttentionRescaleArgs& a) noexcept {
  const D d;
  for (int64_t r = 0; r < a.rows; ++r) {
    if (a.factors[r] == 1.0f) continue;
    const V factor = hn::Set(d, a.factors[r]);
    float* row = a.o + r * a.stride;
    int64_t i = 0;
    for (; i + static_cast<int64_t>(kLanes) <= a.cols; i += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, row + i), factor), d, row + i);
    }
    for (; i < a.cols; ++i) row[i] *= a.factors[r];
  }
}

void attention_finish(const AttentionFinishArgs& a) noexcept {
  dispatch(a.dtype, [&](auto element) CAPIBARA_INLINE {
    using T = decltype(element);
    const D d;
    for (int64_t r = 0; r < a.rows; ++r) {
      const V factor = hn::Set(d, a.factors[r]);
      const float* row = a.o + r * a.stride;
      T* out = static_cast<T*>(a.out[r]);
      for_each_extent(d, static_cast<size_t>(a.cols), [&](size_t i, auto extent) CAPIBARA_INLINE {
        const auto o = load<Order::kSequential>(d, row + i, extent);
        store<Order::kSequential>(
            d, out + i, map(o, [&](V x) CAPIBARA_INLINE { return hn::Mul(x, factor); }), extent);
      });
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
