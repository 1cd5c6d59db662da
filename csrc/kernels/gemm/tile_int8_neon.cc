// SPDX-License-Identifier: Apache-2.0
// Armv8.0 has no dot product: A is packed as 16-bit integers, and B is widened on its way.
#include "kernels/gemm/tile_by_lane-inl.h"

namespace capibara {
namespace {

struct Int8 {
  using Mark = int8_t;
  using LaneA = int16_t;
  static constexpr int kBytesB = 8;
  using C = int32_t;
  using Sum = int32x4_t;
  using VectorA = int16x8_t;
  using VectorB = int16x8_t;

  CAPIBARA_INLINE static VectorA load_a(const int16_t* p) { return vld1q_s16(p); }
  CAPIBARA_INLINE static VectorA broadcast_a(const int16_t* p) { return vld1q_dup_s16(p); }
  CAPIBARA_INLINE static VectorB load_b(const char* p) {
    return vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(p)));
  }
  template <int lane>
  CAPIBARA_INLINE static void multiply(Sum* sums, VectorB b, VectorA a) {
    sums[0] = vmlal_laneq_s16(sums[0], vget_low_s16(b), a, lane);
    sums[1] = vmlal_high_laneq_s16(sums[1], b, a, lane);
  }
};

}  // namespace

const GemmKernel neon::gemm_int8 = kernel_of<Int8>(1, Packed::kI16, Packed::kI8);

}  // namespace capibara
