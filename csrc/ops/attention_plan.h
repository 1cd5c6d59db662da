// SPDX-License-Identifier: Apache-2.0
// How attention is cut into tasks. A task is a run of rows of one KV head, for a run of keys; a row
// is a query token and one of the heads that share the KV head, so that each block of keys is read
// once for all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "ops/attention.h"

namespace capibara {

// Few rows and many keys, that is decoding: the keys are split at multiples of this, whatever the
// number of threads, so that the result does not depend on it. Large enough that joining the parts
// (head_dim multiplications a row and part) is nothing beside head_dim times as many for the keys.
constexpr int64_t kKeysPerSplit = 2048;

struct AttentionTask {
  int32_t sequence, kv_head;
  int64_t first_row, rows;
  int64_t key_begin, key_end;
  int64_t part;  // its partial sums' index; -1: none, it is the whole
};

// Parts [first, first + count) of the sums of all rows of a sequence's KV head.
struct AttentionJoin {
  int32_t sequence, kv_head;
  int64_t first_part, count;
};

struct AttentionPlan {
  int64_t keys_per_block;
  int64_t rows_per_task;  // a multiple of the tiles' rows
  std::vector<AttentionTask> tasks;
  std::vector<AttentionJoin> joins;
  int64_t parts;
  int threads;
};

// Keys that a query at this position of the sequence sees.
struct KeyRange {
  int64_t begin, end;
};
KeyRange visible_keys(const AttentionCall& call, int64_t sequence, int64_t position);

AttentionPlan plan_attention(const AttentionCall& call, const GemmKernel& kernel);

}  // namespace capibara
