// SPDX-License-Identifier: Apache-2.0
#include "bindings/check_attention.h"

#include <cmath>
#include <limits>

namespace capibara {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostHeadDim = 512;

const int32_t* int32s(const TensorView& view) { return static_cast<const int32_t*>(view.data); }

// Sequences of a dense tensor: the stride of tokens, and how many tokens apart the sequences lie.
struct Dense {
  int64_t token_stride, sequence_rows;
};

// False if no such numbers exist.
bool dense_of(const TensorView& view, Dense& dense) {
  const int64_t batch = view.shape[0], tokens = view.shape[1];
  dense = {view.strides[1], tokens};
  if (view.dims != 4 || batch <= 1 || tokens == 0) return true;
  const int64_t apart = view.strides[0];
  if (tokens == 1) {
    dense = {apart, 1};
    return true;
  }
  if (dense.token_stride == 0 || apart % dense.token_stride != 0) return false;
  dense.sequence_rows = apart / dense.token_stride;
  return dense.sequence_rows >= 0 && dense.sequence_rows <= kInt32Max / batch;
}

bool queries_follow(const TensorView& view) {
  Dense dense;
  return view.dims != 4 || (dense_of(view, dense) && dense.sequence_rows == view.shape[1]);
}

HeadsView heads_of(const TensorView& view) {
  if (view.dims == 3) return {view.data, view.strides[0], view.strides[1]};
  Dense dense;
  dense_of(view, dense);
  return {view.data, dense.token_stride, view.strides[2]};
}

const float* as_f32(const TensorView& view, int64_t heads, std::vector<float>& memory) {
  expect_value_type(view);
  if (view.dims != 1 || view.shape[0] != heads) {
    fail(view, "one number a head, shape [" + std::to_string(heads) + "]", view.shape_text());
  }
  if (view.dtype == DType::kF32) return static_cast<const float*>(view.data);
  memory.resize(heads);
  dispatch(view.dtype, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(view.data);
    for (int64_t h = 0; h < heads; ++h) memory[h] = to_f32(from[h]);
  });
  return memory.data();
}

// Prefix sums that begin at 0 and end at `rows`; returns how many sequences they are of.
int64_t check_starts(const TensorView& starts, int64_t rows, const char* of) {
  expect_index_type(starts, IndexType::kInt32);
  if (starts.dims != 1 || starts.shape[0] < 1) {
    fail(starts, "shape [sequences + 1]", starts.shape_text());
  }
  const int32_t* const values = int32s(starts);
  const int64_t sequences = starts.shape[0] - 1;
  if (values[0] != 0) fail(starts, "0 first", std::to_string(values[0]));
  for (int64_t s = 0; s < sequences; ++s) {
    if (values[s + 1] < values[s]) {
      fail(starts, "numbers that do not decrease",
           std::to_string(values[s + 1]) + " after " + std::to_string(values[s]));
    }
  }
  if (values[sequences] != rows) {
    fail(starts, std::to_string(rows) + " last, the tokens of " + of,
         std::to_string(values[sequences]));
  }
  return sequences;
}

void check_ranges(const TensorView& ranges, AttentionCall& call) {
  expect_index_type(ranges, IndexType::kInt32);
  if (ranges.dims != 2 || ranges.shape[1] != 3) {
    fail(ranges, "shape [n, 3]: sequence, begin, end", ranges.shape_text());
  }
  static_assert(sizeof(BidirectionalRange) == 3 * sizeof(int32_t), "a row of the array");
  call.ranges = reinterpret_cast<const BidirectionalRange*>(ranges.data);
  call.num_ranges = ranges.shape[0];
  for (int64_t i = 0; i < call.num_ranges; ++i) {
    const BidirectionalRange& range = call.ranges[i];
    const auto text = [&range] {
      return "(" + std::to_string(range.sequence) + ", " + std::to_string(range.begin) + ", " +
             std::to_string(range.end) + ")";
    };
    if (range.sequence < 0 || range.sequence >= call.sequences) {
      fail(ranges, "sequences from 0 to " + std::to_string(call.sequences - 1), text());
    }
    const int32_t keys = call.key_lengths[range.sequence];
    if (range.begin < 0 || range.end <= range.begin || range.end > keys) {
      fail(ranges, "0 <= begin < end <= " + std::to_string(keys) + ", the sequence's keys", text());
    }
    if (i == 0) continue;
    const BidirectionalRange& before = call.ranges[i - 1];
    if (range.sequence < before.sequence ||
        (range.sequence == before.sequence && range.begin < before.end)) {
      fail(ranges, "ranges apart from each other, sorted by sequence, then begin",
           text() + " as number " + std::to_string(i));
    }
  }
}

int64_t check_window(const char* name, int64_t window) {
  if (window >= kNoWindow) return window;
  throw std::invalid_argument(std::string(name) +
                              ": expected a number that is not negative, or -1 for none, got " +
                              std::to_string(window));
}

// q, out, and the options; the rest of the call is complete.
void finish(const TensorView& q, const TensorView& out, const AttentionOptions& options,
            CheckedAttention& checked) {
  AttentionCall& call = checked.call;
  expect_dtype_of(out, q);
  expect_shape_of(out, q);
  expect_apart(out, q);
  const HeadsView rows = heads_of(out);
  call.dtype = q.dtype;
  call.q = heads_of(q);
  call.out = out.data;
  call.out_token_stride = rows.token_stride;
  call.out_head_stride = rows.head_stride;
  call.scale = options.scale ? finite_float("scale", *options.scale)
                             : 1.0f / std::sqrt(static_cast<float>(call.head_dim));
  call.causal = options.causal;
  call.window_left = check_window("window", options.window_left);
  call.window_right = check_window("window", options.window_right);
  call.softcap = finite_float("softcap", options.softcap);
  if (call.softcap < 0.0f) {
    throw std::invalid_argument("softcap: expected a number that is not negative, got " +
                                std::to_string(options.softcap));
  }
  if (options.alibi_slopes) {
    call.alibi_slopes = as_f32(*options.alibi_slopes, call.num_heads, checked.slopes);
  }
  if (options.sinks) call.sinks = as_f32(*options.sinks, call.num_heads, checked.sinks);
  if (options.ranges) check_ranges(*options.ranges, call);
}

void check_queries(const TensorView& q, int dims, int64_t num_kv_heads, AttentionCall& call) {
  expect_value_type(q);
  if (q.dims != dims) {
    fail(q,
         dims == 4 ? "shape [batch, tokens, heads, head_dim], or query_start as well"
                   : "shape [tokens, heads, head_dim]",
         "shape " + q.shape_text());
  }
  call.num_heads = q.shape[dims - 2];
  call.num_kv_heads = num_kv_heads;
  call.head_dim = q.last();
  if (call.head_dim < 16 || call.head_dim > kMostHeadDim || call.head_dim % 16 != 0) {
    fail(q, "a head_dim from 16 to 512 that is a multiple of 16", std::to_string(call.head_dim));
  }
  if (num_kv_heads < 1 || call.num_heads < 1 || call.num_heads % num_kv_heads != 0) {
    fail(q, "a multiple of the " + std::to_string(num_kv_heads) + " heads of keys as its heads",
         std::to_string(call.num_heads));
  }
}

}  // namespace

bool queries_readable(const TensorView& view) {
  return check_readable(view, false) && (view.numel() == 0 || queries_follow(view));
}

void expect_queries_writable(const TensorView& view) {
  check_readable(view, true);
  if (view.numel() > 0 && !queries_follow(view)) {
    fail(view, "tokens at one stride, from one sequence to the next too", "another layout");
  }
}

bool keys_readable(const TensorView& view) {
  Dense dense;
  return check_readable(view, false) &&
         (view.numel() == 0 || view.dims != 4 || dense_of(view, dense));
}

void check_flash_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                           const TensorView* query_start, const TensorView* key_start,
                           const AttentionOptions& options, const TensorView& out,
                           CheckedAttention& checked) {
  AttentionCall& call = checked.call;
  if (key_start && !query_start) fail(*key_start, "query_start as well", "key_start alone");
  const int dims = query_start ? 3 : 4;
  check_queries(q, dims, k.dims == dims ? k.shape[dims - 2] : 1, call);
  expect_dtype_of(k, q);
  bool fits = k.dims == dims && k.last() == q.last();
  if (fits && dims == 4) fits = k.shape[0] == q.shape[0];
  if (!fits) {
    const std::string tail = "tokens, heads, " + std::to_string(q.last()) + "]";
    fail(k, "shape [" + (dims == 4 ? std::to_string(q.shape[0]) + ", " : "") + tail,
         k.shape_text());
  }
  expect_dtype_of(v, q);
  expect_shape_of(v, k);
  expect_apart(out, k);
  expect_apart(out, v);

  std::vector<int32_t>& indices = checked.indices;
  if (query_start) {
    call.sequences = check_starts(*query_start, q.shape[0], "q");
    call.query_start = int32s(*query_start);
    const TensorView& starts = key_start ? *key_start : *query_start;
    const int64_t of_keys = check_starts(starts, k.shape[0], "k");
    if (of_keys != call.sequences) {
      fail(starts, "shape [" + std::to_string(call.sequences + 1) + "], as query_start has",
           starts.shape_text());
    }
    call.key_start = int32s(starts);
    indices.resize(call.sequences);
    for (int64_t s = 0; s < call.sequences; ++s) {
      indices[s] = call.key_start[s + 1] - call.key_start[s];
    }
    call.key_lengths = indices.data();
  } else {
    const int64_t batch = q.shape[0], queries = q.shape[1], keys = k.shape[1];
    if (queries > kInt32Max || keys > kInt32Max || batch >= kInt32Max ||
        batch * queries > kInt32Max || batch * keys > kInt32Max) {
      fail(q, "fewer than 2^31 tokens", "shape " + q.shape_text());
    }
    Dense of_k, of_v;
    dense_of(k, of_k);
    dense_of(v, of_v);
    if (k.numel() > 0 && of_k.sequence_rows != of_v.sequence_rows) throw NeedsCopy{};
    call.sequences = batch;
    indices.resize(3 * batch + 1);
    int32_t* const starts = indices.data();
    int32_t* const lengths = starts + batch + 1;
    int32_t* const key_starts = lengths + batch;
    for (int64_t s = 0; s <= batch; ++s) starts[s] = static_cast<int32_t>(s * queries);
    for (int64_t s = 0; s < batch; ++s) {
      lengths[s] = static_cast<int32_t>(keys);
      key_starts[s] = static_cast<int32_t>(k.numel() > 0 ? s * of_k.sequence_rows : 0);
    }
    call.query_start = starts;
    call.key_lengths = lengths;
    call.key_start = key_starts;
  }
  call.k = heads_of(k);
  call.v = heads_of(v);
  finish(q, out, options, checked);
}

void check_paged_attention(const TensorView& q, const CacheView& cache,
                           const TensorView& block_table, const TensorView& seq_lens,
                           const TensorView* query_start, const AttentionOptions& options,
                           const TensorView& out, CheckedAttention& checked) {
  AttentionCall& call = checked.call;
  checked.cache = cache;
  call.cache = &checked.cache;
  check_queries(q, 3, cache.num_kv_heads, call);
  if (q.dtype != cache.layout.compute) {
    throw TypeMismatch(std::string("q: expected the compute dtype of the cache, ") +
                       name_of(cache.layout.compute) + ", got " + name_of(q.dtype));
  }
  if (call.head_dim != cache.layout.head_dim) {
    fail(q, "the head_dim of the cache, " + std::to_string(cache.layout.head_dim),
         std::to_string(call.head_dim));
  }

  expect_index_type(seq_lens, IndexType::kInt32);
  if (seq_lens.dims != 1) fail(seq_lens, "shape [sequences]", seq_lens.shape_text());
  const int64_t sequences = call.sequences = seq_lens.shape[0];
  call.key_lengths = int32s(seq_lens);
  if (query_start) {
    const int64_t given = check_starts(*query_start, q.shape[0], "q");
    if (given != sequences) {
      fail(*query_start, "shape [" + std::to_string(sequences + 1) + "], one more than seq_lens",
           query_start->shape_text());
    }
    call.query_start = int32s(*query_start);
  } else {
    if (q.shape[0] != sequences) {
      fail(q,
           "one token for each of the " + std::to_string(sequences) + " seq_lens, or query_start",
           "shape " + q.shape_text());
    }
    checked.indices.resize(sequences + 1);
    for (int64_t s = 0; s <= sequences; ++s) checked.indices[s] = static_cast<int32_t>(s);
    call.query_start = checked.indices.data();
  }

  expect_index_type(block_table, IndexType::kInt32);
  if (block_table.dims != 2 || block_table.shape[0] != sequences) {
    fail(block_table, "shape [" + std::to_string(sequences) + ", blocks]",
         block_table.shape_text());
  }
  call.block_table = int32s(block_table);
  call.block_table_stride = block_table.strides[0];
  const int64_t block_size = cache.layout.block_size;
  const int64_t most = block_table.shape[1] * block_size;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t keys = call.key_lengths[s];
    const int64_t queries = call.query_start[s + 1] - call.query_start[s];
    if (keys < queries || keys > most) {
      fail(seq_lens,
           "numbers from that of the sequence's queries, " + std::to_string(queries) + ", to " +
               std::to_string(most) + ", what block_table has blocks for",
           std::to_string(keys));
    }
    const int32_t* const blocks = call.block_table + s * call.block_table_stride;
    for (int64_t b = 0; b * block_size < keys; ++b) {
      if (blocks[b] < 0 || blocks[b] >= cache.num_blocks) {
        fail(block_table, "blocks from 0 to " + std::to_string(cache.num_blocks - 1),
             std::to_string(blocks[b]) + " for sequence " + std::to_string(s));
      }
    }
  }
  finish(q, out, options, checked);
}

}  // namespace capibara
