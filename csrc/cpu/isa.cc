// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa.h"

#include <stdexcept>

#include "cpu/environment.h"

namespace capibara {
namespace {

Isa choose() {
  const std::string requested = requested_isa();
  Isa best = Isa::scalar;
  std::string known;
  for (const IsaInfo& info : built_isas()) {
    if (requested == info.name) {
      if (runs_here(info.isa)) return info.isa;
      throw std::invalid_argument("CAPIBARA_AXION_ISA: '" + requested +
                                  "' does not run on this CPU; see `capibara-axion info`");
    }
    known += (known.empty() ? "" : ", ") + std::string(info.name);
    if (runs_here(info.isa)) best = info.isa;
  }
  if (!requested.empty()) {
    throw std::invalid_argument("CAPIBARA_AXION_ISA: expected one of " + known + ", got '" +
                                requested + "'");
  }
  return best;
}

}  // namespace

const std::vector<IsaInfo>& built_isas() {
  using F = Feature;
  static const std::vector<IsaInfo> isas = {
      {Isa::scalar, "scalar", "plain C++, the reference", {}},
#if defined(__x86_64__)
      {Isa::sse4, "sse4", "128-bit SSE4.2 (x86-64-v2)", {F::kSse4, F::kAes}},
      {Isa::avx2,
       "avx2",
       "256-bit AVX2, FMA, F16C (x86-64-v3)",
       {F::kSse4, F::kAes, F::kAvx2, F::kFma, F::kF16c, F::kBmi2}},
      {Isa::avx512,
       "avx512",
       "512-bit AVX-512 F/BW/CD/DQ/VL (x86-64-v4)",
       {F::kSse4, F::kAes, F::kAvx2, F::kFma, F::kF16c, F::kBmi2, F::kAvx512}},
      {Isa::avx512_vnni,
       "avx512_vnni",
       "AVX-512 with dot products of bytes (matrix tiles)",
       {F::kSse4, F::kAes, F::kAvx2, F::kFma, F::kF16c, F::kBmi2, F::kAvx512, F::kAvx512Vnni}},
      {Isa::avx512_bf16,
       "avx512_bf16",
       "AVX-512 with dot products of bytes and of bf16 (matrix tiles)",
       {F::kSse4, F::kAes, F::kAvx2, F::kFma, F::kF16c, F::kBmi2, F::kAvx512, F::kAvx512Vnni,
        F::kAvx512Vbmi, F::kAvx512Bf16}},
#elif defined(__aarch64__)
      {Isa::neon, "neon", "128-bit NEON (Armv8-A)", {F::kNeon, F::kAes}},
      {Isa::neon_dotprod,
       "neon_dotprod",
       "NEON with dot products of bytes (matrix tiles)",
       {F::kNeon, F::kAes, F::kDotProd}},
#if !defined(CAPIBARA_WITHOUT_BF16)
      {Isa::neon_bf16,
       "neon_bf16",
       "128-bit NEON with BF16, I8MM and FP16FML (Armv8.6-A)",
       {F::kNeon, F::kAes, F::kDotProd, F::kFp16Fml, F::kBf16, F::kI8mm}},
#endif
#endif
  };
  return isas;
}

const IsaInfo& info_of(Isa isa) { return built_isas()[static_cast<size_t>(isa)]; }

bool runs_here(Isa isa) { return cpu_info().features.contains(info_of(isa).required); }

Isa chosen_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace capibara
