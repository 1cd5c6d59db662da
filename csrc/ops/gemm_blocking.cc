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

Blocking blocking_of(const TileShape& tile, int64_t m, int64_t n, int64_t k, bool packed) {
  // Where the system does not tell: the least that any server core has.
  const CpuInfo& cpu = cpu_info();
  const int64_t l1 = cpu.l1d_bytes ? static_cast<int64_t>(cpu.l1d_bytes) : 32 << 10;
  const int64_t l2 = cpu.l2_bytes ? static_cast<int64_t>(cpu.l2_bytes) : 512 << 10;
  const bool one_panel = m <= tile.rows;
  // Whole unrolled iterations of the tiles.
  const int64_t unit = tile.unrolled * tile.depth;
  Blocking blocking;
  if (one_panel && packed) {
    blocking.kc = std::max<int64_t>(round_up(k, tile.depth), tile.depth);
  } else {
    // A panel of B that is packed right before its only use should still be in level 1 then.
    const int64_t bytes = one_panel ? tile.cols * tile.b_size : tile.rows * tile.a_size;
    blocking.kc = even_block(k, l1 * 3 / 4 / bytes, unit);
  }
  const int64_t most_columns =
      one_panel && !packed ? tile.cols : l2 / 4 / (blocking.kc * tile.b_size);
  blocking.nc = even_block(n, most_columns, tile.cols);
  blocking.mc = even_block(m, kRowsAtATime, tile.rows);
  return blocking;
}

int threads_of(const TileShape& tile, const Blocking& block, int64_t m, int64_t n, int64_t k) {
  const int64_t rows = std::min(block.mc, m);
  // A multiplication counts as the eighth of a byte: with all of its data in the caches, a core
  // reads some ten bytes in the time of a hundred of them.
  const int64_t work = std::max(rows * n * k / 8, n * k * tile.b_size);
  return threads_for(divide_up(rows, tile.rows) * divide_up(n, tile.cols), work);
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
