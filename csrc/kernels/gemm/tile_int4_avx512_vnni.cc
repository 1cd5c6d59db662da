// SPDX-License-Identifier: Apache-2.0
// Codes are what VPDPBUSD takes as unsigned bytes, and A's integers as signed ones.
//
// A load brings the codes of 32 columns, 4 along K. The lower ones are a mask away; the upper ones
// are not taken apart: a byte as it is gives the sum of the lower product and 16 times the upper
// one, and their difference is what the group needs once.
#if !defined(__AVX512VNNI__)
#error "this source needs the flags of avx512_vnni"
#endif

#include <immintrin.h>

#define CAPIBARA_ISA avx512_vnni
#include "kernels/gemm/tile_int4-inl.h"

namespace capibara::avx512_vnni {
namespace {

constexpr __mmask16 kAll = 0xffff;  // without a mask, GCC 12 warns

struct DotInt4 {
  using A = int8_t;
  using B = Codes;
  using C = int32_t;
  using Sum = __m512i;
  static constexpr int kDepth = kInt4Depth, kLanes = 16;

  CAPIBARA_INLINE static Sum zero() { return _mm512_setzero_si512(); }
  CAPIBARA_INLINE static Sum read(const int32_t* c) { return _mm512_loadu_si512(c); }
  CAPIBARA_INLINE static void write(Sum sum, int32_t* c) { _mm512_storeu_si512(c, sum); }
  CAPIBARA_INLINE static Sum add(Sum x, Sum y) { return _mm512_add_epi32(x, y); }

  template <int rows>
  CAPIBARA_INLINE static void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const __m512i both = _mm512_loadu_si512(b);
    const __m512i lower = _mm512_and_si512(both, _mm512_set1_epi8(15));
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      int group;
      std::memcpy(&group, a + 4 * r, sizeof group);
      const __m512i x = _mm512_set1_epi32(group);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], lower, x);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], both, x);
    });
  }

  CAPIBARA_INLINE static void finish(const int32_t* sums, const int16_t* zeros,
                                     const float* col_scales, int32_t row_sum, float row_scale,
                                     float* c) {
    const __m512i lower = _mm512_load_si512(sums);
    const __m512i difference = _mm512_sub_epi32(_mm512_load_si512(sums + kLanes), lower);
    const __m512i products[2] = {lower, _mm512_maskz_srai_epi32(kAll, difference, 4)};
    for (int at = 0; at < 2 * kLanes; at += kLanes) {
      // Pairs of int16 whose second one is zero, for VPDPWSSD.
      const __m512i zero = _mm512_maskz_cvtepu16_epi32(
          kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(zeros + at)));
      const __m512i sum =
          _mm512_dpwssd_epi32(products[at / kLanes], zero, _mm512_set1_epi32(row_sum));
      const __m512 scale =
          _mm512_mul_ps(_mm512_loadu_ps(col_scales + at), _mm512_set1_ps(row_scale));
      const __m512 d = _mm512_maskz_cvtepi32_ps(kAll, sum);
      _mm512_storeu_ps(c + at, _mm512_fmadd_ps(d, scale, _mm512_loadu_ps(c + at)));
    }
  }
};

}  // namespace

const Int4Kernel gemm_int4 = int4_kernel_of<DotInt4, 12>();

}  // namespace capibara::avx512_vnni
