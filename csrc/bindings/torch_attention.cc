// SPDX-License-Identifier: Apache-2.0
// Attention, the paged KV cache and the 8-bit floats on torch tensors. As in torch.cc, each boxed
// operator takes ownership of all its tensors before anything can throw.
#include "bindings/attention_operators.h"
#include "bindings/torch_api.h"

namespace capibara {
namespace {

using B = TorchBackend;

// From `stack` on: scale?, causal, window_left, window_right, softcap, alibi_slopes?, sinks?,
// ranges?.
AttentionArguments<B> take_options(const Value* stack) {
  AttentionArguments<B> arguments = {};
  arguments.scale = take_optional_double(stack[0]);
  arguments.causal = stack[1] != 0;
  arguments.window_left = take_int(stack[2]);
  arguments.window_right = take_int(stack[3]);
  arguments.softcap = take_double(stack[4]);
  arguments.alibi_slopes = take_optional(stack[5]);
  arguments.sinks = take_optional(stack[6]);
  arguments.ranges = take_optional(stack[7]);
  return arguments;
}

// From `stack` on: q, k, v, query_start?, key_start?, options.
Tensor flash_attention_of(const Value* stack, std::optional<Tensor> out) {
  Tensor q(stack[0]), k(stack[1]), v(stack[2]);
  std::optional<Tensor> query_start = take_optional(stack[3]), key_start = take_optional(stack[4]);
  AttentionArguments<B> arguments = take_options(stack + 5);
  arguments.out = std::move(out);
  return flash_attention<B>(std::move(q), std::move(k), std::move(v), std::move(query_start),
                            std::move(key_start), std::move(arguments));
}

void flash_attention_boxed(Value* stack, uint64_t, uint64_t) {
  stack[0] = flash_attention_of(stack, {}).release();
}

// (out, ...)
void flash_attention_out_boxed(Value* stack, uint64_t, uint64_t) {
  flash_attention_of(stack + 1, Tensor(stack[0]));
}

// From `stack` on: data, key_scales?, value_scales?, type, compute.
constexpr int kCacheValues = 5;
CacheArguments<B> take_cache(const Value* stack) {
  Tensor data(stack[0]);
  std::optional<Tensor> key_scales = take_optional(stack[1]),
                        value_scales = take_optional(stack[2]);
  return {std::move(data), std::move(key_scales), std::move(value_scales), take_int(stack[3]),
          take_int(stack[4])};
}

// From `stack` on: q, cache, block_table, seq_lens, query_start?, options.
Tensor paged_attention_of(const Value* stack, std::optional<Tensor> out) {
  Tensor q(stack[0]);
  CacheArguments<B> cache = take_cache(stack + 1);
  stack += 1 + kCacheValues;
  Tensor block_table(stack[0]), seq_lens(stack[1]);
  std::optional<Tensor> query_start = take_optional(stack[2]);
  AttentionArguments<B> arguments = take_options(stack + 3);
  arguments.out = std::move(out);
  return paged_attention<B>(std::move(q), std::move(cache), std::move(block_table),
                            std::move(seq_lens), std::move(query_start), std::move(arguments));
}

void paged_attention_boxed(Value* stack, uint64_t, uint64_t) {
  stack[0] = paged_attention_of(stack, {}).release();
}

// (out, ...)
void paged_attention_out_boxed(Value* stack, uint64_t, uint64_t) {
  paged_attention_of(stack + 1, Tensor(stack[0]));
}

// (cache, key, value, slot_mapping)
void kv_cache_append_boxed(Value* stack, uint64_t, uint64_t) {
  CacheArguments<B> cache = take_cache(stack);
  stack += kCacheValues;
  Tensor key(stack[0]), value(stack[1]), slot_mapping(stack[2]);
  append_to_cache<B>(std::move(cache), std::move(key), std::move(value), std::move(slot_mapping));
}

// (cache, slots, key, value)
void kv_cache_gather_boxed(Value* stack, uint64_t, uint64_t) {
  CacheArguments<B> cache = take_cache(stack);
  stack += kCacheValues;
  Tensor slots(stack[0]), key(stack[1]), value(stack[2]);
  gather_from_cache<B>(std::move(cache), std::move(slots), std::move(key), std::move(value));
}

// (x, format, factor, codes)
void fp8_encode_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor x(stack[0]), codes(stack[3]);
  encode_fp8<B>(std::move(x), take_int(stack[1]), take_double(stack[2]), std::move(codes));
}

// (codes, format, out)
void fp8_decode_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor codes(stack[0]), out(stack[2]);
  decode_fp8<B>(std::move(codes), take_int(stack[1]), std::move(out));
}

}  // namespace

const Registration kAttentionOperators[] = {
    {"flash_attention", guarded<flash_attention_boxed>},
    {"flash_attention_out", guarded<flash_attention_out_boxed>},
    {"paged_attention", guarded<paged_attention_boxed>},
    {"paged_attention_out", guarded<paged_attention_out_boxed>},
    {"kv_cache_append", guarded<kv_cache_append_boxed>},
    {"kv_cache_gather", guarded<kv_cache_gather_boxed>},
    {"fp8_encode", guarded<fp8_encode_boxed>},
    {"fp8_decode", guarded<fp8_decode_boxed>},
    {nullptr, nullptr},
};

}  // namespace capibara
