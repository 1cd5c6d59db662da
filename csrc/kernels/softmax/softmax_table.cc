// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax/softmax.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(softmax_kernels, softmax)

}  // namespace capibara
