// SPDX-License-Identifier: Apache-2.0
// NEGEMM of Arm Compute Library against products in double.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "backends/acl/gemm.h"
#include "support/numbers.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

struct Shape {
  int64_t m, n, k;
};
// Around the 8 x 12 tile of its kernel, one row, and a product of several blocks.
constexpr Shape kShapes[] = {{1, 1, 1},   {1, 64, 33},  {7, 11, 5},    {8, 12, 16},
                             {9, 13, 17}, {33, 40, 65}, {64, 64, 300}, {1, 256, 512}};

// The exact product, and what k roundings of products and of sums, in any order, can move it.
Approx exact_product(const Tensor& a, const Tensor& b, int64_t row, int64_t col) {
  double value = 0, magnitude = 0;
  for (int64_t i = 0; i < a.cols(); ++i) {
    const double term = static_cast<double>(a.get(row, i)) * b.get(i, col);
    value += term;
    magnitude += std::abs(term);
  }
  const auto roundings = static_cast<double>(a.cols() + 1);
  return {value, kSecondOrder * kUnitRoundoff * roundings * magnitude};
}

}  // namespace

TEST_CASE("Arm Compute Library says which release it is") {
  CHECK(acl::version().find("arm_compute_version") != std::string::npos);
}

TEST_CASE("NEGEMM multiplies, with rows at any stride, as often as asked") {
  Random random;
  for (const Shape& shape : kShapes) {
    CAPTURE(shape.m);
    CAPTURE(shape.n);
    CAPTURE(shape.k);
    Tensor a(DType::kF32, shape.m, shape.k, shape.k + 3, Guard::kAfter);
    Tensor b(DType::kF32, shape.k, shape.n, shape.n + 5, Guard::kAfter);
    Tensor y(DType::kF32, shape.m, shape.n, shape.n + 1, Guard::kAfter);
    b.fill([&] { return random.normal(); });
    std::string reason;
    const auto gemm = acl::Gemm::prepare(shape.m, shape.n, shape.k,
                                         static_cast<const float*>(b.data()), b.stride(), &reason);
    REQUIRE_MESSAGE(gemm, reason);
    for (int repeat = 0; repeat < 2; ++repeat) {
      a.fill([&] { return random.normal(); });
      gemm->run(static_cast<const float*>(a.data()), a.stride(), static_cast<float*>(y.data()),
                y.stride());
      const auto expected = [&](int64_t r, int64_t c) { return exact_product(a, b, r, c); };
      CHECK(out_of_bounds(y, 0, shape.m, expected) == "");
      CHECK(y.padding_intact());
    }
  }
}

}  // namespace capibara::test
