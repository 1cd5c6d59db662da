// SPDX-License-Identifier: Apache-2.0
// How a product is cut into blocks that fit the caches, and into parts for threads.
//
// Each thread runs, over the rows and columns that are its own:
//
//   for a block of nc columns
//     for a block of kc along K          its part of B, kc x nc, stays in level 2
//       for a panel of rows              its part of A, kc x rows, stays in level 1
//         for a panel of columns         kc x cols of B come from level 2, once
//           a tile: kc steps in registers, sums in a block of m x nc
//
// kc: three quarters of level 1 hold the panel of A. A longer kc would save loads and stores of
//   sums (one of each against kc multiplications), a shorter one nothing: the rest of level 1 is
//   for the panel of B that passes through, which is read in order and so comes ahead of its use.
//   On Neoverse V2 (64 KiB): 1536 of f32, 3072 of bf16.
// nc: a quarter of level 2 holds the block of B, which is read once for each panel of A; A and the
//   sums, which pass through beside it, are several times larger. On Zen 4 (1 MiB) a half is 2 to
//   4 % slower for f32, and kc from half of level 1 to one and a half times level 1 within 2 %.
// mc: rows that are packed at a time, by all threads for all. They are read by every thread once a
//   block of columns, from level 2 or 3; B is read from memory once for each mc rows, so that each
//   byte of a bf16 weight is used in mc multiplications.
//
// With no more rows than a tile has, nothing is read twice, and kc is all of K: the panels of B
// then stream in the order in which they lie in memory.
#pragma once

#include <cstdint>

#include "kernels/gemm/gemm.h"

namespace capibara {

// What there is to know of a tile.
struct TileShape {
  int rows, cols;
  int depth;               // parts of K are multiples of it
  int unrolled;            // and, but for the last one, of so many of those
  int64_t a_size, b_size;  // bytes of an element, about

  TileShape(const GemmKernel& kernel)  // what every GemmKernel tells
      : TileShape{kernel.rows, kernel.cols,       kernel.depth,
                  16,          size_of(kernel.a), size_of(kernel.b)} {}
  TileShape(int rows, int cols, int depth, int unrolled, int64_t a_size, int64_t b_size)
      : rows(rows), cols(cols), depth(depth), unrolled(unrolled), a_size(a_size), b_size(b_size) {}
};

struct Blocking {
  int64_t mc, nc, kc;  // multiples of the tile's rows, columns, depth
};

// `packed`: B lies in panels already. Depends on the caches, not on threads.
Blocking blocking_of(const TileShape& tile, int64_t m, int64_t n, int64_t k, bool packed);

// Threads worth starting for m rows, of which no more than mc are multiplied at a time.
int threads_of(const TileShape& tile, const Blocking& block, int64_t m, int64_t n, int64_t k);

// Threads in a grid over panels of rows and of columns.
struct Grid {
  int64_t rows, cols;
};

// The grid of at most `threads` whose busiest thread has the least to do. Between equals, the one
// with the most columns: B, which is the larger, is then read by fewer threads.
Grid grid_of(int64_t threads, int64_t row_panels, int64_t col_panels);

}  // namespace capibara
