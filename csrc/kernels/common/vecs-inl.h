// SPDX-License-Identifier: Apache-2.0
// Several vectors that go through a computation together, and the loop over a row's vectors.
// Included by sources that are compiled once per ISA, with that ISA's flags and CAPIBARA_ISA as
// their namespace; everything here is local to the including source, so that the linker cannot hand
// code of a wider ISA to a caller of a narrower one.
#pragma once

#ifndef CAPIBARA_ISA
#error "CAPIBARA_ISA must name the namespace of the ISA that this source is compiled for"
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#define HWY_COMPILE_ONLY_STATIC
#include <hwy/highway.h>

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#error "the flags of this ISA are missing: Highway fell back to scalar code"
#endif

#if HWY_ARCH_ARM_A64
#include <arm_neon.h>
#endif

#include "kernels/common/loop_marker.h"

// On every lambda of a kernel. GCC otherwise leaves those with several callers out of line, and
// their constants are loaded again in each iteration: half the speed of exp.
#define CAPIBARA_INLINE __attribute__((always_inline))

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using FullF32 = hn::ScalableTag<float>;

// Vectors that go through a computation together, each step for all of them. A polynomial is a
// chain of some twenty dependent operations of latency 4: written one vector after the other, the
// chains of four or five vectors fill a core's scheduler (about 100 entries) and it idles; written
// side by side, four chains keep its two FMA pipes busy.
template <class D, size_t n>
struct Vecs {
  hn::Vec<D> v[n];
};
template <class D>
using Pair = Vecs<D, 2>;

// f on each vector, or on the vectors at each index of several.
template <class D, size_t n, class F>
HWY_INLINE Vecs<D, n> map(Vecs<D, n> x, const F& f) {
  for (size_t i = 0; i < n; ++i) x.v[i] = f(x.v[i]);
  return x;
}
template <class D, size_t n, class F>
HWY_INLINE Vecs<D, n> map(Vecs<D, n> x, Vecs<D, n> y, const F& f) {
  for (size_t i = 0; i < n; ++i) x.v[i] = f(x.v[i], y.v[i]);
  return x;
}
template <class D, size_t n, class F>
HWY_INLINE Vecs<D, n> map(Vecs<D, n> x, Vecs<D, n> y, Vecs<D, n> z, const F& f) {
  for (size_t i = 0; i < n; ++i) x.v[i] = f(x.v[i], y.v[i], z.v[i]);
  return x;
}

// p, from which nothing is loaded before x is there. No instruction: it keeps the compiler, which
// does not count registers when it moves loads to the top of a loop, from spilling what it loaded.
template <class D, size_t n, class T>
HWY_INLINE T* after([[maybe_unused]] const Vecs<D, n>& x, T* p) {
#if HWY_ARCH_ARM_A64
  __asm__("" : "+m"(*const_cast<std::remove_const_t<T>*>(p)) : "w"(x.v[n - 1].raw));
#endif
  return p;
}

// f on four vectors at a time: more chains side by side than fill the pipes would only cost
// registers, of which Arm has 32.
template <class D, size_t n, class F>
HWY_INLINE Vecs<D, n> by_four(Vecs<D, n> x, const F& f) {
  if constexpr (n <= 4) {
    return f(x);
  } else {
    static_assert(n == 8);
    const Vecs<D, 4> a = f(Vecs<D, 4>{{x.v[0], x.v[1], x.v[2], x.v[3]}});
#if HWY_ARCH_ARM_A64
    // No instruction. The compiler would interleave the fours, and spill, but for being told that
    // the second depends on the first.
    for (size_t k = 0; k < 4; ++k) __asm__("" : "+w"(x.v[4 + k].raw) : "w"(a.v[k].raw));
#endif
    const Vecs<D, 4> b = f(Vecs<D, 4>{{x.v[4], x.v[5], x.v[6], x.v[7]}});
    return {{a.v[0], a.v[1], a.v[2], a.v[3], b.v[0], b.v[1], b.v[2], b.v[3]}};
  }
}

template <size_t n, class D>
HWY_INLINE Vecs<D, n> fill(D, hn::Vec<D> value) {
  Vecs<D, n> x;
  for (size_t i = 0; i < n; ++i) x.v[i] = value;
  return x;
}

// How much lies at an index: so many whole vectors, or a part of a pair.
template <size_t n>
struct Whole {
  static constexpr size_t vectors = n;
};
struct Part {
  static constexpr size_t vectors = 2;
  size_t count;
};

// For CAPIBARA_LOOP: the vectors of an extent, 0 for a part.
template <class Extent>
constexpr size_t kWholeVectors = 0;
template <size_t n>
constexpr size_t kWholeVectors<Whole<n>> = n;

// Vectors in an iteration. Arm's are short, so that counting and branching would be a tenth of a
// loop of four, and its LD1 and ST1 move 8 vectors of 16-bit elements at once. What is computed on
// them goes by fours all the same: see by_four.
constexpr size_t kVectorsAStep = HWY_ARCH_ARM_A64 ? 8 : 4;

// Calls body(i, extent) for consecutive extents that together are [0, n).
template <size_t step = kVectorsAStep, class D, class Body>
HWY_INLINE void for_each_extent(D d, size_t n, const Body& body) {
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (size_t steps = n / (step * lanes); steps != 0; --steps) {
    body(i, Whole<step>{});
    i += step * lanes;
  }
  if (step > 4 && i + 4 * lanes <= n) {
    body(i, Whole<4>{});
    i += 4 * lanes;
  }
  if (i + 2 * lanes <= n) {
    body(i, Whole<2>{});
    i += 2 * lanes;
  }
  if (i < n) body(i, Part{n - i});
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
