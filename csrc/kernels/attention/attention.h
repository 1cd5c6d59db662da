// SPDX-License-Identifier: Apache-2.0
// Contract: what attention does between its two matrix products, on a panel of query rows and a
// block of keys, and what it does with the sums after the last block. The online softmax is that of
// M. Milakov and N. Gimelshein, arXiv:1805.02867.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/common/kernel_table.h"
#include "kernels/gemm/gemm.h"

namespace capibara {

constexpr int64_t kAttentionKeysUnit = 16;  // blocks of keys are multiples of it

// For each row r and the columns j in [begin[r], end[r]), all others being invisible:
//   z = log2(e) (cap(scale key_scales[j] scores[r, j]) + slopes[r] j + offsets[r])
//   maxima[r] becomes max(maxima[r], z)
//   corrections[r] = 2^(what maxima[r] was - what it is)
//   e[j] = 2^(z - maxima[r]), 0 where invisible
//   sums[r] = sums[r] corrections[r] + sum of e[j]
//   p[r, j] = e[j] value_scales[j], rounded to `to`
// with cap(x) = softcap tanh(x / softcap), or x if softcap is 0. maxima begin at -infinity, sums at
// zero. A row that has seen nothing but -infinity keeps these: its p are zero.
//
// e is as exact as `to` can hold it: relative error 2e-7 for f32, 3e-6 for f16, 8e-5 (an
// twenty-fifth of half a unit in the last place) for bf16.
struct AttentionSoftmaxArgs {
  int64_t rows;          // at most kMaxTileRows
  int64_t keys;          // a multiple of kAttentionKeysUnit
  float* scores;         // overwritten
  int64_t stride;        // of scores
  const int32_t* begin;  // 0 <= begin[r] <= end[r] <= keys
  const int32_t* end;
  float scale, softcap;
  const float* slopes;  // both or none: null
  const float* offsets;
  const float* key_scales;    // [keys], or null
  const float* value_scales;  // [keys], or null
  // All [kMaxTileRows].
  float* maxima;
  float* sums;
  float* corrections;
  Packed to;  // kF32, kF16, kBF16
  // Row-major, rows p_stride elements apart; kF32 may be in place. Or, with `atoms`, as panels of
  // depth 4 have it: [keys / 4][rows][4], of kBF16, rows being 1 or even.
  void* p;
  int64_t p_stride;
  bool atoms;
};
using AttentionSoftmaxFn = void(const AttentionSoftmaxArgs& args) noexcept;

// o[r, d] *= factors[r], where that is not 1.
struct AttentionRescaleArgs {
  int64_t rows, cols;
  float* o;
  int64_t stride;
  const float* factors;
};
using AttentionRescaleFn = void(const AttentionRescaleArgs& args) noexcept;

// out[r][d] = o[r, d] * factors[r], rounded once.
struct AttentionFinishArgs {
  int64_t rows, cols;
  const float* o;
  int64_t stride;
  const float* factors;
  DType dtype;
  void* const* out;  // [rows]
};
using AttentionFinishFn = void(const AttentionFinishArgs& args) noexcept;

namespace scalar {
AttentionSoftmaxFn attention_softmax;
AttentionRescaleFn attention_rescale;
AttentionFinishFn attention_finish;
}  // namespace scalar

const KernelTable<AttentionSoftmaxFn>& attention_softmax_kernels();
const KernelTable<AttentionRescaleFn>& attention_rescale_kernels();
const KernelTable<AttentionFinishFn>& attention_finish_kernels();

}  // namespace capibara
