// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm_backend.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <stdexcept>

#include "cpu/environment.h"
#include "ops/gemm_acl.h"
#include "ops/gemm_blocking.h"
#include "ops/gemm_packed.h"
#include "ops/parallel.h"
#if defined(CAPIBARA_HAS_ACL)
#include "backends/acl/gemm.h"
#endif

namespace capibara {
namespace {

#if defined(CAPIBARA_HAS_ACL)
constexpr bool kHasAcl = true;
bool acl_has_fast_math() { return acl::has_fast_math(); }
#else
constexpr bool kHasAcl = false;
bool acl_has_fast_math() { return false; }
#endif

constexpr int64_t kAny = Crossover::kAny;

// Instructions are counted on aarch64 under QEMU, one thread, weights prepared.
// required, core, type, least m, most m, least n * k, fast math, backend, measured
const Crossover kTable[] = {
#if defined(CAPIBARA_WITHOUT_BF16)
    {{Feature::kBf16},
     nullptr,
     GemmType::kBF16,
     8,
     kAny,
     1 << 16,
     true,
     GemmBackend::kAcl,
     "not measured: BFMMLA, which this build's own kernels lack, does four times FMLA's work"},
#endif
    {{Feature::kNeon},
     nullptr,
     GemmType::kF32,
     1,
     kAny,
     0,
     false,
     GemmBackend::kNative,
     "512x512x512: ACL 20.08 47.5 M instructions, native 39.0 M; 256: 6.1, 5.0"},
};

bool applies_here(const Crossover& row) {
  const CpuInfo& cpu = cpu_info();
  return cpu.features.contains(row.required) && (!row.core || cpu.core == row.core) &&
         (!row.fast_math || acl_has_fast_math());
}

void check(GemmChoice choice) {
  if (choice == GemmChoice::kAcl && !kHasAcl) {
    throw std::invalid_argument(
        "CAPIBARA_AXION_GEMM: 'acl' needs a build with Arm Compute Library, and this one has none; "
        "see third_party/ACL/README.md");
  }
}

GemmChoice requested_choice() {
  const std::string text = requested_gemm();
  if (text.empty()) return GemmChoice::kAuto;
  for (const GemmChoice choice : {GemmChoice::kAuto, GemmChoice::kNative, GemmChoice::kAcl}) {
    if (text != name_of(choice)) continue;
    check(choice);
    return choice;
  }
  throw std::invalid_argument("CAPIBARA_AXION_GEMM: expected auto, native or acl, got '" + text +
                              "'");
}

std::atomic<GemmChoice>& choice_setting() {
  static std::atomic<GemmChoice> choice{requested_choice()};
  return choice;
}

// A forced ISA is a wish for its kernels.
bool table_names_acl() {
  static const bool names = [] {
    const auto& rows = gemm_crossovers();
    return requested_isa().empty() && std::any_of(rows.begin(), rows.end(), [](const auto& row) {
             return row.backend == GemmBackend::kAcl;
           });
  }();
  return names;
}

// What the native driver would start for the first of its blocks of rows.
int native_threads(const GemmCall& call) {
  const GemmKernel& kernel = gemm_kernel(call.type);
  const Blocking block = blocking_of(kernel, call.m, call.n, call.k, call.packed != nullptr);
  return threads_of(kernel, block, call.m, call.n, call.k);
}

}  // namespace

const char* name_of(GemmBackend backend) { return backend == GemmBackend::kAcl ? "acl" : "native"; }

const char* name_of(GemmChoice choice) {
  return choice == GemmChoice::kAuto ? "auto" : choice == GemmChoice::kAcl ? "acl" : "native";
}

GemmChoice gemm_choice() { return choice_setting().load(std::memory_order_relaxed); }

void set_gemm_choice(GemmChoice choice) {
  check(choice);
  choice_setting().store(choice, std::memory_order_relaxed);
}

const std::vector<Crossover>& gemm_crossovers() {
  static const std::vector<Crossover> rows = [] {
    std::vector<Crossover> here;
    if (kHasAcl) {
      std::copy_if(std::begin(kTable), std::end(kTable), std::back_inserter(here), applies_here);
    }
    return here;
  }();
  return rows;
}

GemmBackend choose(GemmType type, int64_t m, int64_t n, int64_t k, int threads) {
  const GemmChoice choice = gemm_choice();
  if (choice == GemmChoice::kNative || type == GemmType::kInt8) return GemmBackend::kNative;
  if (choice == GemmChoice::kAcl) return GemmBackend::kAcl;
  if (threads > 1 || !table_names_acl()) return GemmBackend::kNative;
  for (const Crossover& row : gemm_crossovers()) {
    if (row.type == type && row.least_m <= m && m <= row.most_m && n * k >= row.least_weights) {
      return row.backend;
    }
  }
  return GemmBackend::kNative;
}

std::string acl_version() {
#if defined(CAPIBARA_HAS_ACL)
  return acl::version();
#else
  return "";
#endif
}

bool run_on_acl(const GemmCall& call) {
  if (!kHasAcl || call.type == GemmType::kInt4) return false;
  const bool possible = gemm_choice() == GemmChoice::kAcl || table_names_acl();
  return possible &&
         choose(call.type, call.m, call.n, call.k, native_threads(call)) == GemmBackend::kAcl &&
         gemm_by_acl(call);
}

}  // namespace capibara
