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

// f(x) for each head of a token, x being its element `first`.
template <class T, class F>
HWY_INLINE void for_each_head(const RopeArgs& a, int64_t token, size_t first, const F& f) {
  for (const RopeHeads* heads : {&a.q, &a.k}) {
    T* x = static_cast<T*>(heads->data) + token * heads->token_stride + first;
    const int64_t stride = heads->head_stride;
    for (int64_t left = heads->heads; left != 0; --left) {
      f(x);
      x += stride;
    }
  }
}

// Angles [i, i + extent) of one token, neox style. Cosines and sines stay in registers over all
// heads; four vectors cover a head of 128 with 512-bit ones, so that memory is walked from head to
// head once.
template <class T, class D, class C, class Extent>
HWY_INLINE void turn_neox(D d, const RopeArgs& a, int64_t token, const C* cos, size_t i,
                          Extent extent) {
  constexpr Order order = order_of<T, C>();
  constexpr size_t vectors = Extent::vectors;
  const int64_t half = a.rotary_dim / 2;
  const Vecs<D, vectors> c = load<order>(d, cos + i, extent);
  const Vecs<D, vectors> s = load<order>(d, cos + half + i, extent);
  for_each_head<T>(a, token, i, [&](T* x) CAPIBARA_INLINE {
    CAPIBARA_LOOP_VARIANT(neox, T, 2 * kWholeVectors<Extent>, sizeof(C));
    Vecs<D, vectors> x1 = load<order>(d, x, extent), x2 = load<order>(d, x + half, extent);
    for (size_t v = 0; v < vectors; ++v) turn(x1.v[v], x2.v[v], c.v[v], s.v[v]);
    store<order>(d, x, x1, extent);
    store<order>(d, x + half, x2, extent);
  });
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
  for_each_head<T>(a, token, 2 * i, [&](T* x) CAPIBARA_INLINE {
    CAPIBARA_LOOP_VARIANT(interleaved, T, 2 * kWholeVectors<Extent>, sizeof(C));
    Pair<D> v = load<Order::kEvenOdd>(d, x, twice(extent));
    turn(v.v[0], v.v[1], c, s);
    if constexpr (DTypeOf<T>::value == DType::kBF16 && DTypeOf<C>::value == DType::kF32) {
      v = map(v, [&](auto turned) CAPIBARA_INLINE { return quiet_nan(d, turned); });
    }
    store<Order::kEvenOdd>(d, x, v, twice(extent));
  });
}

// A head of 64 to 128 is a few vectors only, and common rotary sizes (48, 96) are no multiple of
// two 512-bit ones: what a width leaves over goes to half the width, down to four lanes.
template <class T, class C, size_t lanes>
HWY_INLINE void turn_token(const RopeArgs& a, int64_t token, const C* cos, size_t i) {
  const hn::CappedTag<float, lanes> d;
  const size_t half = static_cast<size_t>(a.rotary_dim / 2);
  const size_t vector = hn::Lanes(d);
  if (a.neox) {
    for (; i + 4 * vector <= half; i += 4 * vector) {
      turn_neox<T>(d, a, token, cos, i, Whole<4>{});
    }
    if (i + 2 * vector <= half) {
      turn_neox<T>(d, a, token, cos, i, Whole<2>{});
      i += 2 * vector;
    }
  } else {
    for (; i + vector <= half; i += vector) turn_interleaved<T>(d, a, token, cos, i, Whole<1>{});
  }
  if (i == half) return;
  if constexpr (lanes > 4) {
    turn_token<T, C, lanes / 2>(a, token, cos, i);
  } else if (a.neox) {
    turn_neox<T>(d, a, token, cos, i, Part{half - i});
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
