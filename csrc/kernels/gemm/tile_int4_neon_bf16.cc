// SPDX-License-Identifier: Apache-2.0
// USDOT takes a byte of two codes as it is: the sum of the lower product and 16 times the upper
// one, whose difference the group needs once. Three instructions multiply 32 codes, where taking
// the upper ones apart would be a fourth.
//
// From 9 rows on, codes are decoded once for all of them, and SMMLA multiplies: a tile of 8 x 8 is
// as tile_mmla-inl.h has it, but its 16 sums of a group become f32 in the end of the group, and
// those wait in level 1 meanwhile.
#include "kernels/gemm/tile_int4_by_lane-inl.h"
#include "kernels/gemm/tile_mmla-inl.h"

#ifndef __ARM_FEATURE_MATMUL_INT8
#error "for cores with i8mm: all that have bf16 instructions"
#endif

namespace capibara {
namespace {

struct Both {
  CAPIBARA_INLINE static uint8x16_t upper(uint8x16_t both) { return both; }
  template <int lane>
  CAPIBARA_INLINE static int32x4_t add_lower(int32x4_t sum, uint8x16_t codes, int8x16_t a) {
    return vusdotq_laneq_s32(sum, codes, a, lane);
  }
  template <int lane>
  CAPIBARA_INLINE static int32x4_t add_upper(int32x4_t sum, uint8x16_t codes, int8x16_t a) {
    return vusdotq_laneq_s32(sum, codes, a, lane);
  }
  CAPIBARA_INLINE static int32x4_t finish_upper(int32x4_t sum, int32x4_t lower) {
    return vshrq_n_s32(vsubq_s32(sum, lower), 4);
  }
};

constexpr int kDecodedDepth = 8;

CAPIBARA_INLINE inline float32x4_t first_half(float32x4_t x, float32x4_t y) {
  return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)));
}
CAPIBARA_INLINE inline float32x4_t second_half(float32x4_t x, float32x4_t y) {
  return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)));
}

// [group / 4][4 columns and 4 more][4] to [group / 8][8 columns][8].
void decode(int64_t groups, int64_t group, const void* kept, void* decoded) {
  const uint8_t* from = static_cast<const uint8_t*>(kept);
  int8_t* to = static_cast<int8_t*>(decoded);
  const uint8x16_t half = vdupq_n_u8(15);
  for (; groups > 0; --groups) {
    const float* scales = reinterpret_cast<const float*>(from + kCols / 2 * group);
    // Each column's zero point eight times, two columns to a register.
    const int16x8_t zeros = vld1q_s16(reinterpret_cast<const int16_t*>(scales + kCols));
    const int8x8_t bytes = vmovn_s16(zeros);
    const int8x16_t twice = vcombine_s8(vzip1_s8(bytes, bytes), vzip2_s8(bytes, bytes));
    const int8x16_t low = vzip1q_s8(twice, twice), high = vzip2q_s8(twice, twice);
    const int8x16_t zero[kColumnPairs] = {
        vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(low), vreinterpretq_s32_s8(low))),
        vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(low), vreinterpretq_s32_s8(low))),
        vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(high), vreinterpretq_s32_s8(high))),
        vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(high), vreinterpretq_s32_s8(high)))};
    for (int64_t n = group / (2 * kDecodedDepth); n != 0; --n) {
      CAPIBARA_LOOP(int4_decode, int8_t, 2);
      const uint8x16x4_t both = vld1q_u8_x4(from);
      from += 64;
      unrolled<2>([&](auto i) CAPIBARA_INLINE {
        const uint8x16_t first = both.val[2 * i], second = both.val[2 * i + 1];
        const auto pair = [&](uint8x16_t x, uint8x16_t y, bool upper) CAPIBARA_INLINE {
          const int32x4_t u = vreinterpretq_s32_u8(x), v = vreinterpretq_s32_u8(y);
          return vreinterpretq_s8_s32(upper ? vzip2q_s32(u, v) : vzip1q_s32(u, v));
        };
        const uint8x16_t l0 = vandq_u8(first, half), l1 = vandq_u8(second, half);
        const uint8x16_t u0 = vshrq_n_u8(first, 4), u1 = vshrq_n_u8(second, 4);
        int8x16x4_t columns;
        columns.val[0] = vsubq_s8(pair(l0, l1, false), zero[0]);
        columns.val[1] = vsubq_s8(pair(l0, l1, true), zero[1]);
        columns.val[2] = vsubq_s8(pair(u0, u1, false), zero[2]);
        columns.val[3] = vsubq_s8(pair(u0, u1, true), zero[3]);
        vst1q_s8_x4(to, columns);
        to += 64;
      });
    }
    const float32x4_t first = vld1q_f32(scales), last = vld1q_f32(scales + 4);
    const float32x4x4_t pairs = {{first_half(first, first), second_half(first, first),
                                  first_half(last, last), second_half(last, last)}};
    vst1q_f32_x4(reinterpret_cast<float*>(to), pairs);
    from += 6 * kCols;
    to += 8 * kCols;
  }
}

// Sums of two rows and two columns, [pair of rows][pair of columns], to and from rows of c: the
// same exchange of halves.
template <int pairs>
CAPIBARA_INLINE inline void from_rows(const float* c, int64_t ldc, float32x4x4_t* sums) {
  unrolled<pairs>([&](auto i) CAPIBARA_INLINE {
    const float *first = c + 2 * i * ldc, *second = first + ldc;
    unrolled<2>([&](auto v) CAPIBARA_INLINE {
      const float32x4_t x = vld1q_f32(first + 4 * v), y = vld1q_f32(second + 4 * v);
      sums[i].val[2 * v] = first_half(x, y);
      sums[i].val[2 * v + 1] = second_half(x, y);
    });
  });
}
template <int pairs>
CAPIBARA_INLINE inline void to_rows(const float32x4x4_t* sums, float* c, int64_t ldc) {
  unrolled<pairs>([&](auto i) CAPIBARA_INLINE {
    const float32x4_t(&x)[4] = sums[i].val;
    const float32x4x2_t first = {{first_half(x[0], x[1]), first_half(x[2], x[3])}};
    const float32x4x2_t second = {{second_half(x[0], x[1]), second_half(x[2], x[3])}};
    vst1q_f32_x2(c + 2 * i * ldc, first);
    vst1q_f32_x2(c + (2 * i + 1) * ldc, second);
  });
}

// rows: even. The group is a constant, and its steps are written out.
template <int rows, int group>
CAPIBARA_INLINE inline void decoded_tile_of(int64_t groups, const void* a, const void* b, float* c,
                                            int64_t ldc, bool accumulate) {
  constexpr int pairs = rows / 2, chains = pairs * kColumnPairs;
  constexpr int kStepsOfAll = group / kDecodedDepth;
  const uint8_t* left = static_cast<const uint8_t*>(a);
  const uint8_t* right = static_cast<const uint8_t*>(b);
  float32x4x4_t totals[pairs] = {};
  if (accumulate) from_rows<pairs>(c, ldc, totals);
  for (; groups > 0; --groups) {
    CAPIBARA_LOOP_VARIANT(int4_mmla, int8_t, kStepsOfAll, 10 * group + rows);
    int32x4_t sums[chains] = {};
    unrolled<kStepsOfAll>([&](auto) CAPIBARA_INLINE {
      uint8x16_t va[pairs], vb[kColumnPairs];
      load<(pairs > 1)>(left, va);
      load<true>(right, vb);
      unrolled<chains>([&](auto i) CAPIBARA_INLINE {
        sums[i] = vmmlaq_s32(sums[i], vreinterpretq_s8_u8(va[i / kColumnPairs]),
                             vreinterpretq_s8_u8(vb[i % kColumnPairs]));
      });
      unrolled<chains>([&](auto i) CAPIBARA_INLINE { wait_for(sums[i], left, right); });
    });
    float32x2_t scales[pairs];
    if constexpr (pairs == 4) {
      const float32x2x4_t all = vld1_f32_x4(reinterpret_cast<const float*>(left));
      unrolled<pairs>([&](auto i) CAPIBARA_INLINE { scales[i] = all.val[i]; });
    } else {
      unrolled<pairs>([&](auto i) CAPIBARA_INLINE {
        scales[i] = vld1_f32(reinterpret_cast<const float*>(left) + 2 * i);
      });
    }
    const float32x4x4_t cols = vld1q_f32_x4(reinterpret_cast<const float*>(right));
    float* total = reinterpret_cast<float*>(totals);
    unrolled<pairs>([&](auto pair) CAPIBARA_INLINE {
      // No instruction: the compiler would otherwise keep totals in registers, spill them one by
      // one, and compute each one's address from the first's.
      __asm__("" : "+r"(total) : : "memory");
      const float32x4_t scale =
          vcombine_f32(vdup_lane_f32(scales[pair], 0), vdup_lane_f32(scales[pair], 1));
      float32x4x4_t y = vld1q_f32_x4(total);
      unrolled<kColumnPairs>([&](auto j) CAPIBARA_INLINE {
        const float32x4_t sum = vcvtq_f32_s32(sums[pair * kColumnPairs + j]);
        y.val[j] = vfmaq_f32(y.val[j], sum, vmulq_f32(scale, cols.val[j]));
      });
      vst1q_f32_x4(total, y);
      total += 16;
    });
    left += 8 * rows;
    right += 8 * kCols;
  }
  to_rows<pairs>(totals, c, ldc);
}

template <int rows>
void decoded_tile(int64_t groups, int64_t group, const void* a, const void* b, float* c,
                  int64_t ldc, bool accumulate) {
  switch (group) {
    case 32:
      return decoded_tile_of<rows, 32>(groups, a, b, c, ldc, accumulate);
    case 64:
      return decoded_tile_of<rows, 64>(groups, a, b, c, ldc, accumulate);
    default:
      return decoded_tile_of<rows, 128>(groups, a, b, c, ldc, accumulate);
  }
}

constexpr Int4Kernel kernel() {
  Int4Kernel kernel = int4_kernel_of<Both>();
  kernel.decoded = {8,
                    kDecodedDepth,
                    2,
                    {decoded_tile<2>, decoded_tile<2>, decoded_tile<4>, decoded_tile<4>,
                     decoded_tile<6>, decoded_tile<6>, decoded_tile<8>, decoded_tile<8>}};
  kernel.decode = decode;
  return kernel;
}

}  // namespace

const Int4Kernel neon_bf16::gemm_int4 = kernel();

}  // namespace capibara
