// SPDX-License-Identifier: Apache-2.0
#include "bindings/check.h"

#include "bindings/expect.h"

namespace capibara {
namespace {

float check_eps(double eps) {
  if (eps >= 0.0) return finite_float("eps", eps);
  throw std::invalid_argument("eps: expected a number that is not negative, got " +
                              std::to_string(eps));
}

// Returns the number of weight rows.
int64_t check_weight(const TensorView& weight, const TensorView& x, bool heads) {
  expect_dtype_or_f32(weight, x);
  const bool vector = weight.dims == 1 && weight.shape[0] == x.last();
  if (vector) return 1;
  const bool matrix = heads && weight.dims == 2 && x.dims >= 2 && weight.last() == x.last() &&
                      weight.shape[0] == x.shape[x.dims - 2];
  if (matrix) return weight.shape[0];
  std::string expected = "shape [" + std::to_string(x.last()) + "]";
  if (heads && x.dims >= 2) {
    expected +=
        " or [" + std::to_string(x.shape[x.dims - 2]) + ", " + std::to_string(x.last()) + "]";
  }
  fail(weight, expected, weight.shape_text());
}

}  // namespace

NormCall check_norm(const TensorView& x, const TensorView& weight, double eps, const TensorView& y,
                    bool heads) {
  expect_dims(x, 1);
  expect_value_type(x);
  const int64_t weight_rows = check_weight(weight, x, heads);
  expect_dtype_of(y, x);
  expect_shape_of(y, x);
  expect_no_partial_overlap(y, x);
  expect_apart(y, weight);
  const RowLayout layout = merge_rows({&x, &y});
  return {x.dtype,        weight.dtype, layout.shape, x.last(),    layout.rows[0],
          layout.rows[1], {},           weight.data,  weight_rows, check_eps(eps)};
}

NormCall check_fused_add_norm(const TensorView& x, const TensorView& residual,
                              const TensorView& weight, double eps) {
  expect_dims(x, 1);
  expect_value_type(x);
  expect_dtype_of(residual, x);
  expect_shape_of(residual, x);
  expect_apart(residual, x);
  const int64_t weight_rows = check_weight(weight, x, false);
  expect_apart(weight, x);
  expect_apart(weight, residual);
  const RowLayout layout = merge_rows({&x, &residual});
  return {x.dtype,        weight.dtype,   layout.shape, x.last(),    layout.rows[0],
          layout.rows[0], layout.rows[1], weight.data,  weight_rows, check_eps(eps)};
}

SoftmaxCall check_softmax(const TensorView& x, double scale, const TensorView* lengths,
                          const TensorView& y) {
  expect_dims(x, 1);
  expect_value_type(x);
  const float factor = finite_float("scale", scale);
  expect_dtype_of(y, x);
  expect_shape_of(y, x);
  expect_no_partial_overlap(y, x);
  const RowLayout layout = merge_rows({&x, &y});
  const int32_t* values = nullptr;
  if (lengths) {
    expect_index_type(*lengths, IndexType::kInt32);
    bool same = lengths->dims == x.dims - 1;
    for (int i = 0; same && i < lengths->dims; ++i) same = lengths->shape[i] == x.shape[i];
    if (!same) {
      TensorView rows = x;
      rows.dims -= 1;
      fail(*lengths, "one length a row, shape " + rows.shape_text(), lengths->shape_text());
    }
    values = static_cast<const int32_t*>(lengths->data);
    for (int64_t r = 0; r < lengths->numel(); ++r) {
      if (values[r] < 0 || values[r] > x.last()) {
        fail(*lengths, "values from 0 to " + std::to_string(x.last()), std::to_string(values[r]));
      }
    }
  }
  return {x.dtype, layout.shape, x.last(), layout.rows[0], layout.rows[1], factor, values};
}

int64_t gated_cols(const TensorView& gate, bool packed) {
  expect_dims(gate, 1);
  if (!packed) return gate.last();
  if (gate.last() % 2) {
    fail(gate, "an even last dimension, [gate | up]", "shape " + gate.shape_text());
  }
  return gate.last() / 2;
}

GatedCall check_gated(const TensorView& gate, const TensorView* up, const TensorView& y) {
  expect_value_type(gate);
  const int64_t cols = gated_cols(gate, up == nullptr);
  TensorView first = gate, second = up ? *up : gate;
  if (up) {
    expect_dtype_of(*up, gate);
    expect_shape_of(*up, gate);
  } else {
    first.shape[gate.dims - 1] = second.shape[gate.dims - 1] = cols;
    second.data = static_cast<char*>(gate.data) + cols * static_cast<int64_t>(size_of(gate.dtype));
  }
  expect_dtype_of(y, gate);
  expect_shape_of(y, first);
  if (!same_layout(y, first) && !same_layout(y, second)) {
    expect_no_partial_overlap(y, first);
    expect_no_partial_overlap(y, second);
  } else if (up) {
    expect_no_partial_overlap(y, same_layout(y, first) ? second : first);
  }
  const RowLayout layout = merge_rows({&first, &second, &y});
  return {gate.dtype, layout.shape, cols, layout.rows[0], layout.rows[1], layout.rows[2]};
}

namespace {

// Heads that follow one another as one row, as overlaps() wants it.
TensorView heads_as_rows(TensorView view) {
  if (view.dims == 3 && (view.strides[1] == view.shape[2] || view.shape[1] == 1)) {
    view.shape[1] *= view.shape[2];
    view.strides[1] = 1;
    view.dims = 2;
  }
  return view;
}

// q and k may be interleaved in one tensor in more ways than overlaps() knows: only what surely
// overlaps is refused.
void expect_q_and_k_apart(const TensorView& q, const TensorView& k) {
  const TensorView a = heads_as_rows(q), b = heads_as_rows(k);
  const bool comparable = a.dims == 2 && b.dims == 2;
  if (comparable ? overlaps(a, b) : q.data == k.data) fail(k, "memory apart from q", "an overlap");
}

RopeHeads check_heads(const TensorView& view, int64_t tokens, int64_t head_dim) {
  const int64_t size = view.dims == 3 ? view.shape[2] : head_dim;
  const bool known = (view.dims == 2 && head_dim > 0) || view.dims == 3;
  if (!known || size <= 0 || (head_dim > 0 && size != head_dim) || view.last() % size != 0) {
    const std::string dim = head_dim > 0 ? std::to_string(head_dim) : "head_dim";
    fail(view, "shape [tokens, heads, " + dim + "] or [tokens, heads * " + dim + "]",
         view.shape_text() + (view.dims == 2 && head_dim <= 0 ? " and no head_dim" : ""));
  }
  if (view.shape[0] != tokens) {
    fail(view, std::to_string(tokens) + " tokens, as many as positions",
         "shape " + view.shape_text());
  }
  if (view.dims == 2) return {view.data, view.shape[1] / size, view.strides[0], size};
  return {view.data, view.shape[1], view.strides[0], view.strides[1]};
}

}  // namespace

RopeArgs check_rope(const TensorView& q, const TensorView* k, const TensorView& cache,
                    const TensorView& positions, int64_t head_dim, bool neox) {
  expect_value_type(q);
  expect_dtype_or_f32(cache, q);
  if (head_dim < 0) {
    throw std::invalid_argument("head_dim: expected a positive number, got " +
                                std::to_string(head_dim));
  }
  if (positions.index != IndexType::kInt32 && positions.index != IndexType::kInt64) {
    throw TypeMismatch("positions: expected int64 or int32, got " + type_name_of(positions));
  }
  if (positions.dims != 1) fail(positions, "shape [tokens]", positions.shape_text());
  if (cache.dims != 2) fail(cache, "shape [max_position, rotary_dim]", cache.shape_text());
  const int64_t tokens = positions.shape[0], rotary_dim = cache.shape[1];
  const RopeHeads q_heads = check_heads(q, tokens, head_dim);
  const int64_t size = q.dims == 3 ? q.shape[2] : head_dim;
  if (rotary_dim % 2 || rotary_dim > size) {
    fail(cache, "an even rotary_dim of at most head_dim, " + std::to_string(size),
         std::to_string(rotary_dim));
  }
  RopeHeads k_heads = {};
  if (k) {
    expect_dtype_of(*k, q);
    k_heads = check_heads(*k, tokens, head_dim > 0 ? head_dim : size);
    if (k->dims == 3 && k->shape[2] != size) {
      fail(*k, "the head_dim of q, " + std::to_string(size), std::to_string(k->shape[2]));
    }
  }
  if (k) {
    expect_q_and_k_apart(q, *k);
    expect_apart(cache, *k);
  }
  expect_apart(cache, q);
  RopeArgs args = {q.dtype,    cache.dtype,    neox,
                   rotary_dim, q_heads,        k_heads,
                   cache.data, positions.data, positions.index == IndexType::kInt64};
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t position = position_of(args, t);
    if (position < 0 || position >= cache.shape[0]) {
      fail(positions, "values from 0 to " + std::to_string(cache.shape[0] - 1),
           std::to_string(position));
    }
  }
  return args;
}

}  // namespace capibara
