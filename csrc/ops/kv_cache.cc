// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "ops/gemm_packed.h"
#include "ops/parallel.h"
#include "ops/registry.h"

namespace capibara {
namespace {

// Consecutive tokens at consecutive positions of one block.
struct Run {
  int64_t token, count, block, position;
};

// Kept from call to call.
const std::vector<Run>& runs_of(const CacheAppendCall& call) {
  thread_local std::vector<Run> runs;
  runs.clear();
  const int64_t block_size = call.cache.layout.block_size;
  for (int64_t t = 0; t < call.tokens;) {
    const int64_t slot = call.slot_mapping[t];
    if (slot < 0) {
      ++t;
      continue;
    }
    const int64_t block = slot / block_size, position = slot - block * block_size;
    const int64_t most = std::min(block_size - position, call.tokens - t);
    int64_t count = 1;
    while (count < most && call.slot_mapping[t + count] == slot + count) ++count;
    runs.push_back({t, count, block, position});
    t += count;
  }
  return runs;
}

struct HeadScales {
  float key, value;
};

HeadScales scales_of(const CacheView& cache, int64_t block, int64_t head, int64_t position) {
  int64_t at = 0;
  if (cache.scales == CacheScales::kHead) at = head;
  if (cache.scales == CacheScales::kToken) {
    at = (block * cache.num_kv_heads + head) * cache.layout.block_size + position;
  }
  return {cache.key_scales[at], cache.value_scales[at]};
}

char* head_block(const CacheView& cache, int64_t block, int64_t head) {
  const int64_t at = block * cache.block_stride + head * cache.head_stride;
  return static_cast<char*>(cache.data) + at * size_of(cache.layout.type);
}

class Appender {
 public:
  explicit Appender(const CacheAppendCall& call)
      : call_(call), size_(static_cast<int64_t>(size_of(call.from))) {}

  void operator()(const Run& run, int64_t head) const {
    static CacheWriteFn* const write = kv_cache_write_kernels().chosen().run;
    const CacheView& cache = call_.cache;
    CacheWriteArgs args = {};
    args.layout = cache.layout;
    args.from = call_.from;
    args.key = at(call_.key, run.token * call_.key_token_stride + head * call_.key_head_stride);
    args.value =
        at(call_.value, run.token * call_.value_token_stride + head * call_.value_head_stride);
    args.key_stride = call_.key_token_stride;
    args.value_stride = call_.value_token_stride;
    args.first = run.position;
    args.count = run.count;
    args.block = head_block(cache, run.block, head);
    if (is_fp8(cache.layout.type)) {
      if (cache.scales == CacheScales::kToken) {
        const int64_t first = (run.block * cache.num_kv_heads + head) * cache.layout.block_size;
        args.scales_of_keys = cache.key_scales + first;
        args.scales_of_values = cache.value_scales + first;
      } else {
        const HeadScales scales = scales_of(cache, run.block, head, run.position);
        args.key_factor = 1.0f / scales.key;
        args.value_factor = 1.0f / scales.value;
      }
    }
    write(args);
  }

 private:
  const void* at(const void* data, int64_t element) const {
    return static_cast<const char*>(data) + element * size_;
  }

  const CacheAppendCall& call_;
  const int64_t size_;
};

// Classes of blocks, by the lower bits of their numbers, so that heads times classes are shared
// evenly by the threads. Runs of one block are always in the same class.
int64_t classes_of(int64_t heads, int64_t runs, int threads) {
  constexpr int64_t kItemsPerThread = 8;
  int64_t classes = 1;
  while (classes < runs && heads * classes % threads != 0 &&
         heads * classes < kItemsPerThread * threads) {
    classes *= 2;
  }
  return classes;
}

}  // namespace

CacheLayout cache_layout(CacheType type, DType compute, int64_t block_size, int64_t head_dim) {
  const GemmKernel& kernel = gemm_kernel(gemm_type_of(compute));
  return {type, compute, block_size, head_dim, kernel.cols, kernel.depth};
}

void kv_cache_append(const CacheAppendCall& call) {
  count_call(Op::kv_cache_append);
  const std::vector<Run>& runs = runs_of(call);
  const Appender append(call);
  const int64_t heads = call.cache.num_kv_heads, count = static_cast<int64_t>(runs.size());
  const int64_t bytes_of_element =
      static_cast<int64_t>(size_of(call.from)) + size_of(call.cache.layout.type);
  const int64_t bytes = call.tokens * heads * 2 * call.cache.layout.head_dim * bytes_of_element;
  const int threads = threads_for(heads * count, bytes);
  if (threads <= 1) {
    for (const Run& run : runs) {
      for (int64_t head = 0; head < heads; ++head) append(run, head);
    }
    return;
  }
  // A head of a block belongs to one thread, which stores its runs in their order: of equal slots
  // the last one stays.
  const int64_t classes = classes_of(heads, count, threads);
  parallel_for(heads * classes, bytes, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t head = begin / classes, first = begin % classes;
      const int64_t last = std::min(first + end - begin, classes);
      for (const Run& run : runs) {
        const int64_t own = run.block & (classes - 1);
        if (own >= first && own < last) append(run, head);
      }
      begin += last - first;
    }
  });
}

void kv_cache_gather(const CacheGatherCall& call) {
  const CacheView& cache = call.cache;
  const CacheLayout& layout = cache.layout;
  const int64_t heads = cache.num_kv_heads, size = size_of(layout.type);
  const auto read = [&](const char* at) {
    const auto load = [&](auto element) {
      std::memcpy(&element, at, sizeof element);
      return element;
    };
    if (is_fp8(layout.type)) return to_f32(fp8_of(layout.type), load(uint8_t{}));
    return dispatch(static_cast<DType>(layout.type),
                    [&](auto element) { return to_f32(load(element)); });
  };
  const auto range = [&](int64_t begin, int64_t end) {
    dispatch(call.to, [&](auto element) {
      using T = decltype(element);
      for (int64_t i = begin; i < end; ++i) {
        T* key = static_cast<T*>(call.key) + i * layout.head_dim;
        T* value = static_cast<T*>(call.value) + i * layout.head_dim;
        const int64_t slot = call.slots[i / heads], head = i % heads;
        if (slot < 0) {
          std::fill_n(key, layout.head_dim, T{});
          std::fill_n(value, layout.head_dim, T{});
          continue;
        }
        const int64_t block = slot / layout.block_size, position = slot % layout.block_size;
        const char* data = head_block(cache, block, head);
        const bool scaled = is_fp8(layout.type);
        const HeadScales scales =
            scaled ? scales_of(cache, block, head, position) : HeadScales{1.0f, 1.0f};
        for (int64_t d = 0; d < layout.head_dim; ++d) {
          key[d] = from_f32<T>(read(data + layout.key_at(position, d) * size) * scales.key);
          value[d] = from_f32<T>(read(data + layout.value_at(position, d) * size) * scales.value);
        }
      }
    });
  };
  parallel_for(
      call.tokens * heads,
      call.tokens * heads * 2 * layout.head_dim * (size + static_cast<int64_t>(size_of(call.to))),
      range);
}

}  // namespace capibara
