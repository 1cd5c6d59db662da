// SPDX-License-Identifier: Apache-2.0
#include "kernels/math/math.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(exp_kernels, exp)
CAPIBARA_DEFINE_TABLE(sigmoid_kernels, sigmoid)
CAPIBARA_DEFINE_TABLE(tanh_kernels, tanh)
CAPIBARA_DEFINE_TABLE(erfc_kernels, erfc)

}  // namespace capibara
