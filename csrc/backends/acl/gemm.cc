// SPDX-License-Identifier: Apache-2.0
#include "backends/acl/gemm.h"

#include <arm_compute/core/Types.h>
#include <arm_compute/core/Version.h>
#include <arm_compute/runtime/NEON/functions/NEGEMM.h>
#include <arm_compute/runtime/Scheduler.h>
#include <arm_compute/runtime/Tensor.h>

#include <mutex>
#include <vector>

namespace capibara::acl {
namespace {

// ACL's dimensions go from the innermost outwards.
arm_compute::TensorInfo info_of(int64_t rows, int64_t cols) {
  const arm_compute::TensorShape shape(static_cast<size_t>(cols), static_cast<size_t>(rows));
  return arm_compute::TensorInfo(shape, 1, arm_compute::DataType::F32);
}

void copy_rows(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
               int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(from + r * from_stride, cols, to + r * to_stride);
  }
}

float* data_of(const arm_compute::Tensor& tensor) {
  return reinterpret_cast<float*>(tensor.buffer() + tensor.info()->offset_first_element_in_bytes());
}

int64_t stride_of(const arm_compute::Tensor& tensor) {
  return static_cast<int64_t>(tensor.info()->strides_in_bytes()[1] / sizeof(float));
}

}  // namespace

std::string version() { return arm_compute::build_information(); }

struct Gemm::Impl {
  int64_t m, n, k;
  arm_compute::Tensor a, b, y;
  arm_compute::NEGEMM gemm;
};

Gemm::Gemm(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gemm::~Gemm() = default;

std::unique_ptr<Gemm> Gemm::prepare(int64_t m, int64_t n, int64_t k, const float* b, int64_t ldb,
                                    std::string* reason) {
  static std::once_flag single_threaded;
  std::call_once(single_threaded,
                 [] { arm_compute::Scheduler::set(arm_compute::Scheduler::Type::ST); });
  const auto a_info = info_of(m, k), b_info = info_of(k, n), y_info = info_of(m, n);
  // By default the weights are reshaped in the first run alone.
  const arm_compute::GEMMInfo options;
  const auto status =
      arm_compute::NEGEMM::validate(&a_info, &b_info, nullptr, &y_info, 1.0f, 0.0f, options);
  if (!status) {
    *reason = status.error_description();
    return nullptr;
  }
  auto impl = std::make_unique<Impl>();
  impl->m = m;
  impl->n = n;
  impl->k = k;
  impl->a.allocator()->init(a_info);
  impl->b.allocator()->init(b_info);
  impl->y.allocator()->init(y_info);
  impl->gemm.configure(&impl->a, &impl->b, nullptr, &impl->y, 1.0f, 0.0f, options);
  // Its kernels may have asked for padding: memory comes after configure, with ACL's strides.
  impl->a.allocator()->allocate();
  impl->b.allocator()->allocate();
  impl->y.allocator()->allocate();
  copy_rows(b, ldb, data_of(impl->b), stride_of(impl->b), k, n);
  impl->gemm.prepare();
  if (!impl->b.is_used()) impl->b.allocator()->free();
  return std::unique_ptr<Gemm>(new Gemm(std::move(impl)));
}

void Gemm::run(const float* a, int64_t lda, float* y, int64_t ldy) {
  Impl& gemm = *impl_;
  copy_rows(a, lda, data_of(gemm.a), stride_of(gemm.a), gemm.m, gemm.k);
  gemm.gemm.run();
  copy_rows(data_of(gemm.y), stride_of(gemm.y), y, ldy, gemm.m, gemm.n);
}

}  // namespace capibara::acl
