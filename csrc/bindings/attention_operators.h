// SPDX-License-Identifier: Apache-2.0
// Attention, the paged KV cache and the 8-bit floats on the arrays of a backend (operators.h).
#pragma once

#include <optional>
#include <utility>

#include "bindings/check_attention.h"
#include "bindings/check_cache.h"
#include "bindings/operators.h"

namespace capibara {

// An argument, or none, whose elements follow one another.
template <class B>
class OptionalInput {
 public:
  OptionalInput(std::optional<typename B::Array> given, const char* name) {
    if (given) input_.emplace(std::move(*given), name).require_contiguous();
  }
  const TensorView* view() const { return input_ ? &input_->view : nullptr; }

 private:
  std::optional<Input<B>> input_;
};

// What flash_attention and paged_attention have in common.
template <class B>
struct AttentionArguments {
  std::optional<double> scale;
  bool causal;
  int64_t window_left, window_right;
  double softcap;
  std::optional<typename B::Array> alibi_slopes, sinks, ranges, out;
};

// check(options, out, checked)
template <class B, class Check>
typename B::Array run_attention(const Input<B>& q, std::initializer_list<Input<B>*> copyable,
                                AttentionArguments<B> arguments, const Check& check) {
  const OptionalInput<B> slopes(std::move(arguments.alibi_slopes), "alibi_slopes");
  const OptionalInput<B> sinks(std::move(arguments.sinks), "sinks");
  const OptionalInput<B> ranges(std::move(arguments.ranges), "ranges");
  const AttentionOptions options = {
      arguments.scale,   arguments.causal, arguments.window_left, arguments.window_right,
      arguments.softcap, slopes.view(),    sinks.view(),          ranges.view()};
  if (!arguments.out) arguments.out = B::empty(q.array, q.view, cols_of(q.view));
  Target<B> target(std::move(*arguments.out), "out", expect_queries_writable);
  CheckedAttention checked;
  check_or_copy<B>("out", copyable, [&] { check(options, target.view, checked); });
  {
    const typename B::Unlocked unlocked;
    attention(checked.call);
  }
  return std::move(target.array);
}

template <class B>
typename B::Array flash_attention(typename B::Array q, typename B::Array k, typename B::Array v,
                                  std::optional<typename B::Array> query_start,
                                  std::optional<typename B::Array> key_start,
                                  AttentionArguments<B> arguments) {
  Input<B> queries(std::move(q), "q", queries_readable);
  Input<B> keys(std::move(k), "k", keys_readable), values(std::move(v), "v", keys_readable);
  const OptionalInput<B> of_queries(std::move(query_start), "query_start");
  const OptionalInput<B> of_keys(std::move(key_start), "key_start");
  return run_attention<B>(
      queries, {&keys, &values}, std::move(arguments),
      [&](const AttentionOptions& options, const TensorView& out, CheckedAttention& checked) {
        check_flash_attention(queries.view, keys.view, values.view, of_queries.view(),
                              of_keys.view(), options, out, checked);
      });
}

template <class B>
struct CacheArguments {
  typename B::Array data;
  std::optional<typename B::Array> key_scales, value_scales;
  int64_t type, compute;
};

// A cache whose arguments are checked. Never copied: what lies elsewhere would be written.
template <class B>
class Cache {
 public:
  Cache(CacheArguments<B> given, bool writes) : arguments_(std::move(given)) {
    const TensorView data = B::view_of(arguments_.data, "data");
    TensorView scales[2];
    const TensorView* of_keys = nullptr;
    const TensorView* of_values = nullptr;
    if (arguments_.key_scales) {
      scales[0] = B::view_of(*arguments_.key_scales, "key_scales");
      of_keys = &scales[0];
    }
    if (arguments_.value_scales) {
      scales[1] = B::view_of(*arguments_.value_scales, "value_scales");
      of_values = &scales[1];
    }
    view_ = check_cache(data, of_keys, of_values, arguments_.type, arguments_.compute);
    if (writes) expect_cache_writable(data, of_keys, of_values);
  }
  const CacheView& view() const { return view_; }

 private:
  CacheArguments<B> arguments_;
  CacheView view_;
};

template <class B>
typename B::Array paged_attention(typename B::Array q, CacheArguments<B> cache,
                                  typename B::Array block_table, typename B::Array seq_lens,
                                  std::optional<typename B::Array> query_start,
                                  AttentionArguments<B> arguments) {
  const Input<B> queries(std::move(q), "q", queries_readable);
  const Cache<B> blocks(std::move(cache), false);
  const Input<B> table(std::move(block_table), "block_table");
  Input<B> lengths(std::move(seq_lens), "seq_lens");
  lengths.require_contiguous();
  const OptionalInput<B> of_queries(std::move(query_start), "query_start");
  return run_attention<B>(
      queries, {}, std::move(arguments),
      [&](const AttentionOptions& options, const TensorView& out, CheckedAttention& checked) {
        check_paged_attention(queries.view, blocks.view(), table.view, lengths.view,
                              of_queries.view(), options, out, checked);
      });
}

template <class B>
void append_to_cache(CacheArguments<B> cache, typename B::Array key, typename B::Array value,
                     typename B::Array slot_mapping) {
  const Cache<B> blocks(std::move(cache), true);
  const Input<B> keys(std::move(key), "key"), values(std::move(value), "value");
  Input<B> slots(std::move(slot_mapping), "slot_mapping");
  slots.require_contiguous();
  const CacheAppendCall call =
      check_cache_append(blocks.view(), keys.view, values.view, slots.view);
  const typename B::Unlocked unlocked;
  kv_cache_append(call);
}

// key, value: written.
template <class B>
void gather_from_cache(CacheArguments<B> cache, typename B::Array slots, typename B::Array key,
                       typename B::Array value) {
  const Cache<B> blocks(std::move(cache), false);
  Input<B> at(std::move(slots), "slots");
  at.require_contiguous();
  const Target<B> keys(std::move(key), "key"), values(std::move(value), "value");
  const CacheGatherCall call = check_cache_gather(blocks.view(), at.view, keys.view, values.view);
  const typename B::Unlocked unlocked;
  kv_cache_gather(call);
}

template <class B>
void encode_fp8(typename B::Array x, int64_t format, double factor, typename B::Array codes) {
  Input<B> input(std::move(x), "x");
  input.require_contiguous();
  const Target<B> target(std::move(codes), "codes");
  const Fp8EncodeArgs call = check_fp8_encode(input.view, format, factor, target.view);
  const typename B::Unlocked unlocked;
  fp8_encode(call);
}

template <class B>
void decode_fp8(typename B::Array codes, int64_t format, typename B::Array out) {
  Input<B> input(std::move(codes), "codes");
  input.require_contiguous();
  const Target<B> target(std::move(out), "out");
  const Fp8DecodeArgs call = check_fp8_decode(input.view, format, target.view);
  const typename B::Unlocked unlocked;
  fp8_decode(call);
}

}  // namespace capibara
