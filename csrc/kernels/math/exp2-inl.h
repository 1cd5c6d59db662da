// SPDX-License-Identifier: Apache-2.0
// 2^t for t <= 0 (a rounding error above is harmless), as a softmax needs it whose logits carry the
// factor log2(e): zero from 2^-126.5 down, -infinity included; NaN stays. Coefficients:
// fit_polynomials.py.
#pragma once

#include "kernels/math/math-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

constexpr Addend kBriefExp2{0.242612079556f}, kBriefExp1{0.693261076071f},
    kBriefExp0{0.999928015403f};

// 2^f for |f| <= 1/2, as exactly as T can hold it: relative error 9.4e-9 (f32, before rounding),
// 2.6e-6 (f16), 7.5e-5 (bf16), the latter two less than a twentieth of half a unit in T's last
// place.
template <class T, class D, size_t n>
HWY_INLINE Vecs<D, n> exp2_reduced(D d, Vecs<D, n> f) {
  if constexpr (DTypeOf<T>::value == DType::kF32) {
    const auto ln2 = hn::Set(d, 0.693147181f);
    return exp_reduced(d, map(f, [&](auto a) CAPIBARA_INLINE { return hn::Mul(a, ln2); }));
  } else if constexpr (DTypeOf<T>::value == DType::kF16) {
    auto p = horner<kShortExp3>(d, fill<n>(d, hn::Set(d, 0.00957008549349f)), f);
    p = horner<kShortExp2>(d, p, f);
    p = horner<kShortExp1>(d, p, f);
    return horner<kShortExp0>(d, p, f);
  } else {
    auto p = horner<kBriefExp2>(d, fill<n>(d, hn::Set(d, 0.0551715396629f)), f);
    p = horner<kBriefExp1>(d, p, f);
    return horner<kBriefExp0>(d, p, f);
  }
}

template <class T, class D, size_t n>
HWY_INLINE Vecs<D, n> exp2_nonpositive(D d, Vecs<D, n> t) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) {
    // VREDUCEPS gives t - round(t), 0 for an infinity; VSCALEFPS takes the floor of its exponent.
    const auto f =
        map(t, [](auto a) CAPIBARA_INLINE { return hn::Vec<D>{_mm512_reduce_ps(a.raw, 8)}; });
    return map(exp2_reduced<T>(d, f), t, f, [](auto p, auto a, auto b) CAPIBARA_INLINE {
      return hn::Vec<D>{_mm512_scalef_ps(p.raw, hn::Sub(a, b).raw)};
    });
  }
#endif
  // The sum has round(t) in its low bits, and the exponent's bias on top of it; 2^-127 as bits is
  // zero.
  const auto least = hn::Set(d, -127.0f), shift = hn::Set(d, 12582912.0f + 127.0f);
  t = map(t, [&](auto a) CAPIBARA_INLINE { return at_least(d, least, a); });
  const auto k = map(t, [&](auto a) CAPIBARA_INLINE { return hn::Add(a, shift); });
  const auto f = map(t, k, [&](auto a, auto shifted) CAPIBARA_INLINE {
    return hn::Sub(a, hn::Sub(shifted, shift));
  });
  return map(exp2_reduced<T>(d, f), k, [&](auto p, auto shifted) CAPIBARA_INLINE {
    const hn::RebindToSigned<D> di;
    return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
  });
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
