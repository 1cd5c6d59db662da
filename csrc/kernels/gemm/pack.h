// SPDX-License-Identifier: Apache-2.0
// Contract: the panels that tiles read (gemm.h), made from row-major matrices, and the scales of
// int8.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"
#include "kernels/gemm/gemm.h"

namespace capibara {

// `lines` lines of `length` elements, each line a row of A or a column of B: what a panel holds
// side by side. Its elements are next to each other (a row of A, a row of B's transpose), or, for
// pack_columns, those of all lines at one k are (B itself).
struct PackArgs {
  DType from;
  const void* x;
  int64_t stride;  // elements from one line to the next; for pack_columns, from one k to the next
  int64_t lines, length;
  Packed to;
  int64_t panel_lines;  // at least `lines`; the others are zero
  int depth;            // 1, 2, 4 or 8; the last group along K is filled up with zeros
  // kI8, kU8, kI16: what lines are multiplied with before they are rounded to the nearest integer,
  // ties to even, and clamped to [-127, 127]. A factor of NaN gives zeros: see line_scales.
  const float* factors;
  void* panel;  // [ceil(length / depth)][panel_lines][depth]
};
using PackFn = void(const PackArgs& args) noexcept;

// Symmetric quantisation of each line: scale = max |x| / 127, so that x is about scale * integer,
// and factor = 127 / max |x|. A line of zeros has scale 0 and factor 0. A line with a NaN or an
// infinity has NaN for both: what is multiplied with it becomes NaN.
struct LineScalesArgs {
  DType from;
  const void* x;
  int64_t stride;
  int64_t lines, length;
  float* scales;
  float* factors;
};
using LineScalesFn = void(const LineScalesArgs& args) noexcept;

namespace scalar {
PackFn pack_lines, pack_columns;
LineScalesFn line_scales;
}  // namespace scalar

const KernelTable<PackFn>& pack_lines_kernels();
const KernelTable<PackFn>& pack_columns_kernels();  // not of integers
const KernelTable<LineScalesFn>& line_scales_kernels();

}  // namespace capibara
