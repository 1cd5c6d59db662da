// SPDX-License-Identifier: Apache-2.0
// Tiles of 4-bit weights by those of tile-inl.h, a group at a time; local to the including source,
// as those are.
//
// A group's sums go by way of level 1, where they become f32: for 12 rows and 128 elements along K
// that is a load and a store for 32 multiplications.
//
// Of `Op`, beside what tile() needs of it, whose steps are of kDepth elements along K:
//   Codes B, int32_t C
//   finish(sums, zeros, col_scales, row_sum, row_scale, c)  adds a row of a group to c
#pragma once

#include <cstring>

#include "kernels/gemm/int4.h"
#include "kernels/gemm/tile-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

constexpr int kInt4Depth = 4;

struct Codes {
  uint8_t both;
};
template <>
constexpr int kElementsIn<Codes> = 2;

template <class Op, int rows>
void int4_tile(int64_t groups, int64_t group, const void* a, const void* b, float* c, int64_t ldc,
               bool accumulate) {
  constexpr int kCols = 2 * Op::kLanes;
  const char* left = static_cast<const char*>(a);
  const char* right = static_cast<const char*>(b);
  for (int r = 0; !accumulate && r < rows; ++r) std::memset(c + r * ldc, 0, kCols * sizeof(float));
  for (; groups > 0; --groups) {
    alignas(64) int32_t sums[rows * kCols];
    tile<Op, rows>(group / Op::kDepth, left, right, sums, kCols, false);
    left += rows * group;
    right += kCols * group / 2;
    const float* row_scales = reinterpret_cast<const float*>(left);
    const int32_t* row_sums = reinterpret_cast<const int32_t*>(row_scales + rows);
    const float* col_scales = reinterpret_cast<const float*>(right);
    const int16_t* zeros = reinterpret_cast<const int16_t*>(col_scales + kCols);
    for (int r = 0; r < rows; ++r) {
      Op::finish(sums + r * kCols, zeros, col_scales, row_sums[r], row_scales[r], c + r * ldc);
    }
    left += rows * 8;
    right += kCols * 6;
  }
}

template <class Op, int... less_one>
constexpr Int4Kernel int4_kernel_of_rows(std::integer_sequence<int, less_one...>) {
  Int4Kernel kernel = {};
  kernel.cols = 2 * Op::kLanes;
  kernel.kept = {sizeof...(less_one), kInt4Depth, 1, {int4_tile<Op, less_one + 1>...}};
  return kernel;
}
template <class Op, int rows>
constexpr Int4Kernel int4_kernel_of() {
  return int4_kernel_of_rows<Op>(std::make_integer_sequence<int, rows>());
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
