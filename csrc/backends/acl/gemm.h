// SPDX-License-Identifier: Apache-2.0
// Matrix products by Arm Compute Library (NEGEMM). Built where CMake finds ACL; this folder is the
// only place that knows its types.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/dtype.h"

namespace capibara::acl {

// Release and build options, as the library says them.
std::string version();

// Whether this release can round f32 to bf16 for the sake of speed (20.08 cannot). Its build may
// still have no such kernels, and then multiplies in f32.
bool has_fast_math();

struct Problem {
  int64_t m, n, k;
  DType dtype;     // of all tensors; with kF16, sums are f16 too
  bool fast_math;  // of kF32: products may be of bf16. For CPUs with bf16 instructions
};

// y = a b for one shape, with b prepared once: a is [m, k], b is [k, n], y is [m, n], all
// row-major. Runs on the calling thread: ACL's own threads would compete with OpenMP's for the
// cores. Not to be used by two threads at once, and only one thread may prepare at a time; others
// may run meanwhile.
class Gemm {
 public:
  // Writes b, whose rows are `stride` elements apart.
  using FillFn = std::function<void(void* b, int64_t stride)>;

  // Null where ACL has no kernel for the problem, or memory does not suffice; `reason` then says
  // so. `fill` is called at most once, and only if ACL has a kernel.
  static std::unique_ptr<Gemm> prepare(const Problem& problem, const FillFn& fill,
                                       std::string* reason);
  ~Gemm();

  // ACL's own tensors: write a, run, read y. Strides in elements.
  void* a();
  int64_t a_stride() const;
  bool run(std::string* reason);  // false: ACL threw, `reason` is what
  const void* y() const;
  int64_t y_stride() const;

  int64_t bytes() const;  // that stay allocated, about

 private:
  struct Impl;
  explicit Gemm(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace capibara::acl
