// SPDX-License-Identifier: Apache-2.0
// The drivers of the paged KV cache: which token ends up in which slot, with which scale, on any
// number of threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "ops/kv_cache.h"
#include "ops/parallel.h"
#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

struct ThreadSetting {
  explicit ThreadSetting(int threads) { set_num_threads(threads); }
  ~ThreadSetting() { set_num_threads(0); }
};

struct Shape {
  int64_t blocks, heads, block_size, head_dim;
  int64_t slots() const { return blocks * block_size; }
};

// Heads, and blocks, with something between them.
class Cache {
 public:
  Cache(CacheType type, DType compute, const Shape& shape, CacheScales scales)
      : view_{cache_layout(type, compute, shape.block_size, shape.head_dim),
              nullptr,
              0,
              0,
              shape.blocks,
              shape.heads,
              scales,
              nullptr,
              nullptr} {
    view_.head_stride = 2 * view_.layout.half() + 16;
    view_.block_stride = shape.heads * view_.head_stride + 32;
    data_.assign(static_cast<size_t>(shape.blocks * view_.block_stride * size_of(type)), 0x5a);
    Random random;
    for (std::vector<float>* all : {&key_scales_, &value_scales_}) {
      all->resize(static_cast<size_t>(shape.heads * shape.slots()));
      for (float& scale : *all) scale = 0.01f + std::fabs(random.normal()) / 50;
    }
  }

  CacheView view() {
    CacheView view = view_;
    view.data = data_.data();
    view.key_scales = key_scales_.data();
    view.value_scales = value_scales_.data();
    return view;
  }
  bool operator==(const Cache& other) const {
    const auto equal = [](const std::vector<float>& a, const std::vector<float>& b) {
      return !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
    };
    return data_ == other.data_ && equal(key_scales_, other.key_scales_) &&
           equal(value_scales_, other.value_scales_);
  }

 private:
  CacheView view_;
  std::vector<uint8_t> data_;
  std::vector<float> key_scales_, value_scales_;
};

// Keys and values of tokens, as the parts of wider rows: all heads of a token side by side.
struct Input {
  DType from;
  int64_t tokens;
  Tensor key, value;
  std::vector<int64_t> slots;

  Input(DType dtype, const Shape& shape, std::vector<int64_t> mapping)
      : from(dtype),
        tokens(static_cast<int64_t>(mapping.size())),
        key(dtype, tokens, shape.heads * shape.head_dim, shape.heads * shape.head_dim + 24,
            Guard::kAfter),
        value(dtype, tokens, shape.heads * shape.head_dim, shape.heads * shape.head_dim,
              Guard::kBefore),
        slots(std::move(mapping)) {
    Random random;
    key.fill([&] { return random.normal(); });
    value.fill([&] { return random.normal(); });
  }

  CacheAppendCall call(const CacheView& cache) const {
    const int64_t head_dim = cache.layout.head_dim;
    return {cache,        from,     tokens,         key.data(), value.data(),
            key.stride(), head_dim, value.stride(), head_dim,   slots.data()};
  }
};

// Runs of consecutive slots and single ones, skipped tokens, and slots that come again.
std::vector<int64_t> random_slots(const Shape& shape, int64_t tokens, Random& random) {
  std::vector<int64_t> slots;
  while (static_cast<int64_t>(slots.size()) < tokens) {
    // The first one at least stores something.
    int64_t slot = random.integer(slots.empty() ? 0 : -3, shape.slots() - 1);
    if (!slots.empty() && random.integer(0, 3) == 0) {
      slot = slots[static_cast<size_t>(random.integer(0, static_cast<int64_t>(slots.size()) - 1))];
    }
    const int64_t run = random.integer(0, 1) ? 1 : random.integer(1, 2 * shape.block_size);
    for (int64_t i = 0; i < run && static_cast<int64_t>(slots.size()) < tokens; ++i) {
      slots.push_back(slot < 0 ? slot : std::min(slot + i, shape.slots() - 1));
    }
  }
  return slots;
}

float largest_of(const Tensor& x, int64_t token, int64_t head, int64_t head_dim) {
  float largest = 0.0f;
  for (int64_t d = 0; d < head_dim; ++d) {
    largest = std::max(largest, std::fabs(x.get(token, head * head_dim + d)));
  }
  return largest;
}

// What element d of a token's head should be once it is read in the type `to`.
float expected_value(const CacheView& cache, const float* scales, const Tensor& x, int64_t token,
                     int64_t slot, int64_t head, int64_t d, DType to) {
  const int64_t head_dim = cache.layout.head_dim, block_size = cache.layout.block_size;
  const float value = x.get(token, head * head_dim + d);
  const auto rounded = [](DType type, float v) {
    return dispatch(type, [&](auto element) { return to_f32(from_f32<decltype(element)>(v)); });
  };
  const CacheType type = cache.layout.type;
  if (!is_fp8(type)) return rounded(to, rounded(static_cast<DType>(type), value));
  const Fp8 format = fp8_of(type);
  float scale = scales[cache.scales == CacheScales::kHead ? head : 0], factor = 1.0f / scale;
  if (cache.scales == CacheScales::kToken) {
    const float largest = largest_of(x, token, head, head_dim);
    scale =
        scales[(slot / block_size * cache.num_kv_heads + head) * block_size + slot % block_size];
    if (scale != largest / capibara::largest_of(format)) return std::nanf("");
    factor = capibara::largest_of(format) / largest;
  }
  return rounded(to, to_f32(format, to_fp8(format, value * factor)) * scale);
}

void check_gathered(Cache& cache, const Input& input, DType to) {
  const CacheView view = cache.view();
  const int64_t heads = view.num_kv_heads, head_dim = view.layout.head_dim;
  std::vector<int64_t> slots = input.slots;
  slots.push_back(-1);
  const auto rows = static_cast<int64_t>(slots.size());
  Tensor key(to, rows, heads * head_dim, heads * head_dim, Guard::kAfter);
  Tensor value(to, rows, heads * head_dim, heads * head_dim, Guard::kAfter);
  kv_cache_gather({view, rows, slots.data(), to, key.data(), value.data()});
  std::vector<int64_t> last(static_cast<size_t>(view.num_blocks * view.layout.block_size), -1);
  for (int64_t t = 0; t < input.tokens; ++t) {
    if (slots[static_cast<size_t>(t)] >= 0)
      last[static_cast<size_t>(slots[static_cast<size_t>(t)])] = t;
  }
  int64_t wrong = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = slots[static_cast<size_t>(row)];
    for (int64_t i = 0; i < heads * head_dim; ++i) {
      float expected_key = 0.0f, expected = 0.0f;
      if (slot >= 0) {
        const int64_t token = last[static_cast<size_t>(slot)];
        expected_key = expected_value(view, view.key_scales, input.key, token, slot, i / head_dim,
                                      i % head_dim, to);
        expected = expected_value(view, view.value_scales, input.value, token, slot, i / head_dim,
                                  i % head_dim, to);
      }
      wrong += key.get(row, i) != expected_key || value.get(row, i) != expected;
    }
  }
  CHECK(wrong == 0);
}

template <class F>
void for_each_cache(const F& f) {
  for (DType compute : kDTypes) {
    for (CacheType type : {static_cast<CacheType>(compute), CacheType::kE4M3, CacheType::kE5M2}) {
      for (CacheScales scales : {CacheScales::kTensor, CacheScales::kHead, CacheScales::kToken}) {
        if (!is_fp8(type) && scales != CacheScales::kTensor) continue;
        INFO("cache type ", static_cast<int>(type), ", computed in ", std::string(name_of(compute)),
             ", scales ", static_cast<int>(scales));
        f(type, compute, scales);
      }
    }
  }
}

TEST_CASE("kv_cache: what is gathered is what was appended, rounded") {
  Random random;
  for_each_cache([&](CacheType type, DType compute, CacheScales scales) {
    for (DType other : {compute, DType::kF32}) {
      for (const Shape& shape : {Shape{3, 2, 16, 48}, Shape{5, 3, 48, 80}, Shape{2, 1, 32, 64}}) {
#ifdef CAPIBARA_SAMPLED
        if (random.integer(0, 2) != 0) continue;
#endif
        Cache cache(type, compute, shape, scales);
        const Input input(other, shape, random_slots(shape, 70, random));
        kv_cache_append(input.call(cache.view()));
        check_gathered(cache, input, other);
      }
    }
  });
}

TEST_CASE("kv_cache: nothing to append") {
  const Shape shape = {2, 2, 16, 32};
  Cache cache(CacheType::kBF16, DType::kBF16, shape, CacheScales::kTensor);
  const Cache before = cache;
  kv_cache_append(Input(DType::kBF16, shape, {}).call(cache.view()));
  kv_cache_append(Input(DType::kBF16, shape, {-1, -7, -1}).call(cache.view()));
  CHECK(cache == before);
}

// Heads that threads share evenly and others; one block, in which everything falls, and many.
TEST_CASE("kv_cache: the same bytes on any number of threads") {
  Random random;
  for_each_cache([&](CacheType type, DType compute, CacheScales scales) {
    for (const Shape& shape : {Shape{1, 4, 128, 128}, Shape{7, 1, 32, 128}, Shape{4, 3, 32, 96}}) {
      // Work for five threads.
      const int64_t tokens = (int64_t{1} << 16) / (shape.heads * shape.head_dim);
      const Input input(compute, shape, random_slots(shape, tokens, random));
      const Cache before(type, compute, shape, scales);
      Cache expected = before;
      {
        const ThreadSetting one(1);
        kv_cache_append(input.call(expected.view()));
      }
      CHECK(!(expected == before));
      for (int threads : {2, 3, 5}) {
        const ThreadSetting setting(threads);
        Cache got = before;
        kv_cache_append(input.call(got.view()));
        CHECK(got == expected);
      }
    }
  });
}

TEST_CASE("kv_cache: layouts are those of the tiles") {
  for (DType compute : kDTypes) {
    const CacheLayout own = cache_layout(static_cast<CacheType>(compute), compute, 32, 64);
    const CacheLayout codes = cache_layout(CacheType::kE4M3, compute, 32, 64);
    CHECK(own.cols == codes.cols);
    CHECK(own.depth == codes.depth);
    CHECK(16 % own.depth == 0);
    CHECK(own.half() == 32 * 64);
  }
}

}  // namespace
}  // namespace capibara::test
