// SPDX-License-Identifier: Apache-2.0
// The paged KV cache: where it lies, writing to it, reading from it. Layout: kernels/kv_cache.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/kv_cache/kv_cache.h"

namespace capibara {

// The layout that attention wants on this CPU.
CacheLayout cache_layout(CacheType type, DType compute, int64_t block_size, int64_t head_dim);

// Scales by which what is stored has to be multiplied; fp8 alone.
enum class CacheScales : uint8_t {
  kTensor,  // keys[0], values[0]
  kHead,    // keys[kv_head], values[kv_head]
  kToken,   // [num_blocks, num_kv_heads, block_size] each, written by kv_cache_append
};

struct CacheView {
  CacheLayout layout;
  void* data;
  int64_t block_stride, head_stride;  // in elements, from a block, or a head of it, to the next
  int64_t num_blocks, num_kv_heads;
  CacheScales scales;
  float* key_scales;  // never null for fp8; only kToken's are written
  float* value_scales;
};

// Stores token t at slot_mapping[t] = block * block_size + position; negative slots are skipped.
struct CacheAppendCall {
  CacheView cache;
  DType from;  // the layout's compute type, or f32
  int64_t tokens;
  const void* key;  // [tokens, num_kv_heads, head_dim]; strides in elements, head_dim contiguous
  const void* value;
  int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
  const int64_t* slot_mapping;  // [tokens], each below num_blocks * block_size
};
void kv_cache_append(const CacheAppendCall& call);

// The tokens in `slots` as they are stored, times their scales, in the type `to`: the layout's
// compute type, or f32. A negative slot gives zeros. Outputs [tokens, num_kv_heads, head_dim],
// contiguous.
struct CacheGatherCall {
  CacheView cache;
  int64_t tokens;
  const int64_t* slots;
  DType to;
  void* key;
  void* value;
};
void kv_cache_gather(const CacheGatherCall& call);

}  // namespace capibara
