// SPDX-License-Identifier: Apache-2.0
// A line's elements as the type that panels hold; local to the including source, as vecs-inl.h
// says.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/common/vec-inl.h"
#include "kernels/gemm/pack.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// What stands for zero, byte by byte.
constexpr int zero_byte(Packed type) { return type == Packed::kU8 ? 128 : 0; }

#if HWY_ARCH_ARM_A64
// FCVTNS rounds to the nearest integer, ties to even, the largest ones where it does not fit, and
// makes zero of NaN; narrowing saturates as well.
HWY_INLINE int16x8_t to_i16(Pair<FullF32> x) {
  const int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(x.v[0].raw));
  return vqmovn_high_s32(low, vcvtnq_s32_f32(x.v[1].raw));
}

HWY_INLINE void store_i8(int8_t* p, int8x16_t x) { vst1q_s8(p, vmaxq_s8(x, vdupq_n_s8(-127))); }
HWY_INLINE void store_i8(uint8_t* p, int8x16_t x) {
  const uint8x16_t bits = vreinterpretq_u8_s8(vmaxq_s8(x, vdupq_n_s8(-127)));
  vst1q_u8(p, veorq_u8(bits, vdupq_n_u8(128)));
}

template <class P, size_t n>
HWY_INLINE void store_integers(P* p, Vecs<FullF32, n> x, Whole<n>) {
  const auto pair = [&](size_t i) CAPIBARA_INLINE { return to_i16({{x.v[i], x.v[i + 1]}}); };
  for (size_t i = 0; i < n; i += 4) {
    if constexpr (std::is_same_v<P, int16_t>) {
      for (size_t k = i; k < HWY_MIN(i + 4, n); k += 2) {
        const int16x8_t most = vdupq_n_s16(127), least = vdupq_n_s16(-127);
        vst1q_s16(p + 4 * k, vmaxq_s16(vminq_s16(pair(k), most), least));
      }
    } else if constexpr (n >= 4) {
      store_i8(p + 4 * i, vqmovn_high_s16(vqmovn_s16(pair(i)), pair(i + 2)));
    } else {
      P both[16];
      store_i8(both, vqmovn_high_s16(vqmovn_s16(pair(i)), pair(i)));
      std::memcpy(p, both, 8);
    }
  }
}
#else
template <class P, size_t n>
HWY_INLINE void store_integers(P* p, Vecs<FullF32, n> x, Whole<n>) {
  const FullF32 d;
  using Signed = std::conditional_t<std::is_same_v<P, uint8_t>, int8_t, P>;
  const hn::Rebind<P, FullF32> dp;
  const hn::Rebind<Signed, FullF32> ds;
  const auto most = hn::Set(d, 127.0f), least = hn::Set(d, -127.0f);
  for (size_t i = 0; i < n; ++i) {
    const auto numbers = hn::IfThenElseZero(hn::Eq(x.v[i], x.v[i]), x.v[i]);
    const auto whole = hn::NearestInt(hn::Max(least, hn::Min(most, numbers)));
    auto bits = hn::BitCast(dp, hn::DemoteTo(ds, whole));
    if constexpr (std::is_same_v<P, uint8_t>) bits = hn::Xor(bits, hn::Set(dp, 128));
    hn::StoreU(bits, dp, p + i * hn::Lanes(d));
  }
}
#endif

template <class P>
HWY_INLINE void store_integers(P* p, Pair<FullF32> x, Part part) {
  P buffer[2 * hn::MaxLanes(FullF32())];
  store_integers(buffer, x, Whole<2>{});
  std::memcpy(p, buffer, part.count * sizeof(P));
}

// Some lines, or some of their elements; all strides in bytes.
struct Stretch {
  size_t lines, length;
  const void* from;
  ptrdiff_t from_stride;
  const float* factors;  // of integers alone
  void* to;
  ptrdiff_t to_stride;
};
using ConvertFn = void(const Stretch& s);

template <class T, class P>
void convert(const Stretch& stretch) {
  const FullF32 d;
  const Stretch s = stretch;  // which stores of bytes could change
  const char* from = static_cast<const char*>(s.from);
  char* to = static_cast<char*>(s.to);
  for (size_t line = 0; line < s.lines; ++line) {
    const T* x = reinterpret_cast<const T*>(from);
    P* packed = reinterpret_cast<P*>(to);
    [[maybe_unused]] const auto factor = hn::Set(d, std::is_integral_v<P> ? s.factors[line] : 1.0f);
    for_each_extent(d, s.length, [&](size_t i, auto extent) CAPIBARA_INLINE {
      const auto v = load<Order::kSequential>(d, x + i, extent);
      if constexpr (std::is_integral_v<P>) {
        const auto scaled = map(v, [&](auto a) CAPIBARA_INLINE { return hn::Mul(a, factor); });
        store_integers(packed + i, scaled, extent);
      } else {
        store<Order::kSequential>(d, packed + i, v, extent);
      }
    });
    from += s.from_stride;
    to += s.to_stride;
  }
}

template <size_t size>
void copy(const Stretch& stretch) {
  const Stretch s = stretch;
  const char* from = static_cast<const char*>(s.from);
  char* to = static_cast<char*>(s.to);
  for (size_t line = 0; line < s.lines; ++line) {
    std::memcpy(to, from, s.length * size);
    from += s.from_stride;
    to += s.to_stride;
  }
}

struct Conversion {
  ConvertFn* run;
  size_t from_size, to_size;
  bool copies;
};

inline Conversion conversion_of(DType from, Packed to) {
  return dispatch(from, [&](auto element) -> Conversion {
    using T = decltype(element);
    constexpr size_t size = sizeof(T);
    constexpr DType dtype = DTypeOf<T>::value;
    switch (to) {
      case Packed::kF32:
        if constexpr (dtype == DType::kF32) return {copy<size>, size, 4, true};
        return {convert<T, float>, size, 4, false};
      case Packed::kBF16:
        if constexpr (dtype == DType::kBF16) return {copy<size>, size, 2, true};
        return {convert<T, BF16>, size, 2, false};
      case Packed::kF16:
        if constexpr (dtype == DType::kF16) return {copy<size>, size, 2, true};
        return {convert<T, F16>, size, 2, false};
      case Packed::kI8:
        return {convert<T, int8_t>, size, 1, false};
      case Packed::kU8:
        return {convert<T, uint8_t>, size, 1, false};
      default:
        return {convert<T, int16_t>, size, 2, false};
    }
  });
}

#if HWY_ARCH_ARM_A64
HWY_INLINE void load_four(hn::ScalableTag<uint16_t>, const uint16_t* p,
                          hn::Vec<hn::ScalableTag<uint16_t>>* v) {
  const uint16x8x4_t four = vld1q_u16_x4(p);
  for (size_t k = 0; k < 4; ++k) v[k].raw = four.val[k];
}
HWY_INLINE void load_four(hn::ScalableTag<uint32_t>, const uint32_t* p,
                          hn::Vec<hn::ScalableTag<uint32_t>>* v) {
  const uint32x4x4_t four = vld1q_u32_x4(p);
  for (size_t k = 0; k < 4; ++k) v[k].raw = four.val[k];
}
#else
template <class D>
HWY_INLINE void load_four(D d, const hn::TFromD<D>* p, hn::Vec<D>* v) {
  for (size_t k = 0; k < 4; ++k) v[k] = hn::LoadU(d, p + k * hn::Lanes(d));
}
#endif

template <class D>
HWY_INLINE hn::TFromD<D> largest_lane([[maybe_unused]] D d, hn::Vec<D> v) {
  using Bits = hn::TFromD<D>;
#if HWY_ARCH_ARM_A64
  if constexpr (sizeof(Bits) == 2) return vmaxvq_u16(v.raw);
  if constexpr (sizeof(Bits) == 4) return vmaxvq_u32(v.raw);
#else
  Bits each[hn::MaxLanes(d)], result = 0;
  hn::StoreU(v, d, each);
  for (size_t k = 0; k < hn::Lanes(d); ++k) result = each[k] > result ? each[k] : result;
  return result;
#endif
}

// max |x| as bits: of numbers without their sign, the order is that of the integers they are stored
// as, with NaN above infinity.
template <class T>
uint32_t largest_magnitude(const T* x, size_t n) {
  using Bits = hwy::UnsignedFromSize<sizeof(T)>;
  const hn::ScalableTag<Bits> d;
  using V = hn::Vec<decltype(d)>;
  constexpr size_t kTotals = 4;
  const size_t lanes = hn::Lanes(d);
  const V mask = hn::Set(d, static_cast<Bits>(~Bits{0}) >> 1);
  const Bits* p = reinterpret_cast<const Bits*>(x);
  V largest[kTotals];
  for (V& v : largest) v = hn::Zero(d);
  const auto add = [&](V& total, V v) CAPIBARA_INLINE { total = hn::Max(total, hn::And(v, mask)); };
  for (size_t steps = n / (kTotals * lanes); steps != 0; --steps) {
    V loaded[kTotals];
    load_four(d, p, loaded);
    for (size_t k = 0; k < kTotals; ++k) add(largest[k], loaded[k]);
    p += kTotals * lanes;
  }
  size_t left = n % (kTotals * lanes);
  for (; left >= lanes; left -= lanes) {
    add(largest[0], hn::LoadU(d, p));
    p += lanes;
  }
  if (left != 0) {
    Bits buffer[hn::MaxLanes(d)] = {};
    std::memcpy(buffer, p, left * sizeof(T));
    add(largest[0], hn::LoadU(d, buffer));
  }
  return largest_lane(d, hn::Max(hn::Max(largest[0], largest[1]), hn::Max(largest[2], largest[3])));
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
