// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm/int4.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(int4_rows_kernels, int4_rows)

const KernelTable<const Int4Kernel>& int4_kernels() {
#define CAPIBARA_INT4_ENTRY(isa) {Isa::isa, &isa::gemm_int4},
  static const KernelTable<const Int4Kernel> table(
      {{Isa::scalar, &scalar::gemm_int4}, CAPIBARA_FOR_EACH_INT4(CAPIBARA_INT4_ENTRY)});
#undef CAPIBARA_INT4_ENTRY
  return table;
}

}  // namespace capibara
