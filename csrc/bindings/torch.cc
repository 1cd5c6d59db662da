// SPDX-License-Identifier: Apache-2.0
// The operators on torch tensors, through torch's stable C interface
// (torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/, since torch 2.7).
//
// The functions are looked up in the process's libtorch when the operators are registered, so that
// one build of this module serves users with and without torch, and any torch version. A C++
// registration is worth it: see the call overhead in benchmarks/results/call_overhead.json.
#include "bindings/torch.h"

#include <dlfcn.h>

#include <algorithm>

#include "bindings/operators.h"
#include "bindings/torch_api.h"

namespace capibara {

Torch g_torch;

namespace {

void succeed(int32_t error, const char* what) {
  if (error) throw std::runtime_error(std::string("torch: ") + what + " failed");
}

}  // namespace

TensorView TorchBackend::view_of(const Tensor& tensor, const char* name) {
  TensorView view = {};
  view.name = name;
  view.whole_strides = true;
  view.writable = true;
  const Handle handle = tensor.get();
  int32_t dtype, device;
  int64_t dims, *sizes, *strides;
  succeed(g_torch.get_device_type(handle, &device), "get_device_type");
  if (device != g_torch.cpu) {
    throw std::invalid_argument(std::string(name) +
                                ": expected a CPU tensor, got one on another device");
  }
  succeed(g_torch.get_dtype(handle, &dtype), "get_dtype");
  if (dtype == g_torch.f32) {
    view.dtype = DType::kF32;
  } else if (dtype == g_torch.bf16) {
    view.dtype = DType::kBF16;
  } else if (dtype == g_torch.f16) {
    view.dtype = DType::kF16;
  } else if (dtype == g_torch.i64) {
    view.index = IndexType::kInt64;
  } else if (dtype == g_torch.i32) {
    view.index = IndexType::kInt32;
  } else if (dtype == g_torch.u8) {
    view.index = IndexType::kUInt8;
  } else {
    throw TypeMismatch(std::string(name) +
                       ": expected float32, float16 or bfloat16 (int32 or int64 for indices), got "
                       "another dtype");
  }
  succeed(g_torch.get_dim(handle, &dims), "get_dim");
  if (dims > kMaxDims) {
    throw std::invalid_argument(std::string(name) + ": expected at most " +
                                std::to_string(kMaxDims) + " dimensions, got " +
                                std::to_string(dims));
  }
  succeed(g_torch.get_sizes(handle, &sizes), "get_sizes");
  succeed(g_torch.get_strides(handle, &strides), "get_strides");
  succeed(g_torch.get_data_ptr(handle, &view.data), "get_data_ptr");
  view.dims = static_cast<int>(dims);
  for (int i = 0; i < view.dims; ++i) {
    view.shape[i] = sizes[i];
    view.strides[i] = strides[i];
  }
  return view;
}

Tensor TorchBackend::empty(const Tensor& tensor, const TensorView& view, int64_t cols) {
  int64_t shape[kMaxDims], strides[kMaxDims], step = 1;
  for (int i = view.dims - 1; i >= 0; --i) {
    shape[i] = i == view.dims - 1 ? cols : view.shape[i];
    strides[i] = step;
    step *= std::max<int64_t>(shape[i], 1);
  }
  int32_t dtype;
  Handle handle = nullptr;
  succeed(g_torch.get_dtype(tensor.get(), &dtype), "get_dtype");
  succeed(g_torch.empty_strided(view.dims, shape, strides, dtype, g_torch.cpu, 0, &handle),
          "empty_strided");
  return Tensor(handle);
}

Tensor TorchBackend::contiguous_copy(const Tensor& tensor, const TensorView& view) {
  Tensor fresh = empty(tensor, view, cols_of(view));
  succeed(g_torch.copy(fresh.get(), tensor.get(), 0), "copy_");
  return fresh;
}

namespace {

// ---------------------------------------------------------------- boxed operators
//
// Each takes ownership of all its tensors before anything can throw.

using B = TorchBackend;

// (x, weight, eps) -> y
template <NormDriver driver, bool heads>
void norm_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor x(stack[0]), weight(stack[1]);
  stack[0] =
      norm<B>(driver, heads, std::move(x), std::move(weight), take_double(stack[2]), {}).release();
}

// (out, x, weight, eps)
template <NormDriver driver, bool heads>
void norm_out_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor out(stack[0]), x(stack[1]), weight(stack[2]);
  norm<B>(driver, heads, std::move(x), std::move(weight), take_double(stack[3]), std::move(out));
}

// (x, residual, weight, eps)
void fused_add_rms_norm_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor x(stack[0]), residual(stack[1]), weight(stack[2]);
  fused_add_norm<B>(std::move(x), std::move(residual), std::move(weight), take_double(stack[3]));
}

// (x, scale, lengths?) -> y
void softmax_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor x(stack[0]);
  std::optional<Tensor> lengths = take_optional(stack[2]);
  stack[0] = softmax_rows<B>(std::move(x), take_double(stack[1]), std::move(lengths), {}).release();
}

// (out, x, scale, lengths?)
void softmax_out_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor out(stack[0]), x(stack[1]);
  std::optional<Tensor> lengths = take_optional(stack[3]);
  softmax_rows<B>(std::move(x), take_double(stack[2]), std::move(lengths), std::move(out));
}

// (gate, up?) -> y
template <GatedDriver driver>
void gated_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor gate(stack[0]);
  std::optional<Tensor> up = take_optional(stack[1]);
  stack[0] = gated<B>(driver, std::move(gate), std::move(up), {}).release();
}

// (out, gate, up?)
template <GatedDriver driver>
void gated_out_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor out(stack[0]), gate(stack[1]);
  std::optional<Tensor> up = take_optional(stack[2]);
  gated<B>(driver, std::move(gate), std::move(up), std::move(out));
}

// (positions, q, k?, cos_sin_cache, head_dim, neox)
void rope_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor positions(stack[0]), q(stack[1]), cache(stack[3]);
  std::optional<Tensor> k = take_optional(stack[2]);
  rotate<B>(std::move(q), std::move(k), std::move(cache), std::move(positions), take_int(stack[4]),
            stack[5] != 0);
}

// ---------------------------------------------------------------- errors

thread_local char t_message[1024];

Throw caught(const char* message, Throw again) {
  std::strncpy(t_message, message, sizeof t_message - 1);
  return again;
}

}  // namespace

__attribute__((noinline)) Throw call_caught(Boxed boxed, Value* stack, uint64_t inputs,
                                            uint64_t outputs, const char** message) {
  *message = t_message;
  try {
    boxed(stack, inputs, outputs);
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return caught(error.what(), g_torch.throw_invalid_argument);
  } catch (const std::exception& error) {
    return caught(error.what(), g_torch.throw_runtime_error);
  }
}

namespace {

constexpr Registration kOperators[] = {
    {"rms_norm", guarded<norm_boxed<rms_norm, false>>},
    {"rms_norm_out", guarded<norm_out_boxed<rms_norm, false>>},
    {"fused_add_rms_norm", guarded<fused_add_rms_norm_boxed>},
    {"layer_norm", guarded<norm_boxed<layer_norm, true>>},
    {"layer_norm_out", guarded<norm_out_boxed<layer_norm, true>>},
    {"softmax", guarded<softmax_boxed>},
    {"softmax_out", guarded<softmax_out_boxed>},
    {"silu_and_mul", guarded<gated_boxed<silu_and_mul>>},
    {"silu_and_mul_out", guarded<gated_out_boxed<silu_and_mul>>},
    {"gelu_and_mul", guarded<gated_boxed<gelu_and_mul>>},
    {"gelu_and_mul_out", guarded<gated_out_boxed<gelu_and_mul>>},
    {"gelu_tanh_and_mul", guarded<gated_boxed<gelu_tanh_and_mul>>},
    {"gelu_tanh_and_mul_out", guarded<gated_out_boxed<gelu_tanh_and_mul>>},
    {"rope", guarded<rope_boxed>},
};

template <class F>
void look_up(void* library, const char* symbol, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, symbol));
  if (!function) {
    throw std::runtime_error(std::string("torch: its stable C interface lacks ") + symbol +
                             "; torch 2.7 or later is needed");
  }
}

Torch bind_torch(void* library) {
  Torch torch = {};
  look_up(library, "aoti_torch_get_dtype", torch.get_dtype);
  look_up(library, "aoti_torch_get_device_type", torch.get_device_type);
  look_up(library, "aoti_torch_get_dim", torch.get_dim);
  look_up(library, "aoti_torch_get_sizes", torch.get_sizes);
  look_up(library, "aoti_torch_get_strides", torch.get_strides);
  look_up(library, "aoti_torch_get_data_ptr", torch.get_data_ptr);
  look_up(library, "aoti_torch_delete_tensor_object", torch.delete_tensor);
  look_up(library, "aoti_torch_empty_strided", torch.empty_strided);
  look_up(library, "aoti_torch_copy_", torch.copy);
  look_up(library, "aoti_torch_library_init_impl", torch.init_impl);
  look_up(library, "aoti_torch_library_impl", torch.library_impl);
  // std::__throw_invalid_argument and std::__throw_runtime_error, in every libstdc++ since GCC 3.4.
  look_up(library, "_ZSt24__throw_invalid_argumentPKc", torch.throw_invalid_argument);
  look_up(library, "_ZSt21__throw_runtime_errorPKc", torch.throw_runtime_error);
  torch.delete_value =
      reinterpret_cast<int32_t (*)(Value*)>(dlsym(library, "torch_delete_stable_ivalue"));
  const auto constant = [&](const char* symbol) {
    int32_t (*value)();
    look_up(library, symbol, value);
    return value();
  };
  torch.f32 = constant("aoti_torch_dtype_float32");
  torch.f16 = constant("aoti_torch_dtype_float16");
  torch.bf16 = constant("aoti_torch_dtype_bfloat16");
  torch.i32 = constant("aoti_torch_dtype_int32");
  torch.i64 = constant("aoti_torch_dtype_int64");
  torch.u8 = constant("aoti_torch_dtype_uint8");
  torch.cpu = constant("aoti_torch_device_type_cpu");
  return torch;
}

}  // namespace

void register_torch_ops(const std::string& libtorch) {
  static bool registered = false;
  if (registered) return;
  void* library = dlopen(libtorch.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (!library) throw std::runtime_error("torch: " + libtorch + " is not loaded");
  g_torch = bind_torch(library);
  Library registry = nullptr;  // lives as long as the operators: for ever
  succeed(g_torch.init_impl("capibara_axion", "CPU", __FILE__, __LINE__, &registry),
          "library_init_impl");
  for (const Registration& op : kOperators) {
    succeed(g_torch.library_impl(registry, op.name, op.boxed), op.name);
  }
  for (const Registration* more : {kGemmOperators, kAttentionOperators}) {
    for (const Registration* op = more; op->name; ++op) {
      succeed(g_torch.library_impl(registry, op->name, op->boxed), op->name);
    }
  }
  registered = true;
}

}  // namespace capibara
