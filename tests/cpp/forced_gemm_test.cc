// SPDX-License-Identifier: Apache-2.0
// forced_gemm_test NAME, with CAPIBARA_AXION_GEMM=NAME: the variable takes effect. A name that is
// none, and acl in a build without it, must be refused.
#include <cstdio>
#include <stdexcept>
#include <string>

#include "cpu/environment.h"
#include "ops/gemm_backend.h"

namespace {

using capibara::GemmBackend;
using capibara::GemmType;

// Empty: the name is to be accepted.
std::string expected_refusal(const std::string& name) {
  if (name == "auto" || name == "native") return "";
  if (name != "acl") return "expected auto, native or acl, got '" + name + "'";
  return capibara::acl_version().empty() ? "needs a build with Arm Compute Library" : "";
}

bool says(const std::string& message, const std::string& reason) {
  return message.find("CAPIBARA_AXION_GEMM") == 0 && message.find(reason) != std::string::npos;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || capibara::requested_gemm() != argv[1]) {
    std::printf("usage: CAPIBARA_AXION_GEMM=NAME %s NAME\n", argv[0]);
    return 2;
  }
  const std::string name = argv[1], refusal = expected_refusal(name);
  try {
    if (capibara::name_of(capibara::gemm_choice()) != name || !refusal.empty()) return 1;
  } catch (const std::invalid_argument& error) {
    std::printf("refused: %s\n", error.what());
    return !refusal.empty() && says(error.what(), refusal) ? 0 : 1;
  }
  const auto chosen = [](GemmType type, int threads) {
    return capibara::choose(type, 512, 512, 512, threads);
  };
  const GemmBackend floats = name == "acl" ? GemmBackend::kAcl : GemmBackend::kNative;
  std::printf("int8: %s\n", capibara::name_of(chosen(GemmType::kInt8, 1)));
  if (chosen(GemmType::kInt8, 1) != GemmBackend::kNative) return 1;
  for (const GemmType type : {GemmType::kF32, GemmType::kBF16, GemmType::kF16}) {
    std::printf("%s: %s\n", name_of(type), name_of(chosen(type, 1)));
    // By the table, one thread may be either's.
    if (name != "auto" && chosen(type, 1) != floats) return 1;
    if (chosen(type, 2) != floats) return 1;
  }
  return 0;
}
