// SPDX-License-Identifier: Apache-2.0
#include "kernels/fp8/fp8.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(fp8_encode_kernels, fp8_encode)

CAPIBARA_FOR_EACH_ISA(CAPIBARA_DECLARE_IN, fp8_decode)
#if defined(__x86_64__)
CAPIBARA_DECLARE_IN(avx512_bf16, fp8_decode)
#endif

const KernelTable<Fp8DecodeFn>& fp8_decode_kernels() {
  static const KernelTable<Fp8DecodeFn> table({{Isa::scalar, scalar::fp8_decode},
                                               CAPIBARA_FOR_EACH_ISA(CAPIBARA_ENTRY_OF, fp8_decode)
#if defined(__x86_64__)
                                                   CAPIBARA_ENTRY_OF(avx512_bf16, fp8_decode)
#endif
  });
  return table;
}

}  // namespace capibara
