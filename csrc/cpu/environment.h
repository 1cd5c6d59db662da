// SPDX-License-Identifier: Apache-2.0
// Every environment variable that the native code reads. Python's are in env.py.
#pragma once

#include <string>

namespace capibara {

// CAPIBARA_AXION_ISA: an ISA's name that forces it; empty means the best that runs here.
std::string requested_isa();

// CAPIBARA_AXION_GEMM: auto, native or acl, which runs matrix products; empty means auto.
std::string requested_gemm();

// CAPIBARA_AXION_NUM_THREADS: threads a call may use; 0 means what OpenMP is set to.
// Throws std::invalid_argument unless it is a whole number from 1 to 4096.
int requested_threads();

}  // namespace capibara
