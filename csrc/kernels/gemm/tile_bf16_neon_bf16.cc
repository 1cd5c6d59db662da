// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/tile_mmla-inl.h"

#ifndef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
#error "for cores with bf16 instructions"
#endif

namespace capibara {
namespace {

struct Bf16 {
  static constexpr int kChains = 16;  // 4 cycles, 4 pipes on Neoverse V2
  using Mark = BF16;
  using C = float;
  using Sum = float32x4_t;

  CAPIBARA_INLINE static Sum multiply(Sum sum, uint8x16_t a, uint8x16_t b) {
    return vbfmmlaq_f32(sum, vreinterpretq_bf16_u8(a), vreinterpretq_bf16_u8(b));
  }
  CAPIBARA_INLINE static Sum first_row(Sum x, Sum y) {
    return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)));
  }
  CAPIBARA_INLINE static Sum second_row(Sum x, Sum y) {
    return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)));
  }
};

}  // namespace

const GemmKernel neon_bf16::gemm_bf16 = kernel_of<Bf16>(4, Packed::kBF16);

}  // namespace capibara
