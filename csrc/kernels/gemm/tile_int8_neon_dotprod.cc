// SPDX-License-Identifier: Apache-2.0
// SDOT: a lane is four bytes along K.
#include "kernels/gemm/tile_by_lane-inl.h"

#ifndef __ARM_FEATURE_DOTPROD
#error "for cores with SDOT"
#endif

namespace capibara {
namespace {

struct Int8 {
  using Mark = int8_t;
  using LaneA = int32_t;
  static constexpr int kBytesB = 32;
  using C = int32_t;
  using Sum = int32x4_t;
  using VectorA = int8x16_t;
  struct VectorB {
    int8x16_t low, high;
  };

  CAPIBARA_INLINE static VectorA load_a(const int32_t* p) {
    return vld1q_s8(reinterpret_cast<const int8_t*>(p));
  }
  CAPIBARA_INLINE static VectorA broadcast_a(const int32_t* p) {
    return vreinterpretq_s8_s32(vld1q_dup_s32(p));
  }
  CAPIBARA_INLINE static VectorB load_b(const char* p) {
    const int8_t* columns = reinterpret_cast<const int8_t*>(p);
    return {vld1q_s8(columns), vld1q_s8(columns + 16)};
  }
  template <int lane>
  CAPIBARA_INLINE static void multiply(Sum* sums, VectorB b, VectorA a) {
    sums[0] = vdotq_laneq_s32(sums[0], b.low, a, lane);
    sums[1] = vdotq_laneq_s32(sums[1], b.high, a, lane);
  }
};

}  // namespace

const GemmKernel neon_dotprod::gemm_int8 = kernel_of<Int8>(4, Packed::kI8, Packed::kI8);

}  // namespace capibara
