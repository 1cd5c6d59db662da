// SPDX-License-Identifier: Apache-2.0
// What the tests of all kernels sweep over.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"

namespace capibara::test {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// A kernel's element type and that of its weight or cache.
struct DTypePair {
  DType element, parameter;
};
constexpr DTypePair kDTypePairs[] = {{DType::kF32, DType::kF32},
                                     {DType::kF16, DType::kF16},
                                     {DType::kF16, DType::kF32},
                                     {DType::kBF16, DType::kBF16},
                                     {DType::kBF16, DType::kF32}};

// Nothing, every remainder of up to four of the widest vectors, and sizes around and above whole
// ones.
inline std::vector<int64_t> sizes() {
  std::vector<int64_t> sizes;
  for (int64_t n = 0; n <= 70; ++n) sizes.push_back(n);
  sizes.insert(sizes.end(), {127, 128, 129, 255, 256, 257, 1000, 4096});
  return sizes;
}

// How many roundings a term of a sum of n goes through: one after another in the reference; in
// vector kernels four totals of at least 4 lanes each, one addition more for either remainder, two
// to join the totals and at most four to join the lanes.
inline double additions(Isa isa, int64_t n) {
  const auto terms = static_cast<double>(n);
  return isa == Isa::scalar ? terms : terms / 16 + 8;
}

// Whether MulAdd rounds once. Everything later than SSE4 has it.
inline bool has_fma(Isa isa) {
#if defined(__x86_64__)
  return isa > Isa::sse4;
#else
  return isa != Isa::scalar;
#endif
}

// f(kernel) for every implementation that runs on this CPU; failures name it.
template <class Fn, class F>
void for_each_kernel(const KernelTable<Fn>& table, const F& f) {
  for (const Kernel<Fn>& kernel : table.all()) {
    if (!runs_here(kernel.isa)) continue;
    const std::string isa = info_of(kernel.isa).name;
    INFO("implementation: ", isa);
    f(kernel);
  }
}

}  // namespace capibara::test
