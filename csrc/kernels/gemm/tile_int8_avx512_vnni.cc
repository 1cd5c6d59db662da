// SPDX-License-Identifier: Apache-2.0
#if !defined(__AVX512VNNI__)
#error "this source needs the flags of avx512_vnni"
#endif

#include <immintrin.h>

#include <cstring>

#define CAPIBARA_ISA avx512_vnni
#include "kernels/gemm/tile-inl.h"

namespace capibara::avx512_vnni {
namespace {

// VPDPBUSD adds four products of unsigned by signed bytes to each int32. A has 128 added; what that
// adds to c, 128 times the sum of B's column, the epilogue takes away.
struct DotInt8 {
  using A = uint8_t;
  using B = int8_t;
  using C = int32_t;
  using Sum = __m512i;
  static constexpr Packed kA = Packed::kU8, kB = Packed::kI8;
  static constexpr int kDepth = 4, kLanes = 16;

  CAPIBARA_INLINE static Sum zero() { return _mm512_setzero_si512(); }
  CAPIBARA_INLINE static Sum read(const int32_t* c) { return _mm512_loadu_si512(c); }
  CAPIBARA_INLINE static void write(Sum sum, int32_t* c) { _mm512_storeu_si512(c, sum); }
  CAPIBARA_INLINE static Sum add(Sum x, Sum y) { return _mm512_add_epi32(x, y); }

  template <int rows>
  CAPIBARA_INLINE static void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64);
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      int group;
      std::memcpy(&group, a + 4 * r, sizeof group);
      const __m512i x = _mm512_set1_epi32(group);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x, b0);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x, b1);
    });
  }
};

}  // namespace

const GemmKernel gemm_int8 = kernel_of<DotInt8, 12>();

}  // namespace capibara::avx512_vnni
