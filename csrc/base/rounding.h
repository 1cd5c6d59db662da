// SPDX-License-Identifier: Apache-2.0
// Whole numbers of blocks, for positive arguments.
#pragma once

#include <cstdint>

namespace capibara {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

}  // namespace capibara
