// SPDX-License-Identifier: Apache-2.0
// VPMADDUBSW adds the products of two unsigned and two signed bytes in int16: at most 2 * 15 * 128
// of codes and integers, so that 8 of those still fit before they have to be widened.
#if !defined(__AVX2__)
#error "this source needs the flags of avx2"
#endif

#include <immintrin.h>

#define CAPIBARA_ISA avx2
#include "kernels/gemm/tile_int4-inl.h"

namespace capibara::avx2 {
namespace {

struct PairsOfInt4 {
  using A = int8_t;
  using B = Codes;
  using C = int32_t;
  using Sum = __m256i;
  static constexpr int kLanes = 8, kSteps = 8, kDepth = kSteps * kInt4Depth;
  static_assert(kSteps * 2 * 15 * 128 < 32768, "sums of int16");

  CAPIBARA_INLINE static Sum zero() { return _mm256_setzero_si256(); }
  CAPIBARA_INLINE static Sum read(const int32_t* c) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(c));
  }
  CAPIBARA_INLINE static void write(Sum sum, int32_t* c) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c), sum);
  }
  CAPIBARA_INLINE static Sum add(Sum x, Sum y) { return _mm256_add_epi32(x, y); }

  template <int rows>
  CAPIBARA_INLINE static void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const __m256i half = _mm256_set1_epi8(15);
    Sum narrow[rows][2];
    unrolled<rows>([&](int r) CAPIBARA_INLINE { narrow[r][0] = narrow[r][1] = zero(); });
    for (int step = 0; step < kSteps; ++step) {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
      const __m256i lower = _mm256_and_si256(both, half);
      const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
      unrolled<rows>([&](int r) CAPIBARA_INLINE {
        int group;
        std::memcpy(&group, a + 4 * r, sizeof group);
        const __m256i x = _mm256_set1_epi32(group);
        narrow[r][0] = _mm256_add_epi16(narrow[r][0], _mm256_maddubs_epi16(lower, x));
        narrow[r][1] = _mm256_add_epi16(narrow[r][1], _mm256_maddubs_epi16(upper, x));
      });
      a += rows * kInt4Depth;
      b += kLanes * kInt4Depth;
    }
    const __m256i ones = _mm256_set1_epi16(1);
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      sums[r][0] = add(sums[r][0], _mm256_madd_epi16(narrow[r][0], ones));
      sums[r][1] = add(sums[r][1], _mm256_madd_epi16(narrow[r][1], ones));
    });
  }

  CAPIBARA_INLINE static void finish(const int32_t* sums, const int16_t* zeros,
                                     const float* col_scales, int32_t row_sum, float row_scale,
                                     float* c) {
    for (int at = 0; at < 2 * kLanes; at += kLanes) {
      // Pairs of int16 whose second one is zero, for VPMADDWD.
      const __m256i zero =
          _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + at)));
      const __m256i of_zero = _mm256_madd_epi16(zero, _mm256_set1_epi32(row_sum));
      const __m256 d = _mm256_cvtepi32_ps(add(read(sums + at), of_zero));
      const __m256 scale =
          _mm256_mul_ps(_mm256_loadu_ps(col_scales + at), _mm256_set1_ps(row_scale));
      _mm256_storeu_ps(c + at, _mm256_fmadd_ps(d, scale, _mm256_loadu_ps(c + at)));
    }
  }
};

}  // namespace

// 8 sums of int16, 2 registers of codes, A, the mask; those of int32 wait in level 1.
const Int4Kernel gemm_int4 = int4_kernel_of<PairsOfInt4, 4>();

}  // namespace capibara::avx2
