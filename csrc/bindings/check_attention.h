// SPDX-License-Identifier: Apache-2.0
// Argument checks of attention, as check.h has them for the other operators.
#pragma once

#include <optional>
#include <vector>

#include "bindings/expect.h"
#include "ops/attention.h"

namespace capibara {

// What flash_attention and paged_attention have in common. The views: or null.
struct AttentionOptions {
  std::optional<double> scale;  // 1 / sqrt(head_dim)
  bool causal;
  int64_t window_left, window_right;
  double softcap;
  const TensorView *alibi_slopes, *sinks, *ranges;
};

// A call, and what it points to that is no argument's memory.
struct CheckedAttention {
  CheckedAttention() = default;
  CheckedAttention(const CheckedAttention&) = delete;
  CheckedAttention& operator=(const CheckedAttention&) = delete;

  AttentionCall call = {};
  CacheView cache = {};
  std::vector<int32_t> indices;
  std::vector<float> slopes, sinks;
};

// [batch, tokens, heads, head_dim] whose tokens, all of them, lie at one stride.
bool queries_readable(const TensorView& view);
void expect_queries_writable(const TensorView& view);
// The same, but sequences may lie apart by any number of tokens.
bool keys_readable(const TensorView& view);

// query_start, key_start: or null. Throws NeedsCopy where the sequences of k and v do not lie
// alike.
void check_flash_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                           const TensorView* query_start, const TensorView* key_start,
                           const AttentionOptions& options, const TensorView& out,
                           CheckedAttention& checked);

// query_start: or null, for one query a sequence.
void check_paged_attention(const TensorView& q, const CacheView& cache,
                           const TensorView& block_table, const TensorView& seq_lens,
                           const TensorView* query_start, const AttentionOptions& options,
                           const TensorView& out, CheckedAttention& checked);

}  // namespace capibara
