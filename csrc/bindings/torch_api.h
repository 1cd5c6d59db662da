// SPDX-License-Identifier: Apache-2.0
// Torch's stable C interface, as far as the operators use it, and the backend of operators.h on its
// tensors. torch.cc has what is not inline.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include "bindings/tensor_view.h"

namespace capibara {

using Handle = struct AtenTensorOpaque*;
using Library = struct TorchLibraryOpaque*;
using Value = uint64_t;  // StableIValue: a tensor's owning handle, or a scalar's bits
using Boxed = void (*)(Value* stack, uint64_t inputs, uint64_t outputs);

struct Torch {
  int32_t (*get_dtype)(Handle, int32_t*);
  int32_t (*get_device_type)(Handle, int32_t*);
  int32_t (*get_dim)(Handle, int64_t*);
  int32_t (*get_sizes)(Handle, int64_t**);
  int32_t (*get_strides)(Handle, int64_t**);
  int32_t (*get_data_ptr)(Handle, void**);
  int32_t (*delete_tensor)(Handle);
  int32_t (*empty_strided)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                           Handle*);
  int32_t (*copy)(Handle self, Handle source, int32_t non_blocking);
  int32_t (*init_impl)(const char* ns, const char* key, const char* file, uint32_t line, Library*);
  int32_t (*library_impl)(Library, const char* name, Boxed);
  int32_t (*delete_value)(Value*);  // since 2.13; before, operator delete
  void (*throw_invalid_argument)(const char*);
  void (*throw_runtime_error)(const char*);
  int32_t f32, f16, bf16, i32, i64, u8, cpu;
};

extern Torch g_torch;

// Owns the reference that a stack value carries.
class Tensor {
 public:
  explicit Tensor(Value value) : handle_(reinterpret_cast<Handle>(value)) {}
  explicit Tensor(Handle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_) g_torch.delete_tensor(handle_);
  }
  Handle get() const { return handle_; }
  Value release() { return reinterpret_cast<Value>(std::exchange(handle_, nullptr)); }

 private:
  Handle handle_;
};

inline double take_double(Value value) {
  double result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// What is optional is a null pointer, or points to a heap value that the callee frees.
inline std::optional<Value> take_inner(Value value) {
  auto* inner = reinterpret_cast<Value*>(value);
  if (!inner) return std::nullopt;
  const Value result = *inner;
  if (g_torch.delete_value) {
    g_torch.delete_value(inner);
  } else {
    delete inner;
  }
  return result;
}

inline std::optional<Tensor> take_optional(Value value) {
  const std::optional<Value> inner = take_inner(value);
  if (!inner) return std::nullopt;
  return Tensor(*inner);
}

inline std::optional<double> take_optional_double(Value value) {
  const std::optional<Value> inner = take_inner(value);
  if (!inner) return std::nullopt;
  return take_double(*inner);
}

inline int64_t take_int(Value value) { return static_cast<int64_t>(value); }

struct TorchBackend {
  using Array = Tensor;
  struct Unlocked {  // torch's dispatcher has released the GIL already
    Unlocked() {}
  };
  static TensorView view_of(const Tensor& tensor, const char* name);
  static Tensor empty(const Tensor& tensor, const TensorView& view, int64_t cols);
  static Tensor contiguous_copy(const Tensor& tensor, const TensorView& view);
};

// ---------------------------------------------------------------- errors
//
// torch's frames can only catch, or let pass, exceptions of the C++ runtime that they were built
// with, and a wheel's module has another one inside (cmake/zig-toolchain.cmake). So an error is
// caught here, and torch's libstdc++ throws it anew. The frame that it is thrown through must have
// nothing to clean up: this module's runtime would have to do that.

using Throw = void (*)(const char* message);

// Calls `boxed`. What to throw *message with; nullptr if nothing went wrong.
Throw call_caught(Boxed boxed, Value* stack, uint64_t inputs, uint64_t outputs,
                  const char** message);

template <Boxed boxed>
void guarded(Value* stack, uint64_t inputs, uint64_t outputs) {
  const char* message;
  if (const Throw throw_error = call_caught(boxed, stack, inputs, outputs, &message)) {
    throw_error(message);
  }
}

struct Registration {
  const char* name;
  Boxed boxed;
};

// The matrix products; attention and its cache. Both ended by a null name.
extern const Registration kGemmOperators[];
extern const Registration kAttentionOperators[];

}  // namespace capibara
