// SPDX-License-Identifier: Apache-2.0
// Attention (A. Vaswani et al., "Attention Is All You Need", arXiv:1706.03762) in memory that does
// not grow with the number of keys: T. Dao, "FlashAttention-2", arXiv:2307.08691, with the online
// softmax of M. Milakov and N. Gimelshein, arXiv:1805.02867.
//
//   out[i] = sum over visible j of softmax_j(z[i, j]) v[j]
//   z[i, j] = cap(scale q[i] . k[j]) + slope (j - i)      cap(x) = softcap tanh(x / softcap)
//
// Positions count from a sequence's first key; its last query stands at its last key. Query i sees
// key j if
//   causal: j <= i;   window: i - window_left <= j <= i + window_right;
//   or both are in one of the bidirectional ranges.
// A query that sees nothing gets zeros.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "ops/kv_cache.h"

namespace capibara {

constexpr int64_t kNoWindow = -1;

// Rows of head_dim contiguous elements.
struct HeadsView {
  const void* data;
  int64_t token_stride, head_stride;  // in elements
};

// Positions [begin, end) of a sequence see each other, whatever causal and window say.
struct BidirectionalRange {
  int32_t sequence, begin, end;  // sorted by sequence, then begin; apart from each other
};

struct AttentionCall {
  DType dtype;                                // of q, out, and of k and v where they are dense
  int64_t num_heads, num_kv_heads, head_dim;  // num_kv_heads divides num_heads

  int64_t sequences;
  const int32_t* query_start;  // [sequences + 1]: rows of q and out, from 0 on
  const int32_t* key_lengths;  // [sequences]: keys, those of the queries included

  HeadsView q;
  void* out;
  int64_t out_token_stride, out_head_stride;

  // Dense: sequence s has its first key at row key_start[s]. Paged if `cache` is given.
  HeadsView k, v;
  const int32_t* key_start;
  const CacheView* cache;
  const int32_t* block_table;  // [sequences, block_table_stride]
  int64_t block_table_stride;

  float scale;
  bool causal;
  int64_t window_left, window_right;  // or kNoWindow
  float softcap;                      // 0: none
  const float* alibi_slopes;          // [num_heads], or null
  // One more logit of each head in the softmax's denominator; [num_heads], or null.
  const float* sinks;
  const BidirectionalRange* ranges;
  int64_t num_ranges;
};

// The result does not depend on the number of threads, nor on what else is in the batch.
void attention(const AttentionCall& call);

}  // namespace capibara
