// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include <algorithm>
#include <cstring>

#include "base/buffer.h"
#include "base/rounding.h"
#include "kernels/gemm/pack.h"
#include "ops/gemm_backend.h"
#include "ops/gemm_blocking.h"
#include "ops/gemm_packed.h"
#include "ops/parallel.h"
#include "ops/registry.h"

namespace capibara {
namespace {

const char* at(const MatrixView& matrix, int64_t row, int64_t col) {
  return static_cast<const char*>(matrix.data) +
         (row * matrix.stride + col) * static_cast<int64_t>(size_of(matrix.dtype));
}

// The functions of one call, looked up once.
struct Functions {
  PackFn* pack_lines = pack_lines_kernels().chosen().run;
  PackFn* pack_columns = pack_columns_kernels().chosen().run;
  LineScalesFn* line_scales = line_scales_kernels().chosen().run;
  EpilogueFn* epilogue = gemm_epilogue_kernels().chosen().run;
};

const Functions& functions() {
  static const Functions all;
  return all;
}

// Up to mc rows of A, packed: panels of kernel.rows rows, each with all of K.
struct PackedRows {
  char* panels;
  int64_t panel_bytes;  // from one to the next
  float* scales;        // of int8, one a row; its factors follow
};

class Product {
 public:
  explicit Product(const GemmCall& call)
      : call_(call),
        kernel_(gemm_kernel(call.type)),
        block_(blocking_of(kernel_, call.m, call.n, call.k, call.packed != nullptr)),
        depth_(divide_up(call.k, kernel_.depth) * kernel_.depth) {
    if (call.packed) weights_ = PackedParts(call.packed);
  }

  void run() {
    for (int64_t first = 0; first < call_.m; first += block_.mc) {
      run_rows(first, std::min(block_.mc, call_.m - first));
    }
  }

 private:
  // Rows [first, first + count), at most mc.
  void run_rows(int64_t first, int64_t count) {
    const int64_t row_panels = divide_up(count, kernel_.rows);
    const int64_t col_panels = divide_up(call_.n, kernel_.cols);
    thread_local Scratch memory;  // of the calling thread, read by all
    rows_.panel_bytes = depth_ * kernel_.rows * size_of(kernel_.a);
    const int64_t bytes = row_panels * rows_.panel_bytes;
    const int64_t scales = is_int8() ? 2 * count : 0;
    rows_.panels = static_cast<char*>(
        memory.get(static_cast<size_t>(bytes + scales * static_cast<int64_t>(sizeof(float)))));
    rows_.scales = reinterpret_cast<float*>(rows_.panels + bytes);

    parallel_for(row_panels, row_panels > 1 ? bytes : 0, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) pack_rows(first, count, p);
    });
    const Grid grid =
        grid_of(threads_of(kernel_, block_, count, call_.n, call_.k), row_panels, col_panels);
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

  void pack_rows(int64_t first, int64_t count, int64_t panel) {
    const int64_t row = panel * kernel_.rows;
    const int64_t rows = std::min<int64_t>(kernel_.rows, count - row);
    const char* x = at(call_.x, first + row, 0);
    float* factors = nullptr;
    if (is_int8()) {
      factors = rows_.scales + count + row;
      functions().line_scales(
          {call_.x.dtype, x, call_.x.stride, rows, call_.k, rows_.scales + row, factors});
    }
    functions().pack_lines({call_.x.dtype, x, call_.x.stride, rows, call_.k, kernel_.a,
                            kernel_.packed_rows(static_cast<int>(rows)), kernel_.depth, factors,
                            rows_.panels + panel * rows_.panel_bytes});
  }

  // The panels of rows and columns of one thread.
  void run_part(int64_t first, int64_t count, int64_t row_begin, int64_t row_end, int64_t col_begin,
                int64_t col_end) {
    thread_local Scratch sums_memory, b_memory;
    const int64_t rows = (row_end - row_begin) * kernel_.rows, nc = block_.nc;
    char* const sums = static_cast<char*>(sums_memory.get(static_cast<size_t>(rows * nc * 4)));
    char* const b = call_.packed ? nullptr
                                 : static_cast<char*>(b_memory.get(
                                       static_cast<size_t>(block_.kc * nc * size_of(kernel_.b))));
    const int64_t panels_a_block = nc / kernel_.cols;
    for (int64_t block = col_begin; block < col_end; block += panels_a_block) {
      const int64_t block_end = std::min(block + panels_a_block, col_end);
      for (int64_t k = 0; k < depth_ || k == 0; k += block_.kc) {
        const int64_t depth = std::min(block_.kc, depth_ - k);
        if (b) pack_b(block, block_end, k, depth, b);
        for (int64_t p = row_begin; p < row_end; ++p) {
          char* const panel_sums = sums + (p - row_begin) * kernel_.rows * nc * 4;
          run_tiles(count, p, block, block_end, k, depth, b, panel_sums);
          if (k + depth >= depth_) finish(first, count, p, block, block_end, panel_sums);
        }
      }
    }
  }

  // Columns of the panels [begin, end), `depth` of K from k on.
  void pack_b(int64_t begin, int64_t end, int64_t k, int64_t depth, char* b) {
    const int64_t length = std::min(depth, call_.k - k);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t column = p * kernel_.cols;
      const PackArgs args = {
          call_.b.dtype,  call_.b_transposed ? at(call_.b, column, k) : at(call_.b, k, column),
          call_.b.stride, std::min<int64_t>(kernel_.cols, call_.n - column),
          length,         kernel_.b,
          kernel_.cols,   kernel_.depth,
          nullptr,        b + (p - begin) * depth * kernel_.cols * size_of(kernel_.b),
      };
      (call_.b_transposed ? functions().pack_lines : functions().pack_columns)(args);
    }
  }

  void run_tiles(int64_t count, int64_t panel, int64_t begin, int64_t end, int64_t k, int64_t depth,
                 const char* b, char* sums) const {
    const int rows = rows_of(count, panel);
    const char* a = rows_.panels + panel * rows_.panel_bytes +
                    k * kernel_.packed_rows(rows) * size_of(kernel_.a);
    GemmTileFn* const tile = kernel_.tiles[rows - 1];
    const int64_t b_size = size_of(kernel_.b) * kernel_.cols;
    // Not GemmKernel::multiply, which sums some panels in another order than others: which ones
    // would depend on how threads divide them.
    for (int64_t p = begin; p < end; ++p) {
      const char* right =
          b ? b + (p - begin) * depth * b_size : weights_.panels + (p * depth_ + k) * b_size;
      tile(depth / kernel_.depth, a, right, sums + (p - begin) * kernel_.cols * 4, block_.nc,
           k > 0);
    }
  }

  void finish(int64_t first, int64_t count, int64_t panel, int64_t begin, int64_t end,
              const char* sums) const {
    const int64_t row = first + panel * kernel_.rows, col = begin * kernel_.cols;
    const int64_t y_size = static_cast<int64_t>(size_of(call_.y_dtype));
    functions().epilogue({
        rows_of(count, panel),
        std::min(end * kernel_.cols, call_.n) - col,
        sums,
        block_.nc,
        is_int8() ? rows_.scales + panel * kernel_.rows : nullptr,
        is_int8() ? weights_.scales + col : nullptr,
        weights_.offsets ? weights_.offsets + col : nullptr,
        call_.bias ? call_.bias + col : nullptr,
        call_.activation,
        call_.residual.data ? at(call_.residual, row, col) : nullptr,
        call_.residual.stride,
        call_.y_dtype,
        static_cast<char*>(call_.y) + (row * call_.y_stride + col) * y_size,
        call_.y_stride,
    });
  }

  bool is_int8() const { return call_.type == GemmType::kInt8; }
  int rows_of(int64_t count, int64_t panel) const {
    return static_cast<int>(std::min<int64_t>(kernel_.rows, count - panel * kernel_.rows));
  }

  const GemmCall& call_;
  const GemmKernel& kernel_;
  const Blocking block_;
  const int64_t depth_;  // K, rounded up to the tile's depth
  PackedParts weights_;
  PackedRows rows_ = {};
};

}  // namespace

void gemm(const GemmCall& call) {
  count_call(op_of(call.type));
  if (call.m <= 0 || call.n <= 0 || run_on_acl(call)) return;
  Product(call).run();
}

}  // namespace capibara
