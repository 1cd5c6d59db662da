// SPDX-License-Identifier: Apache-2.0
// Contract: runs of 8-bit floats (base/fp8.h) from and to the tensors' types.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/fp8.h"
#include "kernels/common/kernel_table.h"

namespace capibara {

// y[i] = codes[i], exactly: every code of either format is a number of each type. NaN stays NaN.
struct Fp8DecodeArgs {
  Fp8 format;
  const uint8_t* codes;
  int64_t count;
  DType to;
  void* y;
};
using Fp8DecodeFn = void(const Fp8DecodeArgs& args) noexcept;

// codes[i] = to_fp8(x[i] * factor), the product rounded to f32.
struct Fp8EncodeArgs {
  DType from;
  const void* x;
  int64_t count;
  float factor;
  Fp8 format;
  uint8_t* codes;
};
using Fp8EncodeFn = void(const Fp8EncodeArgs& args) noexcept;

namespace scalar {
Fp8DecodeFn fp8_decode;
Fp8EncodeFn fp8_encode;
}  // namespace scalar

const KernelTable<Fp8DecodeFn>& fp8_decode_kernels();
const KernelTable<Fp8EncodeFn>& fp8_encode_kernels();

}  // namespace capibara
