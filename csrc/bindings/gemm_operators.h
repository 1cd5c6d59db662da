// SPDX-License-Identifier: Apache-2.0
// The matrix products on the arrays of a backend (operators.h).
#pragma once

#include <optional>
#include <utility>

#include "bindings/check_gemm.h"
#include "bindings/check_int4.h"
#include "bindings/operators.h"

namespace capibara {

template <class B>
typename B::Array matmul(typename B::Array a, typename B::Array b,
                         std::optional<typename B::Array> out) {
  Input<B> left(std::move(a), "a"), right(std::move(b), "b", matrix_readable);
  const TensorView shape = matmul_shape(left.view, right.view);
  if (!out) out = B::empty(left.array, shape, cols_of(shape));
  // Where b is a vector, the last dimension is one of rows.
  Target<B> target(std::move(*out), "out", expect_writable);
  const MatmulCall call = check_matmul(left.view, right.view, target.view);
  {
    const typename B::Unlocked unlocked;
    gemm_batch(call.first, call.batch, call.batch_dims);
  }
  return std::move(target.array);
}

// The arguments of linear and packed_linear beside x and the weights.
template <class B>
struct LinearArguments {
  std::optional<typename B::Array> bias, residual;
  int64_t activation;
  std::optional<typename B::Array> out;
};

// check(options, y): the call; `cols`: of the result.
template <class B, class Check>
typename B::Array run_linear(Input<B>& input, LinearArguments<B> arguments, int64_t cols,
                             const Check& check) {
  std::optional<Input<B>> bias, residual;
  if (arguments.bias) bias.emplace(std::move(*arguments.bias), "bias").require_contiguous();
  if (arguments.residual) residual.emplace(std::move(*arguments.residual), "residual");
  Target<B> target = result<B>(std::move(arguments.out), input, cols);
  const auto checked = [&] {
    return check(LinearOptions{bias ? &bias->view : nullptr, residual ? &residual->view : nullptr,
                               arguments.activation},
                 target.view);
  };
  GemmCall call = residual ? check_or_copy<B>("out", {&input, &*residual}, checked, kOneStride)
                           : check_or_copy<B>("out", {&input}, checked, kOneStride);
  {
    const typename B::Unlocked unlocked;
    if (bias) call.bias = bias_as_f32(bias->view);
    gemm(call);
  }
  return std::move(target.array);
}

template <class B>
typename B::Array linear(typename B::Array x, typename B::Array weight,
                         LinearArguments<B> arguments) {
  Input<B> input(std::move(x), "x"), matrix(std::move(weight), "weight", matrix_readable);
  const int64_t cols = linear_cols(input.view, matrix.view);
  return run_linear<B>(input, std::move(arguments), cols,
                       [&](const LinearOptions& options, const TensorView& y) {
                         return check_linear(input.view, matrix.view, options, y);
                       });
}

template <class B>
typename B::Array packed_linear(typename B::Array x, typename B::Array packed, int64_t out_features,
                                LinearArguments<B> arguments) {
  Input<B> input(std::move(x), "x");
  const typename B::Array bytes = std::move(packed);
  const TensorView weights = B::view_of(bytes, "packed");
  const PackedHeader& header = check_packed(input.view, weights, out_features);
  return run_linear<B>(input, std::move(arguments), out_features,
                       [&](const LinearOptions& options, const TensorView& y) {
                         return check_packed_linear(input.view, weights, header, options, y);
                       });
}

template <class B>
void pack_linear(typename B::Array weight, typename B::Array packed, int64_t type) {
  const Input<B> matrix(std::move(weight), "weight");
  const typename B::Array bytes = std::move(packed);
  const TensorView view = B::view_of(bytes, "packed");
  const GemmType of = check_gemm_type(type);
  check_pack(matrix.view, view, of);
  const typename B::Unlocked unlocked;
  pack_weights(of, matrix.view.shape[0], matrix.view.shape[1],
               {matrix.view.dtype, matrix.view.data, matrix.view.strides[0]}, view.data);
}

template <class B>
void quantize_int4(typename B::Array weight, int64_t group, bool symmetric, typename B::Array codes,
                   typename B::Array scales, typename B::Array zeros) {
  const Input<B> matrix(std::move(weight), "weight");
  const Int4Shape shape = check_quantise_int4(matrix.view, group);
  const TensorView views[] = {B::view_of(codes, "codes"), B::view_of(scales, "scales"),
                              B::view_of(zeros, "zeros")};
  const Int4Weight quantised = check_int4_weight(shape, views[0], views[1], &views[2], true);
  const typename B::Unlocked unlocked;
  quantise_int4({matrix.view.dtype, matrix.view.data, matrix.view.strides[0]}, shape.n, shape.k,
                group, symmetric, quantised);
}

}  // namespace capibara
