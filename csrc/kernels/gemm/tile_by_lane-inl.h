// SPDX-License-Identifier: Apache-2.0
// Tiles whose instruction multiplies a vector of B's columns with one lane of A.
//
// Budget of 8 x 8: 16 accumulators; 2 registers of A and 2 of B a step; the other 12 are for loads
// ahead of their use. A step is 16 multiply-adds, which four pipes do in 4 cycles: a multiply-add
// whose accumulator comes from another one waits for it for 2 of its 4 cycles on Neoverse, so that
// 8 chains would do, and 16 leave room for a core without that. With fewer rows, several sets of
// accumulators take turns along K. (24 accumulators, for 3 or 6 rows, are more than GCC can keep
// in registers here.)
#pragma once

#include "kernels/gemm/tile_neon-inl.h"

namespace capibara {
namespace {

// Steps an iteration. With 16, counter, pointers and branch are 4 instructions beside 288.
constexpr int kSteps = 16;

constexpr int sets_of(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : rows <= 5 ? 2 : 1; }

// Op says what a step is; its members stand in the sources that include this:
//   Mark              for CAPIBARA_LOOP
//   LaneA             an element of the panel of A: a row's share of a step
//   kBytesB           bytes of the panel of B a step
//   C, Sum            an element of c, and four of them
//   VectorA, VectorB  16 bytes of A; a step's 8 columns of B
//   load_a, load_b, broadcast_a
//   multiply<lane>(sums, b, a): columns 0 to 3 to sums[0], 4 to 7 to sums[1]
template <class Op, int rows>
void tile(int64_t steps, const void* a, const void* b, void* c, int64_t ldc, bool accumulate) {
  using LaneA = typename Op::LaneA;
  using Sum = typename Op::Sum;
  constexpr int sets = sets_of(rows), lanes = 16 / sizeof(LaneA);
  Sum sums[sets][rows * 2] = {};
  const LaneA* left = static_cast<const LaneA*>(a);
  const char* right = static_cast<const char*>(b);

  for (uint64_t n = static_cast<uint64_t>(steps) / kSteps; n != 0; --n) {
    CAPIBARA_LOOP_VARIANT(by_lane, typename Op::Mark, kSteps, rows);
    typename Op::VectorA va;
    typename Op::VectorB vb;
    unrolled<kSteps * rows>([&](auto i) CAPIBARA_INLINE {
      constexpr int k = i / rows, r = i % rows;
      if constexpr (i % lanes == 0) va = Op::load_a(left + i);
      if constexpr (r == 0) vb = Op::load_b(right + k * Op::kBytesB);
      Op::template multiply<i % lanes>(&sums[k % sets][r * 2], vb, va);
    });
    left += kSteps * rows;
    right += kSteps * Op::kBytesB;
  }
  for (uint64_t n = static_cast<uint64_t>(steps) % kSteps; n != 0; --n) {
    const auto vb = Op::load_b(right);
    unrolled<rows>([&](auto r) CAPIBARA_INLINE {
      Op::template multiply<0>(&sums[0][r * 2], vb, Op::broadcast_a(left + r));
    });
    left += rows;
    right += Op::kBytesB;
  }
  add_sets<sets>(sums);
  Sum out[rows][2];
  unrolled<rows * 2>([&](auto i) CAPIBARA_INLINE { out[i / 2][i % 2] = sums[0][i]; });
  put<rows, typename Op::C>(out, c, ldc, accumulate);
}

template <class Op>
constexpr GemmKernel kernel_of(int depth, Packed a, Packed b) {
  return {8,
          kCols,
          depth,
          a,
          b,
          1,
          {tile<Op, 1>, tile<Op, 2>, tile<Op, 3>, tile<Op, 4>, tile<Op, 5>, tile<Op, 6>,
           tile<Op, 7>, tile<Op, 8>}};
}

}  // namespace
}  // namespace capibara
