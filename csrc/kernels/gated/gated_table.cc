// SPDX-License-Identifier: Apache-2.0
#include "kernels/gated/gated.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(silu_and_mul_kernels, silu_and_mul)
CAPIBARA_DEFINE_TABLE(gelu_and_mul_kernels, gelu_and_mul)
CAPIBARA_DEFINE_TABLE(gelu_tanh_and_mul_kernels, gelu_tanh_and_mul)

}  // namespace capibara
