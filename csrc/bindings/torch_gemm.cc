// SPDX-License-Identifier: Apache-2.0
// The matrix products on torch tensors. As in torch.cc, each boxed operator takes ownership of all
// its tensors before anything can throw.
#include "bindings/gemm_operators.h"
#include "bindings/torch_api.h"

namespace capibara {
namespace {

using B = TorchBackend;

// (a, b) -> y
void matmul_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor a(stack[0]), b(stack[1]);
  stack[0] = matmul<B>(std::move(a), std::move(b), {}).release();
}

// (out, a, b)
void matmul_out_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor out(stack[0]), a(stack[1]), b(stack[2]);
  matmul<B>(std::move(a), std::move(b), std::move(out));
}

// From `stack` on: bias?, residual?, activation.
LinearArguments<B> take_arguments(const Value* stack) {
  LinearArguments<B> arguments = {};
  arguments.bias = take_optional(stack[0]);
  arguments.residual = take_optional(stack[1]);
  arguments.activation = take_int(stack[2]);
  return arguments;
}

// (x, weight, bias?, residual?, activation) -> y
void linear_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor x(stack[0]), weight(stack[1]);
  stack[0] = linear<B>(std::move(x), std::move(weight), take_arguments(stack + 2)).release();
}

// (out, x, weight, bias?, residual?, activation)
void linear_out_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor out(stack[0]), x(stack[1]), weight(stack[2]);
  LinearArguments<B> arguments = take_arguments(stack + 3);
  arguments.out = std::move(out);
  linear<B>(std::move(x), std::move(weight), std::move(arguments));
}

// (x, packed, out_features, bias?, residual?, activation) -> y
void packed_linear_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor x(stack[0]), packed(stack[1]);
  stack[0] = packed_linear<B>(std::move(x), std::move(packed), take_int(stack[2]),
                              take_arguments(stack + 3))
                 .release();
}

// (out, x, packed, out_features, bias?, residual?, activation)
void packed_linear_out_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor out(stack[0]), x(stack[1]), packed(stack[2]);
  LinearArguments<B> arguments = take_arguments(stack + 4);
  arguments.out = std::move(out);
  packed_linear<B>(std::move(x), std::move(packed), take_int(stack[3]), std::move(arguments));
}

// (weight, packed, type)
void pack_linear_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor weight(stack[0]), packed(stack[1]);
  pack_linear<B>(std::move(weight), std::move(packed), take_int(stack[2]));
}

// (weight, group_size, symmetric, codes, scales, zeros)
void quantize_int4_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor weight(stack[0]), codes(stack[3]), scales(stack[4]), zeros(stack[5]);
  quantize_int4<B>(std::move(weight), take_int(stack[1]), take_int(stack[2]) != 0, std::move(codes),
                   std::move(scales), std::move(zeros));
}

}  // namespace

const Registration kGemmOperators[] = {
    {"matmul", guarded<matmul_boxed>},
    {"matmul_out", guarded<matmul_out_boxed>},
    {"linear", guarded<linear_boxed>},
    {"linear_out", guarded<linear_out_boxed>},
    {"packed_linear", guarded<packed_linear_boxed>},
    {"packed_linear_out", guarded<packed_linear_out_boxed>},
    {"pack_linear", guarded<pack_linear_boxed>},
    {"quantize_int4", guarded<quantize_int4_boxed>},
    {nullptr, nullptr},
};

}  // namespace capibara
