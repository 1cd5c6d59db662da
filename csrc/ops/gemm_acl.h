// SPDX-License-Identifier: Apache-2.0
// Products by Arm Compute Library, within the driver: operands converted to its tensors, prepared
// weights kept, and this project's epilogue over its sums.
//
// f32 and bf16 are multiplied as f32 tensors, bf16 with ACL's fast math where the CPU has bf16
// instructions. f16 is multiplied as f16 tensors where ACL's build has them: sums are then f16 as
// well, rounded many times, and infinite from 65520 on, unlike the native ones.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/gemm.h"

namespace capibara {

// What is kept of packed weights: for each pair of weights and m, which ACL prepares for, one copy
// of the weights and room for x and y. Past either bound, the least recently used goes first; those
// whose weights are gone are dropped no sooner. Weights that are not packed are prepared in every
// call.
struct AclBounds {
  size_t entries;
  int64_t bytes;
};
constexpr AclBounds kAclBounds = {64, int64_t{512} << 20};
void set_acl_bounds(const AclBounds& bounds);  // for tests

// False, with y untouched, if ACL does not run the product: it refused, which is said once for each
// reason in a line on stderr, or another thread is using the same prepared weights.
bool gemm_by_acl(const GemmCall& call);

struct AclUse {
  uint64_t runs;  // products by ACL so far
  size_t kept;    // pairs of weights and m
  int64_t bytes;  // that those hold, about
};
AclUse acl_use();

}  // namespace capibara
