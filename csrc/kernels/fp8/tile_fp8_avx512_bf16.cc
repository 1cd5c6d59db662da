// SPDX-License-Identifier: Apache-2.0
#if !defined(__AVX512VBMI__)
#error "this source needs the flags of avx512_bf16"
#endif

#include <immintrin.h>

#include "kernels/common/stream_ahead.h"
#include "kernels/fp8/fp8.h"

namespace capibara {
namespace avx512 {
Fp8DecodeFn fp8_decode;
}
namespace avx512_bf16 {
Fp8DecodeFn fp8_decode;

namespace {

// The low and the high bytes of the 16-bit floats that codes without sign stand for.
struct Tables {
  Tables(Fp8 format, DType to) {
    for (int code = 0; code < 128; ++code) {
      const float x = to_f32(format, static_cast<uint8_t>(code));
      const uint16_t bits = to == DType::kBF16 ? to_bf16(x).bits : to_f16(x).bits;
      low[code] = static_cast<uint8_t>(bits);
      high[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
  alignas(64) uint8_t low[128], high[128];
};

const Tables& tables_of(Fp8 format, DType to) {
  static const Tables all[2][2] = {
      {{Fp8::kE4M3, DType::kF16}, {Fp8::kE4M3, DType::kBF16}},
      {{Fp8::kE5M2, DType::kF16}, {Fp8::kE5M2, DType::kBF16}},
  };
  return all[format == Fp8::kE5M2][to == DType::kBF16];
}

// VPERMI2B looks 64 bytes up in a table of 128, whatever their signs: 6 vector instructions for 64
// codes, where 16-bit arithmetic takes 15.
void decode_to_16_bits(const Tables& tables, const uint8_t* codes, int64_t count, uint16_t* y) {
  const __m512i low0 = _mm512_load_si512(tables.low), low1 = _mm512_load_si512(tables.low + 64);
  const __m512i high0 = _mm512_load_si512(tables.high), high1 = _mm512_load_si512(tables.high + 64);
  const __m512i signs = _mm512_set1_epi8(static_cast<char>(0x80));
  // Bytes are interleaved within 128 bits: codes that follow each other are put apart before.
  const __m512i apart = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  const auto decode = [&](__m512i x, __m512i& first,
                          __m512i& second) __attribute__((always_inline)) {
    x = _mm512_maskz_permutexvar_epi64(0xff, apart, x);  // without a mask, GCC 12 warns
    const __m512i low = _mm512_permutex2var_epi8(low0, x, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, x, high1);
    constexpr int kOrAnd = 0xf8;  // magnitude | (x & signs)
    const __m512i high = _mm512_ternarylogic_epi64(magnitude, x, signs, kOrAnd);
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  };
  int64_t i = 0;
  __m512i first, second;
  for (; i + 64 <= count; i += 64) {
    stream_ahead(codes + i);
    decode(_mm512_loadu_si512(codes + i), first, second);
    _mm512_storeu_si512(y + i, first);
    _mm512_storeu_si512(y + i + 32, second);
  }
  if (i < count) {
    const uint64_t rest = (uint64_t{1} << (count - i)) - 1;
    decode(_mm512_maskz_loadu_epi8(rest, codes + i), first, second);
    _mm512_mask_storeu_epi16(y + i, static_cast<__mmask32>(rest), first);
    _mm512_mask_storeu_epi16(y + i + 32, static_cast<__mmask32>(rest >> 32), second);
  }
}

}  // namespace

void fp8_decode(const Fp8DecodeArgs& a) noexcept {
  if (a.to == DType::kF32) {
    avx512::fp8_decode(a);
  } else {
    decode_to_16_bits(tables_of(a.format, a.to), a.codes, a.count, static_cast<uint16_t*>(a.y));
  }
}

}  // namespace avx512_bf16
}  // namespace capibara
