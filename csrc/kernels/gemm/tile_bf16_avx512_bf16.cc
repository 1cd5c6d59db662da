// SPDX-License-Identifier: Apache-2.0
#if !defined(__AVX512BF16__)
#error "this source needs the flags of avx512_bf16"
#endif

#include <immintrin.h>

#include <cstring>

#define CAPIBARA_ISA avx512_bf16
#include "kernels/gemm/tile-inl.h"

namespace capibara::avx512_bf16 {
namespace {

// VDPBF16PS adds the products of two pairs to each f32.
struct DotBF16 {
  using A = uint16_t;
  using B = uint16_t;
  using C = float;
  using Sum = __m512;
  static constexpr Packed kA = Packed::kBF16, kB = Packed::kBF16;
  static constexpr int kDepth = 2, kLanes = 16;

  CAPIBARA_INLINE static Sum zero() { return _mm512_setzero_ps(); }
  CAPIBARA_INLINE static Sum read(const float* c) { return _mm512_loadu_ps(c); }
  CAPIBARA_INLINE static void write(Sum sum, float* c) { _mm512_storeu_ps(c, sum); }
  CAPIBARA_INLINE static Sum add(Sum x, Sum y) { return _mm512_add_ps(x, y); }

  template <int rows>
  CAPIBARA_INLINE static void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const auto b0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b));
    const auto b1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + 32));
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      int pair;
      std::memcpy(&pair, a + 2 * r, sizeof pair);
      const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, b0);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, b1);
    });
  }
};

}  // namespace

const GemmKernel gemm_bf16 = kernel_of<DotBF16, 12>();

}  // namespace capibara::avx512_bf16
