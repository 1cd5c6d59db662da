// SPDX-License-Identifier: Apache-2.0
#include "bindings/check_int4.h"

#include <algorithm>

#include "bindings/check_gemm.h"

namespace capibara {
namespace {

void expect_matrix(const TensorView& view, int64_t rows, int64_t cols, bool writes) {
  if (view.dims != 2 || view.shape[0] != rows || view.shape[1] != cols) {
    fail(view, "shape [" + std::to_string(rows) + ", " + std::to_string(cols) + "]",
         view.shape_text());
  }
  if (view.numel() > 0 && (!view.contiguous() || !view.aligned())) {
    fail(view, "a contiguous array", "another");
  }
  if (writes) expect_writable(view);
}

void expect_at_most(const char* name, const uint8_t* values, int64_t count, uint8_t most) {
  const uint8_t* const largest = std::max_element(values, values + count);
  if (count == 0 || *largest <= most) return;
  throw std::invalid_argument(std::string(name) + ": expected numbers from 0 to " +
                              std::to_string(most) + ", got " + std::to_string(*largest));
}

}  // namespace

Int4Shape check_int4_shape(int64_t n, int64_t k, int64_t group) {
  const bool known =
      std::find(std::begin(kInt4Groups), std::end(kInt4Groups), group) != std::end(kInt4Groups) ||
      (group == k && k > 0);
  if (!known || k % group != 0) {
    throw std::invalid_argument(
        "group_size: expected 32, 64 or 128 that divides the number of columns, " +
        std::to_string(k) + ", or all of them, got " + std::to_string(group));
  }
  expect_packable("weight", n, k);
  return {n, k, group};
}

int64_t check_packed_int4_bytes(const Int4Shape& shape) {
  return static_cast<int64_t>(packed_int4_bytes(shape.n, shape.k, shape.group));
}

Int4Shape int4_shape_of(const TensorView& codes, const TensorView& scales) {
  if (codes.dims != 2) fail(codes, "shape [out_features, in_features]", codes.shape_text());
  const int64_t n = codes.shape[0], k = codes.shape[1];
  if (scales.dims != 2 || scales.shape[0] != n || (k > 0) != (scales.shape[1] > 0) ||
      (k > 0 && k % scales.shape[1] != 0)) {
    fail(scales, "shape [" + std::to_string(n) + ", " + std::to_string(k) + " / group_size]",
         scales.shape_text());
  }
  return check_int4_shape(n, k, k > 0 ? k / scales.shape[1] : kMaxInt4Group);
}

Int4Weight check_int4_weight(const Int4Shape& shape, const TensorView& codes,
                             const TensorView& scales, const TensorView* zeros, bool writes) {
  expect_index_type(codes, IndexType::kUInt8);
  expect_matrix(codes, shape.n, shape.k, writes);
  expect_value_type(scales);
  if (scales.dtype != DType::kF32) {
    throw TypeMismatch("scales: expected float32, got " + type_name_of(scales));
  }
  expect_matrix(scales, shape.n, shape.groups(), writes);
  if (zeros) {
    expect_index_type(*zeros, IndexType::kUInt8);
    expect_matrix(*zeros, shape.n, shape.groups(), writes);
  }
  return {static_cast<uint8_t*>(codes.data), static_cast<float*>(scales.data),
          zeros ? static_cast<uint8_t*>(zeros->data) : nullptr};
}

void expect_int4_values(const Int4Shape& shape, const Int4Weight& weight) {
  expect_at_most("codes", weight.codes, shape.n * shape.k, 15);
  if (weight.zeros) expect_at_most("zeros", weight.zeros, shape.n * shape.groups(), 16);
}

int check_int4_digits(int64_t digits) {
  if (digits == 1 || digits == 2) return static_cast<int>(digits);
  throw std::invalid_argument("digits: expected 1 or 2, got " + std::to_string(digits));
}

Int4Shape check_quantise_int4(const TensorView& weight, int64_t group) {
  expect_value_type(weight);
  if (weight.dims != 2) fail(weight, "shape [out_features, in_features]", weight.shape_text());
  return check_int4_shape(weight.shape[0], weight.shape[1], group);
}

}  // namespace capibara
