// SPDX-License-Identifier: Apache-2.0
// One table per operator names every implementation that is built; selection, tests, benchmarks
// and `info` read it.
#pragma once

#include <vector>

#include "cpu/isa.h"

namespace capibara {

template <class Fn>
struct Kernel {
  Isa isa;
  Fn* run;
};

template <class Fn>
class KernelTable {
 public:
  // `kernels`: in the order of Isa, the scalar reference first.
  explicit KernelTable(std::vector<Kernel<Fn>> kernels) : kernels_(std::move(kernels)) {}

  const std::vector<Kernel<Fn>>& all() const { return kernels_; }

  // The last one that the chosen ISA can run.
  const Kernel<Fn>& chosen() const {
    const FeatureSet available = info_of(chosen_isa()).required;
    const Kernel<Fn>* best = &kernels_.front();
    for (const Kernel<Fn>& kernel : kernels_) {
      if (available.contains(info_of(kernel.isa).required)) best = &kernel;
    }
    return *best;
  }

 private:
  std::vector<Kernel<Fn>> kernels_;
};

#define CAPIBARA_DECLARE_IN(isa, function) \
  namespace isa {                          \
  decltype(scalar::function) function;     \
  }
#define CAPIBARA_ENTRY_OF(isa, function) {Isa::isa, isa::function},

// Defines `accessor`, the table of the kernel that every ISA's namespace calls `function`. The
// contract header declares scalar::function.
#define CAPIBARA_DEFINE_TABLE(accessor, function)                                               \
  CAPIBARA_FOR_EACH_ISA(CAPIBARA_DECLARE_IN, function)                                          \
  const KernelTable<decltype(scalar::function)>& accessor() {                                   \
    static const KernelTable<decltype(scalar::function)> table(                                 \
        {{Isa::scalar, scalar::function}, CAPIBARA_FOR_EACH_ISA(CAPIBARA_ENTRY_OF, function)}); \
    return table;                                                                               \
  }

}  // namespace capibara
