// SPDX-License-Identifier: Apache-2.0
// What all tiles for Arm have in common; local to the including source, for the reasons that
// vecs-inl.h gives.
#pragma once

#ifndef __ARM_NEON
#error "for Arm with NEON only"
#endif

#include <arm_neon.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/common/loop_marker.h"
#include "kernels/gemm/gemm.h"

#define CAPIBARA_INLINE __attribute__((always_inline))

namespace capibara {
namespace {

constexpr int kCols = 8;

template <class F, int... i>
CAPIBARA_INLINE inline void unrolled(std::integer_sequence<int, i...>, const F& f) {
  (f(std::integral_constant<int, i>{}), ...);
}

// f(0), f(1) ... f(n - 1), each argument a constant: lanes have to be constants, and arrays stay in
// registers only while their indices are.
template <int n, class F>
CAPIBARA_INLINE inline void unrolled(const F& f) {
  unrolled(std::make_integer_sequence<int, n>{}, f);
}

// No instruction: what is loaded from here on is loaded after `sum` is computed. The compiler would
// otherwise move loads to the top of the loop, and spill what they loaded.
template <class Sum>
CAPIBARA_INLINE inline void wait_for(Sum sum, const uint8_t*& left, const uint8_t*& right) {
  __asm__("" : "+r"(left), "+r"(right) : "w"(sum));
}

CAPIBARA_INLINE inline float32x4_t add(float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); }
CAPIBARA_INLINE inline int32x4_t add(int32x4_t x, int32x4_t y) { return vaddq_s32(x, y); }
CAPIBARA_INLINE inline float32x4_t load(const float* p) { return vld1q_f32(p); }
CAPIBARA_INLINE inline int32x4_t load(const int32_t* p) { return vld1q_s32(p); }
CAPIBARA_INLINE inline void store(float* p, float32x4_t v) { vst1q_f32(p, v); }
CAPIBARA_INLINE inline void store(int32_t* p, int32x4_t v) { vst1q_s32(p, v); }

// Writes the tile, or adds it to what is there: only now, so that nothing of the loop waits for c.
template <int rows, class C, class Sum>
CAPIBARA_INLINE inline void put(const Sum (&tile)[rows][2], void* c, int64_t ldc, bool accumulate) {
  C* row = static_cast<C*>(c);
  if (accumulate) {
    unrolled<rows>([&](auto r) CAPIBARA_INLINE {
      const Sum low = load(row), high = load(row + 4);
      store(row, add(low, tile[r][0]));
      store(row + 4, add(high, tile[r][1]));
      row += ldc;
    });
  } else {
    unrolled<rows>([&](auto r) CAPIBARA_INLINE {
      store(row, tile[r][0]);
      store(row + 4, tile[r][1]);
      row += ldc;
    });
  }
}

// The first of several sets of accumulators becomes their sum.
template <int sets, class Sum, int all, int n>
CAPIBARA_INLINE inline void add_sets(Sum (&sums)[all][n]) {
  if constexpr (sets > 1) {
    constexpr int half = sets / 2;
    static_assert(sets == 2 * half, "added in pairs");
    unrolled<half * n>([&](auto i) CAPIBARA_INLINE {
      sums[i / n][i % n] = add(sums[i / n][i % n], sums[i / n + half][i % n]);
    });
    add_sets<half>(sums);
  }
}

}  // namespace
}  // namespace capibara
