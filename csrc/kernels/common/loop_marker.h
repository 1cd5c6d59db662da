// SPDX-License-Identifier: Apache-2.0
// Names an inner loop, for benchmarks/aarch64/mca.py to find what became of it in the assembly.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/dtype.h"

namespace capibara {

// The element types' numbers in a mark: DType's, and one more for the 8-bit integers, of which
// there are no tensors.
template <class T>
inline constexpr int kLoopType = static_cast<int>(DTypeOf<T>::value);
template <>
inline constexpr int kLoopType<int8_t> = 3;

}  // namespace capibara

// Stands first in a loop's body; all arguments are constants:
//
//   CAPIBARA_LOOP(exp, T, 4);
//   CAPIBARA_LOOP_VARIANT(exp, T, 4, scaled);
//
// T is the element type, then how much an iteration does: f32 vectors of data, or steps along the
// depth of a matrix product; 0 where it is no loop to be looked at. A variant is a number that
// tells apart what is compiled from the same lines.
//
// The mark is a variable that nobody reads: debug information says where it has its value, and the
// code is the same as without. (An asm statement with a comment in it cost layer_norm's loops two
// instructions.)
#define CAPIBARA_LOOP_VARIANT(name, T, work, variant)                             \
  [[maybe_unused]] int capibara_loop_##name = 10000 * static_cast<int>(variant) + \
                                              10 * static_cast<int>(work) +       \
                                              ::capibara::kLoopType<std::decay_t<T>>
#define CAPIBARA_LOOP(name, T, work) CAPIBARA_LOOP_VARIANT(name, T, work, 0)
