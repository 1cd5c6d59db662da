// SPDX-License-Identifier: Apache-2.0
// Armv8.0 has no dot product: SMLAL multiplies bytes and adds in int16, where the products of a
// code and an integer, at most 15 * 128, fit 16 times; SADALP adds pairs of those to int32.
#include "kernels/gemm/int4.h"
#include "kernels/gemm/tile_neon-inl.h"

namespace capibara {
namespace {

constexpr int kInt4Depth = 4;
constexpr int kInt4Steps = 8;
static_assert(kInt4Steps * 15 * 128 < 32768, "sums of int16");

template <int rows>
void int4_tile(int64_t groups, int64_t group, const void* a, const void* b, float* c, int64_t ldc,
               bool accumulate) {
  // Two columns, 4 bytes along K of each.
  constexpr int kColumnPairs = kCols / 2;
  const int8_t* left = static_cast<const int8_t*>(a);
  const uint8_t* right = static_cast<const uint8_t*>(b);
  const uint8x16_t half = vdupq_n_u8(15);
  if (!accumulate) {
    unrolled<rows>([&](auto r) CAPIBARA_INLINE {
      vst1q_f32(c + r * ldc, vdupq_n_f32(0));
      vst1q_f32(c + r * ldc + 4, vdupq_n_f32(0));
    });
  }
  for (; groups > 0; --groups) {
    int32x4_t sums[rows][kColumnPairs] = {};
    for (int64_t n = group / (kInt4Steps * kInt4Depth); n != 0; --n) {
      int16x8_t narrow[rows][kColumnPairs] = {};
      for (int step = 0; step < kInt4Steps; ++step) {
        const uint8x16_t both = vld1q_u8(right);
        const int8x16_t lower = vreinterpretq_s8_u8(vandq_u8(both, half));
        const int8x16_t upper = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        const int8x8_t columns[kColumnPairs] = {vget_low_s8(lower), vget_high_s8(lower),
                                                vget_low_s8(upper), vget_high_s8(upper)};
        unrolled<rows>([&](auto r) CAPIBARA_INLINE {
          int32_t four;
          __builtin_memcpy(&four, left + kInt4Depth * r, sizeof four);
          const int8x8_t x = vreinterpret_s8_s32(vdup_n_s32(four));
          unrolled<kColumnPairs>([&](auto j) CAPIBARA_INLINE {
            narrow[r][j] = vmlal_s8(narrow[r][j], columns[j], x);
          });
        });
        left += rows * kInt4Depth;
        right += kColumnPairs * kInt4Depth;
      }
      unrolled<rows * kColumnPairs>([&](auto i) CAPIBARA_INLINE {
        int32x4_t& sum = sums[i / kColumnPairs][i % kColumnPairs];
        sum = vpadalq_s16(sum, narrow[i / kColumnPairs][i % kColumnPairs]);
      });
    }
    const float* row_scales = reinterpret_cast<const float*>(left);
    const int32_t* row_sums = reinterpret_cast<const int32_t*>(row_scales + rows);
    const float* col_scales = reinterpret_cast<const float*>(right);
    const int16_t* zeros = reinterpret_cast<const int16_t*>(col_scales + kCols);
    unrolled<rows * 2>([&](auto i) CAPIBARA_INLINE {
      constexpr int r = i / 2, v = i % 2;
      const int32x4_t products = vpaddq_s32(sums[r][2 * v], sums[r][2 * v + 1]);
      const int32x4_t sum = vmlaq_n_s32(products, vmovl_s16(vld1_s16(zeros + 4 * v)), row_sums[r]);
      const float32x4_t scale = vmulq_n_f32(vld1q_f32(col_scales + 4 * v), row_scales[r]);
      float* y = c + r * ldc + 4 * v;
      vst1q_f32(y, vfmaq_f32(vld1q_f32(y), vcvtq_f32_s32(sum), scale));
    });
    left += 8 * rows;
    right += 6 * kCols;
  }
}

constexpr Int4Kernel kernel() {
  Int4Kernel kernel = {};
  kernel.cols = kCols;
  // 16 sums of int16, 4 registers of codes, A; those of int32 wait in level 1.
  kernel.kept = {4, kInt4Depth, 1, {int4_tile<1>, int4_tile<2>, int4_tile<3>, int4_tile<4>}};
  return kernel;
}

}  // namespace

const Int4Kernel neon::gemm_int4 = kernel();

}  // namespace capibara
