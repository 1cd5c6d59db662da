// SPDX-License-Identifier: Apache-2.0
#include <string_view>

#include "kernels/gemm/gemm.h"

namespace capibara {
namespace {

using Table = KernelTable<const GemmKernel>;

Table table_of(std::string_view type, const GemmKernel& reference) {
  std::vector<Kernel<const GemmKernel>> kernels = {{Isa::scalar, &reference}};
#define CAPIBARA_GEMM_ENTRY(of_type, isa) \
  if (type == #of_type) kernels.push_back({Isa::isa, &isa::gemm_##of_type});
  CAPIBARA_FOR_EACH_GEMM(CAPIBARA_GEMM_ENTRY)
#undef CAPIBARA_GEMM_ENTRY
  return Table(std::move(kernels));
}

}  // namespace

const char* name_of(GemmType type) {
  constexpr const char* kNames[kGemmTypes + 1] = {"f32", "bf16", "f16", "int8", "int4"};
  return kNames[static_cast<int>(type)];
}

const Table& gemm_kernels(GemmType type) {
  static const Table tables[kGemmTypes] = {
      table_of("f32", scalar::gemm_f32),
      table_of("bf16", scalar::gemm_bf16),
      table_of("f16", scalar::gemm_f16),
      table_of("int8", scalar::gemm_int8),
  };
  return tables[static_cast<int>(type)];
}

}  // namespace capibara
