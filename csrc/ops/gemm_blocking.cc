// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm_blocking.h"

#include <algorithm>

#include "base/rounding.h"
#include "cpu/features.h"
#include "ops/parallel.h"

namespace capibara {
namespace {

constexpr int64_t kRowsAtATime = 512;

// The largest multiple of `unit` up to `most`, made smaller so that all blocks of `total` are about
// alike.
int64_t even_block(int64_t total, int64_t most, int64_t unit) {
  const int64_t blocks = divide_up(total, std::max(most / unit, int64_t{1}) * unit);
  return std::max(round_up(divide_up(total, std::max(blocks, int64_t{1})), unit), unit);
}

}  // namespace

Blocking blocking_of(const GemmKernel& kernel, int64_t m, int64_t n, int64_t k, bool packed) {
  // Where the system does not tell: the least that any server core has.
  const CpuInfo& cpu = cpu_info();
  const int64_t l1 = cpu.l1d_bytes ? static_cast<int64_t>(cpu.l1d_bytes) : 32 << 10;
  const int64_t l2 = cpu.l2_bytes ? static_cast<int64_t>(cpu.l2_bytes) : 512 << 10;
  const bool one_panel = m <= kernel.rows;
  // Whole unrolled iterations of the tiles.
  const int64_t unit = 16 * kernel.depth;
  Blocking blocking;
  if (one_panel && packed) {
    blocking.kc = std::max<int64_t>(round_up(k, kernel.depth), kernel.depth);
  } else {
    // A panel of B that is packed right before its only use should still be in level 1 then.
    const int64_t bytes =
        one_panel ? kernel.cols * size_of(kernel.b) : kernel.rows * size_of(kernel.a);
    blocking.kc = even_block(k, l1 * 3 / 4 / bytes, unit);
  }
  const int64_t most_columns =
      one_panel && !packed ? kernel.cols : l2 / 4 / (blocking.kc * size_of(kernel.b));
  blocking.nc = even_block(n, most_columns, kernel.cols);
  blocking.mc = even_block(m, kRowsAtATime, kernel.rows);
  return blocking;
}

int threads_of(const GemmKernel& kernel, const Blocking& block, int64_t m, int64_t n, int64_t k) {
  const int64_t rows = std::min(block.mc, m);
  // A multiplication counts as the eighth of a byte: with all of its data in the caches, a core
  // reads some ten bytes in the time of a hundred of them.
  const int64_t work = std::max(rows * n * k / 8, n * k * size_of(kernel.b));
  return threads_for(divide_up(rows, kernel.rows) * divide_up(n, kernel.cols), work);
}

Grid grid_of(int64_t threads, int64_t row_panels, int64_t col_panels) {
  Grid best = {1, 1};
  int64_t least = row_panels * col_panels;
  for (int64_t rows = 1; rows <= std::min(threads, row_panels); ++rows) {
    const int64_t cols = std::min(threads / rows, col_panels);
    const int64_t most = divide_up(row_panels, rows) * divide_up(col_panels, cols);
    if (most < least) {
      least = most;
      best = {rows, cols};
    }
  }
  return best;
}

}  // namespace capibara
