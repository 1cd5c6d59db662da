// SPDX-License-Identifier: Apache-2.0
// Loads and stores that convert between the element types and f32 vectors; local to the including
// source, as vecs-inl.h says.
//
// The unit of memory is a pair: 2 * Lanes(d) consecutive elements, as two f32 vectors. How a pair's
// elements spread over its vectors is its order:
//   kSequential  first half, second half
//   kEvenOdd     elements 0, 2, 4 ..., elements 1, 3, 5 ...
// On x86, bf16 is cheapest in kEvenOdd: a shift and a mask, no lane crossing. Elsewhere, and for
// the other types, it is kSequential. Operands that meet in one expression need the same order.
#pragma once

#include <cstring>

#include "base/dtype.h"
#include "kernels/common/vecs-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

enum class Order { kSequential, kEvenOdd };

// The cheapest order for operands of these types.
template <class... T>
constexpr Order order_of() {
  constexpr bool all_bf16 = (... && (DTypeOf<T>::value == DType::kBF16));
  return HWY_ARCH_X86 && all_bf16 ? Order::kEvenOdd : Order::kSequential;
}

// ---------------------------------------------------------------- conversions of one vector

#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
// Without F16C, Highway's f16 conversions treat infinities and NaN as large numbers.
#define CAPIBARA_SCALAR_F16 1
#else
#define CAPIBARA_SCALAR_F16 0
#endif

template <class D>
HWY_INLINE hn::Vec<D> load_one(D d, const float* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> load_one(D d, const BF16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class D>
HWY_INLINE hn::Vec<D> load_one(D d, const F16* p) {
#if CAPIBARA_SCALAR_F16
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = to_f32(p[i]);
  return hn::Load(d, lanes);
#else
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#endif
}

// The f32 bits of v rounded to bf16, still in the upper half of each lane; the lower half is
// whatever the addition left there. A NaN whose payload is all ones would be carried over into
// another number: see quiet_nan.
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, D>> bf16_bits_in_upper_half(D, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> du;
  const auto bits = hn::BitCast(du, v);
  const auto lsb = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  return hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), lsb);
}

// NaN with its payload's lower half cleared, as every bf16 NaN has it, and what arithmetic makes of
// one: then rounding cannot carry. Needed only where an f32 operand takes part.
template <class D>
HWY_INLINE hn::Vec<D> quiet_nan(D d, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> du;
  const auto upper = hn::And(hn::BitCast(du, v), hn::Set(du, 0xffff0000u));
  const auto quiet = hn::BitCast(d, hn::Or(upper, hn::Set(du, 0x400000)));
  return hn::IfThenElse(hn::IsNaN(v), quiet, v);
}

template <class D>
HWY_INLINE void store_one([[maybe_unused]] D d, F16* p, hn::Vec<D> v) {
#if CAPIBARA_SCALAR_F16
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) p[i] = to_f16(lanes[i]);
#else
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
#endif
}

#if HWY_ARCH_ARM_A64
// ---------------------------------------------------------------- Arm: eight 16-bit elements

HWY_INLINE Pair<FullF32> widen(BF16, uint16x8_t bits) {
  // SHLL widens and shifts in one instruction.
  return {{hn::Vec<FullF32>(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16))),
           hn::Vec<FullF32>(vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16)))}};
}

HWY_INLINE Pair<FullF32> widen(F16, uint16x8_t bits) {
  const float16x8_t halves = vreinterpretq_f16_u16(bits);
  return {{hn::Vec<FullF32>(vcvt_f32_f16(vget_low_f16(halves))),
           hn::Vec<FullF32>(vcvt_high_f32_f16(halves))}};
}

HWY_INLINE uint16x8_t narrow(BF16, Pair<FullF32> pair) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  const bfloat16x8_t low = vcvtq_low_bf16_f32(pair.v[0].raw);
  return vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(low, pair.v[1].raw));
#else
  const FullF32 d;
  pair = map(pair, [&](auto v) CAPIBARA_INLINE { return quiet_nan(d, v); });
  const auto low = bf16_bits_in_upper_half(d, pair.v[0]);
  const auto high = bf16_bits_in_upper_half(d, pair.v[1]);
  return vshrn_high_n_u32(vshrn_n_u32(low.raw, 16), high.raw, 16);
#endif
}

HWY_INLINE uint16x8_t narrow(F16, Pair<FullF32> pair) {
  const float16x4_t low = vcvt_f16_f32(pair.v[0].raw);
  return vreinterpretq_u16_f16(vcvt_high_f16_f32(low, pair.v[1].raw));
}
#endif

// ---------------------------------------------------------------- whole pairs

template <Order order, class D>
HWY_INLINE Pair<D> load(D d, const float* p) {
  Pair<D> pair;
  if constexpr (order == Order::kEvenOdd) {
    hn::LoadInterleaved2(d, p, pair.v[0], pair.v[1]);
  } else {
    pair.v[0] = hn::LoadU(d, p);
    pair.v[1] = hn::LoadU(d, p + hn::Lanes(d));
  }
  return pair;
}

template <Order order, class D>
HWY_INLINE Pair<D> load(D d, const F16* p) {
  if constexpr (order == Order::kEvenOdd) {
    const auto a = load_one(d, p), b = load_one(d, p + hn::Lanes(d));
    return {{hn::ConcatEven(d, b, a), hn::ConcatOdd(d, b, a)}};
  } else {
    return {{load_one(d, p), load_one(d, p + hn::Lanes(d))}};
  }
}

template <Order order, class D>
HWY_INLINE Pair<D> load(D d, const BF16* p) {
  if constexpr (order == Order::kEvenOdd) {
    const hn::Rebind<uint32_t, D> du;
    const auto bits = hn::BitCast(du, hn::LoadU(hn::Repartition<uint16_t, D>(), &p->bits));
    return {{hn::BitCast(d, hn::ShiftLeft<16>(bits)),
             hn::BitCast(d, hn::And(bits, hn::Set(du, 0xffff0000u)))}};
  } else {
#if HWY_ARCH_ARM_A64
    if constexpr (hn::MaxLanes(D()) == 4) return widen(BF16{}, vld1q_u16(&p->bits));
#endif
    return {{load_one(d, p), load_one(d, p + hn::Lanes(d))}};
  }
}

// Stores return the values as they were rounded, for kernels that go on computing with them. A bf16
// store in kEvenOdd takes for granted that all operands were bf16 (order_of), or quiet_nan.
template <Order order, class D>
HWY_INLINE Pair<D> store(D d, float* p, Pair<D> pair) {
  if constexpr (order == Order::kEvenOdd) {
    hn::StoreInterleaved2(pair.v[0], pair.v[1], d, p);
  } else {
    hn::StoreU(pair.v[0], d, p);
    hn::StoreU(pair.v[1], d, p + hn::Lanes(d));
  }
  return pair;
}

template <Order order, class D>
HWY_INLINE Pair<D> store(D d, F16* p, Pair<D> pair) {
  if constexpr (order == Order::kEvenOdd) {
    HWY_ALIGN float lanes[2 * hn::MaxLanes(D())];
    hn::StoreInterleaved2(pair.v[0], pair.v[1], d, lanes);
    pair = load<Order::kSequential>(d, lanes);
  }
  store_one(d, p, pair.v[0]);
  store_one(d, p + hn::Lanes(d), pair.v[1]);
  return load<order>(d, p);
}

template <Order order, class D>
HWY_INLINE Pair<D> store(D d, BF16* p, Pair<D> pair) {
#if HWY_ARCH_ARM_A64
  if constexpr (order == Order::kSequential && hn::MaxLanes(D()) == 4) {
    const uint16x8_t bits = narrow(BF16{}, pair);
    vst1q_u16(&p->bits, bits);
    return widen(BF16{}, bits);
  }
#endif
  const hn::Rebind<uint32_t, D> du;
  const hn::Repartition<uint16_t, D> d16;
  const auto high = hn::Set(du, 0xffff0000u);
  if constexpr (order == Order::kSequential) {
    pair = map(pair, [&](auto v) CAPIBARA_INLINE { return quiet_nan(d, v); });
  }
  const auto a = bf16_bits_in_upper_half(d, pair.v[0]);
  const auto b = bf16_bits_in_upper_half(d, pair.v[1]);
  uint16_t* bits = &p->bits;
  if constexpr (order == Order::kEvenOdd) {
    hn::StoreU(hn::BitCast(d16, hn::OrAnd(hn::ShiftRight<16>(a), b, high)), d16, bits);
  } else {
    const hn::Rebind<uint16_t, D> half;
    hn::StoreU(hn::TruncateTo(half, hn::ShiftRight<16>(a)), half, bits);
    hn::StoreU(hn::TruncateTo(half, hn::ShiftRight<16>(b)), half, bits + hn::Lanes(d));
  }
  return {{hn::BitCast(d, hn::And(a, high)), hn::BitCast(d, hn::And(b, high))}};
}

// ---------------------------------------------------------------- at an index, whole or in part

#if HWY_ARCH_ARM_A64
// Each pair of x becomes f(its index, it). Written out: compilers leave a loop over what NEON's
// types of four registers hold as it is, and the registers in memory.
template <class D, class F>
HWY_INLINE void for_each_pair(Vecs<D, 8>& x, const F& f) {
  const auto replace = [&](size_t i) CAPIBARA_INLINE {
    const Pair<D> pair = f(i, Pair<D>{{x.v[2 * i], x.v[2 * i + 1]}});
    x.v[2 * i] = pair.v[0];
    x.v[2 * i + 1] = pair.v[1];
  };
  replace(0);
  replace(1);
  replace(2);
  replace(3);
}
#endif

template <Order order, class D, class T, size_t n>
HWY_INLINE Vecs<D, n> load(D d, const T* p, Whole<n>) {
  Vecs<D, n> x;
#if HWY_ARCH_ARM_A64
  if constexpr (n == 8 && sizeof(T) == 2) {
    static_assert(order == Order::kSequential);
    const uint16x8x4_t bits = vld1q_u16_x4(&p->bits);
    for_each_pair(x, [&](size_t i, Pair<D>) CAPIBARA_INLINE { return widen(T{}, bits.val[i]); });
    return x;
  }
#endif
  for (size_t i = 0; i < n; i += 2) {
    const Pair<D> pair = load<order>(d, p + i * hn::Lanes(d));
    x.v[i] = pair.v[0];
    x.v[i + 1] = pair.v[1];
  }
  return x;
}

// Elements past the buffer's end are never read: they are zero.
template <Order order, class D, class T>
HWY_INLINE Pair<D> load(D d, const T* p, Part part) {
  T buffer[2 * hn::MaxLanes(D())] = {};
  std::memcpy(buffer, p, part.count * sizeof(T));
  return load<order>(d, buffer);
}

// A single vector of consecutive elements.
template <class D, class T>
HWY_INLINE hn::Vec<D> load_one(D d, const T* p, Whole<1>) {
  return load_one(d, p);
}

template <class D, class T>
HWY_INLINE hn::Vec<D> load_one(D d, const T* p, Part part) {
  T buffer[hn::MaxLanes(D())] = {};
  std::memcpy(buffer, p, part.count * sizeof(T));
  return load_one(d, buffer);
}

template <Order order, class D, class T, size_t n>
HWY_INLINE Vecs<D, n> store(D d, T* p, Vecs<D, n> x, Whole<n>) {
#if HWY_ARCH_ARM_A64
  if constexpr (n == 8 && sizeof(T) == 2) {
    static_assert(order == Order::kSequential);
    uint16x8x4_t bits;
    for_each_pair(x, [&](size_t i, Pair<D> pair) CAPIBARA_INLINE {
      bits.val[i] = narrow(T{}, pair);
      return widen(T{}, bits.val[i]);
    });
    vst1q_u16_x4(&p->bits, bits);
    return x;
  }
#endif
  for (size_t i = 0; i < n; i += 2) {
    const Pair<D> rounded = store<order>(d, p + i * hn::Lanes(d), Pair<D>{{x.v[i], x.v[i + 1]}});
    x.v[i] = rounded.v[0];
    x.v[i + 1] = rounded.v[1];
  }
  return x;
}

template <Order order, class D, class T>
HWY_INLINE Pair<D> store(D d, T* p, Pair<D> pair, Part part) {
  T buffer[2 * hn::MaxLanes(D())];
  const Pair<D> rounded = store<order>(d, buffer, pair);
  std::memcpy(p, buffer, part.count * sizeof(T));
  return rounded;
}

// `other` in place of what lies past the buffer's end.
template <Order, class D, size_t n>
HWY_INLINE Vecs<D, n> replace_outside(D, Vecs<D, n> x, hn::Vec<D>, Whole<n>) {
  return x;
}

template <Order order, class D>
HWY_INLINE Pair<D> replace_outside(D d, Pair<D> pair, hn::Vec<D> other, Part part) {
  const size_t n = part.count, lanes = hn::Lanes(d);
  const size_t in_first = order == Order::kEvenOdd ? (n + 1) / 2 : HWY_MIN(n, lanes);
  return {{hn::IfThenElse(hn::FirstN(d, in_first), pair.v[0], other),
           hn::IfThenElse(hn::FirstN(d, n - in_first), pair.v[1], other)}};
}

// One vector that holds total = accumulate(total, x) over the vectors x of all f(i, extent), begun
// with `start`; `combine` joins two totals. There are as many as vectors in an iteration: with one
// or two, their latency would be what the loop waits for.
template <size_t step = kVectorsAStep, class D, class Accumulate, class Combine, class F>
HWY_INLINE hn::Vec<D> reduce(D d, size_t n, hn::Vec<D> start, const Accumulate& accumulate,
                             const Combine& combine, const F& f) {
  Vecs<D, step> total = fill<step>(d, start);
  for_each_extent<step>(d, n, [&](size_t i, auto extent) CAPIBARA_INLINE {
    const auto x = f(i, extent);
    for (size_t k = 0; k < decltype(extent)::vectors; ++k) {
      total.v[k] = accumulate(total.v[k], x.v[k]);
    }
  });
  for (size_t totals = step; totals > 1; totals /= 2) {
    for (size_t k = 0; k < totals / 2; ++k) {
      total.v[k] = combine(total.v[2 * k], total.v[2 * k + 1]);
    }
  }
  return total.v[0];
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
