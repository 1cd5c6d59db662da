// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_cache/kv_cache.h"

namespace capibara {

CAPIBARA_DEFINE_TABLE(kv_cache_write_kernels, kv_cache_write)

}  // namespace capibara
