// SPDX-License-Identifier: Apache-2.0
// Contract: rotary position embedding, in place (J. Su et al., "RoFormer", 2021). Of each head the
// first rotary_dim elements turn, pair by pair, by the angle of (token's position, pair):
//   (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)
// neox style pairs element i with i + rotary_dim / 2; interleaved (GPT-J) style 2 i with 2 i + 1.
// Rows of the cache are [cos of all pairs | sin of all pairs] for one position.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

// Heads of one token, of q or of k. Strides in elements.
struct RopeHeads {
  void* data;
  int64_t heads;  // 0: absent
  int64_t token_stride, head_stride;
};

struct RopeArgs {
  DType dtype;        // of q and k
  DType cache_dtype;  // dtype, or f32
  bool neox;
  int64_t rotary_dim;  // even
  RopeHeads q, k;
  const void* cache;  // [max_position, rotary_dim], contiguous
  const void* positions;
  bool positions_64;  // int64, else int32; each in [0, max_position)
};

// Tokens [begin, end).
using RopeFn = void(const RopeArgs& args, int64_t begin, int64_t end) noexcept;

static inline int64_t position_of(const RopeArgs& args, int64_t token) {
  return args.positions_64 ? static_cast<const int64_t*>(args.positions)[token]
                           : static_cast<const int32_t*>(args.positions)[token];
}

namespace scalar {
RopeFn rope;
}

const KernelTable<RopeFn>& rope_kernels();

}  // namespace capibara
