// SPDX-License-Identifier: Apache-2.0
// A product on blocks and threads (gemm_blocking.h), of any type: what its tiles and panels are is
// the argument's, an object that holds for one call.
//   TileShape shape() const
//   int rows_a_token() const           rows of A for a row of x
//   int packed_rows(int rows) const    as many as a panel has of that many
//   int64_t a_bytes(int64_t k), b_bytes(int64_t k)  of k elements of a row or column in a panel
//   int64_t scale_floats(int64_t rows) room for scales of so many rows of A
//   bool makes_b() const               panels of B are made a block at a time
//   void pack_rows(const PackedRows&, int64_t row, int64_t rows, int64_t first, int64_t count)
//                                      rows of A from `row` on, of `count` from `first` on
//   void make_b(int64_t begin, int64_t end, int64_t k, int64_t depth, char* b) const
//   const char* panel_of(int64_t panel) const       else
//   void multiply(int rows, int64_t depth, const char* a, const char* b, int64_t panel_stride,
//                 int64_t panels, char* c, int64_t ldc, bool accumulate) const
//   void finish(EpilogueArgs&, const PackedRows&, int64_t row) const   before the epilogue runs
#pragma once

#include <algorithm>

#include "base/buffer.h"
#include "base/rounding.h"
#include "ops/gemm.h"
#include "ops/gemm_blocking.h"
#include "ops/parallel.h"

namespace capibara {

inline const char* at(const MatrixView& matrix, int64_t row, int64_t col) {
  return static_cast<const char*>(matrix.data) +
         (row * matrix.stride + col) * static_cast<int64_t>(size_of(matrix.dtype));
}

// Up to mc rows of A, packed: panels of as many rows as a tile has, each with all of K.
struct PackedRows {
  char* panels;
  int64_t panel_bytes;  // from one to the next
  float* scales;
};

template <class Tiles>
class Product {
 public:
  explicit Product(const GemmCall& call)
      : call_(call),
        tiles_(call),
        shape_(tiles_.shape()),
        m_(call.m * tiles_.rows_a_token()),
        block_(blocking_of(shape_, m_, call.n, call.k, call.packed != nullptr)),
        depth_(round_up(call.k, shape_.depth)) {}

  void run() {
    for (int64_t first = 0; first < m_; first += block_.mc) {
      run_rows(first, std::min(block_.mc, m_ - first));
    }
  }

 private:
  static constexpr int64_t kSumBytes = 4;

  // Rows [first, first + count), at most mc.
  void run_rows(int64_t first, int64_t count) {
    const int64_t row_panels = divide_up(count, shape_.rows);
    const int64_t col_panels = divide_up(call_.n, shape_.cols);
    thread_local Scratch memory;  // of the calling thread, read by all
    rows_.panel_bytes = tiles_.a_bytes(depth_) * shape_.rows;
    const int64_t bytes = row_panels * rows_.panel_bytes;
    rows_.panels = static_cast<char*>(memory.get(static_cast<size_t>(
        bytes + tiles_.scale_floats(count) * static_cast<int64_t>(sizeof(float)))));
    rows_.scales = reinterpret_cast<float*>(rows_.panels + bytes);

    parallel_for(row_panels, row_panels > 1 ? bytes : 0, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        tiles_.pack_rows(rows_, p * shape_.rows, rows_of(count, p), first, count);
      }
    });
    const Grid grid =
        grid_of(threads_of(shape_, block_, count, call_.n, call_.k), row_panels, col_panels);
    const int64_t items = grid.rows * grid.cols;
    const auto part = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = i / grid.cols, c = i % grid.cols;
        run_part(first, count, row_panels * r / grid.rows, row_panels * (r + 1) / grid.rows,
                 col_panels * c / grid.cols, col_panels * (c + 1) / grid.cols);
      }
    };
    run_on(items, part);
  }

  // One thread for each item.
  template <class F>
  static void run_on(int64_t items, F f) {
    if (items <= 1) {
      f(int64_t{0}, items);
      return;
    }
    run_ranges(
        items, static_cast<int>(items),
        [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
        &f);
  }

  // The panels of rows and columns of one thread.
  void run_part(int64_t first, int64_t count, int64_t row_begin, int64_t row_end, int64_t col_begin,
                int64_t col_end) {
    thread_local Scratch sums_memory, b_memory;
    const int64_t rows = (row_end - row_begin) * shape_.rows, nc = block_.nc;
    char* const sums =
        static_cast<char*>(sums_memory.get(static_cast<size_t>(rows * nc * kSumBytes)));
    char* const b =
        tiles_.makes_b()
            ? static_cast<char*>(b_memory.get(static_cast<size_t>(tiles_.b_bytes(block_.kc) * nc)))
            : nullptr;
    const int64_t panels_a_block = nc / shape_.cols;
    for (int64_t block = col_begin; block < col_end; block += panels_a_block) {
      const int64_t block_end = std::min(block + panels_a_block, col_end);
      for (int64_t k = 0; k < depth_ || k == 0; k += block_.kc) {
        const int64_t depth = std::min(block_.kc, depth_ - k);
        if (b) tiles_.make_b(block, block_end, k, depth, b);
        for (int64_t p = row_begin; p < row_end; ++p) {
          char* const panel_sums = sums + (p - row_begin) * shape_.rows * nc * kSumBytes;
          run_tiles(count, p, block, block_end, k, depth, b, panel_sums);
          if (k + depth >= depth_) finish(first, count, p, block, block_end, panel_sums);
        }
      }
    }
  }

  void run_tiles(int64_t count, int64_t panel, int64_t begin, int64_t end, int64_t k, int64_t depth,
                 const char* b, char* sums) const {
    const int rows = rows_of(count, panel);
    const char* a =
        rows_.panels + panel * rows_.panel_bytes + tiles_.a_bytes(k) * tiles_.packed_rows(rows);
    const char* right = b ? b : tiles_.panel_of(begin) + tiles_.b_bytes(k) * shape_.cols;
    tiles_.multiply(rows, depth, a, right, tiles_.b_bytes(b ? depth : depth_) * shape_.cols,
                    end - begin, sums, block_.nc, k > 0);
  }

  void finish(int64_t first, int64_t count, int64_t panel, int64_t begin, int64_t end,
              char* sums) const {
    const int64_t col = begin * shape_.cols, rows_a_token = tiles_.rows_a_token();
    const int64_t row = (first + panel * shape_.rows) / rows_a_token;
    const auto y_size = static_cast<int64_t>(size_of(call_.y_dtype));
    EpilogueArgs args = {};
    args.rows = rows_of(count, panel) / rows_a_token;
    args.cols = std::min(end * shape_.cols, call_.n) - col;
    args.c = sums;
    args.ldc = block_.nc * rows_a_token;
    args.bias = call_.bias ? call_.bias + col : nullptr;
    args.activation = call_.activation;
    args.residual = call_.residual.data ? at(call_.residual, row, col) : nullptr;
    args.residual_stride = call_.residual.stride;
    args.dtype = call_.y_dtype;
    args.y = static_cast<char*>(call_.y) + (row * call_.y_stride + col) * y_size;
    args.y_stride = call_.y_stride;
    tiles_.finish(args, rows_, panel * shape_.rows, col);
  }

  int rows_of(int64_t count, int64_t panel) const {
    return static_cast<int>(std::min<int64_t>(shape_.rows, count - panel * shape_.rows));
  }

  const GemmCall& call_;
  const Tiles tiles_;
  const TileShape shape_;
  const int64_t m_;  // rows of A
  const Blocking block_;
  const int64_t depth_;  // K, rounded up to the tile's depth
  PackedRows rows_ = {};
};

}  // namespace capibara
