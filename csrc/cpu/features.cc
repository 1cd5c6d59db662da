// SPDX-License-Identifier: Apache-2.0
#include "cpu/features.h"

#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace capibara {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

#if defined(__x86_64__)

// AVX registers may only be used if the operating system saves them (XCR0).
uint64_t enabled_state() {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

FeatureSet detect_features() {
  FeatureSet features;
  uint32_t eax, ebx, ecx, edx;
  const auto bit = [](uint32_t word, int position) { return (word >> position & 1u) != 0; };
  const uint64_t state = enabled_state();
  const bool ymm = (state & 0x6) == 0x6;
  const bool zmm = (state & 0xe6) == 0xe6;
  const bool tiles = (state & 0x60000) == 0x60000;

  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
  const bool aes = bit(ecx, 25) && bit(ecx, 1);  // AESNI and PCLMULQDQ
  if (aes) features.add(Feature::kAes);
  if (bit(ecx, 19) && bit(ecx, 20)) features.add(Feature::kSse4);  // SSE4.1 and SSE4.2
  if (ymm && bit(ecx, 12)) features.add(Feature::kFma);
  if (ymm && bit(ecx, 29)) features.add(Feature::kF16c);

  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  const uint32_t subleaves = eax;
  if (ymm && bit(ebx, 5)) features.add(Feature::kAvx2);
  if (bit(ebx, 3) && bit(ebx, 8)) features.add(Feature::kBmi2);
  const bool avx512 = bit(ebx, 16) && bit(ebx, 17) && bit(ebx, 28) && bit(ebx, 30) && bit(ebx, 31);
  if (zmm && avx512) features.add(Feature::kAvx512);
  if (zmm && avx512 && bit(ecx, 1)) features.add(Feature::kAvx512Vbmi);
  if (zmm && avx512 && bit(ecx, 11)) features.add(Feature::kAvx512Vnni);
  if (tiles && bit(edx, 22)) features.add(Feature::kAmxBf16);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
    if (ymm && bit(eax, 4)) features.add(Feature::kAvxVnni);
    if (zmm && avx512 && bit(eax, 5)) features.add(Feature::kAvx512Bf16);
  }
  return features;
}

std::string detect_model() {
  uint32_t words[12];
  for (uint32_t leaf = 0; leaf < 3; ++leaf) {
    uint32_t* w = words + 4 * leaf;
    if (!__get_cpuid(0x80000002u + leaf, w, w + 1, w + 2, w + 3)) return "";
  }
  std::string model(reinterpret_cast<const char*>(words), sizeof words);
  model.resize(model.find('\0') == std::string::npos ? model.size() : model.find('\0'));
  while (!model.empty() && model.back() == ' ') model.pop_back();
  return model;
}

std::string detect_core() { return ""; }

#elif defined(__aarch64__)

// From the kernel's arch/arm64 user interface (hwcap.h); spelled out because older headers lack
// the later ones.
constexpr unsigned long kHwcapAsimd = 1ul << 1, kHwcapAes = 1ul << 3, kHwcapAsimdHp = 1ul << 10,
                        kHwcapAsimdDp = 1ul << 20, kHwcapSve = 1ul << 22,
                        kHwcapAsimdFhm = 1ul << 23;
constexpr unsigned long kHwcap2Sve2 = 1ul << 1, kHwcap2I8mm = 1ul << 13, kHwcap2Bf16 = 1ul << 14;

FeatureSet detect_features() {
  FeatureSet features;
  const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
  if (hwcap & kHwcapAsimd) features.add(Feature::kNeon);
  if (hwcap & kHwcapAes) features.add(Feature::kAes);
  if (hwcap & kHwcapAsimdHp) features.add(Feature::kFp16);
  if (hwcap & kHwcapAsimdFhm) features.add(Feature::kFp16Fml);
  if (hwcap & kHwcapAsimdDp) features.add(Feature::kDotProd);
  if (hwcap & kHwcapSve) features.add(Feature::kSve);
  if (hwcap2 & kHwcap2Sve2) features.add(Feature::kSve2);
  if (hwcap2 & kHwcap2I8mm) features.add(Feature::kI8mm);
  if (hwcap2 & kHwcap2Bf16) features.add(Feature::kBf16);
  return features;
}

// MIDR_EL1 of CPU 0: implementer in bits 31-24 (0x41 is Arm), part number in bits 15-4.
std::string detect_core() {
  const std::string text = first_line("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1");
  const uint64_t midr = std::strtoull(text.c_str(), nullptr, 16);
  if ((midr >> 24 & 0xff) != 0x41) return "";
  switch (midr >> 4 & 0xfff) {
    case 0xd0c:
      return "neoverse-n1";
    case 0xd40:
      return "neoverse-v1";
    case 0xd49:
      return "neoverse-n2";
    case 0xd4f:
      return "neoverse-v2";
    case 0xd8e:
      return "neoverse-n3";
    case 0xd84:
      return "neoverse-v3";
    case 0xd83:
      return "neoverse-v3ae";
    default:
      return "";
  }
}

std::string detect_model() { return first_line("/sys/firmware/devicetree/base/model"); }

#else

FeatureSet detect_features() { return {}; }
std::string detect_model() { return ""; }
std::string detect_core() { return ""; }

#endif

// sysfs writes sizes as "48K" or "32768K".
size_t parse_size(const std::string& text) {
  char* end = nullptr;
  const size_t value = std::strtoull(text.c_str(), &end, 10);
  if (*end == 'K') return value << 10;
  if (*end == 'M') return value << 20;
  return value;
}

size_t cache_bytes(int level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    const std::string found = first_line(folder + "level");
    if (found.empty()) break;
    if (std::atoi(found.c_str()) == level && first_line(folder + "type") != "Instruction") {
      return parse_size(first_line(folder + "size"));
    }
  }
  return 0;
}

int available_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? static_cast<int>(online) : 1;
}

constexpr const char* kFeatureNames[] = {
#define CAPIBARA_NAME(feature, name) name,
    CAPIBARA_FEATURES(CAPIBARA_NAME)
#undef CAPIBARA_NAME
};

}  // namespace

std::vector<const char*> FeatureSet::names() const {
  std::vector<const char*> names;
  for (size_t i = 0; i < std::size(kFeatureNames); ++i) {
    if (bits_ >> i & 1u) names.push_back(kFeatureNames[i]);
  }
  return names;
}

const CpuInfo& cpu_info() {
  static const CpuInfo info = {
#if defined(__x86_64__)
      "x86_64",
#elif defined(__aarch64__)
      "aarch64",
#else
      "other",
#endif
      detect_model(), detect_core(),  detect_features(), cache_bytes(1),
      cache_bytes(2), cache_bytes(3), available_cpus(),
  };
  return info;
}

}  // namespace capibara
