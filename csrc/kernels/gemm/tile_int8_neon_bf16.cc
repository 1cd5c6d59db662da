// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/tile_mmla-inl.h"

#ifndef __ARM_FEATURE_MATMUL_INT8
#error "for cores with i8mm: all that have bf16 instructions"
#endif

namespace capibara {
namespace {

struct Int8 {
  static constexpr int kChains = 12;  // 3 cycles, 4 pipes; but 1 cycle on Neoverse
  using Mark = int8_t;
  using C = int32_t;
  using Sum = int32x4_t;

  CAPIBARA_INLINE static Sum multiply(Sum sum, uint8x16_t a, uint8x16_t b) {
    return vmmlaq_s32(sum, vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b));
  }
  CAPIBARA_INLINE static Sum first_row(Sum x, Sum y) {
    return vreinterpretq_s32_s64(vtrn1q_s64(vreinterpretq_s64_s32(x), vreinterpretq_s64_s32(y)));
  }
  CAPIBARA_INLINE static Sum second_row(Sum x, Sum y) {
    return vreinterpretq_s32_s64(vtrn2q_s64(vreinterpretq_s64_s32(x), vreinterpretq_s64_s32(y)));
  }
};

}  // namespace

const GemmKernel neon_bf16::gemm_int8 = kernel_of<Int8>(8, Packed::kI8);

}  // namespace capibara
