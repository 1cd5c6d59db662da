// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope/rope.h"

#include "ops/ops.h"
#include "ops/registry.h"

namespace capibara {

void rope(const RopeArgs& call, int64_t tokens) {
  static RopeFn* const kernel = rope_kernels().chosen().run;
  count_call(Op::rope);
  const int64_t bytes_per_token = 2 * (call.q.heads + call.k.heads) * call.rotary_dim *
                                  static_cast<int64_t>(size_of(call.dtype));
  parallel_for(tokens, tokens * bytes_per_token,
               [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

}  // namespace capibara
