// SPDX-License-Identifier: Apache-2.0
#include "backends/acl/gemm.h"

#include <arm_compute/core/Types.h>
#include <arm_compute/core/Version.h>
#include <arm_compute/runtime/NEON/functions/NEGEMM.h>
#include <arm_compute/runtime/Tensor.h>

#include <exception>
#include <limits>
#include <type_traits>

#include "backends/acl/scheduler.h"

namespace capibara::acl {
namespace {

using arm_compute::GEMMInfo;
using arm_compute::Tensor;
using arm_compute::TensorInfo;

// Where GEMMInfo has fast_math(), its constructor has the flag in ninth place. Releases before it
// have another flag there.
template <class Info, class = void>
struct FastMath : std::false_type {
  static Info options(bool) { return Info(); }
};
template <class Info>
struct FastMath<Info, std::void_t<decltype(std::declval<const Info&>().fast_math())>>
    : std::true_type {
  static Info options(bool fast_math) {
    return Info(false, false, true, 0, false, false, arm_compute::GEMMLowpOutputStageInfo(), false,
                fast_math);
  }
};

// ACL's dimensions go from the innermost outwards.
TensorInfo info_of(DType dtype, int64_t rows, int64_t cols) {
  const arm_compute::TensorShape shape(static_cast<size_t>(cols), static_cast<size_t>(rows));
  return TensorInfo(shape, 1,
                    dtype == DType::kF16 ? arm_compute::DataType::F16 : arm_compute::DataType::F32);
}

void* data_of(const Tensor& tensor) {
  return tensor.buffer() + tensor.info()->offset_first_element_in_bytes();
}

int64_t stride_of(const Tensor& tensor) {
  const arm_compute::ITensorInfo& info = *tensor.info();
  return static_cast<int64_t>(info.strides_in_bytes()[1] / info.element_size());
}

// ACL keeps distances within a tensor in int.
bool too_large(const Problem& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  return p.m > kMost / p.k || p.n > kMost / p.k || p.m > kMost / p.n;
}

}  // namespace

std::string version() { return arm_compute::build_information(); }

bool has_fast_math() { return FastMath<GEMMInfo>::value; }

struct Gemm::Impl {
  Tensor a, b, y;
  arm_compute::NEGEMM gemm;
  int64_t bytes = 0;
};

Gemm::Gemm(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gemm::~Gemm() = default;

std::unique_ptr<Gemm> Gemm::prepare(const Problem& problem, const FillFn& fill,
                                    std::string* reason) try {
  if (too_large(problem)) {
    *reason = "a matrix of this size exceeds its strides";
    return nullptr;
  }
  use_calling_thread();
  const TensorInfo a = info_of(problem.dtype, problem.m, problem.k);
  const TensorInfo b = info_of(problem.dtype, problem.k, problem.n);
  const TensorInfo y = info_of(problem.dtype, problem.m, problem.n);
  // With these, the weights are reshaped once.
  const GEMMInfo options = FastMath<GEMMInfo>::options(problem.fast_math);
  const auto status = arm_compute::NEGEMM::validate(&a, &b, nullptr, &y, 1.0f, 0.0f, options);
  if (!status) {
    *reason = status.error_description();
    return nullptr;
  }
  auto impl = std::make_unique<Impl>();
  impl->a.allocator()->init(a);
  impl->b.allocator()->init(b);
  impl->y.allocator()->init(y);
  impl->gemm.configure(&impl->a, &impl->b, nullptr, &impl->y, 1.0f, 0.0f, options);
  // Its kernels may have asked for padding: memory comes after configure, with ACL's strides.
  for (Tensor* tensor : {&impl->a, &impl->b, &impl->y}) {
    tensor->allocator()->allocate();
    impl->bytes += static_cast<int64_t>(tensor->info()->total_size());
  }
  fill(data_of(impl->b), stride_of(impl->b));
  impl->gemm.prepare();
  if (!impl->b.is_used()) impl->b.allocator()->free();
  return std::unique_ptr<Gemm>(new Gemm(std::move(impl)));
} catch (const std::exception& error) {
  *reason = error.what();
  return nullptr;
}

void* Gemm::a() { return data_of(impl_->a); }
int64_t Gemm::a_stride() const { return stride_of(impl_->a); }

bool Gemm::run(std::string* reason) try {
  impl_->gemm.run();
  return true;
} catch (const std::exception& error) {
  *reason = error.what();
  return false;
}

const void* Gemm::y() const { return data_of(impl_->y); }
int64_t Gemm::y_stride() const { return stride_of(impl_->y); }
int64_t Gemm::bytes() const { return impl_->bytes; }

}  // namespace capibara::acl
