// SPDX-License-Identifier: Apache-2.0
// The instruction sets that kernels are built for, and what a CPU needs to run each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/features.h"

// X(isa, argument) for the per-ISA namespaces of this architecture, from the least to the most
// capable. The flags of each are in cmake/isa_flags.cmake, which lists the same names. The vector
// kernels are compiled for CAPIBARA_FOR_EACH_ISA; those of CAPIBARA_FOR_EACH_TILE_ISA have matrix
// tiles besides, or nothing else.
#if defined(__x86_64__)
#define CAPIBARA_FOR_EACH_ISA(X, argument) X(sse4, argument) X(avx2, argument) X(avx512, argument)
#define CAPIBARA_FOR_EACH_TILE_ISA(X, argument) \
  CAPIBARA_FOR_EACH_ISA(X, argument) X(avx512_vnni, argument) X(avx512_bf16, argument)
#elif defined(__aarch64__) && defined(CAPIBARA_WITHOUT_BF16)  // see cmake/bf16_constants.cmake
#define CAPIBARA_FOR_EACH_ISA(X, argument) X(neon, argument)
#define CAPIBARA_FOR_EACH_TILE_ISA(X, argument) X(neon, argument) X(neon_dotprod, argument)
#elif defined(__aarch64__)
#define CAPIBARA_FOR_EACH_ISA(X, argument) X(neon, argument) X(neon_bf16, argument)
#define CAPIBARA_FOR_EACH_TILE_ISA(X, argument) \
  X(neon, argument) X(neon_dotprod, argument) X(neon_bf16, argument)
#else
#define CAPIBARA_FOR_EACH_ISA(X, argument)
#define CAPIBARA_FOR_EACH_TILE_ISA(X, argument)
#endif

namespace capibara {

// In order of preference: of two that run, the later one is chosen. `scalar` is the reference.
enum class Isa : uint8_t {
  scalar,
#define CAPIBARA_ENUMERATOR(isa, argument) isa,
  CAPIBARA_FOR_EACH_TILE_ISA(CAPIBARA_ENUMERATOR, )
#undef CAPIBARA_ENUMERATOR
};

struct IsaInfo {
  Isa isa;
  const char* name;
  const char* description;
  FeatureSet required;
};

// Every ISA that is built, least capable first.
const std::vector<IsaInfo>& built_isas();
const IsaInfo& info_of(Isa isa);
bool runs_here(Isa isa);

// The most capable ISA that may be used: what CAPIBARA_AXION_ISA names, or the best that runs here.
// Throws std::invalid_argument if the variable names an ISA that is unknown or does not run here.
Isa chosen_isa();

}  // namespace capibara
