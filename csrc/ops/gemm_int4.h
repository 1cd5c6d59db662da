// SPDX-License-Identifier: Apache-2.0
// Weights of 4 bits: quantised, packed, unpacked. What is packed says so in its PackedHeader
// (gemm.h), and gemm() multiplies with it.
#pragma once

#include "kernels/gemm/int4.h"
#include "ops/gemm.h"
#include "ops/gemm_packed.h"

namespace capibara {

// A weight as checkpoints have it, row-major: value [n, k] = (code - zero) * scale.
struct Int4Weight {
  uint8_t* codes;  // [n, k], 0 to 15
  float* scales;   // [n, k / group]
  uint8_t* zeros;  // [n, k / group], 0 to 16
};

// The group that tiles have for one of the weight's, which is 32, 64, 128 or all of k: then parts
// of it have the same scale.
constexpr int int4_tile_group(int64_t group) {
  return group == 32 || group == 64 ? static_cast<int>(group) : kMaxInt4Group;
}

// Rounds to nearest: each value is off by at most half of its group's scale. That is the distance
// of the group's least and greatest value, zero among them, / 15, and the zero point stands for 0;
// `symmetric`: the largest magnitude / 7.5, and 8. A group with a NaN or an infinity has a scale of
// NaN.
void quantise_int4(const MatrixView& weight, int64_t n, int64_t k, int64_t group, bool symmetric,
                   const Int4Weight& quantised);

// Whether the ISA that runs here has the panels that this header is of.
bool int4_fits_here(const PackedHeader& header);
inline const char* int4_panels(const void* packed) {
  return static_cast<const char*>(packed) + kPackedHeaderBytes;
}

size_t packed_int4_bytes(int64_t n, int64_t k, int64_t group);

// digits: of activations, 8 bits each.
void pack_int4(const Int4Weight& weight, int64_t n, int64_t k, int64_t group, int digits,
               void* packed);
void unpack_int4(const void* packed, const Int4Weight& weight);

}  // namespace capibara
