// SPDX-License-Identifier: Apache-2.0
#include "kernels/fp8/fp8.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(fp8_decode_kernels, fp8_decode)
CAPIBARA_DEFINE_TABLE(fp8_encode_kernels, fp8_encode)

}  // namespace capibara
