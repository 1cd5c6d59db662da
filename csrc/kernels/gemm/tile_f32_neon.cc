// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/tile_by_lane-inl.h"

namespace capibara {
namespace {

struct F32 {
  using Mark = float;
  using LaneA = float;
  static constexpr int kBytesB = 32;
  using C = float;
  using Sum = float32x4_t;
  using VectorA = float32x4_t;
  struct VectorB {
    float32x4_t low, high;
  };

  CAPIBARA_INLINE static VectorA load_a(const float* p) { return vld1q_f32(p); }
  CAPIBARA_INLINE static VectorA broadcast_a(const float* p) { return vld1q_dup_f32(p); }
  CAPIBARA_INLINE static VectorB load_b(const char* p) {
    const float* columns = reinterpret_cast<const float*>(p);
    return {vld1q_f32(columns), vld1q_f32(columns + 4)};
  }
  template <int lane>
  CAPIBARA_INLINE static void multiply(Sum* sums, VectorB b, VectorA a) {
    sums[0] = vfmaq_laneq_f32(sums[0], b.low, a, lane);
    sums[1] = vfmaq_laneq_f32(sums[1], b.high, a, lane);
  }
};

}  // namespace

const GemmKernel neon::gemm_f32 = kernel_of<F32>(1, Packed::kF32, Packed::kF32);

}  // namespace capibara
