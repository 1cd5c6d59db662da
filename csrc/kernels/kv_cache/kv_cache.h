// SPDX-License-Identifier: Apache-2.0
// Contract: the paged KV cache (W. Kwon et al., "Efficient Memory Management for Large Language
// Model Serving with PagedAttention", arXiv:2309.06180) in the layout that the matrix tiles read.
//
// A block holds `block_size` tokens of one KV head: its keys, block_size * head_dim elements, then
// as many of its values. Both are panels as gemm.h has them, so that attention reads them where
// they are:
//   keys:   tokens are the panel's lines:     [block_size / cols][head_dim / depth][cols][depth]
//   values: dimensions are the panel's lines: [head_dim / cols][block_size / depth][cols][depth]
// The last panel is as narrow as what is left: nothing is padded. cols and depth are those of the
// tiles that run here for the type that is computed in; 8-bit codes lie where the elements that
// they become would lie, so that a run of them is decoded in order.
//
// block_size and head_dim are multiples of 16, which every depth divides.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/dtype.h"
#include "base/fp8.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

// What the cache holds; the first three as DType numbers them.
enum class CacheType : uint8_t { kF32, kF16, kBF16, kE4M3, kE5M2 };
constexpr bool is_fp8(CacheType type) { return type >= CacheType::kE4M3; }
constexpr int64_t size_of(CacheType type) {
  return is_fp8(type) ? 1 : type == CacheType::kF32 ? 4 : 2;
}
constexpr Fp8 fp8_of(CacheType type) { return type == CacheType::kE5M2 ? Fp8::kE5M2 : Fp8::kE4M3; }

struct CacheLayout {
  CacheType type;
  DType compute;  // what attention computes in, and queries have; equals `type` unless that is fp8
  int64_t block_size, head_dim;
  int cols, depth;

  int64_t half() const { return block_size * head_dim; }  // elements of keys, or of values

  // Where an element is, counted from the beginning of a head's block.
  int64_t key_at(int64_t token, int64_t d) const { return at(token, d, block_size, head_dim); }
  int64_t value_at(int64_t token, int64_t d) const {
    return half() + at(d, token, head_dim, block_size);
  }

 private:
  int64_t at(int64_t line, int64_t k, int64_t lines, int64_t length) const {
    const int64_t first = line / cols * cols;
    const int64_t width = std::min<int64_t>(cols, lines - first);
    return first * length + (k / depth * width + line - first) * depth + k % depth;
  }
};

// The smallest normal f32, whose inverse is one too.
constexpr float kSmallestTokenScale = 0x1p-126f;

// head_dim that kernels have room for.
constexpr int64_t kLargestHeadDim = 512;

// Stores `count` tokens of one head at consecutive positions of one block.
struct CacheWriteArgs {
  CacheLayout layout;
  DType from;       // layout.compute, or f32
  const void* key;  // [count, head_dim], rows `key_stride` elements apart
  const void* value;
  int64_t key_stride, value_stride;
  int64_t first, count;  // positions in the block
  void* block;           // the head's block
  // fp8 alone. What keys and values are multiplied with before they are rounded: the inverses of
  // their scales. With scales_of_* given, it is found for each token instead: its largest magnitude
  // becomes the format's largest, and scales_of_*[position] (from the block's first token on)
  // receives the scale, which is no smaller than kSmallestTokenScale. A token of zeros has scale 1;
  // one with NaN or an infinity has scale NaN, and its elements are stored as if it were 1.
  float key_factor, value_factor;
  float* scales_of_keys;
  float* scales_of_values;
};
using CacheWriteFn = void(const CacheWriteArgs& args) noexcept;

namespace scalar {
CacheWriteFn kv_cache_write;
}

const KernelTable<CacheWriteFn>& kv_cache_write_kernels();

}  // namespace capibara
