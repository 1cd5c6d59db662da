// SPDX-License-Identifier: Apache-2.0
#include "bindings/check_gemm.h"

#include <algorithm>
#include <limits>

#include "base/buffer.h"
#include "kernels/gemm/pack.h"

namespace capibara {
namespace {

// A tensor's last two dimensions as a matrix of rows and columns, strides in elements.
struct Matrix {
  int64_t rows, cols, row_stride, col_stride;
};

// A vector is a row, or with `column` a column.
Matrix matrix_of(const TensorView& view, bool column) {
  const int64_t* shape = view.shape + view.dims - 1;
  const int64_t* strides = view.strides + view.dims - 1;
  if (view.dims >= 2) return {shape[-1], shape[0], strides[-1], strides[0]};
  if (column) return {shape[0], 1, strides[0], 1};
  return {1, shape[0], shape[0], strides[0]};
}

int batch_dims_of(const TensorView& view) { return std::max(view.dims - 2, 0); }

// Size and stride of batch dimension i of `dims`, counted as in the result.
struct BatchDim {
  int64_t size, stride;
};
BatchDim batch_dim(const TensorView& view, int i, int dims) {
  const int own = i - (dims - batch_dims_of(view));
  if (own < 0) return {1, 0};
  return {view.shape[own], view.shape[own] == 1 ? 0 : view.strides[own]};
}

// b = [k, n], or as its transpose if that is what has contiguous rows.
void set_right(GemmCall& call, const TensorView& view, const Matrix& b) {
  const bool as_it_is = b.cols > 1 && b.col_stride == 1;
  call.b_transposed = !as_it_is && (b.rows <= 1 || b.row_stride == 1);
  call.b = {view.dtype, view.data, call.b_transposed ? b.col_stride : b.row_stride};
}

Activation check_activation(int64_t activation) {
  if (activation >= 0 && activation < kActivations) return static_cast<Activation>(activation);
  throw std::invalid_argument("activation: expected a number from 0 to " +
                              std::to_string(kActivations - 1) + ", got " +
                              std::to_string(activation));
}

void expect_weight_matrix(const TensorView& weight) {
  if (weight.dims != 2) fail(weight, "shape [out_features, in_features]", weight.shape_text());
}

std::string shape_text(int64_t n, int64_t k) {
  return "[" + std::to_string(n) + ", " + std::to_string(k) + "]";
}

void expect_bytes(const TensorView& view) {
  expect_index_type(view, IndexType::kUInt8);
  if (view.dims != 1) fail(view, "one dimension", "shape " + view.shape_text());
  if (!view.contiguous()) {
    fail(view, "bytes that follow one another", "stride " + std::to_string(view.strides[0]));
  }
}

// All of a linear layer's call but its weights.
GemmCall check_linear_call(const TensorView& x, int64_t n, const LinearOptions& options,
                           const TensorView& y) {
  const TensorView *bias = options.bias, *residual = options.residual;
  TensorView shape = x;
  shape.shape[x.dims - 1] = n;
  expect_dtype_of(y, x);
  bool same = y.dims == x.dims;
  for (int i = 0; same && i < y.dims; ++i) same = y.shape[i] == shape.shape[i];
  if (!same) fail(y, "shape " + shape.shape_text(), y.shape_text());
  expect_apart(y, x);
  if (bias) {
    expect_dtype_or_f32(*bias, x);
    if (bias->dims != 1 || bias->shape[0] != n) {
      fail(*bias, "shape [" + std::to_string(n) + "]", bias->shape_text());
    }
    expect_apart(y, *bias);
  }
  if (residual) {
    expect_dtype_of(*residual, x);
    expect_shape_of(*residual, y);
    expect_no_partial_overlap(y, *residual);
  }
  GemmCall call = {};
  call.activation = check_activation(options.activation);
  const RowLayout layout = residual ? merge_rows({&y, &x, residual}, 1) : merge_rows({&y, &x}, 1);
  call.m = layout.shape.count();
  call.n = n;
  call.k = x.last();
  call.x = {x.dtype, x.data, layout.rows[1].inner_stride};
  if (residual) call.residual = {x.dtype, residual->data, layout.rows[2].inner_stride};
  call.y_dtype = y.dtype;
  call.y = y.data;
  call.y_stride = layout.rows[0].inner_stride;
  return call;
}

}  // namespace

bool matrix_readable(const TensorView& view) {
  if (view.numel() == 0) return true;
  if (!view.aligned()) return false;
  if (view.dims < 2 || view.rows_contiguous()) return true;
  return view.shape[view.dims - 2] <= 1 || view.strides[view.dims - 2] == 1;
}

TensorView matmul_shape(const TensorView& a, const TensorView& b) {
  expect_dims(a, 1);
  expect_value_type(a);
  expect_dims(b, 1);
  expect_dtype_of(b, a);
  const Matrix left = matrix_of(a, false), right = matrix_of(b, true);
  if (left.cols != right.rows) {
    fail(b,
         std::string(b.dims < 2 ? "" : "a second to last dimension of ") +
             std::to_string(left.cols) + (b.dims < 2 ? " elements" : "") + ", as a's last",
         "shape " + b.shape_text());
  }
  TensorView shape = {};
  const int batch = std::max(batch_dims_of(a), batch_dims_of(b));
  for (int i = 0; i < batch; ++i) {
    const int64_t a_size = batch_dim(a, i, batch).size, b_size = batch_dim(b, i, batch).size;
    if (a_size != b_size && a_size != 1 && b_size != 1) {
      fail(b, "leading dimensions that broadcast with those of a, shape " + a.shape_text(),
           "shape " + b.shape_text());
    }
    shape.shape[shape.dims++] = a_size == 1 ? b_size : a_size;
  }
  if (a.dims > 1) shape.shape[shape.dims++] = left.rows;
  if (b.dims > 1) shape.shape[shape.dims++] = right.cols;
  return shape;
}

MatmulCall check_matmul(const TensorView& a, const TensorView& b, const TensorView& y) {
  const TensorView shape = matmul_shape(a, b);
  expect_dtype_of(y, a);
  bool same = y.dims == shape.dims;
  for (int i = 0; same && i < y.dims; ++i) same = y.shape[i] == shape.shape[i];
  if (!same) fail(y, "shape " + shape.shape_text(), y.shape_text());
  expect_apart(y, a);
  expect_apart(y, b);

  const Matrix left = matrix_of(a, false), right = matrix_of(b, true);
  // y with the dimensions that NumPy leaves out.
  const int batch = std::max(batch_dims_of(a), batch_dims_of(b));
  int64_t row_stride = 0, col_stride = 1;
  int next = batch;
  if (a.dims > 1) row_stride = y.strides[next++];
  if (b.dims > 1) col_stride = y.strides[next];
  if (y.numel() > 0 && !y.aligned()) fail(y, "elements that are aligned", "a misaligned array");
  if (y.numel() > 0 && right.cols > 1 && col_stride != 1) {
    fail(y, "a last dimension of stride 1", "stride " + std::to_string(col_stride));
  }

  MatmulCall call = {};
  GemmCall& first = call.first;
  first.type = gemm_type_of(a.dtype);
  first.m = left.rows;
  first.n = right.cols;
  first.k = left.cols;
  first.x = {a.dtype, a.data, left.row_stride};
  set_right(first, b, right);
  first.y_dtype = y.dtype;
  first.y = y.data;
  first.y_stride = row_stride;

  GemmBatchDim* dims = call.batch;
  int& count = call.batch_dims;
  for (int i = 0; i < batch; ++i) {
    if (y.shape[i] == 1) continue;
    dims[count++] = {y.shape[i], batch_dim(a, i, batch).stride, batch_dim(b, i, batch).stride,
                     y.strides[i]};
  }
  // Matrices that all meet the same b are more rows of one.
  while (count > 0 && dims[count - 1].b_stride == 0) {
    const GemmBatchDim& last = dims[count - 1];
    if (first.m != 1) {
      if (last.x_stride != first.x.stride * first.m || last.y_stride != first.y_stride * first.m) {
        break;
      }
    } else {
      first.x.stride = last.x_stride;
      first.y_stride = last.y_stride;
    }
    first.m *= last.size;
    --count;
  }
  return call;
}

int64_t linear_cols(const TensorView& x, const TensorView& weight) {
  expect_dims(x, 1);
  expect_value_type(x);
  expect_dtype_of(weight, x);
  expect_weight_matrix(weight);
  if (weight.shape[1] != x.last()) {
    fail(weight, "shape [out_features, " + std::to_string(x.last()) + "]", weight.shape_text());
  }
  return weight.shape[0];
}

GemmCall check_linear(const TensorView& x, const TensorView& weight, const LinearOptions& options,
                      const TensorView& y) {
  const int64_t n = linear_cols(x, weight);
  GemmCall call = check_linear_call(x, n, options, y);
  expect_apart(y, weight);
  call.type = gemm_type_of(x.dtype);
  set_right(call, weight, {weight.shape[1], n, weight.strides[1], weight.strides[0]});
  return call;
}

const PackedHeader& check_packed(const TensorView& x, const TensorView& packed,
                                 int64_t out_features) {
  expect_dims(x, 1);
  expect_value_type(x);
  expect_bytes(packed);
  const PackedHeader& header = packed_header(packed.data, packed.numel(), packed.name);
  if (header.n != out_features) {
    throw std::invalid_argument("out_features: expected " + std::to_string(header.n) +
                                ", as packed has, got " + std::to_string(out_features));
  }
  if (header.k != x.last()) {
    fail(x, "a last dimension of " + std::to_string(header.k) + ", as packed has",
         "shape " + x.shape_text());
  }
  return header;
}

GemmCall check_packed_linear(const TensorView& x, const TensorView& packed,
                             const PackedHeader& header, const LinearOptions& options,
                             const TensorView& y) {
  GemmCall call = check_linear_call(x, header.n, options, y);
  expect_apart(y, packed);
  call.type = header.type;
  call.packed = packed.data;
  return call;
}

const float* bias_as_f32(const TensorView& bias) {
  const int64_t size = bias.shape[0];
  if (bias.dtype == DType::kF32) return static_cast<const float*>(bias.data);
  thread_local Scratch memory;
  float* const values = static_cast<float*>(memory.get(static_cast<size_t>(size) * sizeof(float)));
  static PackFn* const pack = pack_lines_kernels().chosen().run;
  pack({bias.dtype, bias.data, size, 1, size, Packed::kF32, 1, 1, nullptr, values});
  return values;
}

GemmType check_gemm_type(int64_t type) {
  if (type >= 0 && type < kGemmTypes) return static_cast<GemmType>(type);
  throw std::invalid_argument("type: expected a number from 0 to " +
                              std::to_string(kGemmTypes - 1) + ", got " + std::to_string(type));
}

void expect_packable(const char* name, int64_t n, int64_t k) {
  // Far beyond any memory, and far from where byte counts overflow.
  constexpr int64_t kMost = int64_t{1} << 40;
  if (n < 0 || k < 0 || n > kMost || k > kMost || (k > 0 && n > kMost / k)) {
    throw std::invalid_argument(std::string(name) + ": expected at most 2^40 elements, got shape " +
                                shape_text(n, k));
  }
}

int64_t check_packed_bytes(const char* name, GemmType type, int64_t n, int64_t k) {
  expect_packable(name, n, k);
  if (type == GemmType::kInt8 && k > kMaxInt8Depth) {
    throw std::invalid_argument(std::string(name) + ": expected at most " +
                                std::to_string(kMaxInt8Depth) +
                                " columns, whose sums int32 holds, got shape " + shape_text(n, k));
  }
  return static_cast<int64_t>(packed_bytes(type, n, k));
}

const PackedHeader& expect_packed(const TensorView& packed) {
  if (packed.index != IndexType::kUInt8 || packed.dims != 1 || !packed.contiguous()) {
    fail(packed, "the array that weights were packed into", "another");
  }
  return packed_header(packed.data, packed.numel(), packed.name);
}

void expect_packed_memory(const TensorView& packed, int64_t bytes) {
  expect_bytes(packed);
  if (packed.numel() != bytes) {
    fail(packed, std::to_string(bytes) + " bytes", std::to_string(packed.numel()));
  }
  if (reinterpret_cast<uintptr_t>(packed.data) % 64 != 0) {
    fail(packed, "memory aligned to 64 bytes", "other memory");
  }
  expect_writable(packed);
}

void check_pack(const TensorView& weight, const TensorView& packed, GemmType type) {
  expect_value_type(weight);
  expect_weight_matrix(weight);
  const int64_t bytes = check_packed_bytes(weight.name, type, weight.shape[0], weight.shape[1]);
  expect_packed_memory(packed, bytes);
  expect_apart(packed, weight);
}

}  // namespace capibara
