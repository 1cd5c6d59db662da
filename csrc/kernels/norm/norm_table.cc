// SPDX-License-Identifier: Apache-2.0
#include "kernels/norm/norm.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(rms_norm_kernels, rms_norm)
CAPIBARA_DEFINE_TABLE(fused_add_rms_norm_kernels, fused_add_rms_norm)
CAPIBARA_DEFINE_TABLE(layer_norm_kernels, layer_norm)

}  // namespace capibara
