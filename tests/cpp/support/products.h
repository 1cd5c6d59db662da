// SPDX-License-Identifier: Apache-2.0
// Matrix products in double, and how far others may be from them.
#pragma once

#include <cmath>

#include "kernels/gemm/gemm.h"
#include "support/numbers.h"
#include "support/tensor.h"

namespace capibara::test {

inline Tensor random_tensor(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
  static Random random;
  Tensor tensor(dtype, rows, cols, stride, Guard::kAfter);
  tensor.fill([] { return random.normal(); });
  return tensor;
}

// A row of x times a column whose elements are b(k), both rounded to bf16 if products are of that;
// and what roundings of products and of sums, in any order, can move it. The bf16 instructions
// round a sum of two products to odd, which is as much as two roundings to nearest.
template <class B>
Approx exact_product(GemmType type, const Tensor& x, int64_t row, const B& b) {
  const bool bf16 = type == GemmType::kBF16;
  const auto multiplied = [&](float value) {
    return static_cast<double>(bf16 ? to_f32(to_bf16(value)) : value);
  };
  double value = 0, magnitude = 0;
  for (int64_t d = 0; d < x.cols(); ++d) {
    const double term = multiplied(x.get(row, d)) * multiplied(b(d));
    value += term;
    magnitude += std::abs(term);
  }
  const auto roundings = static_cast<double>((bf16 ? 2 : 1) * x.cols() + 1);
  return {value, kSecondOrder * kUnitRoundoff * roundings * magnitude};
}

}  // namespace capibara::test
