// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope/rope.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(rope_kernels, rope)

}  // namespace capibara
