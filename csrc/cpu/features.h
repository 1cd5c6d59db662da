// SPDX-License-Identifier: Apache-2.0
// What the CPU under us can do. Feature bits decide correctness; the core's name only tunes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace capibara {

// X(enumerator, name): the bits that some kernel requires or that `info` shows.
#define CAPIBARA_FEATURES(X)                                                              \
  X(kNeon, "neon")                                                                        \
  X(kAes, "aes")                                                                          \
  X(kFp16, "fp16")                                                                        \
  X(kFp16Fml, "fp16fml")                                                                  \
  X(kDotProd, "dotprod")                                                                  \
  X(kBf16, "bf16")                                                                        \
  X(kI8mm, "i8mm")                                                                        \
  X(kSve, "sve")                                                                          \
  X(kSve2, "sve2")                                                                        \
  X(kSse4, "sse4")                                                                        \
  X(kAvx2, "avx2")                                                                        \
  X(kFma, "fma")                                                                          \
  X(kF16c, "f16c")                                                                        \
  X(kBmi2, "bmi2")                                                                        \
  X(kAvxVnni, "avx_vnni")                                                                 \
  X(kAvx512, "avx512") /* F, BW, CD, DQ and VL: every server core that has one has all */ \
  X(kAvx512Vbmi, "avx512_vbmi")                                                           \
  X(kAvx512Vnni, "avx512_vnni")                                                           \
  X(kAvx512Bf16, "avx512_bf16")                                                           \
  X(kAmxBf16, "amx_bf16")

enum class Feature : uint8_t {
#define CAPIBARA_ENUMERATOR(feature, name) feature,
  CAPIBARA_FEATURES(CAPIBARA_ENUMERATOR)
#undef CAPIBARA_ENUMERATOR
};

class FeatureSet {
 public:
  constexpr FeatureSet() = default;
  constexpr FeatureSet(std::initializer_list<Feature> features) {
    for (Feature feature : features) add(feature);
  }
  constexpr void add(Feature feature) { bits_ |= uint32_t{1} << static_cast<uint8_t>(feature); }
  constexpr bool contains(FeatureSet other) const { return (bits_ & other.bits_) == other.bits_; }
  std::vector<const char*> names() const;

 private:
  uint32_t bits_ = 0;
};

struct CpuInfo {
  const char* architecture;  // "x86_64", "aarch64" or "other"
  std::string model;         // as the vendor writes it; empty if the system does not say
  std::string core;          // Arm's core name by MIDR ("neoverse-v2"); empty on x86
  FeatureSet features;
  // Bytes; 0 if the system does not say. The level-1 data cache and level 2 belong to one core.
  size_t l1d_bytes, l2_bytes, l3_bytes;
  int logical_cpus;  // that this process may run on
};

// Read once, at the first call.
const CpuInfo& cpu_info();

}  // namespace capibara
