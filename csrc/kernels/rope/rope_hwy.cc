// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/vec-inl.h"
#include "kernels/rope/rope.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// The product that is subtracted is rounded, the other one is fused.
template <class V>
HWY_INLINE void turn(V& x1, V& x2, V cos, V sin) {
  const V y1 = hn::NegMulAdd(x2, sin, hn::Mul(x1, cos));
  x2 = hn::MulAdd(x1, sin, hn::Mul(x2, cos));
  x1 = y1;
}

template <class T>
HWY_INLINE T* head_of(const RopeHeads& heads, int64_t token, int64_t head) {
  return static_cast<T*>(heads.data) + token * heads.token_stride + head * heads.head_stride;
}

// Angles [i, i + count) of one token, neox style, in `blocks` pairs. Cosines and sines stay in
// registers over all heads; two blocks cover a head of 128 with 512-bit vectors, so that memory is
// walked from head to head once.
template <size_t blocks, class T, class D, class C, class Extent>
HWY_INLINE void turn_neox(D d, const RopeArgs& a, int64_t token, const C* cos, size_t i,
                          Extent extent) {
  constexpr Order order = order_of<T, C>();
  const int64_t half = a.rotary_dim / 2;
  const size_t step = 2 * hn::Lanes(d);
  Pair<D> c[blocks], s[blocks];
  for (size_t b = 0; b < blocks; ++b) {
    c[b] = load<order>(d, cos + i + b * step, extent);
    s[b] = load<order>(d, cos + half + i + b * step, extent);
  }
  for (const RopeHeads* heads : {&a.q, &a.k}) {
    for (int64_t h = 0; h < heads->heads; ++h) {
      CAPIBARA_LOOP_VARIANT(neox, T, 2 * blocks * kWholeVectors<Extent>, sizeof(C));
      T* x = head_of<T>(*heads, token, h) + i;
      for (size_t b = 0; b < blocks; ++b, x += step) {
        Pair<D> x1 = load<order>(d, x, extent), x2 = load<order>(d, x + half, extent);
        turn(x1.v[0], x2.v[0], c[b].v[0], s[b].v[0]);
        turn(x1.v[1], x2.v[1], c[b].v[1], s[b].v[1]);
        store<order>(d, x, x1, extent);
        store<order>(d, x + half, x2, extent);
      }
    }
  }
}

HWY_INLINE Whole<2> twice(Whole<1>) { return {}; }
HWY_INLINE Part twice(Part part) { return {2 * part.count}; }

// Likewise interleaved: a pair in even-odd order holds the first elements in a, the second in b.
template <class T, class D, class C, class Extent>
HWY_INLINE void turn_interleaved(D d, const RopeArgs& a, int64_t token, const C* cos, size_t i,
                                 Extent extent) {
  const int64_t half = a.rotary_dim / 2;
  const hn::Vec<D> c = load_one(d, cos + i, extent);
  const hn::Vec<D> s = load_one(d, cos + half + i, extent);
  for (const RopeHeads* heads : {&a.q, &a.k}) {
    for (int64_t h = 0; h < heads->heads; ++h) {
      CAPIBARA_LOOP_VARIANT(interleaved, T, 2 * kWholeVectors<Extent>, sizeof(C));
      T* x = head_of<T>(*heads, token, h) + 2 * i;
      Pair<D> v = load<Order::kEvenOdd>(d, x, twice(extent));
      turn(v.v[0], v.v[1], c, s);
      if constexpr (DTypeOf<T>::value == DType::kBF16 && DTypeOf<C>::value == DType::kF32) {
        v = map(v, [&](auto turned) CAPIBARA_INLINE { return quiet_nan(d, turned); });
      }
      store<Order::kEvenOdd>(d, x, v, twice(extent));
    }
  }
}

// A head of 64 to 128 is a few vectors only, and common rotary sizes (48, 96) are no multiple of
// two 512-bit ones: what a width leaves over goes to half the width, down to four lanes.
template <class T, class C, size_t lanes>
HWY_INLINE void turn_token(const RopeArgs& a, int64_t token, const C* cos, size_t i) {
  const hn::CappedTag<float, lanes> d;
  const size_t half = static_cast<size_t>(a.rotary_dim / 2);
  const size_t vector = hn::Lanes(d);
  if (a.neox) {
    for (; i + 4 * vector <= half; i += 4 * vector)
      turn_neox<2, T>(d, a, token, cos, i, Whole<2>{});
    if (i + 2 * vector <= half) {
      turn_neox<1, T>(d, a, token, cos, i, Whole<2>{});
      i += 2 * vector;
    }
  } else {
    for (; i + vector <= half; i += vector) turn_interleaved<T>(d, a, token, cos, i, Whole<1>{});
  }
  if (i == half) return;
  if constexpr (lanes > 4) {
    turn_token<T, C, lanes / 2>(a, token, cos, i);
  } else if (a.neox) {
    turn_neox<1, T>(d, a, token, cos, i, Part{half - i});
  } else {
    turn_interleaved<T>(d, a, token, cos, i, Part{half - i});
  }
}

template <class T, class C>
HWY_INLINE void turn_tokens(const RopeArgs& a, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const C* cos = static_cast<const C*>(a.cache) + position_of(a, token) * a.rotary_dim;
    turn_token<T, C, hn::MaxLanes(FullF32())>(a, token, cos, 0);
  }
}

}  // namespace

void rope(const RopeArgs& a, int64_t begin, int64_t end) noexcept {
  dispatch(a.dtype, [&](auto element) CAPIBARA_INLINE {
    using T = decltype(element);
    if (a.cache_dtype == a.dtype) {
      turn_tokens<T, T>(a, begin, end);
    } else {
      turn_tokens<T, float>(a, begin, end);
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
