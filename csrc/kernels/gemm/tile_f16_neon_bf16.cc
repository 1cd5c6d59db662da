// SPDX-License-Identifier: Apache-2.0
// FMLAL and FMLAL2 multiply f16 and add in f32, where the products are exact: one rounding a
// multiply-add, as if both operands had been converted before. FMLA in f16 would take half as many
// instructions, but round every sum to 11 bits; conversions would be two more instructions a step
// for B alone, which only two of Neoverse V2's four pipes do.
#include "kernels/gemm/tile_by_lane-inl.h"

#ifndef __ARM_FEATURE_FP16_FML
#error "for cores with FMLAL"
#endif

namespace capibara {
namespace {

struct Half {
  using Mark = F16;
  using LaneA = float16_t;
  static constexpr int kBytesB = 16;
  using C = float;
  using Sum = float32x4_t;
  using VectorA = float16x8_t;
  using VectorB = float16x8_t;

  CAPIBARA_INLINE static VectorA load_a(const float16_t* p) { return vld1q_f16(p); }
  CAPIBARA_INLINE static VectorA broadcast_a(const float16_t* p) { return vld1q_dup_f16(p); }
  CAPIBARA_INLINE static VectorB load_b(const char* p) {
    return vld1q_f16(reinterpret_cast<const float16_t*>(p));
  }
  template <int lane>
  CAPIBARA_INLINE static void multiply(Sum* sums, VectorB b, VectorA a) {
    sums[0] = vfmlalq_laneq_low_f16(sums[0], b, a, lane);
    sums[1] = vfmlalq_laneq_high_f16(sums[1], b, a, lane);
  }
};

}  // namespace

const GemmKernel neon_bf16::gemm_f16 = kernel_of<Half>(1, Packed::kF16, Packed::kF16);

}  // namespace capibara
