// SPDX-License-Identifier: Apache-2.0
#include "cpu/environment.h"

#include <cstdlib>
#include <stdexcept>

namespace capibara {
namespace {

std::string value_of(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

std::string requested_isa() { return value_of("CAPIBARA_AXION_ISA"); }

std::string requested_gemm() { return value_of("CAPIBARA_AXION_GEMM"); }

int requested_threads() {
  const std::string text = value_of("CAPIBARA_AXION_NUM_THREADS");
  if (text.empty()) return 0;
  char* end = nullptr;
  const long threads = std::strtol(text.c_str(), &end, 10);
  if (*end != '\0' || threads < 1 || threads > 4096) {
    throw std::invalid_argument(
        "CAPIBARA_AXION_NUM_THREADS: expected a whole number from 1 to 4096, got '" + text + "'");
  }
  return static_cast<int>(threads);
}

}  // namespace capibara
