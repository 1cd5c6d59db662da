// SPDX-License-Identifier: Apache-2.0
// NEGEMM of Arm Compute Library against products in double.
#include <doctest/doctest.h>

#include <cstring>
#include <string>

#include "backends/acl/gemm.h"
#include "support/numbers.h"
#include "support/products.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

struct Shape {
  int64_t m, n, k;
};
// Around the 8 x 12 tile of its kernel, one row, a product of several blocks, and one that release
// 20.08's own scheduler throws out of.
constexpr Shape kShapes[] = {{1, 1, 1},     {5, 7, 1},    {1, 64, 33},  {7, 11, 5},
                             {8, 12, 16},   {9, 13, 17},  {33, 40, 65}, {64, 64, 300},
                             {1, 256, 512}, {8, 200, 300}};

}  // namespace

TEST_CASE("Arm Compute Library says which release it is") {
  CHECK(acl::version().find("arm_compute_version") != std::string::npos);
}

TEST_CASE("NEGEMM multiplies, as often as asked") {
  for (const Shape& s : kShapes) {
    CAPTURE(s.m);
    CAPTURE(s.n);
    CAPTURE(s.k);
    const Tensor b = random_tensor(DType::kF32, s.k, s.n, s.n);
    Tensor y(DType::kF32, s.m, s.n, s.n, Guard::kAfter);
    std::string reason;
    const auto gemm = acl::Gemm::prepare(
        {s.m, s.n, s.k, DType::kF32, false},
        [&](void* to, int64_t stride) {
          for (int64_t r = 0; r < s.k; ++r) {
            std::memcpy(static_cast<float*>(to) + r * stride, b.at(r), s.n * sizeof(float));
          }
        },
        &reason);
    REQUIRE_MESSAGE(gemm, reason);
    CHECK(gemm->bytes() >= (s.m * s.k + s.m * s.n) * 4);
    for (int repeat = 0; repeat < 2; ++repeat) {
      const Tensor a = random_tensor(DType::kF32, s.m, s.k, s.k);
      for (int64_t r = 0; r < s.m; ++r) {
        std::memcpy(static_cast<float*>(gemm->a()) + r * gemm->a_stride(), a.at(r),
                    s.k * sizeof(float));
      }
      REQUIRE_MESSAGE(gemm->run(&reason), reason);
      for (int64_t r = 0; r < s.m; ++r) {
        std::memcpy(y.at(r), static_cast<const float*>(gemm->y()) + r * gemm->y_stride(),
                    s.n * sizeof(float));
      }
      CHECK(out_of_bounds(y, 0, s.m, [&](int64_t r, int64_t c) {
              return exact_product(GemmType::kF32, a, r, [&](int64_t d) { return b.get(d, c); });
            }) == "");
    }
  }
}

TEST_CASE("what ACL's integers cannot hold is refused") {
  std::string reason;
  const auto never = [](void*, int64_t) { FAIL("asked for weights"); };
  CHECK(!acl::Gemm::prepare({1, 1 << 16, 1 << 16, DType::kF32, false}, never, &reason));
  CHECK(reason != "");
}

}  // namespace capibara::test
