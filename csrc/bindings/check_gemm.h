// SPDX-License-Identifier: Apache-2.0
// Argument checks of the matrix products, as check.h has them for the other operators.
#pragma once

#include "bindings/expect.h"
#include "ops/gemm_batch.h"

namespace capibara {

// Rows or columns of the last two dimensions follow one another: a tile's panels can be made from
// it. A vector may have any stride.
bool matrix_readable(const TensorView& view);

// The result's shape, in a view that has nothing else.
TensorView matmul_shape(const TensorView& a, const TensorView& b);

struct MatmulCall {
  GemmCall first;
  GemmBatchDim batch[kMaxGemmBatchDims];
  int batch_dims;
};
// y: of matmul_shape, or refused.
MatmulCall check_matmul(const TensorView& a, const TensorView& b, const TensorView& y);

// What linear and packed_linear have in common. bias, residual: or null.
struct LinearOptions {
  const TensorView *bias, *residual;
  int64_t activation;
};

// The number of the result's columns; throws where x and weight do not fit.
int64_t linear_cols(const TensorView& x, const TensorView& weight);
GemmCall check_linear(const TensorView& x, const TensorView& weight, const LinearOptions& options,
                      const TensorView& y);

// The header of packed weights that fit x.
const PackedHeader& check_packed(const TensorView& x, const TensorView& packed,
                                 int64_t out_features);
GemmCall check_packed_linear(const TensorView& x, const TensorView& packed,
                             const PackedHeader& header, const LinearOptions& options,
                             const TensorView& y);

// Its own elements, or memory of the thread that calls, valid until its next call.
const float* bias_as_f32(const TensorView& bias);

// Any type but kInt4.
GemmType check_gemm_type(int64_t type);
// A weight that is not so large that counts of its bytes overflow.
void expect_packable(const char* name, int64_t n, int64_t k);
// packed_bytes() of sizes that are checked: those of a weight, by the name that errors have.
int64_t check_packed_bytes(const char* name, GemmType type, int64_t n, int64_t k);
// The header of an array that weights were packed into.
const PackedHeader& expect_packed(const TensorView& packed);
void expect_packed_memory(const TensorView& packed, int64_t bytes);
// weight: [n, k]; packed: check_packed_bytes() bytes, to be written.
void check_pack(const TensorView& weight, const TensorView& packed, GemmType type);

}  // namespace capibara
