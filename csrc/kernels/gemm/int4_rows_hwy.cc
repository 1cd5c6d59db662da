// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/int4.h"
#include "kernels/gemm/int4_scale.h"
#include "kernels/gemm/interleave-inl.h"
#include "kernels/gemm/pack-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// A group's integers of all rows of a panel, before they are put side by side; whole blocks of each
// are read.
struct Integers {
  static constexpr int64_t kStride = kMaxInt4Group;
  HWY_ALIGN int8_t rows[kMaxTileRows * kStride];

  int8_t* row(int64_t i) { return rows + i * kStride; }
};

// Elements that loops go through together: those of the shortest group.
constexpr size_t kAtOnce = 32;

// max |x|, as largest_magnitude() has it, of a multiple of kAtOnce.
template <class T>
HWY_INLINE float largest_of(const T* x, size_t count) {
  using Bits = hwy::UnsignedFromSize<sizeof(T)>;
  const hn::ScalableTag<Bits> d;
  constexpr size_t kLanes = hn::MaxLanes(decltype(d)()), kVectors = kAtOnce / kLanes;
  const auto mask = hn::Set(d, static_cast<Bits>(~Bits{0}) >> 1);
  const Bits* p = reinterpret_cast<const Bits*>(x);
  auto largest = fill<kVectors>(d, hn::Zero(d));
  for (size_t i = 0; i < count; i += kAtOnce) {
    for (size_t v = 0; v < kVectors; ++v) {
      const auto bits = hn::And(hn::LoadU(d, p + i + v * kLanes), mask);
      largest.v[v] = hn::Max(largest.v[v], bits);
    }
  }
  for (size_t n = kVectors / 2; n != 0; n /= 2) {
    for (size_t v = 0; v < n; ++v) largest.v[v] = hn::Max(largest.v[v], largest.v[v + n]);
  }
  const Bits bits = largest_lane(d, largest.v[0]);
  if constexpr (DTypeOf<T>::value == DType::kBF16) return from_bits(uint32_t{bits} << 16);
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return to_f32(value);
}

// f(i, factor * x) for vectors of x from element i on.
template <class T, class F>
HWY_INLINE void for_each_scaled(const T* x, size_t count, float factor, const F& f) {
  const FullF32 d;
  constexpr size_t kVectors = kAtOnce / hn::MaxLanes(FullF32());
  const auto scale = hn::Set(d, factor);
  for (size_t i = 0; i < count; i += kAtOnce) {
    const auto v = load<Order::kSequential>(d, x + i, Whole<kVectors>{});
    f(i, map(v, [&](auto a) CAPIBARA_INLINE { return hn::Mul(a, scale); }));
  }
}

template <class T>
HWY_INLINE void convert_bytes(const T* x, size_t count, float factor, int8_t* q) {
  for_each_scaled(x, count, factor, [&](size_t i, auto scaled) CAPIBARA_INLINE {
    store_integers(q + i, scaled, Whole<sizeof(scaled) / sizeof(scaled.v[0])>{});
  });
}

// 256 high + low = round(factor x).
template <class T>
HWY_INLINE void convert_digits(const T* x, size_t count, float factor, int8_t* high, int8_t* low) {
  const hn::RebindToSigned<FullF32> d32;
  const hn::Rebind<int8_t, FullF32> d8;
  const auto half = hn::Set(d32, 128);
  for_each_scaled(x, count, factor, [&](size_t i, auto scaled) CAPIBARA_INLINE {
    for (const auto& v : scaled.v) {
      const auto q = hn::NearestInt(v);
      const auto upper = hn::ShiftRight<8>(hn::Add(q, half));
      const auto lower = hn::Sub(q, hn::ShiftLeft<8>(upper));
      hn::StoreU(hn::DemoteTo(d8, upper), d8, high + i);
      hn::StoreU(hn::DemoteTo(d8, lower), d8, low + i);
      i += hn::Lanes(d32);
    }
  });
}

// Of a multiple of 32 integers.
HWY_INLINE int32_t sum_of(const int8_t* q, int64_t count) {
#if HWY_ARCH_ARM_A64
  int16x8_t sums = vpaddlq_s8(vld1q_s8(q));
  for (int64_t i = 16; i < count; i += 16) sums = vpadalq_s8(sums, vld1q_s8(q + i));
  return vaddlvq_s16(sums);
#else
  const hn::FixedTag<int8_t, 16> d;
  const hn::FixedTag<uint8_t, 16> du;
  const hn::FixedTag<uint64_t, 2> d64;
  auto sums = hn::Zero(d64);
  for (int64_t i = 0; i < count; i += 16) {
    const auto biased = hn::Xor(hn::BitCast(du, hn::LoadU(d, q + i)), hn::Set(du, 128));
    sums = hn::Add(sums, hn::SumsOf8(biased));
  }
  const uint64_t total = hn::GetLane(hn::SumOfLanes(d64, sums));
  return static_cast<int32_t>(total) - 128 * static_cast<int32_t>(count);
#endif
}

template <class T>
void quantise_group(const Int4RowsArgs& a, int64_t first, Integers& integers, char* block) {
  const auto count = static_cast<size_t>(HWY_MIN(a.group, a.length - first));
  const auto group = static_cast<size_t>(a.group);
  const int64_t lines = a.panel_rows;
  float* const scales = reinterpret_cast<float*>(block + lines * a.group);
  int32_t* const sums = reinterpret_cast<int32_t*>(scales + lines);
  for (int64_t row = 0; row < a.rows; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.stride + first;
    T whole[kMaxInt4Group];
    if (count < group) {
      std::memcpy(whole, x, count * sizeof(T));
      std::memset(whole + count, 0, (group - count) * sizeof(T));
      x = whole;
    }
    const Int4Scale scale = int4_scale(largest_of(x, group), a.digits);
    const int64_t line = row * a.digits;
    int8_t *const q = integers.row(line), *const low = integers.row(line + 1);
    const bool zero = !(scale.factor > 0.0f);
    scales[line] = scale.scale;
    if (a.digits == 2) {
      scales[line] = 256 * scale.scale;
      scales[line + 1] = scale.scale;
      if (zero) std::memset(low, 0, group);
      if (!zero) convert_digits(x, group, scale.factor, q, low);
      sums[line + 1] = a.sums ? -sum_of(low, a.group) : 0;
    } else if (!zero) {
      convert_bytes(x, group, scale.factor, q);
    }
    if (zero) std::memset(q, 0, group);
    sums[line] = a.sums ? -sum_of(q, a.group) : 0;
  }
  for (int64_t line = a.rows * a.digits; line < lines; ++line) {
    std::memset(integers.row(line), 0, kMaxInt4Group);
    scales[line] = 0.0f;
    sums[line] = 0;
  }
  const auto atom = static_cast<size_t>(a.depth), row_bytes = static_cast<size_t>(lines) * atom;
  for (int64_t line = 0; line < lines;) {
    const Interleaving interleaving = interleaving_of(atom, lines - line);
    interleaving.run(reinterpret_cast<const char*>(integers.row(line)), Integers::kStride,
                     static_cast<size_t>(a.group / a.depth), block + line * a.depth, row_bytes);
    line += interleaving.lines;
  }
}

}  // namespace

void int4_rows(const Int4RowsArgs& args) noexcept {
  Integers integers;
  dispatch(args.from, [&](auto element) CAPIBARA_INLINE {
    char* block = static_cast<char*>(args.panel);
    for (int64_t first = 0; first < args.length; first += args.group) {
      quantise_group<decltype(element)>(args, first, integers, block);
      block += args.panel_rows * int4_row_bytes(args.group);
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
