// SPDX-License-Identifier: Apache-2.0
// Products with weights of 4 bits. Columns of B have a scale and a zero point, rows of A a scale,
// for each group of K:
//
//   y[r, j] = sum over groups g of  row_scales[r, g] col_scales[j, g] d
//   d = sum over k in g of  q[r, k] (code[j, k] - zero[j, g])
//
// q are 8-bit integers, codes are 0 to 15. d is exact in int32 and in f32. Groups are added in
// their order, each as fma(d, row_scale * col_scale, sum so far) in f32: every implementation, in
// blocks along K or not, gives the same bits.
//
// A group is 32, 64 or 128 long. Panels of both operands are runs of groups, in each of which all
// that a tile reads follows in memory; K is filled up with zeros of A.
//   A, `rows` rows:  int8 [group / depth][rows][depth], f32 scales [rows],
//                    int32 minus the sum of each row's integers [rows]
//   B, kept:         uint8 [group / 4][cols / 2][4], f32 scales [cols], int16 zero points [cols]
//                    lower half of a byte: column j, upper half: column j + cols / 2
//   B, decoded:      int8 code - zero [group / depth][cols][depth], f32 scales [cols] twice, as
//                    that kernel's tiles want them
//
// Rows of more than 8 bits are several rows of A, whose results are added in the end.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"
#include "kernels/gemm/gemm.h"

namespace capibara {

constexpr int kInt4Groups[] = {32, 64, 128};
constexpr int kMaxInt4Group = 128;

// Bytes of a group: of a row of A, of a column of B.
constexpr int64_t int4_row_bytes(int64_t group) { return group + 8; }
constexpr int64_t int4_col_bytes(int64_t group) { return group / 2 + 6; }
constexpr int64_t int4_decoded_bytes(int64_t group) { return group + 8; }

// Adds the products of `groups` groups to c, or to zeros unless `accumulate`. c has room for as
// many rows as are packed.
using Int4TileFn = void(int64_t groups, int64_t group, const void* a, const void* b, float* c,
                        int64_t ldc, bool accumulate);
// The same for several panels of B, `panel_stride` bytes from one to the next, whose columns follow
// each other in c.
using Int4WideTileFn = void(int64_t groups, int64_t group, const void* a, const void* b,
                            int64_t panel_stride, float* c, int64_t ldc, bool accumulate);
using Int4DecodeFn = void(int64_t groups, int64_t group, const void* kept, void* decoded);

struct Int4Tiles {
  int rows = 0;  // 0: there are none
  int depth = 0;
  int row_multiple = 1;  // that rows are filled up to
  Int4TileFn* tiles[kMaxTileRows] = {};

  int packed_rows(int count) const {
    return (count + row_multiple - 1) / row_multiple * row_multiple;
  }
};

struct Int4Kernel {
  int cols;
  Int4Tiles kept;     // multiply codes as they lie in memory
  Int4Tiles decoded;  // for more rows than those have, where it pays to decode them once for all
  Int4DecodeFn* decode = nullptr;
  struct {
    int panels = 0;
    Int4WideTileFn* run = nullptr;
  } wide[kMaxWideRows] =
      {};  // of kept codes, by the number of rows, less one, where that is better
};

const KernelTable<const Int4Kernel>& int4_kernels();

// Rows of x as a panel of A. Of each row and group
//   digits 1: q = round(x / scale), scale = max |x| / 127
//   digits 2: two rows of A, 256 q1 + q0 = round(x / scale), with scales 256 scale and scale; scale
//             is the power of two that makes max |x| / scale 2^14 to 2^15, or half of that where
//             q1 might not fit (from 0.994 * 2^15 on)
// to nearest, ties to even. A group of zeros has scale 0; one with a NaN or an infinity has NaN.
struct Int4RowsArgs {
  DType from;
  const void* x;
  int64_t stride;
  int64_t rows, length;
  int digits;
  int group, depth;
  int panel_rows;  // at least rows * digits, at most kMaxTileRows; the others are zero
  bool sums;       // else those are zero: tiles of decoded codes do not read them
  void* panel;
};
using Int4RowsFn = void(const Int4RowsArgs& args) noexcept;

namespace scalar {
extern const Int4Kernel gemm_int4;
Int4RowsFn int4_rows;
}  // namespace scalar

const KernelTable<Int4RowsFn>& int4_rows_kernels();

// X(isa): every implementation but the scalar reference, each an Int4Kernel named <isa>::gemm_int4.
#if defined(__x86_64__)
#define CAPIBARA_FOR_EACH_INT4(X) X(avx2) X(avx512_vnni)
#elif defined(__aarch64__) && defined(CAPIBARA_WITHOUT_BF16)
#define CAPIBARA_FOR_EACH_INT4(X) X(neon) X(neon_dotprod)
#elif defined(__aarch64__)
#define CAPIBARA_FOR_EACH_INT4(X) X(neon) X(neon_dotprod) X(neon_bf16)
#else
#define CAPIBARA_FOR_EACH_INT4(X)
#endif

#define CAPIBARA_DECLARE_INT4(isa)   \
  namespace isa {                    \
  extern const Int4Kernel gemm_int4; \
  }
CAPIBARA_FOR_EACH_INT4(CAPIBARA_DECLARE_INT4)
#undef CAPIBARA_DECLARE_INT4

}  // namespace capibara
