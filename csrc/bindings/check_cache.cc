// SPDX-License-Identifier: Apache-2.0
#include "bindings/check_cache.h"

namespace capibara {
namespace {

const char* name_of_type(CacheType type) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "uint8", "uint8"};
  return kNames[static_cast<int>(type)];
}

int64_t check_number(const char* name, int64_t number, int64_t most) {
  if (number >= 0 && number <= most) return number;
  throw std::invalid_argument(std::string(name) + ": expected a number from 0 to " +
                              std::to_string(most) + ", got " + std::to_string(number));
}

CacheScales check_scales(const TensorView* scales, const char* name, const TensorView& data) {
  if (!scales) {
    throw TypeMismatch(std::string(name) + ": expected scales, which 8-bit floats have, got None");
  }
  expect_value_type(*scales);
  if (scales->dtype != DType::kF32) {
    throw TypeMismatch(std::string(name) + ": expected float32, got " + type_name_of(*scales));
  }
  if (scales->numel() > 0 && !(scales->contiguous() && scales->aligned())) {
    fail(*scales, "numbers that follow one another", "other strides");
  }
  if (scales->dims <= 1 && scales->numel() == 1) return CacheScales::kTensor;
  if (scales->dims == 1 && scales->shape[0] == data.shape[1]) return CacheScales::kHead;
  bool same = scales->dims == 3;
  for (int i = 0; same && i < 3; ++i) same = scales->shape[i] == data.shape[i];
  if (same) return CacheScales::kToken;
  const std::string heads = std::to_string(data.shape[1]);
  fail(*scales,
       "shape [1], [" + heads + "] or [" + std::to_string(data.shape[0]) + ", " + heads + ", " +
           std::to_string(data.shape[2]) + "]",
       scales->shape_text());
}

// [tokens, num_kv_heads, head_dim]
void expect_tokens(const TensorView& view, int64_t tokens, const CacheView& cache) {
  if (view.dims == 3 && view.shape[0] == tokens && view.shape[1] == cache.num_kv_heads &&
      view.shape[2] == cache.layout.head_dim) {
    return;
  }
  fail(view,
       "shape [" + std::to_string(tokens) + ", " + std::to_string(cache.num_kv_heads) + ", " +
           std::to_string(cache.layout.head_dim) + "]",
       view.shape_text());
}

void expect_compute_or_f32(const TensorView& view, const CacheView& cache) {
  expect_value_type(view);
  if (view.dtype == DType::kF32 || view.dtype == cache.layout.compute) return;
  throw TypeMismatch(std::string(view.name) + ": expected " + name_of(cache.layout.compute) +
                     ", the compute dtype of the cache, or float32, got " + type_name_of(view));
}

// Returns the number of slots.
int64_t check_slots(const TensorView& slots, const CacheView& cache) {
  expect_index_type(slots, IndexType::kInt64);
  if (slots.dims != 1) fail(slots, "shape [tokens]", slots.shape_text());
  const int64_t* const values = static_cast<const int64_t*>(slots.data);
  const int64_t most = cache.num_blocks * cache.layout.block_size;
  for (int64_t t = 0; t < slots.shape[0]; ++t) {
    if (values[t] >= most) {
      fail(slots, "slots below " + std::to_string(most) + ", or negative ones to skip",
           std::to_string(values[t]));
    }
  }
  return slots.shape[0];
}

void expect_contiguous(const TensorView& view) {
  if (view.numel() > 0 && !(view.contiguous() && view.aligned())) {
    fail(view, "elements that follow one another", "other strides");
  }
}

}  // namespace

CacheView check_cache(const TensorView& data, const TensorView* key_scales,
                      const TensorView* value_scales, int64_t type, int64_t compute) {
  CacheView cache = {};
  const auto of = static_cast<CacheType>(check_number("type", type, 4));
  const auto computed = static_cast<DType>(check_number("compute", compute, 2));
  const bool right = is_fp8(of) ? data.index == IndexType::kUInt8
                                : data.index == IndexType::kNone && data.dtype == computed;
  if (!right) {
    throw TypeMismatch(std::string(data.name) + ": expected " + name_of_type(of) + ", got " +
                       type_name_of(data));
  }
  if (!is_fp8(of) && type != compute) {
    throw std::invalid_argument("compute: expected the type of the cache, " + std::to_string(type) +
                                ", got " + std::to_string(compute));
  }
  if (data.dims != 4 || data.last() % 32 != 0 || data.last() < 32 || data.last() > 1024 ||
      data.shape[2] % 16 != 0 || data.shape[2] < 16) {
    fail(data,
         "shape [blocks, heads, block_size, 2 * head_dim], block_size and head_dim being multiples "
         "of 16, head_dim at most 512",
         data.shape_text());
  }
  if (data.numel() > 0 &&
      (!data.aligned() || data.strides[3] != 1 || data.strides[2] != data.last())) {
    fail(data, "each head of a block contiguous",
         data.aligned() ? "strides " + std::to_string(data.strides[2]) + " and " +
                              std::to_string(data.strides[3])
                        : std::string("a misaligned array"));
  }
  cache.layout = cache_layout(of, computed, data.shape[2], data.last() / 2);
  cache.data = data.data;
  cache.block_stride = data.strides[0];
  cache.head_stride = data.strides[1];
  cache.num_blocks = data.shape[0];
  cache.num_kv_heads = data.shape[1];
  if (!is_fp8(of)) return cache;
  cache.scales = check_scales(key_scales, "key_scales", data);
  if (check_scales(value_scales, "value_scales", data) != cache.scales) {
    fail(*value_scales, "the shape of key_scales, " + key_scales->shape_text(),
         value_scales->shape_text());
  }
  cache.key_scales = static_cast<float*>(key_scales->data);
  cache.value_scales = static_cast<float*>(value_scales->data);
  return cache;
}

void expect_cache_writable(const TensorView& data, const TensorView* key_scales,
                           const TensorView* value_scales) {
  expect_writable(data);
  for (const TensorView* scales : {key_scales, value_scales}) {
    if (scales && scales->dims == 3) expect_writable(*scales);
  }
}

CacheAppendCall check_cache_append(const CacheView& cache, const TensorView& key,
                                   const TensorView& value, const TensorView& slot_mapping) {
  CacheAppendCall call = {};
  call.cache = cache;
  expect_compute_or_f32(key, cache);
  call.tokens = check_slots(slot_mapping, cache);
  expect_tokens(key, call.tokens, cache);
  expect_dtype_of(value, key);
  expect_tokens(value, call.tokens, cache);
  call.from = key.dtype;
  call.key = key.data;
  call.value = value.data;
  call.key_token_stride = key.strides[0];
  call.key_head_stride = key.strides[1];
  call.value_token_stride = value.strides[0];
  call.value_head_stride = value.strides[1];
  call.slot_mapping = static_cast<const int64_t*>(slot_mapping.data);
  return call;
}

CacheGatherCall check_cache_gather(const CacheView& cache, const TensorView& slots,
                                   const TensorView& key, const TensorView& value) {
  CacheGatherCall call = {};
  call.cache = cache;
  expect_compute_or_f32(key, cache);
  call.tokens = check_slots(slots, cache);
  expect_dtype_of(value, key);
  for (const TensorView* view : {&key, &value}) {
    expect_tokens(*view, call.tokens, cache);
    expect_writable(*view);
    expect_contiguous(*view);
  }
  expect_apart(value, key);
  call.slots = static_cast<const int64_t*>(slots.data);
  call.to = key.dtype;
  call.key = key.data;
  call.value = value.data;
  return call;
}

Fp8EncodeArgs check_fp8_encode(const TensorView& x, int64_t format, double factor,
                               const TensorView& codes) {
  expect_value_type(x);
  expect_index_type(codes, IndexType::kUInt8);
  expect_shape_of(codes, x);
  expect_writable(codes);
  expect_contiguous(codes);
  expect_apart(codes, x);
  return {x.dtype,
          x.data,
          x.numel(),
          finite_float("factor", factor),
          static_cast<Fp8>(check_number("format", format, 1)),
          static_cast<uint8_t*>(codes.data)};
}

Fp8DecodeArgs check_fp8_decode(const TensorView& codes, int64_t format, const TensorView& y) {
  expect_index_type(codes, IndexType::kUInt8);
  expect_value_type(y);
  expect_shape_of(y, codes);
  expect_writable(y);
  expect_contiguous(y);
  expect_apart(y, codes);
  return {static_cast<Fp8>(check_number("format", format, 1)),
          static_cast<const uint8_t*>(codes.data), codes.numel(), y.dtype, y.data};
}

}  // namespace capibara
