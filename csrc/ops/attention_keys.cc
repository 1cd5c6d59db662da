// SPDX-License-Identifier: Apache-2.0
#include "ops/attention_keys.h"

#include <algorithm>
#include <cstring>

#include "base/rounding.h"
#include "kernels/fp8/fp8.h"
#include "kernels/gemm/pack.h"

namespace capibara {
namespace {

bool has_whole_panels(const AttentionCall& call, const GemmKernel& kernel) {
  return call.cache && call.cache->layout.block_size % kernel.cols == 0 &&
         call.head_dim % kernel.cols == 0;
}

// f16 cannot hold an exponential times a token's scale, the largest magnitude over `largest`: it is
// given times this power of two, which value_scale() makes up for.
float token_value_unit(Fp8 format) { return format == Fp8::kE4M3 ? 0x1p8f : 0x1p15f; }

}  // namespace

KeySource::KeySource(const AttentionCall& call, const GemmKernel& kernel, int64_t keys_per_block)
    : call_(call),
      per_block_(keys_per_block),
      cols_(kernel.cols),
      depth_(kernel.depth),
      size_(size_of(kernel.b)),
      unit_(attention_unit(kernel)),
      packed_(kernel.b),
      padded_dim_(round_up(call.head_dim, kernel.cols)),
      whole_panels_(has_whole_panels(call, kernel)),
      fp8_(call.cache && is_fp8(call.cache->layout.type)) {}

size_t KeySource::scratch_bytes() const {
  const int64_t panels = whole_panels_ && !fp8_ ? tail_bytes() : keys_bytes() + values_bytes();
  return static_cast<size_t>(panels + 2 * per_block_ * static_cast<int64_t>(sizeof(float)));
}

float KeySource::key_scale(int64_t kv_head) const {
  if (!fp8_) return 1.0f;
  if (call_.cache->scales == CacheScales::kToken) return 1.0f;
  return call_.cache->key_scales[call_.cache->scales == CacheScales::kHead ? kv_head : 0];
}

float KeySource::value_scale(int64_t kv_head) const {
  if (!fp8_) return 1.0f;
  if (call_.cache->scales == CacheScales::kToken) {
    return 1.0f / token_value_unit(fp8_of(call_.cache->layout.type));
  }
  return call_.cache->value_scales[call_.cache->scales == CacheScales::kHead ? kv_head : 0];
}

int64_t KeySource::block_of(int64_t sequence, int64_t key) const {
  return call_
      .block_table[sequence * call_.block_table_stride + key / call_.cache->layout.block_size];
}

void KeySource::load(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
                     bool once, char* scratch, KeyBlock& block) const {
  block.coded = fp8_ && whole_panels_ && once;
  block.left = call_.key_lengths[sequence] - first;
  block.tail_begin = kMaxKeysPerBlock;
  block.tail_values = nullptr;
  block.key_scales = block.value_scales = nullptr;
  begin = begin / unit_ * unit_;
  if (fp8_ && call_.cache->scales == CacheScales::kToken) {
    load_scales(sequence, kv_head, first, begin, end,
                reinterpret_cast<float*>(scratch + keys_bytes() + values_bytes()), block);
  }
  if (block.coded || (whole_panels_ && !fp8_)) {
    point(sequence, kv_head, first, begin, end, scratch, block);
    return;
  }
  if (call_.cache) {
    expand(sequence, kv_head, first, begin, end, scratch);
  } else {
    pack(sequence, kv_head, first, begin, end, scratch);
  }
  block.segments = 1;
  block.segment[0] = {0,
                      per_block_,
                      scratch,
                      scratch + keys_bytes(),
                      cols_ * call_.head_dim * size_,
                      cols_ * per_block_ * size_};
}

void KeySource::pack(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
                     char* scratch) const {
  const int64_t element = static_cast<int64_t>(size_of(call_.dtype));
  const auto row = [&](const HeadsView& heads, int64_t key) {
    const int64_t token = call_.key_start[sequence] + first + key;
    return static_cast<const char*>(heads.data) +
           (token * heads.token_stride + kv_head * heads.head_stride) * element;
  };
  const int depth = static_cast<int>(depth_);
  static PackFn* const lines = pack_lines_kernels().chosen().run;
  static PackFn* const columns = pack_columns_kernels().chosen().run;
  for (int64_t key = begin; key < end; key += cols_) {
    lines({call_.dtype, row(call_.k, key), call_.k.token_stride, std::min(cols_, end - key),
           call_.head_dim, packed_, cols_, depth, nullptr, scratch + key * call_.head_dim * size_});
  }
  for (int64_t d = 0; d < call_.head_dim; d += cols_) {
    columns({call_.dtype, row(call_.v, begin) + d * element, call_.v.token_stride,
             std::min(cols_, call_.head_dim - d), end - begin, packed_, cols_, depth, nullptr,
             scratch + keys_bytes() + (d * per_block_ + begin * cols_) * size_});
  }
}

void KeySource::point(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
                      char* tail, KeyBlock& block) const {
  const CacheView& cache = *call_.cache;
  const int64_t size = cache.layout.block_size, element = size_of(cache.layout.type);
  block.segments = 0;
  // Blocks of the cache need not divide those of attention.
  for (int64_t key = (first + begin) / size * size; key < first + end; key += size) {
    const char* data =
        static_cast<const char*>(cache.data) +
        (block_of(sequence, key) * cache.block_stride + kv_head * cache.head_stride) * element;
    const int64_t skipped = std::max<int64_t>(first - key, 0);
    block.segment[block.segments++] = {
        std::max<int64_t>(key - first, 0),
        std::min(key + size - first, per_block_),
        data + skipped * call_.head_dim * element,
        data + (cache.layout.half() + skipped * cols_) * element,
        cols_ * call_.head_dim * element,
        cols_ * size * element,
    };
  }
  const int64_t left = block.left;
  if (!block.coded && end > left / depth_ * depth_ && left % depth_ != 0) {
    block.tail_begin = left / depth_ * depth_;
    block.tail_values = tail;
    const KeySegment& last = block.segment[block.segments - 1];
    const int64_t valid = left - block.tail_begin;
    for (int64_t p = 0; p * cols_ < call_.head_dim; ++p) {
      const char* from = last.values + p * last.value_panel_stride +
                         (block.tail_begin - last.begin) * cols_ * size_;
      char* to = tail + p * cols_ * depth_ * size_;
      std::memset(to, 0, static_cast<size_t>(cols_ * depth_ * size_));
      for (int64_t c = 0; c < cols_; ++c) {
        const int64_t at = c * depth_ * size_;
        std::memcpy(to + at, from + at, static_cast<size_t>(valid * size_));
      }
    }
  }
}

void KeySource::decode(const char* codes, int64_t count, char* elements) const {
  const CacheLayout& layout = call_.cache->layout;
  static Fp8DecodeFn* const run = fp8_decode_kernels().chosen().run;
  run({fp8_of(layout.type), reinterpret_cast<const uint8_t*>(codes), count, layout.compute,
       elements});
}

void KeySource::copy(const char* from, int64_t count, char* to) const {
  if (fp8_) {
    decode(from, count, to);
  } else {
    std::memcpy(to, from, static_cast<size_t>(count * size_));
  }
}

void KeySource::expand(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
                       char* scratch) const {
  const CacheView& cache = *call_.cache;
  const int64_t size = cache.layout.block_size, dim = call_.head_dim;
  const int64_t element = size_of(cache.layout.type);
  char* const values = scratch + keys_bytes();
  for (int64_t block_begin = (first + begin) / size * size; block_begin < first + end;
       block_begin += size) {
    const char* data =
        static_cast<const char*>(cache.data) +
        (block_of(sequence, block_begin) * cache.block_stride + kv_head * cache.head_stride) *
            element;
    // The cache's tokens [from, to) of this block are the block's keys from `key` on.
    const int64_t from = std::max<int64_t>(first - block_begin, 0);
    const int64_t to = std::min(size, first + round_up(end, 16) - block_begin);
    const int64_t offset = block_begin - first;
    for (int64_t panel = from / cols_ * cols_; panel < to; panel += cols_) {
      const int64_t width = std::min(cols_, size - panel), key = offset + panel;
      const char* source = data + panel * dim * element;
      if (width == cols_ && key % cols_ == 0) {
        copy(source, cols_ * dim, scratch + key * dim * size_);
        continue;
      }
      for (int64_t column = 0; column < width; column += 16) {  // may lie in several panels
        const int64_t at = key + column;
        if (at < 0 || at >= per_block_) continue;
        for (int64_t g = 0; g < dim / depth_; ++g) {
          const int64_t place = at / cols_ * cols_ * dim + (g * cols_ + at % cols_) * depth_;
          copy(source + (g * width + column) * depth_ * element,
               std::min<int64_t>(16, cols_) * depth_, scratch + place * size_);
        }
      }
    }
    for (int64_t d = 0; d < dim; d += cols_) {
      const int64_t width = std::min(cols_, dim - d);
      const char* source = data + (cache.layout.half() + d * size + from * width) * element;
      char* out = values + (d * per_block_ + (offset + from) * cols_) * size_;
      if (width == cols_) {
        copy(source, cols_ * (to - from), out);
        continue;
      }
      for (int64_t g = 0; g < (to - from) / depth_; ++g) {
        copy(source + g * width * depth_ * element, width * depth_,
             out + g * cols_ * depth_ * size_);
      }
    }
  }
  // What follows the sequence's end in its last group may be anything.
  const int64_t left = call_.key_lengths[sequence] - first;
  if (end > left / depth_ * depth_ && left % depth_ != 0) {
    const int64_t group = left / depth_ * depth_, valid = left - group;
    for (int64_t d = 0; d < padded_dim_; d += cols_) {
      char* out = values + (d * per_block_ + group * cols_) * size_;
      for (int64_t c = 0; c < cols_; ++c) {
        std::memset(out + (c * depth_ + valid) * size_, 0,
                    static_cast<size_t>((depth_ - valid) * size_));
      }
    }
  }
}

void KeySource::load_scales(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin,
                            int64_t end, float* scales, KeyBlock& block) const {
  const CacheView& cache = *call_.cache;
  const int64_t size = cache.layout.block_size;
  float* const values = scales + per_block_;
  // Softmax reads whole units; what it makes of the others is masked.
  std::fill(scales, scales + 2 * per_block_, 0.0f);
  for (int64_t key = begin; key < end;) {
    const int64_t at = (first + key) % size;
    const int64_t count = std::min(size - at, end - key);
    const int64_t from =
        (block_of(sequence, first + key) * cache.num_kv_heads + kv_head) * size + at;
    std::copy_n(cache.key_scales + from, count, scales + key);
    const float unit = token_value_unit(fp8_of(cache.layout.type));
    std::transform(cache.value_scales + from, cache.value_scales + from + count, values + key,
                   [&](float scale) { return scale * unit; });
    key += count;
  }
  block.key_scales = scales;
  block.value_scales = values;
}

}  // namespace capibara
