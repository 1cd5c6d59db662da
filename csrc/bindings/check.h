// SPDX-License-Identifier: Apache-2.0
// Argument checks, once, for NumPy and torch alike: every message names the argument, what was
// expected and what was given. Each function turns checked views into the call of a driver.
#pragma once

#include "bindings/tensor_view.h"
#include "ops/ops.h"

namespace capibara {

// `heads`: weight may be [heads, cols], one row for each index of x's second to last dimension.
NormCall check_norm(const TensorView& x, const TensorView& weight, double eps, const TensorView& y,
                    bool heads);
NormCall check_fused_add_norm(const TensorView& x, const TensorView& residual,
                              const TensorView& weight, double eps);
// lengths: null, or int32 of x's shape without its last dimension.
SoftmaxCall check_softmax(const TensorView& x, double scale, const TensorView* lengths,
                          const TensorView& y);
// up: null where gate is packed [gate | up].
GatedCall check_gated(const TensorView& gate, const TensorView* up, const TensorView& y);
// q, k (or null): [tokens, heads, head_dim] or [tokens, heads * head_dim].
// head_dim: 0 if the views are three-dimensional.
RopeArgs check_rope(const TensorView& q, const TensorView* k, const TensorView& cache,
                    const TensorView& positions, int64_t head_dim, bool neox);

// Shape of the result of a gated activation: gate's, or half of its last dimension where packed.
int64_t gated_cols(const TensorView& gate, bool packed);

}  // namespace capibara
