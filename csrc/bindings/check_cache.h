// SPDX-License-Identifier: Apache-2.0
// Argument checks of the paged KV cache and of the conversions of 8-bit floats.
#pragma once

#include "bindings/expect.h"
#include "ops/fp8.h"
#include "ops/kv_cache.h"

namespace capibara {

// data: [num_blocks, num_kv_heads, block_size, 2 * head_dim] of the type, uint8 for 8-bit floats;
// each head of a block contiguous. key_scales, value_scales: for those, else null; [1],
// [num_kv_heads], or [num_blocks, num_kv_heads, block_size]. type: of CacheType; compute: of DType.
CacheView check_cache(const TensorView& data, const TensorView* key_scales,
                      const TensorView* value_scales, int64_t type, int64_t compute);
// What kv_cache_append writes.
void expect_cache_writable(const TensorView& data, const TensorView* key_scales,
                           const TensorView* value_scales);

CacheAppendCall check_cache_append(const CacheView& cache, const TensorView& key,
                                   const TensorView& value, const TensorView& slot_mapping);
CacheGatherCall check_cache_gather(const CacheView& cache, const TensorView& slots,
                                   const TensorView& key, const TensorView& value);

Fp8EncodeArgs check_fp8_encode(const TensorView& x, int64_t format, double factor,
                               const TensorView& codes);
Fp8DecodeArgs check_fp8_decode(const TensorView& codes, int64_t format, const TensorView& y);

}  // namespace capibara
