// SPDX-License-Identifier: Apache-2.0
// Matrix products: y = a b, a being M x K and b K x N, by tiles of a few rows and columns.
//
// Before a tile can run, both operands are packed (pack.h) into panels in which everything that a
// tile reads follows in memory:
//   a panel of A: [K / depth][rows][depth], of up to GemmKernel::rows rows;
//   a panel of B: [K / depth][cols][depth], of exactly GemmKernel::cols columns;
// K rounded up to a multiple of depth and columns past N filled with zeros. depth is how many
// elements along K the ISA's instruction sums up in one lane.
//
// Products are summed in f32, those of 8-bit integers in int32, which is exact. bf16 where the ISA
// has dot products of it (BFMMLA, BFDOT, VDPBF16PS): those flush subnormal inputs and results to
// zero and round each sum of two products, which is why such results differ from fused
// multiply-adds in the last bits.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/isa.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

// What products are taken of. kInt4: of weights of 4 bits, whose tiles are others (int4.h); all
// types before it have a table of GemmKernel.
enum class GemmType : uint8_t { kF32, kBF16, kF16, kInt8, kInt4 };
constexpr int kGemmTypes = 4;
const char* name_of(GemmType type);

// Elements of a packed panel. Integers of A may be stored in other ways than int8: as kU8, 128
// added (VPDPBUSD multiplies unsigned by signed bytes), or as kI16.
enum class Packed : uint8_t { kF32, kBF16, kF16, kI8, kU8, kI16 };
constexpr int64_t size_of(Packed type) {
  return type == Packed::kF32 ? 4 : type == Packed::kI8 || type == Packed::kU8 ? 1 : 2;
}

// c[r, j] = (accumulate ? c[r, j] : 0) + sum over k of a[r, k] b[k, j], for `steps` * depth values
// of k, all columns of the panel of B and the rows that the function is for. c: f32, or int32 for
// kInt8, its rows `ldc` elements apart and large enough for rows rounded up as packed_rows() says.
using GemmTileFn = void(int64_t steps, const void* a, const void* b, void* c, int64_t ldc,
                        bool accumulate);

constexpr int kMaxTileRows = 16;

// The same for several panels of B, `panel_stride` bytes from one to the next, whose columns follow
// each other in c.
using GemmWideTileFn = void(int64_t steps, const void* a, const void* b, int64_t panel_stride,
                            void* c, int64_t ldc, bool accumulate);
struct GemmWideTile {
  int panels = 0;  // 0: there is none
  GemmWideTileFn* run = nullptr;
};
constexpr int kMaxWideRows = 4;

struct GemmKernel {
  int rows, cols, depth;
  Packed a, b;
  // Two where the instruction multiplies two rows at a time, else one. A single row is packed, and
  // multiplied, alone.
  int row_multiple;
  GemmTileFn* tiles[kMaxTileRows];       // by the number of rows, less one
  GemmWideTile wide[kMaxWideRows] = {};  // the same, where that is better

  int packed_rows(int count) const {
    return count == 1 ? 1 : (count + row_multiple - 1) / row_multiple * row_multiple;
  }

  // `rows` rows times `panels` panels of B, `panel_stride` bytes apart, whose columns follow each
  // other in c. By wide tiles as far as they go, which may add in another order than the others.
  void multiply(int64_t rows, int64_t panels, int64_t steps, const void* left, const void* right,
                int64_t panel_stride, void* c, int64_t ldc, bool accumulate) const {
    constexpr int kSizeOfSum = 4;
    const char* panel = static_cast<const char*>(right);
    char* sums = static_cast<char*>(c);
    if (rows <= kMaxWideRows && wide[rows - 1].run) {
      const GemmWideTile& tile = wide[rows - 1];
      for (; panels >= tile.panels; panels -= tile.panels) {
        tile.run(steps, left, panel, panel_stride, sums, ldc, accumulate);
        panel += tile.panels * panel_stride;
        sums += tile.panels * cols * kSizeOfSum;
      }
    }
    for (; panels > 0; --panels) {
      tiles[rows - 1](steps, left, panel, sums, ldc, accumulate);
      panel += panel_stride;
      sums += cols * kSizeOfSum;
    }
  }
};

// One table a type but kInt4. Not every ISA has an entry in each: the next lesser one takes its
// place.
const KernelTable<const GemmKernel>& gemm_kernels(GemmType type);

// X(type, isa): every entry but the scalar references. Each is a GemmKernel named
// <isa>::gemm_<type>; on x86 the first three ISAs are compiled from gemm_hwy.cc, all others are in
// tile_<type>_<isa>.cc.
#if defined(__x86_64__)
#define CAPIBARA_FOR_EACH_GEMM(X) \
  X(f32, sse4)                    \
  X(f32, avx2)                    \
  X(f32, avx512)                  \
  X(bf16, sse4)                   \
  X(bf16, avx2)                   \
  X(bf16, avx512)                 \
  X(bf16, avx512_bf16)            \
  X(f16, sse4)                    \
  X(f16, avx2)                    \
  X(f16, avx512)                  \
  X(int8, sse4)                   \
  X(int8, avx2)                   \
  X(int8, avx512)                 \
  X(int8, avx512_vnni)
#elif defined(__aarch64__) && defined(CAPIBARA_WITHOUT_BF16)
#define CAPIBARA_FOR_EACH_GEMM(X) \
  X(f32, neon)                    \
  X(bf16, neon)                   \
  X(f16, neon)                    \
  X(int8, neon)                   \
  X(int8, neon_dotprod)
#elif defined(__aarch64__)
#define CAPIBARA_FOR_EACH_GEMM(X) \
  X(f32, neon)                    \
  X(bf16, neon)                   \
  X(bf16, neon_bf16)              \
  X(f16, neon)                    \
  X(f16, neon_bf16)               \
  X(int8, neon)                   \
  X(int8, neon_dotprod)           \
  X(int8, neon_bf16)
#else
#define CAPIBARA_FOR_EACH_GEMM(X)
#endif

#define CAPIBARA_DECLARE_GEMM(type, isa) \
  namespace isa {                        \
  extern const GemmKernel gemm_##type;   \
  }
namespace scalar {
extern const GemmKernel gemm_f32, gemm_bf16, gemm_f16, gemm_int8;
}
CAPIBARA_FOR_EACH_GEMM(CAPIBARA_DECLARE_GEMM)
#undef CAPIBARA_DECLARE_GEMM

}  // namespace capibara
