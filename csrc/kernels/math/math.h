// SPDX-License-Identifier: Apache-2.0
// Contract: elementwise functions on f32, y[i] = f(x[i]) for i < n; x and y may be equal.
// Worst errors over every f32, as tests/cpp/math_test.cc measures them, in units in the last place:
//   exp       1 (1.3 on a CPU without FMA), subnormal results included; it overflows to infinity
//             and underflows to zero exactly where libm does
//   sigmoid   2.5
//   tanh      1.4
//   erfc      7.5 for x >= 0 (where glibc has 3), a subnormal next to zero included; 3.5 for x < 0
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
