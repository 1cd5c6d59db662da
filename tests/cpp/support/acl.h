// SPDX-License-Identifier: Apache-2.0
// Calls of the driver of matrix products that are to be run by one library or the other.
#pragma once

#include <doctest/doctest.h>

#include "base/buffer.h"
#include "ops/gemm.h"
#include "ops/gemm_acl.h"
#include "ops/gemm_backend.h"
#include "support/products.h"
#include "support/tensor.h"

namespace capibara::test {

inline DType dtype_of(GemmType type) {
  return type == GemmType::kBF16  ? DType::kBF16
         : type == GemmType::kF16 ? DType::kF16
                                  : DType::kF32;
}

// As set_gemm_choice, for a scope.
class Choice {
 public:
  explicit Choice(GemmChoice choice) : before_(gemm_choice()) { set_gemm_choice(choice); }
  ~Choice() { set_gemm_choice(before_); }
  Choice(const Choice&) = delete;
  Choice& operator=(const Choice&) = delete;

 private:
  const GemmChoice before_;
};

struct Packing {
  Packing(GemmType type, int64_t n, int64_t k, const MatrixView& weights)
      : type(type), n(n), k(k), data(allocate_aligned(packed_bytes(type, n, k))) {
    pack_weights(type, n, k, weights, data);
  }
  ~Packing() { free_aligned(data); }
  Packing(const Packing&) = delete;
  Packing& operator=(const Packing&) = delete;

  const GemmType type;
  const int64_t n, k;
  void* const data;
};

inline GemmCall product(const Packing& weights, const Tensor& x, Tensor& y) {
  GemmCall call = {};
  call.type = weights.type;
  call.m = x.rows();
  call.n = weights.n;
  call.k = weights.k;
  call.x = {x.dtype(), x.data(), x.stride()};
  call.packed = weights.data;
  call.b_transposed = true;
  call.y_dtype = y.dtype();
  call.y = y.data();
  call.y_stride = y.stride();
  return call;
}

struct Weights {
  Weights(GemmType type, int64_t n, int64_t k)
      : values(random_tensor(dtype_of(type), n, k, k + 5)), packing(type, n, k, view()) {}

  MatrixView view() const { return {values.dtype(), values.data(), values.stride()}; }
  GemmCall call(const Tensor& x, Tensor& y) const { return product(packing, x, y); }
  Approx expected(const Tensor& x, int64_t row, int64_t col) const {
    return exact_product(packing.type, x, row, [&](int64_t d) { return values.get(col, d); });
  }

  const Tensor values;  // [n, k]
  const Packing packing;
};

// Runs the call; the result must be right, and ACL's unless it is `native`.
inline void check(const Weights& weights, const Tensor& x, GemmCall call, Tensor& y,
                  bool native = false) {
  const uint64_t before = acl_use().runs;
  gemm(call);
  CHECK(acl_use().runs - before == (native ? 0 : 1));
  const auto expected = [&](int64_t r, int64_t c) { return weights.expected(x, r, c); };
  CHECK(out_of_bounds(y, 0, y.rows(), expected) == "");
  CHECK(y.padding_intact());
}

}  // namespace capibara::test
