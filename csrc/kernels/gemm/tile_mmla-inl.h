// SPDX-License-Identifier: Apache-2.0
// Tiles of the instructions that multiply two rows with two columns, each 8 bytes along K: BFMMLA
// and SMMLA. A register holds two rows, or two columns; the sum has both columns of the first row,
// then those of the second.
//
// Budget of 8 x 8: 16 accumulators, 4 registers of A and 4 of B. A step is 16 multiply-adds, which
// the four pipes of Neoverse V2 do in 4 cycles, and two LD1, which fill four registers each and
// move their pointer. That the next step loads into the same registers is nothing to wait for: the
// core renames them, and loads well ahead. With fewer rows, several sets of accumulators take turns
// along K: Op::kChains is how many it takes until none waits for its last multiply-add.
//
// A row alone is multiplied as a pair with a row of zeros: BFDOT and SDOT would do as many columns
// an instruction, but want the row twice in a register, which costs another instruction a step.
#pragma once

#include "kernels/gemm/tile_neon-inl.h"

namespace capibara {
namespace {

// Steps an iteration. With 16, counter and branch are 2 instructions beside 288 of 8 x 8.
constexpr int kSteps = 16;
constexpr int kColumnPairs = kCols / 2;

// The next registers of a panel; p moves past them. `at_once`: one instruction does both.
template <bool at_once, int n>
CAPIBARA_INLINE inline void load(const uint8_t*& p, uint8x16_t (&v)[n]) {
  static_assert(!at_once || (n >= 2 && n <= 4));
  const auto take = [&](const auto& x) CAPIBARA_INLINE {
    unrolled<n>([&](auto i) CAPIBARA_INLINE { v[i] = x.val[i]; });
  };
  if constexpr (!at_once) {
    unrolled<n>([&](auto i) CAPIBARA_INLINE { v[i] = vld1q_u8(p + 16 * i); });
  } else if constexpr (n == 2) {
    take(vld1q_u8_x2(p));
  } else if constexpr (n == 3) {
    take(vld1q_u8_x3(p));
  } else {
    take(vld1q_u8_x4(p));
  }
  p += 16 * n;
}
CAPIBARA_INLINE inline void load_half(const uint8_t*& p, uint8x16_t (&v)[1]) {
  v[0] = vcombine_u8(vld1_u8(p), vdup_n_u8(0));
  p += 8;
}

// Op says what a step is; its members stand in the sources that include this:
//   kChains    see above; a power of two sets makes at least as many
//   Mark       for CAPIBARA_LOOP
//   C, Sum     an element of c, and four of them
//   multiply(sum, a, b): of 16 bytes of each panel
//   first_row(left, right), second_row: of the sums of two pairs of columns
// Sums of two rows and two columns become rows.
template <class Op, int rows, int chains>
CAPIBARA_INLINE inline void put_sums(const typename Op::Sum (&sums)[chains], void* c, int64_t ldc,
                                     bool accumulate) {
  using Sum = typename Op::Sum;
  Sum out[rows][2];
  unrolled<rows * 2>([&](auto i) CAPIBARA_INLINE {
    constexpr int row = i / 2, at = row / 2 * kColumnPairs + i % 2 * 2;
    const Sum x = sums[at], y = sums[at + 1];
    out[row][i % 2] = row % 2 == 0 ? Op::first_row(x, y) : Op::second_row(x, y);
  });
  put<rows, typename Op::C>(out, c, ldc, accumulate);
}

template <class Op, int rows>
void tile(int64_t steps, const void* a, const void* b, void* c, int64_t ldc, bool accumulate) {
  using Sum = typename Op::Sum;
  constexpr int pairs = (rows + 1) / 2, chains = pairs * kColumnPairs;
  constexpr int sets = chains >= Op::kChains ? 1 : 2 * chains >= Op::kChains ? 2 : 4;
  static_assert(rows == 1 || rows % 2 == 0);
  // A pair of rows alone is bound by its loads: LDP is as good for B, and loads A for two steps.
  constexpr bool at_once = pairs > 1;
  Sum sums[sets][chains] = {};
  const uint8_t* left = static_cast<const uint8_t*>(a);
  const uint8_t* right = static_cast<const uint8_t*>(b);

  const auto step = [&](auto k) CAPIBARA_INLINE {
    uint8x16_t va[pairs], vb[kColumnPairs];
    if constexpr (rows == 1) {
      load_half(left, va);
    } else {
      load<at_once>(left, va);
    }
    load<at_once>(right, vb);
    unrolled<chains>([&](auto i) CAPIBARA_INLINE {
      Sum& sum = sums[k % sets][i];
      sum = Op::multiply(sum, va[i / kColumnPairs], vb[i % kColumnPairs]);
    });
    if constexpr (at_once) {
      unrolled<chains>([&](auto i) CAPIBARA_INLINE { wait_for(sums[k % sets][i], left, right); });
    }
  };
  for (uint64_t n = static_cast<uint64_t>(steps) / kSteps; n != 0; --n) {
    CAPIBARA_LOOP_VARIANT(mmla, typename Op::Mark, kSteps, rows);
    unrolled<kSteps>(step);
  }
  for (uint64_t n = static_cast<uint64_t>(steps) % kSteps; n != 0; --n) unrolled<1>(step);
  add_sets<sets>(sums);
  put_sums<Op, rows>(sums[0], c, ldc, accumulate);
}

// Few rows, with as many panels as make the 16 sums of 8 x 8: no other sets of accumulators, which
// a short K would spend more on than on its products, and fewer loads of A.
template <class Op, int rows, int panels>
void wide_tile(int64_t steps, const void* a, const void* b, int64_t panel_stride, void* c,
               int64_t ldc, bool accumulate) {
  using Sum = typename Op::Sum;
  constexpr int kUnrolled = 8;
  constexpr int pairs = (rows + 1) / 2, chains = pairs * kColumnPairs;
  Sum sums[panels][chains] = {};
  const uint8_t* left = static_cast<const uint8_t*>(a);
  const uint8_t* right[panels];
  unrolled<panels>([&](auto p) CAPIBARA_INLINE {
    right[p] = static_cast<const uint8_t*>(b) + p * panel_stride;
  });
  const auto step = [&](auto) CAPIBARA_INLINE {
    uint8x16_t va[pairs];
    if constexpr (rows == 1) {
      load_half(left, va);
    } else {
      load<(pairs > 1)>(left, va);
    }
    unrolled<panels>([&](auto p) CAPIBARA_INLINE {
      uint8x16_t vb[kColumnPairs];
      load<true>(right[p], vb);
      unrolled<chains>([&](auto i) CAPIBARA_INLINE {
        sums[p][i] = Op::multiply(sums[p][i], va[i / kColumnPairs], vb[i % kColumnPairs]);
      });
      // The loads of the panel after the next wait: there are registers for two.
      unrolled<chains>(
          [&](auto i) CAPIBARA_INLINE { wait_for(sums[p][i], left, right[(p + 2) % panels]); });
    });
  };
  for (uint64_t n = static_cast<uint64_t>(steps) / kUnrolled; n != 0; --n) {
    CAPIBARA_LOOP_VARIANT(mmla_wide, typename Op::Mark, kUnrolled, rows);
    unrolled<kUnrolled>(step);
  }
  for (uint64_t n = static_cast<uint64_t>(steps) % kUnrolled; n != 0; --n) unrolled<1>(step);
  unrolled<panels>([&](auto p) CAPIBARA_INLINE {
    put_sums<Op, rows>(sums[p], static_cast<typename Op::C*>(c) + p * kCols, ldc, accumulate);
  });
}

template <class Op>
constexpr GemmKernel kernel_of(int depth, Packed type) {
  return {8,
          kCols,
          depth,
          type,
          type,
          2,
          {tile<Op, 1>, tile<Op, 2>, tile<Op, 4>, tile<Op, 4>, tile<Op, 6>, tile<Op, 6>,
           tile<Op, 8>, tile<Op, 8>},
          {{4, wide_tile<Op, 1, 4>},
           {4, wide_tile<Op, 2, 4>},
           {2, wide_tile<Op, 4, 2>},
           {2, wide_tile<Op, 4, 2>}}};
}

}  // namespace
}  // namespace capibara
