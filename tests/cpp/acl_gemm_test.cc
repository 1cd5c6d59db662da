// SPDX-License-Identifier: Apache-2.0
// The driver's products by Arm Compute Library against products in double.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "backends/acl/gemm.h"
#include "cpu/features.h"
#include "support/acl.h"
#include "support/activations.h"

namespace capibara::test {
namespace {

struct Shape {
  int64_t m, n, k;
};
// Around the 8 x 12 tile of its kernel, one row, a product of several blocks, and one that release
// 20.08's own scheduler throws out of.
constexpr Shape kShapes[] = {{1, 1, 1},    {5, 7, 1},     {9, 13, 17},
                             {33, 40, 65}, {1, 256, 512}, {8, 200, 300}};

constexpr GemmType kRunByAcl[] = {GemmType::kF32, GemmType::kBF16};

}  // namespace

TEST_CASE("the driver knows the release") { CHECK(acl_version() == acl::version()); }

TEST_CASE("the driver's products by ACL, of packed weights and of others") {
  const Choice choice(GemmChoice::kAcl);
  for (const GemmType type : kRunByAcl) {
    for (const Shape& s : kShapes) {
      CAPTURE(s.m);
      CAPTURE(s.n);
      CAPTURE(s.k);
      const Weights weights(type, s.n, s.k);
      for (const DType x_dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        const Tensor x = random_tensor(x_dtype, s.m, s.k, s.k + 3);
        Tensor y(DType::kF32, s.m, s.n, s.n + 1, Guard::kAfter);
        GemmCall call = weights.call(x, y);
        check(weights, x, call, y);
        check(weights, x, call, y);
        call.packed = nullptr;
        call.b = weights.view();
        check(weights, x, call, y);
        Tensor straight(dtype_of(type), s.k, s.n, s.n + 2, Guard::kAfter);
        for (int64_t d = 0; d < s.k; ++d) {
          for (int64_t j = 0; j < s.n; ++j) straight.set(d, j, weights.values.get(j, d));
        }
        call.b = {straight.dtype(), straight.data(), straight.stride()};
        call.b_transposed = false;
        check(weights, x, call, y);
      }
    }
  }
}

TEST_CASE("weights of a wider type are rounded as the products are") {
  const Choice choice(GemmChoice::kAcl);
  const Weights f32(GemmType::kF32, 29, 37);
  const Tensor x = random_tensor(DType::kF32, 5, 37, 37);
  Tensor y(DType::kF32, 5, 29, 29, Guard::kAfter);
  GemmCall call = f32.call(x, y);
  call.type = GemmType::kBF16;
  call.packed = nullptr;
  call.b = f32.view();
  gemm(call);
  CHECK(out_of_bounds(y, 0, 5, [&](int64_t r, int64_t c) {
          return exact_product(GemmType::kBF16, x, r,
                               [&](int64_t d) { return f32.values.get(c, d); });
        }) == "");
}

TEST_CASE("bias, activation and residual of ACL's sums") {
  const Choice choice(GemmChoice::kAcl);
  const int64_t m = 19, n = 45, k = 33;
  const Tensor bias = random_tensor(DType::kF32, 1, n, n);
  for (const GemmType type : kRunByAcl) {
    const Weights weights(type, n, k);
    const Tensor x = random_tensor(dtype_of(type), m, k, k);
    for (const DType y_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const Activation activation : {Activation::kNone, Activation::kSilu}) {
        const Bounds bounds = {gemm_epilogue_kernels().chosen().isa, y_dtype};
        Tensor y = random_tensor(y_dtype, m, n, n + 4);
        const Tensor residual = y;
        GemmCall call = weights.call(x, y);
        call.bias = static_cast<const float*>(bias.data());
        call.activation = activation;
        call.residual = {y_dtype, y.data(), y.stride()};
        const uint64_t before = acl_use().runs;
        gemm(call);
        CHECK(acl_use().runs == before + 1);
        CHECK(y.padding_intact());
        const auto expected = [&](int64_t r, int64_t c) -> Approx {
          const Approx sum = weights.expected(x, r, c);
          const double biased = sum.value + bias.get(0, c);
          const double error = sum.error + kUnitRoundoff * std::abs(biased);
          // The slope of silu is below 1.1.
          const bool none = activation == Activation::kNone;
          const Approx of_silu = silu(bounds, biased, 1);
          const double value = none ? biased : of_silu.value;
          const double value_error = none ? error : 1.1 * error + of_silu.error;
          const double total = value + residual.get(r, c);
          return {total, kSecondOrder * (value_error + kUnitRoundoff * std::abs(total))};
        };
        CHECK(out_of_bounds(y, 0, m, expected) == "");
      }
    }
  }
}

TEST_CASE("int8, no depth, and the native choice are not for ACL") {
  const uint64_t before = acl_use().runs;
  {
    const Choice choice(GemmChoice::kAcl);
    CHECK(choose(GemmType::kInt8, 64, 64, 64, 1) == GemmBackend::kNative);
    CHECK(choose(GemmType::kF32, 64, 64, 64, 8) == GemmBackend::kAcl);
    const Tensor x = random_tensor(DType::kF32, 3, 0, 1);
    Tensor y(DType::kF32, 3, 7, 7, Guard::kAfter);
    gemm(Weights(GemmType::kF32, 7, 0).call(x, y));
    for (int64_t j = 0; j < 7; ++j) CHECK(y.get(2, j) == 0.0f);
  }
  const Choice choice(GemmChoice::kNative);
  CHECK(choose(GemmType::kF32, 64, 64, 64, 1) == GemmBackend::kNative);
  const Weights weights(GemmType::kF32, 30, 20);
  const Tensor x = random_tensor(DType::kF32, 3, 20, 20);
  Tensor y(DType::kF32, 3, 30, 30, Guard::kAfter);
  check(weights, x, weights.call(x, y), y, true);
  CHECK(acl_use().runs == before);
}

TEST_CASE("the table is for this CPU, and products of several threads are native") {
  const Choice choice(GemmChoice::kAuto);
  for (const Crossover& row : gemm_crossovers()) {
    CHECK(cpu_info().features.contains(row.required));
    CHECK(row.type != GemmType::kInt8);
    CHECK(row.least_m <= row.most_m);
    CHECK(std::string(row.measured) != "");
    CHECK(choose(row.type, row.least_m, 1 << 20, 1 << 20, 2) == GemmBackend::kNative);
  }
}

}  // namespace capibara::test
