// SPDX-License-Identifier: Apache-2.0
// Argument checks of weights of 4 bits, as check.h has them for the operators.
#pragma once

#include "bindings/expect.h"
#include "ops/gemm_int4.h"

namespace capibara {

// A weight's shape, and how long its groups are.
struct Int4Shape {
  int64_t n, k, group;
  int64_t groups() const { return group ? k / group : 0; }
};

// Throws unless the groups divide k, and are of a length that there is.
Int4Shape check_int4_shape(int64_t n, int64_t k, int64_t group);
int64_t check_packed_int4_bytes(const Int4Shape& shape);

// codes, scales, zeros (or null) of one weight; `shape` is what codes and scales say, or given.
Int4Shape int4_shape_of(const TensorView& codes, const TensorView& scales);
Int4Weight check_int4_weight(const Int4Shape& shape, const TensorView& codes,
                             const TensorView& scales, const TensorView* zeros, bool writes);
// All codes are below 16, all zero points below 17.
void expect_int4_values(const Int4Shape& shape, const Int4Weight& weight);

int check_int4_digits(int64_t digits);

// weight: [n, k]; the others are to be written.
Int4Shape check_quantise_int4(const TensorView& weight, int64_t group);

}  // namespace capibara
