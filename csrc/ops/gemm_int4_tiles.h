// SPDX-License-Identifier: Apache-2.0
// Weights of 4 bits as Product (gemm_product.h) sees them.
#pragma once

#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/int4.h"
#include "ops/gemm.h"
#include "ops/gemm_int4.h"
#include "ops/gemm_product.h"

namespace capibara {

class Int4Panels {
 public:
  explicit Int4Panels(const GemmCall& call)
      : call_(call),
        kernel_(*int4_kernels().chosen().run),
        header_(*static_cast<const PackedHeader*>(call.packed)),
        group_(int4_tile_group(header_.group)),
        decodes_(kernel_.decode && call.m * header_.digits > kernel_.kept.rows),
        tiles_(decodes_ ? kernel_.decoded : kernel_.kept) {}

  // A panel's scales are few beside its integers: about a byte an element, decoded or not.
  TileShape shape() const { return {tiles_.rows, kernel_.cols, group_, 1, 1, 1}; }
  int rows_a_token() const { return header_.digits; }
  int packed_rows(int rows) const { return tiles_.packed_rows(rows); }
  int64_t a_bytes(int64_t k) const { return k / group_ * int4_row_bytes(group_); }
  int64_t b_bytes(int64_t k) const {
    return k / group_ * (decodes_ ? int4_decoded_bytes(group_) : int4_col_bytes(group_));
  }
  int64_t scale_floats(int64_t) const { return 0; }
  bool makes_b() const { return decodes_; }

  void pack_rows(const PackedRows& packed, int64_t row, int64_t rows, int64_t first,
                 int64_t) const {
    static Int4RowsFn* const pack = int4_rows_kernels().chosen().run;
    const int digits = header_.digits;
    pack({call_.x.dtype, at(call_.x, (first + row) / digits, 0), call_.x.stride, rows / digits,
          call_.k, digits, group_, tiles_.depth, packed_rows(static_cast<int>(rows)), !decodes_,
          packed.panels + row / tiles_.rows * packed.panel_bytes});
  }

  const char* panel_of(int64_t panel) const { return kept_group(panel, 0); }

  void make_b(int64_t begin, int64_t end, int64_t k, int64_t depth, char* b) const {
    for (int64_t p = begin; p < end; ++p) {
      kernel_.decode(depth / group_, group_, kept_group(p, k), b);
      b += b_bytes(depth) * kernel_.cols;
    }
  }

  // Whichever tiles multiply: their sums are the same.
  void multiply(int rows, int64_t depth, const char* a, const char* b, int64_t panel_stride,
                int64_t panels, char* c, int64_t ldc, bool accumulate) const {
    const int64_t groups = depth / group_;
    float* sums = reinterpret_cast<float*>(c);
    if (rows <= kMaxWideRows && !decodes_ && kernel_.wide[rows - 1].run) {
      const auto& wide = kernel_.wide[rows - 1];
      for (; panels >= wide.panels; panels -= wide.panels) {
        wide.run(groups, group_, a, b, panel_stride, sums, ldc, accumulate);
        b += wide.panels * panel_stride;
        sums += wide.panels * kernel_.cols;
      }
    }
    for (; panels > 0; --panels) {
      tiles_.tiles[rows - 1](groups, group_, a, b, sums, ldc, accumulate);
      b += panel_stride;
      sums += kernel_.cols;
    }
  }

  void finish(EpilogueArgs& args, const PackedRows&, int64_t, int64_t) const {
    static EpilogueFn* const epilogue = gemm_epilogue_kernels().chosen().run;
    if (header_.digits == 2) add_digits(args);
    epilogue(args);
  }

 private:
  // Of the group that begins at k.
  const char* kept_group(int64_t panel, int64_t k) const {
    const int64_t groups = divide_up(call_.k, group_),
                  bytes = kernel_.cols * int4_col_bytes(group_);
    return int4_panels(call_.packed) + (panel * groups + k / group_) * bytes;
  }

  // Each token's two rows become the first of them.
  static void add_digits(const EpilogueArgs& args) {
    float* high = static_cast<float*>(const_cast<void*>(args.c));
    for (int64_t r = 0; r < args.rows; ++r) {
      const float* low = high + args.ldc / 2;
      for (int64_t j = 0; j < args.cols; ++j) high[j] += low[j];
      high += args.ldc;
    }
  }

  const GemmCall& call_;
  const Int4Kernel& kernel_;
  const PackedHeader& header_;
  const int group_;  // the tiles'
  const bool decodes_;
  const Int4Tiles& tiles_;
};

}  // namespace capibara
