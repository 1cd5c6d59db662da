// SPDX-License-Identifier: Apache-2.0
// Which library runs a matrix product: this project's own tiles, or Arm Compute Library's where the
// build has it (CAPIBARA_HAS_ACL).
//
// int4 is always native, and so is int8: its scales are one a row of A and one a column of B, those
// of ACL's NEGEMMLowpMatrixMultiplyCore one a tensor.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cpu/features.h"
#include "ops/gemm.h"

namespace capibara {

enum class GemmBackend : uint8_t { kNative, kAcl };
const char* name_of(GemmBackend backend);

// CAPIBARA_AXION_GEMM, or what set_gemm_choice said. kAuto reads the table, for products that one
// thread runs: ACL runs on the calling thread alone. kAcl: every product but int8 that ACL takes.
//
// ACL adds in another order than the native tiles. Where it may run, the last bits of a result can
// therefore depend on the number of threads, and on whether another thread is using the same
// weights: for results that are always the same, kNative.
enum class GemmChoice : uint8_t { kAuto, kNative, kAcl };
const char* name_of(GemmChoice choice);

// The first call throws std::invalid_argument if the variable is none of auto, native and acl, or
// is acl in a build without it.
GemmChoice gemm_choice();
void set_gemm_choice(GemmChoice choice);  // the same for kAcl

// A row of the table. It applies to products of `type` with least_m <= m <= most_m and
// n * k >= least_weights, on CPUs with the required features (of that core, if it names one).
struct Crossover {
  static constexpr int64_t kAny = std::numeric_limits<int64_t>::max();  // as most_m: no end

  FeatureSet required;
  const char* core;  // as in CpuInfo; null: any
  GemmType type;
  int64_t least_m, most_m;
  int64_t least_weights;
  bool fast_math;  // only if ACL can multiply in bf16
  GemmBackend backend;
  const char* measured;  // why
};

// The rows for this CPU and build; none without ACL. The first that applies decides; products that
// none applies to are native.
const std::vector<Crossover>& gemm_crossovers();

// Who runs a product for which the native driver would start `threads`.
GemmBackend choose(GemmType type, int64_t m, int64_t n, int64_t k, int threads);

// Release and build options of the ACL that is built in; empty without.
std::string acl_version();

// Runs the product if it is for ACL, which may still refuse it. False: it is for the native driver.
bool run_on_acl(const GemmCall& call);

}  // namespace capibara
