// SPDX-License-Identifier: Apache-2.0
// Loads and stores that convert between the element types and f32 vectors. Included by sources
// that are compiled once per ISA, with that ISA's flags and CAPIBARA_ISA as their namespace;
// everything here is local to the including source, so that the linker cannot hand code of a
// wider ISA to a caller of a narrower one.
//
// The unit of work is a Pair: 2 * Lanes(d) consecutive elements, as two f32 vectors. How a pair's
// elements spread over its vectors is its order:
//   kSequential  a = the first half, b = the second half
//   kEvenOdd     a = elements 0, 2, 4 ..., b = elements 1, 3, 5 ...
// On x86, bf16 loads are cheapest in kEvenOdd (a shift and a mask, no lane crossing), and f32 ones
// in kSequential. Operands that meet in one expression need the same order.
#pragma once

#ifndef CAPIBARA_ISA
#error "CAPIBARA_ISA must name the namespace of the ISA that this source is compiled for"
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#define HWY_COMPILE_ONLY_STATIC
#include <hwy/highway.h>

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#error "the flags of this ISA are missing: Highway fell back to scalar code"
#endif

#if HWY_ARCH_ARM_A64
#include <arm_neon.h>
#endif

#include "base/dtype.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using FullF32 = hn::ScalableTag<float>;

enum class Order { kSequential, kEvenOdd };

template <class D>
struct Pair {
  hn::Vec<D> a, b;
};

// The cheapest order for operands of these types.
template <class... T>
constexpr Order order_of() {
  constexpr bool all_bf16 = (... && (DTypeOf<T>::value == DType::kBF16));
  return HWY_ARCH_X86 && all_bf16 ? Order::kEvenOdd : Order::kSequential;
}

// How much of a pair lies inside the buffer.
struct Whole {};
struct Part {
  size_t count;
};

// Calls body(i, Whole) for each pair that lies in [0, n), and body(i, Part) for what remains.
template <class D, class Body>
HWY_INLINE void for_each_pair(D d, size_t n, const Body& body) {
  const size_t step = 2 * hn::Lanes(d);
  size_t i = 0;
  for (; i + step <= n; i += step) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
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
// whatever the addition left there. NaN is made quiet first, because the carry could turn one with
// a small payload into an infinity.
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, D>> bf16_bits_in_upper_half(D, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> du;
  const auto bits = hn::BitCast(du, v);
  const auto lsb = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), lsb);
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
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

// ---------------------------------------------------------------- whole pairs

template <Order order, class D>
HWY_INLINE Pair<D> load(D d, const float* p) {
  Pair<D> pair;
  if constexpr (order == Order::kEvenOdd) {
    hn::LoadInterleaved2(d, p, pair.a, pair.b);
  } else {
    pair.a = hn::LoadU(d, p);
    pair.b = hn::LoadU(d, p + hn::Lanes(d));
  }
  return pair;
}

template <Order order, class D>
HWY_INLINE Pair<D> load(D d, const F16* p) {
  if constexpr (order == Order::kEvenOdd) {
    const auto a = load_one(d, p), b = load_one(d, p + hn::Lanes(d));
    return {hn::ConcatEven(d, b, a), hn::ConcatOdd(d, b, a)};
  } else {
    return {load_one(d, p), load_one(d, p + hn::Lanes(d))};
  }
}

template <Order order, class D>
HWY_INLINE Pair<D> load(D d, const BF16* p) {
  if constexpr (order == Order::kEvenOdd) {
    const hn::Rebind<uint32_t, D> du;
    const auto bits =
        hn::BitCast(du, hn::LoadU(hn::Repartition<uint16_t, D>(), &p->bits));
    return {hn::BitCast(d, hn::ShiftLeft<16>(bits)),
            hn::BitCast(d, hn::And(bits, hn::Set(du, 0xffff0000u)))};
  } else {
#if HWY_ARCH_ARM_A64
    if constexpr (hn::MaxLanes(D()) == 4) {  // SHLL widens and shifts in one instruction
      const uint16x8_t bits = vld1q_u16(&p->bits);
      return {hn::Vec<D>(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16))),
              hn::Vec<D>(vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16)))};
    }
#endif
    return {load_one(d, p), load_one(d, p + hn::Lanes(d))};
  }
}

// Stores return the values as they were rounded, for kernels that go on computing with them.
template <Order order, class D>
HWY_INLINE Pair<D> store(D d, float* p, Pair<D> pair) {
  if constexpr (order == Order::kEvenOdd) {
    hn::StoreInterleaved2(pair.a, pair.b, d, p);
  } else {
    hn::StoreU(pair.a, d, p);
    hn::StoreU(pair.b, d, p + hn::Lanes(d));
  }
  return pair;
}

template <Order order, class D>
HWY_INLINE Pair<D> store(D d, F16* p, Pair<D> pair) {
  if constexpr (order == Order::kEvenOdd) {
    HWY_ALIGN float lanes[2 * hn::MaxLanes(D())];
    hn::StoreInterleaved2(pair.a, pair.b, d, lanes);
    pair = load<Order::kSequential>(d, lanes);
  }
  store_one(d, p, pair.a);
  store_one(d, p + hn::Lanes(d), pair.b);
  return load<order>(d, p);
}

template <Order order, class D>
HWY_INLINE Pair<D> store(D d, BF16* p, Pair<D> pair) {
#if HWY_ARCH_ARM_A64 && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  if constexpr (order == Order::kSequential && hn::MaxLanes(D()) == 4) {
    const bfloat16x8_t low = vcvtq_low_bf16_f32(pair.a.raw);
    const uint16x8_t bits = vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(low, pair.b.raw));
    vst1q_u16(&p->bits, bits);
    return {hn::Vec<D>(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16))),
            hn::Vec<D>(vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16)))};
  }
#endif
  const hn::Rebind<uint32_t, D> du;
  const hn::Repartition<uint16_t, D> d16;
  const auto high = hn::Set(du, 0xffff0000u);
  const auto a = bf16_bits_in_upper_half(d, pair.a);
  const auto b = bf16_bits_in_upper_half(d, pair.b);
  uint16_t* bits = &p->bits;
  if constexpr (order == Order::kEvenOdd) {
    hn::StoreU(hn::BitCast(d16, hn::OrAnd(hn::ShiftRight<16>(a), b, high)), d16, bits);
  } else {
    const hn::Rebind<uint16_t, D> half;
    hn::StoreU(hn::TruncateTo(half, hn::ShiftRight<16>(a)), half, bits);
    hn::StoreU(hn::TruncateTo(half, hn::ShiftRight<16>(b)), half, bits + hn::Lanes(d));
  }
  return {hn::BitCast(d, hn::And(a, high)), hn::BitCast(d, hn::And(b, high))};
}

// ---------------------------------------------------------------- at an index, whole or in part

template <Order order, class D, class T>
HWY_INLINE Pair<D> load(D d, const T* p, Whole) {
  return load<order>(d, p);
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
HWY_INLINE hn::Vec<D> load_one(D d, const T* p, Whole) {
  return load_one(d, p);
}

template <class D, class T>
HWY_INLINE hn::Vec<D> load_one(D d, const T* p, Part part) {
  T buffer[hn::MaxLanes(D())] = {};
  std::memcpy(buffer, p, part.count * sizeof(T));
  return load_one(d, buffer);
}

template <Order order, class D, class T>
HWY_INLINE Pair<D> store(D d, T* p, Pair<D> pair, Whole) {
  return store<order>(d, p, pair);
}

template <Order order, class D, class T>
HWY_INLINE Pair<D> store(D d, T* p, Pair<D> pair, Part part) {
  T buffer[2 * hn::MaxLanes(D())];
  const Pair<D> rounded = store<order>(d, buffer, pair);
  std::memcpy(p, buffer, part.count * sizeof(T));
  return rounded;
}

// `other` in place of what lies past the buffer's end.
template <Order, class D>
HWY_INLINE Pair<D> replace_outside(D, Pair<D> pair, hn::Vec<D>, Whole) {
  return pair;
}

template <Order order, class D>
HWY_INLINE Pair<D> replace_outside(D d, Pair<D> pair, hn::Vec<D> other, Part part) {
  const size_t n = part.count, lanes = hn::Lanes(d);
  const size_t in_a = order == Order::kEvenOdd ? (n + 1) / 2 : HWY_MIN(n, lanes);
  return {hn::IfThenElse(hn::FirstN(d, in_a), pair.a, other),
          hn::IfThenElse(hn::FirstN(d, n - in_a), pair.b, other)};
}

// f(vector) or f(vector, vector) on both halves.
template <class D, class F>
HWY_INLINE Pair<D> map(Pair<D> x, const F& f) {
  return {f(x.a), f(x.b)};
}
template <class D, class F>
HWY_INLINE Pair<D> map(Pair<D> x, Pair<D> y, const F& f) {
  return {f(x.a, y.a), f(x.b, y.b)};
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
