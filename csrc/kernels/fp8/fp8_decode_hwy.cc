// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/vec-inl.h"
#include "kernels/fp8/fp8.h"
#include "kernels/fp8/fp8_bytes.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using Full = hn::ScalableTag<uint8_t>;

// The low bytes of the elements, and the high ones.
template <class D8>
struct Halves {
  hn::Vec<D8> low, high;
};

template <class D8>
HWY_INLINE hn::Vec<D8> table_in(D8 d, const Table& table) {
  return hn::LoadDup128(d, table.at);
}

// Codes to 16-bit floats, whose two bytes are computed apart (fp8_bytes.h): then one instruction
// serves as many elements as a vector has bytes, and joining them is an interleaving that other
// ways need as well, to widen the codes.
#if HWY_ARCH_ARM_A64
// E4M3 to bf16, 16 codes: 10 instructions, none of more than one micro-operation, without load and
// store. Ways that were left: a polynomial product (PMUL by 6 takes all of a sign-free index's
// small and large magnitudes below 32) saves one, but its tables are of two registers, and TBX with
// those is two micro-operations, on two of Neoverse V1's four pipes: 5 cycles instead of 4 by
// llvm-mca. Through products in f32 it would be 14 and more. E5M2 through FCVTL takes 8, but four
// of them are two micro-operations: no faster on V1, half as slow again on V2 and N2.
template <class D8, Fp8 format, DType to>
class Decoder {
  using B = Fp8Bytes<format, to>;
  static constexpr Table kLow = B::low(), kFlips = B::flips(1);
  static constexpr Table kHigh[2] = {B::base_high(format == Fp8::kE4M3 ? 4 : 3, 0),
                                     B::base_high(3, kSlots)};

 public:
  HWY_INLINE Decoder()
      : low_(vld1q_u8(kLow.at)),
        flips_(vld1q_u8(kFlips.at)),
        high_{{vld1q_u8(kHigh[0].at), vld1q_u8(kHigh[1].at)}} {}

  HWY_INLINE Halves<D8> operator()(D8, hn::Vec<D8> v) const {
    const uint8x16_t codes = v.raw;
    const uint8x16_t slots =
        vandq_u8(vaddq_u8(codes, vdupq_n_u8(B::kSlotOfZero)), vdupq_n_u8(0x7f));
    // TBL gives zero for an index that is past the table, TBX leaves what there is.
    const uint8x16_t high = veorq_u8(base_high(codes), vqtbl1q_u8(flips_, slots));
    const uint8x16_t low = vqtbx1q_u8(vshlq_n_u8(codes, B::kShift), low_, slots);
    return {hn::Vec<D8>(low), hn::Vec<D8>(high)};
  }

 private:
  HWY_INLINE uint8x16_t base_high(uint8x16_t codes) const {
    if constexpr (to == DType::kF16) {  // seven bits of the code
      const uint8x16_t shifted = vreinterpretq_u8_s8(vshrq_n_s8(vreinterpretq_s8_u8(codes), 1));
      return vaddq_u8(vandq_u8(shifted, vdupq_n_u8(0xbf)), vdupq_n_u8(B::base(0) >> 8));
    } else if constexpr (format == Fp8::kE4M3) {
      return vqtbl1q_u8(high_.val[0], vshrq_n_u8(codes, 4));
    } else {
      return vqtbl2q_u8(high_, vshrq_n_u8(codes, 3));
    }
  }

  uint8x16_t low_, flips_;
  uint8x16x2_t high_;
};
#else
// E4M3 to bf16, a vector of codes: 13 instructions, one more where it is longer than 16 bytes.
// PSHUFB takes the index's lowest four bits, and gives zero if the highest is set; the others do
// not matter. So the addition that saturates makes of an index past the table one that gives zero.
template <class D8, Fp8 format, DType to>
class Decoder {
  using B = Fp8Bytes<format, to>;
  static constexpr int kHighShift = format == Fp8::kE4M3 ? 4 : 3;
  static constexpr Table kLow = B::base_low(), kLowFlips = B::flips(0), kHighFlips = B::flips(1),
                         kHigh = B::base_high(kHighShift);

 public:
  HWY_INLINE Halves<D8> operator()(D8 d, hn::Vec<D8> codes) const {
    const auto slots =
        hn::And(hn::Add(codes, hn::Set(d, uint8_t{B::kSlotOfZero})), hn::Set(d, uint8_t{0x7f}));
    const auto special = hn::SaturatedAdd(slots, hn::Set(d, uint8_t{0x80 - kSlots}));
    const auto lookup = [&](const Table& table, auto index) CAPIBARA_INLINE {
      return hn::TableLookupBytesOr0(table_in(d, table), index);
    };
    return {hn::Xor(lookup(kLow, slots), lookup(kLowFlips, special)),
            hn::Xor(base_high(d, codes), lookup(kHighFlips, special))};
  }

 private:
  static HWY_INLINE hn::Vec<D8> base_high(D8 d, hn::Vec<D8> codes) {
    const auto sign = hn::And(codes, hn::Set(d, uint8_t{0x80}));
    if constexpr (to == DType::kF16) {
      const auto magnitude = hn::And(shift_words<1>(d, codes), hn::Set(d, uint8_t{0x3f}));
      return hn::Or(hn::Add(magnitude, hn::Set(d, uint8_t{B::base(0) >> 8})), sign);
    } else {
      const auto index = hn::And(shift_words<kHighShift>(d, codes), hn::Set(d, uint8_t{0xf}));
      const auto high = hn::TableLookupBytesOr0(table_in(d, kHigh), index);
      return format == Fp8::kE4M3 ? high : hn::Or(high, sign);
    }
  }
  template <int bits>
  static HWY_INLINE hn::Vec<D8> shift_words(D8 d, hn::Vec<D8> v) {
    const hn::Repartition<uint16_t, D8> d16;
    return hn::BitCast(d, hn::ShiftRight<bits>(hn::BitCast(d16, v)));
  }
};
#endif

// E5M2 is the high byte of f16.
template <class D8>
class Decoder<D8, Fp8::kE5M2, DType::kF16> {
 public:
  HWY_INLINE Halves<D8> operator()(D8 d, hn::Vec<D8> codes) const { return {hn::Zero(d), codes}; }
};

template <class D8>
using Pair16 = Pair<hn::Repartition<uint16_t, D8>>;

template <class D8>
HWY_INLINE Pair16<D8> interleaved(D8 d, Halves<D8> v) {
  const hn::Repartition<uint16_t, D8> d16;
  return {{hn::BitCast(d16, hn::InterleaveLower(d, v.low, v.high)),
           hn::BitCast(d16, hn::InterleaveUpper(d, v.low, v.high))}};
}

#if HWY_ARCH_ARM_A64
// One or two vectors of codes. LD1 and ST1 with several registers: the compiler, which must not see
// an interleaving and a store, makes of the two half an ST2 and half an ST1.
template <class T>
HWY_INLINE void store(Halves<Full> v, T* y) {
  const Pair16<Full> words = interleaved(Full(), v);
  if constexpr (DTypeOf<T>::value == DType::kF32) {  // bf16 is the upper half of f32
    const auto low = widen(BF16{}, words.v[0].raw), high = widen(BF16{}, words.v[1].raw);
    float32x4x4_t all;
    all.val[0] = low.v[0].raw;
    all.val[1] = low.v[1].raw;
    all.val[2] = high.v[0].raw;
    all.val[3] = high.v[1].raw;
    vst1q_f32_x4(y, all);
  } else {
    uint16x8x2_t all;
    all.val[0] = words.v[0].raw;
    all.val[1] = words.v[1].raw;
    vst1q_u16_x2(&y->bits, all);
  }
}

template <class T>
HWY_INLINE void store(Halves<Full> a, Halves<Full> b, T* y) {
  if constexpr (DTypeOf<T>::value == DType::kF32) {
    store(a, y);
    store(b, y + 16);
  } else {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    const Pair16<Full> first = interleaved(Full(), a), second = interleaved(Full(), b);
    uint16x8x4_t all;
    all.val[0] = first.v[0].raw;
    all.val[1] = first.v[1].raw;
    all.val[2] = second.v[0].raw;
    all.val[3] = second.v[1].raw;
    vst1q_u16_x4(&y->bits, all);
#else
    // Neoverse N1, the core of this ISA, interleaves as fast while it stores: 16 codes in 5 cycles,
    // or 6, by llvm-mca. Later ones do not (V2: 3.2 or 3.1).
    uint8x16x2_t bytes;
    bytes.val[0] = a.low.raw;
    bytes.val[1] = a.high.raw;
    vst2q_u8(reinterpret_cast<uint8_t*>(y), bytes);
    bytes.val[0] = b.low.raw;
    bytes.val[1] = b.high.raw;
    vst2q_u8(reinterpret_cast<uint8_t*>(y + 16), bytes);
#endif
  }
}

template <class Decode, class T>
HWY_INLINE void decode_one(Full d, const Decode& decoder, const uint8_t* codes, T* y) {
  store(decoder(d, hn::LoadU(d, codes)), y);
}

template <class Decode, class T>
HWY_INLINE void decode_four(Full d, const Decode& decoder, const uint8_t* codes, T* y) {
  const uint8x16x4_t v = vld1q_u8_x4(codes);
  const auto decoded = [&](uint8x16_t x) CAPIBARA_INLINE { return decoder(d, hn::Vec<Full>(x)); };
  store(decoded(v.val[0]), decoded(v.val[1]), y);
  store(decoded(v.val[2]), decoded(v.val[3]), y + 32);
}
#else
// Codes as `interleaved` needs them: it works in blocks of 16 bytes, so that a block has to have
// eight codes of the vector's first half and eight of the second. By the instructions' own names:
// Highway's checks its indices under sanitizers, with a function that is not in its headers.
HWY_INLINE __m128i halves_by_turns(__m128i v) { return v; }
#if HWY_TARGET <= HWY_AVX2
HWY_INLINE __m256i halves_by_turns(__m256i v) {
  return _mm256_permute4x64_epi64(v, _MM_SHUFFLE(3, 1, 2, 0));
}
#endif
#if HWY_TARGET <= HWY_AVX3
HWY_INLINE __m512i halves_by_turns(__m512i v) {
  // Masked, because GCC 12 warns of the plain form.
  return _mm512_maskz_permutexvar_epi64(0xff, _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), v);
}
#endif

template <class D8>
HWY_INLINE hn::Vec<D8> load_codes(D8 d, const uint8_t* codes) {
  return hn::Vec<D8>{halves_by_turns(hn::LoadU(d, codes).raw)};
}

template <class D8, class T>
HWY_INLINE void store(D8 d, Halves<D8> v, T* y) {
  const hn::Repartition<uint16_t, D8> d16;
  const Pair16<D8> words = interleaved(d, v);
  if constexpr (DTypeOf<T>::value == DType::kF32) {  // bf16 is the upper half of f32
    const hn::Repartition<uint32_t, D8> d32;
    const hn::Half<decltype(d16)> half;
    uint32_t* bits = reinterpret_cast<uint32_t*>(y);
    for (const auto word : words.v) {
      const auto low = hn::PromoteTo(d32, hn::LowerHalf(half, word));
      const auto high = hn::PromoteTo(d32, hn::UpperHalf(half, word));
      hn::StoreU(hn::ShiftLeft<16>(low), d32, bits);
      hn::StoreU(hn::ShiftLeft<16>(high), d32, bits + hn::Lanes(d32));
      bits += hn::Lanes(d16);
    }
  } else {
    hn::StoreU(words.v[0], d16, &y->bits);
    hn::StoreU(words.v[1], d16, &y->bits + hn::Lanes(d16));
  }
}

template <class D8, class Decode, class T>
HWY_INLINE void decode_one(D8 d, const Decode& decoder, const uint8_t* codes, T* y) {
  store(d, decoder(d, load_codes(d, codes)), y);
}

template <class D8, class Decode, class T>
HWY_INLINE void decode_four(D8 d, const Decode& decoder, const uint8_t* codes, T* y) {
  for (size_t k = 0; k < 4 * hn::Lanes(d); k += hn::Lanes(d)) {
    decode_one(d, decoder, codes + k, y + k);
  }
}
#endif

template <Fp8 format, class T>
HWY_INLINE void decode(const uint8_t* codes, size_t n, T* y) {
  constexpr DType to = DTypeOf<T>::value == DType::kF16 ? DType::kF16 : DType::kBF16;
  using Block = hn::FixedTag<uint8_t, 16>;
  constexpr Full full;
  constexpr Block block;
  const Decoder<Full, format, to> decoder;
  const Decoder<Block, format, to> block_decoder;
  const size_t lanes = hn::Lanes(full);
  // Counting and branching would cost as much as a third of one vector's decoding.
  const size_t step = 4 * lanes;
  for (size_t steps = n / step; steps != 0; --steps) {
    CAPIBARA_LOOP_VARIANT(decode, T, 16, format == Fp8::kE4M3 ? 0 : 1);
    decode_four(full, decoder, codes, y);
    codes += step;
    y += step;
  }
  n %= step;
  if constexpr (hn::MaxLanes(Full()) > 16) {
    for (; n >= lanes; n -= lanes, codes += lanes, y += lanes) {
      decode_one(full, decoder, codes, y);
    }
  }
  for (; n >= 16; n -= 16, codes += 16, y += 16) decode_one(block, block_decoder, codes, y);
  if (n == 0) return;
  uint8_t from[16] = {};
  T decoded[16];
  std::memcpy(from, codes, n);
  decode_one(block, block_decoder, from, decoded);
  std::memcpy(static_cast<void*>(y), decoded, n * sizeof(T));
}

}  // namespace

void fp8_decode(const Fp8DecodeArgs& a) noexcept {
  dispatch(a.to, [&](auto element) CAPIBARA_INLINE {
    using T = decltype(element);
    T* y = static_cast<T*>(a.y);
    const size_t n = static_cast<size_t>(a.count);
    if (a.format == Fp8::kE4M3) {
      decode<Fp8::kE4M3>(a.codes, n, y);
    } else {
      decode<Fp8::kE5M2>(a.codes, n, y);
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
