// SPDX-License-Identifier: Apache-2.0
// One thread: the chosen implementation against the scalar reference, both as the library builds it
// and compiled once more with the chosen ISA's own flags, so that what remains is the writing. The
// conversions of 16-bit types (base/dtype.cc) are functions in either build of the reference.
// Prints JSON, one object a line in a list. CAPIBARA_AXION_ISA chooses another implementation.
#include <cstdio>
#include <vector>

#include "kernels/norm/norm.h"
#include "kernels/softmax/softmax.h"
#include "support/timing.h"

// The reference sources, compiled with each ISA's flags (CMakeLists.txt renames their namespace).
namespace capibara {
#define CAPIBARA_DECLARE_REFERENCE(isa, unused) \
  namespace scalar_##isa {                      \
    NormFn rms_norm;                            \
    SoftmaxFn softmax;                          \
  }
CAPIBARA_FOR_EACH_ISA(CAPIBARA_DECLARE_REFERENCE, )
}  // namespace capibara

namespace capibara::test {
namespace {

#define CAPIBARA_REFERENCE_ENTRY(isa, function) {Isa::isa, scalar_##isa::function},
const std::vector<Kernel<NormFn>> kRmsNormWithFlags = {
    {Isa::scalar, scalar::rms_norm}, CAPIBARA_FOR_EACH_ISA(CAPIBARA_REFERENCE_ENTRY, rms_norm)};
const std::vector<Kernel<SoftmaxFn>> kSoftmaxWithFlags = {
    {Isa::scalar, scalar::softmax}, CAPIBARA_FOR_EACH_ISA(CAPIBARA_REFERENCE_ENTRY, softmax)};

struct Timing {
  double ours, scalar, scalar_same_flags;
};

// run(kernel) for each of the three.
template <class Fn, class F>
Timing time_all(const KernelTable<Fn>& table, const std::vector<Kernel<Fn>>& with_flags,
                const F& run) {
  const Kernel<Fn>& chosen = table.chosen();
  return {median_us([&] { run(chosen.run); }), median_us([&] { run(table.all().front().run); }),
          median_us([&] { run(with_flags[static_cast<size_t>(chosen.isa)].run); })};
}

template <class T>
std::vector<T> values(int64_t n) {
  std::vector<T> x(static_cast<size_t>(n));
  uint32_t state = 1;
  for (T& element : x) {
    state = state * 1664525 + 1013904223;  // Numerical Recipes' generator: uniform on [-4, 4)
    element = from_f32<T>(static_cast<float>(state >> 8) * 0x1p-21f - 4);
  }
  return x;
}

template <class T>
Timing softmax_timing(int64_t rows, int64_t cols) {
  const std::vector<T> x = values<T>(rows * cols);
  std::vector<T> y(x.size());
  std::vector<float> scratch(static_cast<size_t>(cols + kSoftmaxScratchMultiple));
  const SoftmaxArgs args = {DTypeOf<T>::value, cols, x.data(), cols, y.data(), cols, 1, nullptr};
  return time_all(softmax_kernels(), kSoftmaxWithFlags,
                  [&](SoftmaxFn* kernel) { kernel(args, 0, rows, scratch.data()); });
}

template <class T>
Timing rms_norm_timing(int64_t rows, int64_t cols) {
  const std::vector<T> x = values<T>(rows * cols), weight = values<T>(cols);
  std::vector<T> y(x.size());
  const NormArgs args = {DTypeOf<T>::value,
                         DTypeOf<T>::value,
                         cols,
                         x.data(),
                         cols,
                         y.data(),
                         cols,
                         nullptr,
                         0,
                         weight.data(),
                         1,
                         1e-6f};
  return time_all(rms_norm_kernels(), kRmsNormWithFlags,
                  [&](NormFn* kernel) { kernel(args, 0, rows); });
}

void print(const char* op, DType dtype, int64_t rows, int64_t cols, const Timing& timing,
           const char* end) {
  std::printf(
      "{\"op\": \"%s\", \"dtype\": \"%s\", \"rows\": %d, \"cols\": %d, \"isa\": \"%s\", "
      "\"ours_us\": %.2f, \"scalar_us\": %.2f, \"scalar_same_flags_us\": %.2f, "
      "\"ratio\": %.2f, \"ratio_same_flags\": %.2f}%s\n",
      op, name_of(dtype), static_cast<int>(rows), static_cast<int>(cols),
      info_of(chosen_isa()).name, timing.ours, timing.scalar, timing.scalar_same_flags,
      timing.scalar / timing.ours, timing.scalar_same_flags / timing.ours, end);
}

}  // namespace
}  // namespace capibara::test

int main() {
  using namespace capibara;
  using namespace capibara::test;
  std::puts("[");
  print("softmax", DType::kF32, 64, 4096, softmax_timing<float>(64, 4096), ",");
  print("softmax", DType::kBF16, 64, 4096, softmax_timing<BF16>(64, 4096), ",");
  print("rms_norm", DType::kF32, 16, 4096, rms_norm_timing<float>(16, 4096), ",");
  print("rms_norm", DType::kBF16, 16, 4096, rms_norm_timing<BF16>(16, 4096), "");
  std::puts("]");
}
