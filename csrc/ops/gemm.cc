// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm.h"

#include "kernels/gemm/pack.h"
#include "ops/gemm_backend.h"
#include "ops/gemm_int4_tiles.h"
#include "ops/gemm_packed.h"
#include "ops/gemm_product.h"
#include "ops/registry.h"

namespace capibara {
namespace {

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

// Those of GemmKernel; Product says what each function is.
class GemmTiles {
 public:
  explicit GemmTiles(const GemmCall& call) : call_(call), kernel_(gemm_kernel(call.type)) {
    if (call.packed) weights_ = PackedParts(call.packed);
  }

  TileShape shape() const { return kernel_; }
  int rows_a_token() const { return 1; }
  int packed_rows(int rows) const { return kernel_.packed_rows(rows); }
  int64_t a_bytes(int64_t k) const { return k * size_of(kernel_.a); }
  int64_t b_bytes(int64_t k) const { return k * size_of(kernel_.b); }
  int64_t scale_floats(int64_t rows) const { return is_int8() ? 2 * rows : 0; }  // and factors
  bool makes_b() const { return !call_.packed; }

  void pack_rows(const PackedRows& packed, int64_t row, int64_t rows, int64_t first,
                 int64_t count) const {
    const char* x = at(call_.x, first + row, 0);
    float* factors = nullptr;
    if (is_int8()) {
      factors = packed.scales + count + row;
      functions().line_scales(
          {call_.x.dtype, x, call_.x.stride, rows, call_.k, packed.scales + row, factors});
    }
    functions().pack_lines({call_.x.dtype, x, call_.x.stride, rows, call_.k, kernel_.a,
                            packed_rows(static_cast<int>(rows)), kernel_.depth, factors,
                            packed.panels + row / kernel_.rows * packed.panel_bytes});
  }

  // Columns of the panels [begin, end), `depth` of K from k on.
  void make_b(int64_t begin, int64_t end, int64_t k, int64_t depth, char* b) const {
    const int64_t length = std::min(depth, call_.k - k);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t column = p * kernel_.cols;
      const PackArgs args = {
          call_.b.dtype,  call_.b_transposed ? at(call_.b, column, k) : at(call_.b, k, column),
          call_.b.stride, std::min<int64_t>(kernel_.cols, call_.n - column),
          length,         kernel_.b,
          kernel_.cols,   kernel_.depth,
          nullptr,        b + (p - begin) * b_bytes(depth) * kernel_.cols,
      };
      (call_.b_transposed ? functions().pack_lines : functions().pack_columns)(args);
    }
  }

  const char* panel_of(int64_t panel) const {
    const int64_t depth = round_up(call_.k, kernel_.depth);
    return weights_.panels + panel * b_bytes(depth) * kernel_.cols;
  }

  // Not by GemmKernel::multiply, which sums some panels in another order than others: which ones
  // would depend on how threads divide them.
  void multiply(int rows, int64_t depth, const char* a, const char* b, int64_t panel_stride,
                int64_t panels, char* c, int64_t ldc, bool accumulate) const {
    constexpr int kSumBytes = 4;
    GemmTileFn* const tile = kernel_.tiles[rows - 1];
    for (int64_t p = 0; p < panels; ++p) {
      tile(depth / kernel_.depth, a, b + p * panel_stride, c + p * kernel_.cols * kSumBytes, ldc,
           accumulate);
    }
  }

  void finish(EpilogueArgs& args, const PackedRows& packed, int64_t row, int64_t col) const {
    if (is_int8()) {
      args.row_scales = packed.scales + row;
      args.col_scales = weights_.scales + col;
      args.col_offsets = weights_.offsets ? weights_.offsets + col : nullptr;
    }
    functions().epilogue(args);
  }

 private:
  bool is_int8() const { return call_.type == GemmType::kInt8; }

  const GemmCall& call_;
  const GemmKernel& kernel_;
  PackedParts weights_;
};

}  // namespace

void gemm(const GemmCall& call) {
  count_call(op_of(call.type));
  if (call.m <= 0 || call.n <= 0) return;
  if (call.type == GemmType::kInt4) {
    Product<Int4Panels>(call).run();
  } else if (!run_on_acl(call)) {
    Product<GemmTiles>(call).run();
  }
}

}  // namespace capibara
