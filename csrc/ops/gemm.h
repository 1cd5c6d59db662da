// SPDX-License-Identifier: Apache-2.0
// Matrix products: blocking, packing, threads. kernels/gemm has the tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/gemm.h"

namespace capibara {

// Products of operands that have this type.
constexpr GemmType gemm_type_of(DType dtype) {
  return dtype == DType::kF32   ? GemmType::kF32
         : dtype == DType::kF16 ? GemmType::kF16
                                : GemmType::kBF16;
}

// A row-major matrix; stride in elements.
struct MatrixView {
  DType dtype;
  const void* data;
  int64_t stride;
};

// y = epilogue(x b): x is [m, k], y is [m, n]. Where the tiles want x in a narrower type than it
// has (bf16 on a CPU with dot products of it), x is rounded to that once. b is packed, or given as
// [k, n], or as its transpose [n, k].
struct GemmCall {
  GemmType type;
  int64_t m, n, k;
  MatrixView x;
  const void* packed;  // from pack_weights or pack_int4; null: b
  MatrixView b;
  bool b_transposed;
  const float* bias;  // [n], or null
  Activation activation;
  MatrixView residual;  // of y's type and shape; data null: none
  DType y_dtype;
  void* y;  // may be the residual
  int64_t y_stride;
};

// The result does not depend on the number of threads.
void gemm(const GemmCall& call);

// ---------------------------------------------------------------- weights packed once
//
// One run of bytes that says what it is: a header, the scales and offsets of int8, the panels.
// Those of kInt4: gemm_int4.h; the functions here are for all other types, but for packed_header().

struct PackedHeader {
  char magic[8];
  uint32_t version;
  GemmType type;
  Packed a, b;  // as the tiles of the ISA that it was packed for want them
  uint8_t cols, depth;
  int32_t group;   // of kInt4: as long as the weight's groups
  int32_t digits;  // of kInt4: 8 bits each, of activations
  int64_t n, k;
  int64_t bytes;
  uint64_t id;  // of this packing; copies have the same
};

// Sums of products of int8 stay within int32 up to here.
constexpr int64_t kMaxInt8Depth = 65536;

size_t packed_bytes(GemmType type, int64_t n, int64_t k);

// weight: [n, k]. packed: packed_bytes(type, n, k), aligned to 64 bytes.
void pack_weights(GemmType type, int64_t n, int64_t k, const MatrixView& weight, void* packed);

// The other way round, exactly: values is [n, k] of the type of the products (int8_t for kInt8),
// scales is [n], for kInt8 alone.
void unpack_weights(const void* packed, void* values, float* scales);

// Packs what unpack_weights gave.
void repack_weights(GemmType type, int64_t n, int64_t k, const void* values, const float* scales,
                    void* packed);

// The header, if these bytes were packed for the ISA that runs here; else throws
// std::invalid_argument that names `what`.
const PackedHeader& packed_header(const void* packed, int64_t bytes, const char* what);

}  // namespace capibara
