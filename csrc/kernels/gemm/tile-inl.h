// SPDX-License-Identifier: Apache-2.0
// A tile of `rows` x two vectors of columns, for any instruction that multiplies a broadcast
// element (or group along K) of A with a vector of B. Included by sources that are compiled for one
// ISA whose namespace CAPIBARA_ISA names; everything here is local to the including source.
//
// Each row keeps two vectors of sums. Its broadcast is used for both, so that a step of 12 rows
// loads 12 + 2 times for 24 multiplications: a core that does two of each in a cycle is kept busy
// by the multiplications.
//
// `Op` says how to multiply:
//   A, B, C                types of the panels' and c's elements; kA, kB name those of the panels
//   kDepth, kLanes         elements along K in a group; columns in a vector
//   Sum                    a vector of C; zero(), read(), write() and add() of it
//   multiply<rows>(a, b, sums)  one step: `sums` += the products of a group of each row and column
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/common/stream_ahead.h"
#include "kernels/gemm/gemm.h"

#if !defined(CAPIBARA_INLINE)
#define CAPIBARA_INLINE __attribute__((always_inline))
#endif

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// f(0), ... f(n - 1), written out: GCC keeps an array in registers only if no loop indexes it when
// it first looks.
template <int n, class F>
CAPIBARA_INLINE inline void unrolled(const F& f) {
  if constexpr (n > 0) {
    unrolled<n - 1>(f);
    f(n - 1);
  }
}

// Sets of sums that steps take turns at, for few rows: eight chains of dependent multiplications
// keep two pipes of latency 4 busy, where the panels are in a cache.
constexpr int sets_for(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

// Elements in a B of C++.
template <class B>
constexpr int kElementsIn = 1;

// From so many rows on, B is asked for ahead of its use (stream_ahead.h). Not codes of 4 bits:
// their arithmetic takes longer than memory.
template <class B>
constexpr int kRowsToStreamAhead = kElementsIn<B> > 1 ? kMaxTileRows + 1
                                   : sizeof(B) == 4   ? 5
                                                      : 4;

template <class Op, int rows>
void tile(int64_t steps, const void* a_panel, const void* b_panel, void* c, int64_t ldc,
          bool accumulate) {
  using Sum = typename Op::Sum;
  constexpr int sets = sets_for(rows);
  constexpr int kStepA = rows * Op::kDepth;
  constexpr int kStepB = 2 * Op::kLanes * Op::kDepth / kElementsIn<typename Op::B>;
  const auto* a = static_cast<const typename Op::A*>(a_panel);
  const auto* b = static_cast<const typename Op::B*>(b_panel);

  Sum sums[sets][rows][2];
  unrolled<sets>([&](int s) CAPIBARA_INLINE {
    unrolled<rows>([&](int r) CAPIBARA_INLINE { sums[s][r][0] = sums[s][r][1] = Op::zero(); });
  });
  for (; steps >= sets; steps -= sets) {
    unrolled<sets>([&](int s) CAPIBARA_INLINE {
      if constexpr (rows >= kRowsToStreamAhead<typename Op::B>) {
        constexpr int lines = kStepB * static_cast<int>(sizeof(typename Op::B)) / 64;
        unrolled<lines>([&](int line) CAPIBARA_INLINE {
          stream_ahead(reinterpret_cast<const char*>(b + s * kStepB) + 64 * line);
        });
      }
      Op::template multiply<rows>(a + s * kStepA, b + s * kStepB, sums[s]);
    });
    a += sets * kStepA;
    b += sets * kStepB;
  }
  if constexpr (sets > 1) {
    for (; steps > 0; --steps) {
      Op::template multiply<rows>(a, b, sums[0]);
      a += kStepA;
      b += kStepB;
    }
  }

  unrolled<rows>([&](int r) CAPIBARA_INLINE {
    unrolled<2>([&](int v) CAPIBARA_INLINE {
      auto* out = static_cast<typename Op::C*>(c) + r * ldc + v * Op::kLanes;
      Sum sum = sums[0][r][v];
      unrolled<sets - 1>([&](int s) CAPIBARA_INLINE { sum = Op::add(sum, sums[s + 1][r][v]); });
      Op::write(accumulate ? Op::add(Op::read(out), sum) : sum, out);
    });
  });
}

template <class Op, int... less_one>
constexpr GemmKernel kernel_of_rows(std::integer_sequence<int, less_one...>) {
  return {sizeof...(less_one),        2 * Op::kLanes, Op::kDepth, Op::kA, Op::kB, 1,
          {tile<Op, less_one + 1>...}};
}
template <class Op, int rows>
constexpr GemmKernel kernel_of() {
  static_assert(rows <= kMaxTileRows);
  return kernel_of_rows<Op>(std::make_integer_sequence<int, rows>());
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
