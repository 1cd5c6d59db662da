// SPDX-License-Identifier: Apache-2.0
// Matrix products by Arm Compute Library (NEGEMM). Built where CMake finds ACL; this folder is the
// only place that knows its types.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace capibara::acl {

// Release and build options, as the library says them.
std::string version();

// y = a b in f32, for one shape, with b prepared once: a is [m, k], b is [k, n], y is [m, n], all
// row-major. Runs on the calling thread: ACL's own threads would compete with OpenMP's for the
// cores. Not to be used by two threads at once.
class Gemm {
 public:
  // Null where ACL has no kernel for the shape; `reason` then says why.
  static std::unique_ptr<Gemm> prepare(int64_t m, int64_t n, int64_t k, const float* b, int64_t ldb,
                                       std::string* reason);
  ~Gemm();

  void run(const float* a, int64_t lda, float* y, int64_t ldy);

 private:
  struct Impl;
  explicit Gemm(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace capibara::acl
