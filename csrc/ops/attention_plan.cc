// SPDX-License-Identifier: Apache-2.0
#include "ops/attention_plan.h"

#include <algorithm>

#include "base/rounding.h"
#include "cpu/features.h"
#include "ops/attention_keys.h"
#include "ops/parallel.h"

namespace capibara {
namespace {

// Three quarters of level 1 hold a panel's scores, in f32, and their exponentials; level 2 the
// block's keys and values in a quarter, which all panels of a task read one after the other.
int64_t keys_per_block(const AttentionCall& call, const GemmKernel& kernel) {
  const CpuInfo& cpu = cpu_info();
  const int64_t l1 = cpu.l1d_bytes ? static_cast<int64_t>(cpu.l1d_bytes) : 32 << 10;
  const int64_t l2 = cpu.l2_bytes ? static_cast<int64_t>(cpu.l2_bytes) : 512 << 10;
  const int64_t by_scores = l1 * 3 / 4 / (kernel.rows * (4 + size_of(kernel.a)));
  const int64_t by_keys = l2 / 4 / (2 * call.head_dim * size_of(kernel.b));
  const int64_t most = std::min({by_scores, by_keys, kMaxKeysPerBlock});
  return std::max<int64_t>(most / 128 * 128, 128);
}

// The rows' sums, in f32, take a quarter of level 2.
int64_t rows_per_task(const AttentionCall& call, const GemmKernel& kernel) {
  const CpuInfo& cpu = cpu_info();
  const int64_t l2 = cpu.l2_bytes ? static_cast<int64_t>(cpu.l2_bytes) : 512 << 10;
  const int64_t panels = l2 / 4 / (call.head_dim * 4 * kernel.rows);
  return std::clamp<int64_t>(panels, 1, 128) * kernel.rows;
}

int64_t queries_of(const AttentionCall& call, int64_t sequence) {
  return call.query_start[sequence + 1] - call.query_start[sequence];
}

// Keys that at least one of the queries [first, last] sees, counted from the sequence's first.
KeyRange visible_to(const AttentionCall& call, int64_t sequence, int64_t first, int64_t last) {
  const int64_t offset = call.key_lengths[sequence] - queries_of(call, sequence);
  const KeyRange a = visible_keys(call, sequence, offset + first);
  const KeyRange b = visible_keys(call, sequence, offset + last);
  // Both ends grow with the position, ranges included: those do not overlap.
  return {a.begin, std::max(a.end, b.end)};
}

}  // namespace

KeyRange visible_keys(const AttentionCall& call, int64_t sequence, int64_t position) {
  const int64_t length = call.key_lengths[sequence];
  KeyRange keys = {0, call.causal ? position + 1 : length};
  if (call.window_left != kNoWindow) keys.begin = std::max<int64_t>(position - call.window_left, 0);
  if (call.window_right != kNoWindow) {
    keys.end = std::min(keys.end, position + call.window_right + 1);
  }
  if (call.num_ranges > 0) {
    const auto* const end = call.ranges + call.num_ranges;
    // The last that begins at the position or before.
    const auto* const after = std::upper_bound(
        call.ranges, end, std::make_pair(sequence, position),
        [](const auto& value, const BidirectionalRange& range) {
          return value < std::make_pair<int64_t, int64_t>(range.sequence, range.begin);
        });
    if (after != call.ranges) {
      const BidirectionalRange& range = after[-1];
      if (range.sequence == sequence && position < range.end) {
        keys.begin = std::min<int64_t>(keys.begin, range.begin);
        keys.end = std::max<int64_t>(keys.end, range.end);
      }
    }
  }
  keys.end = std::min(keys.end, length);
  return keys;
}

AttentionPlan plan_attention(const AttentionCall& call, const GemmKernel& kernel) {
  AttentionPlan plan = {};
  plan.keys_per_block = keys_per_block(call, kernel);
  const int64_t group = call.num_heads / call.num_kv_heads;

  // A multiplication counts as the eighth of a byte, as in threads_of() of gemm_blocking.h.
  int64_t work = 0, tiles = 0;
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int64_t queries = queries_of(call, s);
    if (queries == 0) continue;
    const KeyRange keys = visible_to(call, s, 0, queries - 1);
    const int64_t seen = std::max<int64_t>(keys.end - keys.begin, 1);
    work += seen * call.head_dim * (queries * call.num_heads / 4 + 4 * call.num_kv_heads);
    tiles += divide_up(queries * group, kernel.rows) * call.num_kv_heads *
             divide_up(seen, kKeysPerSplit);
  }
  plan.threads = threads_for(tiles, work);
  plan.rows_per_task = rows_per_task(call, kernel);
  if (plan.threads > 1) {
    // Eight tasks a thread even out what causal masks and short sequences leave uneven. Rows do not
    // influence each other: results stay the same.
    const int64_t panels = divide_up(tiles, int64_t{8} * plan.threads);
    plan.rows_per_task = std::min(plan.rows_per_task, std::max<int64_t>(panels, 4) * kernel.rows);
  }

  for (int64_t s = 0; s < call.sequences; ++s) {
    const int64_t queries = queries_of(call, s), rows = queries * group;
    for (int64_t head = 0; head < call.num_kv_heads; ++head) {
      for (int64_t row = 0; row < rows; row += plan.rows_per_task) {
        const int64_t count = std::min(plan.rows_per_task, rows - row);
        const KeyRange keys = visible_to(call, s, row / group, (row + count - 1) / group);
        AttentionTask task = {static_cast<int32_t>(s),
                              static_cast<int32_t>(head),
                              row,
                              count,
                              keys.begin,
                              keys.end,
                              -1};
        const int64_t first = keys.begin / kKeysPerSplit, last = divide_up(keys.end, kKeysPerSplit);
        if (rows > kernel.rows || last - first <= 1) {
          plan.tasks.push_back(task);
          continue;
        }
        plan.joins.push_back({task.sequence, task.kv_head, plan.parts, last - first});
        for (int64_t i = first; i < last; ++i) {
          task.key_begin = std::max(keys.begin, i * kKeysPerSplit);
          task.key_end = std::min(keys.end, (i + 1) * kKeysPerSplit);
          task.part = plan.parts++;
          plan.tasks.push_back(task);
        }
      }
    }
  }
  return plan;
}

}  // namespace capibara
