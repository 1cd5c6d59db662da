// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/tile_int4_by_lane-inl.h"

#ifndef __ARM_FEATURE_DOTPROD
#error "for cores with SDOT"
#endif

namespace capibara {
namespace {

struct Signed {
  CAPIBARA_INLINE static uint8x16_t upper(uint8x16_t both) { return vshrq_n_u8(both, 4); }
  template <int lane>
  CAPIBARA_INLINE static int32x4_t add_lower(int32x4_t sum, uint8x16_t codes, int8x16_t a) {
    return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(codes), a, lane);
  }
  template <int lane>
  CAPIBARA_INLINE static int32x4_t add_upper(int32x4_t sum, uint8x16_t codes, int8x16_t a) {
    return add_lower<lane>(sum, codes, a);
  }
  CAPIBARA_INLINE static int32x4_t finish_upper(int32x4_t sum, int32x4_t) { return sum; }
};

}  // namespace

const Int4Kernel neon_dotprod::gemm_int4 = int4_kernel_of<Signed>();

}  // namespace capibara
