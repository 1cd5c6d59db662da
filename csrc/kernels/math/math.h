// SPDX-License-Identifier: Apache-2.0
// Contract: elementwise functions on f32, y[i] = f(x[i]) for i < n; x and y may be equal.
// Worst errors over every f32 (tests/cpp/math_test.cc measures them, exhaustively):
//   exp      1 ULP, subnormal results included; overflow to infinity, underflow to zero as libm
//   sigmoid  3 ULP    tanh  2 ULP    erfc  see the test: relative error 1e-6
// NaN gives NaN.
#pragma once

#include <cstddef>

#include "kernels/common/kernel_table.h"

namespace capibara {

using UnaryF32Fn = void(const float* x, float* y, size_t n) noexcept;

namespace scalar {
UnaryF32Fn exp, sigmoid, tanh, erfc;
}

const KernelTable<UnaryF32Fn>& exp_kernels();
const KernelTable<UnaryF32Fn>& sigmoid_kernels();
const KernelTable<UnaryF32Fn>& tanh_kernels();
const KernelTable<UnaryF32Fn>& erfc_kernels();

}  // namespace capibara
