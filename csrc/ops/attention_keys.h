// SPDX-License-Identifier: Apache-2.0
// Blocks of keys and values as the panels that matrix tiles read, wherever they come from: a paged
// cache that has them like that already, one of 8-bit codes or of an awkward shape, which is
// decoded or copied a block at a time, or dense tensors, which are packed a block at a time. Where
// one panel of rows reads a block, its codes are left to be decoded panel by panel, between the
// products: what is decoded stays in level 1. (Where codes are asked for ahead, it is to level 2:
// to level 1 made it slower, taking the buffers of the loads. To ask for the next block's first
// lines as well gained 2 %, within the noise.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/gemm.h"
#include "ops/attention.h"

namespace capibara {

constexpr int64_t kMaxKeysPerBlock = 512;

// The tiles' columns and the softmax's: what is computed of a block begins and ends at a multiple.
constexpr int64_t attention_unit(const GemmKernel& kernel) {
  return kernel.cols > 16 ? kernel.cols : 16;
}

// Keys [begin, end) of a block. The panel of the keys from begin + i * cols on is at
// keys + i * key_panel_stride, that of the dimensions from i * cols on, for all of these keys, at
// values + i * value_panel_stride; strides in bytes.
struct KeySegment {
  int64_t begin, end;
  const char* keys;
  const char* values;
  int64_t key_panel_stride, value_panel_stride;
};

struct KeyBlock {
  bool coded;    // the segments are 8-bit codes, for decode()
  int64_t left;  // keys of the sequence from the block's first one on
  int64_t segments;
  KeySegment segment[kMaxKeysPerBlock / 16];
  // Where the sequence ends within a group along the tiles' depth, what follows in a cache may be
  // anything, even NaN. From the key tail_begin on, values are read from here instead: a group for
  // each panel, filled up with zeros. kMaxKeysPerBlock: nowhere.
  int64_t tail_begin;
  const char* tail_values;
  const float* key_scales;  // of the block's keys; or null
  const float* value_scales;
};

class KeySource {
 public:
  // keys_per_block: a multiple of 128, at most kMaxKeysPerBlock.
  KeySource(const AttentionCall& call, const GemmKernel& kernel, int64_t keys_per_block);

  // What load() needs to write to.
  size_t scratch_bytes() const;

  // The block that begins at key `first` of a sequence, a multiple of keys_per_block. Only the keys
  // [begin, end) of it will be read, apart from others of their panels, and `once` or several
  // times.
  void load(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end, bool once,
            char* scratch, KeyBlock& block) const;

  // Codes of a coded block as elements of panels.
  void decode(const char* codes, int64_t count, char* elements) const;

  // Of all keys, where scales are not one a token.
  float key_scale(int64_t kv_head) const;
  float value_scale(int64_t kv_head) const;

  int64_t padded_head_dim() const { return padded_dim_; }

 private:
  void pack(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
            char* scratch) const;
  void point(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
             char* tail, KeyBlock& block) const;
  void expand(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
              char* scratch) const;
  void copy(const char* from, int64_t count, char* to) const;
  void load_scales(int64_t sequence, int64_t kv_head, int64_t first, int64_t begin, int64_t end,
                   float* scales, KeyBlock& block) const;
  int64_t block_of(int64_t sequence, int64_t key) const;

  int64_t keys_bytes() const { return per_block_ * call_.head_dim * size_; }
  int64_t values_bytes() const { return per_block_ * padded_dim_ * size_; }
  int64_t tail_bytes() const { return padded_dim_ * depth_ * size_; }

  const AttentionCall& call_;
  const int64_t per_block_;
  const int64_t cols_, depth_, size_;  // of the tiles' panels
  const int64_t unit_;                 // of the columns that are read: see attention_unit()
  const Packed packed_;
  const int64_t padded_dim_;
  const bool whole_panels_;  // a paged cache's are as wide as the tiles
  const bool fp8_;
};

}  // namespace capibara
