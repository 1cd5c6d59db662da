// SPDX-License-Identifier: Apache-2.0
#include "base/dtype.h"
#include "kernels/gemm/gemm.h"

namespace capibara::scalar {
namespace {

constexpr int kRows = 4, kCols = 4;

float value_of(float x) { return x; }
float value_of(BF16 x) { return to_f32(x); }
float value_of(F16 x) { return to_f32(x); }
int32_t value_of(int8_t x) { return x; }

// T: an element of the panels; Sum: of c.
template <class T, class Sum, int rows>
void tile(int64_t steps, const void* a, const void* b, void* c, int64_t ldc, bool accumulate) {
  const T* left = static_cast<const T*>(a);
  const T* right = static_cast<const T*>(b);
  for (int r = 0; r < rows; ++r) {
    Sum* row = static_cast<Sum*>(c) + r * ldc;
    for (int j = 0; j < kCols; ++j) {
      Sum sum = accumulate ? row[j] : Sum{0};
      for (int64_t k = 0; k < steps; ++k) {
        sum += value_of(left[k * rows + r]) * value_of(right[k * kCols + j]);
      }
      row[j] = sum;
    }
  }
}

template <class T, class Sum>
constexpr GemmKernel kernel_of(Packed type) {
  return {kRows,
          kCols,
          1,
          type,
          type,
          1,
          {tile<T, Sum, 1>, tile<T, Sum, 2>, tile<T, Sum, 3>, tile<T, Sum, 4>}};
}

}  // namespace

const GemmKernel gemm_f32 = kernel_of<float, float>(Packed::kF32);
const GemmKernel gemm_bf16 = kernel_of<BF16, float>(Packed::kBF16);
const GemmKernel gemm_f16 = kernel_of<F16, float>(Packed::kF16);
const GemmKernel gemm_int8 = kernel_of<int8_t, int32_t>(Packed::kI8);

}  // namespace capibara::scalar
