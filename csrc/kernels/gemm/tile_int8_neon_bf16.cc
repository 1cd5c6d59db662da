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
  using Vector = int8x16_t;

  CAPIBARA_INLINE static Vector load(const char* p) {
    return vld1q_s8(reinterpret_cast<const int8_t*>(p));
  }
  CAPIBARA_INLINE static Vector load_half(const char* p) {
    return vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(p)), vdup_n_s8(0));
  }
  CAPIBARA_INLINE static Sum multiply(Sum sum, Vector a, Vector b) { return vmmlaq_s32(sum, a, b); }
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
