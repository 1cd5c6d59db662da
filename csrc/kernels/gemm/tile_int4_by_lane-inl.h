// SPDX-License-Identifier: Apache-2.0
// Tiles of 4-bit weights whose instruction multiplies 4 columns, each 4 bytes along K, with one
// lane of A: SDOT and USDOT.
//
// A register of B has the codes of all 8 columns for a step of 4 along K. Sums are of integers
// within a group, and of f32 from one to the next: in registers where rows are few, else in c.
// Several panels take turns where there is one row, or two: a sum takes 3 cycles, or 1 if it is
// added to again, and A is loaded for all of them.
#pragma once

#include "kernels/gemm/int4.h"
#include "kernels/gemm/tile_neon-inl.h"

namespace capibara {
namespace {

constexpr int kInt4Depth = 4;
// Steps an iteration, those of the shortest group; a load brings half of them.
constexpr int kInt4Steps = 8, kHalf = 4;

// 8 columns of a row, of several panels.
template <int panels>
struct Int4Totals {
  float32x4_t v[panels][2];
};

template <int panels>
CAPIBARA_INLINE inline Int4Totals<panels> load_totals(const float* c) {
  Int4Totals<panels> y;
  unrolled<2 * panels>([&](auto i) CAPIBARA_INLINE { y.v[i / 2][i % 2] = vld1q_f32(c + 4 * i); });
  return y;
}
template <int panels>
CAPIBARA_INLINE inline void store_totals(const Int4Totals<panels>& y, float* c) {
  unrolled<2 * panels>([&](auto i) CAPIBARA_INLINE { vst1q_f32(c + 4 * i, y.v[i / 2][i % 2]); });
}

// Op: its members stand in the sources that include this.
//   upper(both)              what add_upper multiplies
//   add_lower, add_upper(sum, codes, a)  by the lane of A
//   finish_upper(sum, lower) the sum of the upper columns' products
template <class Op, int rows, int panels>
void int4_wide_tile(int64_t groups, int64_t group, const void* a, const void* b,
                    int64_t panel_stride, float* c, int64_t ldc, bool accumulate) {
  constexpr bool in_registers = rows * panels <= 4;
  const uint8_t* left = static_cast<const uint8_t*>(a);
  const uint8_t* right[panels];
  unrolled<panels>([&](auto p) CAPIBARA_INLINE {
    right[p] = static_cast<const uint8_t*>(b) + p * panel_stride;
  });
  const uint8x16_t half = vdupq_n_u8(15);
  Int4Totals<panels> totals[in_registers ? rows : 1] = {};
  unrolled<rows>([&](auto r) CAPIBARA_INLINE {
    if constexpr (in_registers) {
      if (accumulate) totals[r] = load_totals<panels>(c + r * ldc);
    } else {
      if (!accumulate) store_totals(totals[0], c + r * ldc);
    }
  });
  for (; groups > 0; --groups) {
    int32x4_t sums[panels][rows][2] = {};
    for (int64_t n = group / (kInt4Steps * kInt4Depth); n != 0; --n) {
      CAPIBARA_LOOP_VARIANT(int4_by_lane, int8_t, kInt4Steps, 10 * panels + rows);
      unrolled<kInt4Steps / kHalf>([&](auto) CAPIBARA_INLINE {
        int8x16_t va[rows];
        unrolled<rows>(
            [&](auto i) CAPIBARA_INLINE { va[i] = vreinterpretq_s8_u8(vld1q_u8(left + 16 * i)); });
        left += 16 * rows;
        unrolled<panels>([&](auto p) CAPIBARA_INLINE {
          const uint8x16x4_t vb = vld1q_u8_x4(right[p]);
          right[p] += 64;
          unrolled<kHalf * rows>([&](auto i) CAPIBARA_INLINE {
            constexpr int r = i % rows, lane = i % 4;
            const uint8x16_t both = vb.val[i / rows];
            int32x4_t(&sum)[2] = sums[p][r];
            sum[0] = Op::template add_lower<lane>(sum[0], vandq_u8(both, half), va[i / 4]);
            sum[1] = Op::template add_upper<lane>(sum[1], Op::upper(both), va[i / 4]);
          });
          unrolled<2 * rows>([&](auto i) CAPIBARA_INLINE {
            wait_for(sums[p][i / 2][i % 2], left, right[(p + 1) % panels]);
          });
        });
      });
    }
    const float* row_scales = reinterpret_cast<const float*>(left);
    const int32_t* row_sums = reinterpret_cast<const int32_t*>(row_scales + rows);
    left += 8 * rows;
    unrolled<panels>([&](auto p) CAPIBARA_INLINE {
      const float* col_scales = reinterpret_cast<const float*>(right[p]);
      const int16x8_t zeros = vld1q_s16(reinterpret_cast<const int16_t*>(col_scales + kCols));
      const float32x4_t low = vld1q_f32(col_scales), high = vld1q_f32(col_scales + 4);
      unrolled<rows>([&](auto r) CAPIBARA_INLINE {
        const int16x4_t sum = vreinterpret_s16_s32(vld1_dup_s32(row_sums + r));
        const int32x4_t lower = vmlal_lane_s16(sums[p][r][0], vget_low_s16(zeros), sum, 0);
        const int32x4_t upper =
            vmlal_high_lane_s16(Op::finish_upper(sums[p][r][1], sums[p][r][0]), zeros, sum, 0);
        const float scale = row_scales[r];
        const auto add_to = [&](float32x4_t(&y)[2]) CAPIBARA_INLINE {
          y[0] = vfmaq_f32(y[0], vcvtq_f32_s32(lower), vmulq_n_f32(low, scale));
          y[1] = vfmaq_f32(y[1], vcvtq_f32_s32(upper), vmulq_n_f32(high, scale));
        };
        if constexpr (in_registers) {
          add_to(totals[r].v[p]);
        } else {
          float* const y = c + r * ldc + p * kCols;
          Int4Totals<1> total = load_totals<1>(y);
          add_to(total.v[0]);
          store_totals(total, y);
        }
      });
      right[p] += 6 * kCols;
    });
  }
  if constexpr (in_registers) {
    unrolled<rows>([&](auto r) CAPIBARA_INLINE { store_totals(totals[r], c + r * ldc); });
  }
}

template <class Op, int rows>
void int4_tile(int64_t groups, int64_t group, const void* a, const void* b, float* c, int64_t ldc,
               bool accumulate) {
  int4_wide_tile<Op, rows, 1>(groups, group, a, b, 0, c, ldc, accumulate);
}

template <class Op>
constexpr Int4Kernel int4_kernel_of() {
  Int4Kernel kernel = {};
  kernel.cols = kCols;
  kernel.kept = {8,
                 kInt4Depth,
                 1,
                 {int4_tile<Op, 1>, int4_tile<Op, 2>, int4_tile<Op, 3>, int4_tile<Op, 4>,
                  int4_tile<Op, 5>, int4_tile<Op, 6>, int4_tile<Op, 7>, int4_tile<Op, 8>}};
  kernel.wide[0] = {4, int4_wide_tile<Op, 1, 4>};
  kernel.wide[1] = {2, int4_wide_tile<Op, 2, 2>};
  return kernel;
}

}  // namespace
}  // namespace capibara
