// SPDX-License-Identifier: Apache-2.0
// Tiles of the instructions that multiply two rows with two columns, each 8 bytes along K: BFMMLA
// and SMMLA. A register holds two rows, or two columns; the sum has both columns of the first row,
// then those of the second.
//
// Budget of 8 x 8: 16 accumulators, 4 registers of A and 4 of B a step; the other 8 are for loads
// ahead of their use. A step is 16 multiply-adds, which the four pipes of Neoverse V2 do in 4
// cycles. With fewer rows, several sets of accumulators take turns along K: Op::kChains is how many
// it takes until none waits for its last multiply-add.
//
// A row alone is multiplied as a pair with a row of zeros: BFDOT and SDOT would do as many columns
// an instruction, but want the row twice in a register, which costs another instruction a step.
#pragma once

#include "kernels/gemm/tile_neon-inl.h"

namespace capibara {
namespace {

// Steps an iteration. With 16, counter, pointers and branch are 4 instructions beside 320.
constexpr int kSteps = 16;
constexpr int kColumnPairs = kCols / 2;
constexpr int kBytesB = 16 * kColumnPairs;  // of the panel of B a step

// Op says what a step is; its members stand in the sources that include this:
//   kChains    see above; a power of two sets makes at least as many
//   Mark       for CAPIBARA_LOOP
//   C, Sum     an element of c, and four of them
//   Vector     16 bytes of a panel
//   load, load_half: the latter 8 bytes, then zeros
//   multiply(sum, a, b)
//   first_row(left, right), second_row: of the sums of two pairs of columns
template <class Op, int rows>
void tile(int64_t steps, const void* a, const void* b, void* c, int64_t ldc, bool accumulate) {
  using Sum = typename Op::Sum;
  constexpr int pairs = (rows + 1) / 2, chains = pairs * kColumnPairs;
  constexpr int sets = chains >= Op::kChains ? 1 : 2 * chains >= Op::kChains ? 2 : 4;
  constexpr int bytes_a = 8 * rows;
  static_assert(rows == 1 || rows % 2 == 0);
  Sum sums[sets][chains] = {};
  const char* left = static_cast<const char*>(a);
  const char* right = static_cast<const char*>(b);

  const auto step = [&](auto k) CAPIBARA_INLINE {
    typename Op::Vector va[pairs], vb[kColumnPairs];
    unrolled<pairs>([&](auto p) CAPIBARA_INLINE {
      const char* from = left + k * bytes_a + 16 * p;
      va[p] = rows == 1 ? Op::load_half(from) : Op::load(from);
    });
    unrolled<kColumnPairs>([&](auto q)
                               CAPIBARA_INLINE { vb[q] = Op::load(right + k * kBytesB + 16 * q); });
    unrolled<chains>([&](auto i) CAPIBARA_INLINE {
      Sum& sum = sums[k % sets][i];
      sum = Op::multiply(sum, va[i / kColumnPairs], vb[i % kColumnPairs]);
    });
  };
  for (uint64_t n = static_cast<uint64_t>(steps) / kSteps; n != 0; --n) {
    CAPIBARA_LOOP_VARIANT(mmla, typename Op::Mark, kSteps, rows);
    unrolled<kSteps>(step);
    left += kSteps * bytes_a;
    right += kSteps * kBytesB;
  }
  for (uint64_t n = static_cast<uint64_t>(steps) % kSteps; n != 0; --n) {
    unrolled<1>(step);
    left += bytes_a;
    right += kBytesB;
  }
  add_sets<sets>(sums);
  Sum out[rows][2];
  unrolled<rows * 2>([&](auto i) CAPIBARA_INLINE {
    constexpr int row = i / 2, at = row / 2 * kColumnPairs + i % 2 * 2;
    const Sum x = sums[0][at], y = sums[0][at + 1];
    out[row][i % 2] = row % 2 == 0 ? Op::first_row(x, y) : Op::second_row(x, y);
  });
  put<rows, typename Op::C>(out, c, ldc, accumulate);
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
           tile<Op, 8>, tile<Op, 8>}};
}

}  // namespace
}  // namespace capibara
