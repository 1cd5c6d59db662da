// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/vec-inl.h"
#include "kernels/fp8/fp8.h"
#include "kernels/fp8/fp8_bytes.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// The code of |v| in each lane's lowest seven bits; the eighth is zero, the others are anything.
// Arm: 8 instructions for 4 codes, which the multiplication and its operands' widening, and the
// packing by 7 for 16 codes, make 45 (f32) to 49 for 16.
template <Fp8 format, class D>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, D>> magnitudes(D d, hn::Vec<D> v) {
  constexpr Float to = float_of(format);
  constexpr int kDropped = 23 - to.mantissa_bits;
  constexpr uint32_t kSmallestExponent = 128 - to.bias;  // of a normal number, as f32 has it
  // Whatever is above the largest number after the saturation is NaN: 480 would be E4M3's code 0x7f
  // and 98,304 E5M2's 0x7e.
  constexpr float kNaN = format == Fp8::kE4M3 ? 480.0f : 98304.0f;
  // The smallest normal number's code is 1 << mantissa_bits, not its exponent in f32.
  constexpr uint32_t kRebias = (0u - (kSmallestExponent << to.mantissa_bits)) & 0x7f;
  const hn::Rebind<uint32_t, D> du;

  const auto largest = hn::Set(d, largest_of(format));
#if HWY_ARCH_ARM_A64  // FMIN: Highway's FMINNM would give the number
  const hn::Vec<D> saturated{vminq_f32(largest.raw, hn::Abs(v).raw)};
#else  // MINPS gives the second operand if one is NaN
  const auto saturated = hn::Min(largest, hn::Abs(v));
#endif
  const auto bits = hn::Min(hn::BitCast(du, saturated), hn::BitCast(du, hn::Set(d, kNaN)));
  // Subnormals have the exponent of the smallest normal number. An addition of 2^k, chosen so that
  // f32's last place is the code's, rounds to nearest even, and the sum's last bits are the code's
  // mantissa, the implicit bit in it; to which the exponents are added, here and there.
  const auto exponent =
      hn::And(hn::Max(bits, hn::Set(du, kSmallestExponent << 23)), hn::Set(du, 0x7f800000u));
  const auto magic = hn::Add(exponent, hn::Set(du, (uint32_t{kDropped} << 23) + kRebias));
  const auto sum = hn::Add(hn::BitCast(d, bits), hn::BitCast(d, magic));
  return hn::Add(hn::BitCast(du, sum), hn::ShiftRight<kDropped>(exponent));
}

// The sign bits of v, and the seven lowest bits of the magnitudes: 4 * Lanes(d) codes.
#if HWY_ARCH_ARM_A64
template <class D>
HWY_INLINE void store_codes(D, Vecs<D, 4> v, Vecs<hn::Rebind<uint32_t, D>, 4> magnitude,
                            uint8_t* codes) {
  const auto word = [](auto x) CAPIBARA_INLINE { return vreinterpretq_u16_u32(x); };
  const auto byte = [](auto x) CAPIBARA_INLINE { return vreinterpretq_u8_u16(x); };
  const auto top = [&](size_t i) CAPIBARA_INLINE { return vreinterpretq_u16_f32(v.v[i].raw); };
  const auto bottom = [&](size_t i) CAPIBARA_INLINE { return word(magnitude.v[i].raw); };
  const uint8x16_t signs =
      vuzp2q_u8(byte(vuzp2q_u16(top(0), top(1))), byte(vuzp2q_u16(top(2), top(3))));
  const uint8x16_t rest =
      vuzp1q_u8(byte(vuzp1q_u16(bottom(0), bottom(1))), byte(vuzp1q_u16(bottom(2), bottom(3))));
  vst1q_u8(codes, vbslq_u8(vdupq_n_u8(0x80), signs, rest));
}
#else
// Packs to bytes, in blocks of 16 of them.
HWY_INLINE __m128i packed(__m128i low, __m128i high) { return _mm_packs_epi16(low, high); }
#if HWY_TARGET <= HWY_AVX2
HWY_INLINE __m256i packed(__m256i low, __m256i high) { return _mm256_packs_epi16(low, high); }
#endif
#if HWY_TARGET <= HWY_AVX3
HWY_INLINE __m512i packed(__m512i low, __m512i high) { return _mm512_packs_epi16(low, high); }
#endif

// Packing works in blocks of 16 bytes, and leaves four codes of each vector in each. By the
// instructions' own names, as in fp8_decode_hwy.cc.
HWY_INLINE __m128i vector_after_vector(__m128i codes) { return codes; }
#if HWY_TARGET <= HWY_AVX2
HWY_INLINE __m256i vector_after_vector(__m256i codes) {
  return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
#endif
#if HWY_TARGET <= HWY_AVX3
HWY_INLINE __m512i vector_after_vector(__m512i codes) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_maskz_permutexvar_epi32(0xffff, order, codes);
}
#endif

template <class D>
HWY_INLINE void store_codes(D, Vecs<D, 4> v, Vecs<hn::Rebind<uint32_t, D>, 4> magnitude,
                            uint8_t* codes) {
  const hn::Rebind<int32_t, D> d32;
  const hn::Repartition<int16_t, D> d16;
  const hn::Repartition<uint8_t, D> d8;
  const auto pack = [&](auto f) CAPIBARA_INLINE {
    const auto low = hn::ReorderDemote2To(d16, f(0), f(1));
    const auto high = hn::ReorderDemote2To(d16, f(2), f(3));
    return hn::Vec<decltype(d8)>{packed(low.raw, high.raw)};
  };
  // Saturation keeps the sign.
  const auto signs = pack([&](size_t i) CAPIBARA_INLINE { return hn::BitCast(d32, v.v[i]); });
  const auto rest = pack([&](size_t i) CAPIBARA_INLINE {
    return hn::And(hn::BitCast(d32, magnitude.v[i]), hn::Set(d32, 0x7f));
  });
  auto all = hn::OrAnd(rest, signs, hn::Set(d8, uint8_t{0x80}));
  all = hn::Vec<decltype(d8)>{vector_after_vector(all.raw)};
  hn::StoreU(all, d8, codes);
}
#endif

template <Fp8 format, class T>
HWY_INLINE void encode(const T* x, size_t n, float factor, uint8_t* codes) {
  const auto step = [factor](auto d, const T* from, uint8_t* to) CAPIBARA_INLINE {
    using D = decltype(d);
    using U = hn::Rebind<uint32_t, D>;
    auto v = load<Order::kSequential>(d, from, Whole<4>{});
    // Also where the factor is one: the product's NaN is quiet, and saturation needs that.
    v = map(v, [&](hn::Vec<D> a) CAPIBARA_INLINE { return hn::Mul(a, hn::Set(d, factor)); });
    Vecs<U, 4> codes_of;
    for (size_t k = 0; k < 4; ++k) codes_of.v[k] = magnitudes<format>(d, v.v[k]);
    store_codes(d, v, codes_of, to);
  };
  constexpr FullF32 full;
  constexpr hn::FixedTag<float, 4> block;
  const size_t lanes = 4 * hn::Lanes(full);
  size_t i = 0;
  for (size_t steps = n / lanes; steps != 0; --steps) {
    CAPIBARA_LOOP_VARIANT(encode, T, 4, format == Fp8::kE4M3 ? 0 : 1);
    step(full, x + i, codes + i);
    i += lanes;
  }
  for (; i + 16 <= n; i += 16) step(block, x + i, codes + i);
  if (i == n) return;
  T from[16] = {};
  uint8_t to[16];
  std::memcpy(static_cast<void*>(from), x + i, (n - i) * sizeof(T));
  step(block, from, to);
  std::memcpy(codes + i, to, n - i);
}

}  // namespace

void fp8_encode(const Fp8EncodeArgs& a) noexcept {
  dispatch(a.from, [&](auto element) CAPIBARA_INLINE {
    using T = decltype(element);
    const T* x = static_cast<const T*>(a.x);
    const size_t n = static_cast<size_t>(a.count);
    if (a.format == Fp8::kE4M3) {
      encode<Fp8::kE4M3>(x, n, a.factor, a.codes);
    } else {
      encode<Fp8::kE5M2>(x, n, a.factor, a.codes);
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
