// SPDX-License-Identifier: Apache-2.0
// Every public operator: its name, its implementations, and how often it was called. `info`, the
// tests and the proof that vLLM runs our kernels read this list.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace capibara {

enum class Op : uint8_t {
  rms_norm,
  fused_add_rms_norm,
  layer_norm,
  softmax,
  rope,
  silu_and_mul,
  gelu_and_mul,
  gelu_tanh_and_mul,
  gemm_f32,  // in the order of GemmType
  gemm_bf16,
  gemm_f16,
  gemm_int8,
  gemm_int4,
  attention,
  kv_cache_append,
  fp8_decode,
  fp8_encode,
};
constexpr int kOps = 17;

struct OpInfo {
  const char* name;
  std::vector<Isa> built;
  Isa chosen;
};

// In the order of Op. Throws what chosen_isa() throws.
std::vector<OpInfo> list_ops();

inline std::atomic<uint64_t> g_calls[kOps];

inline void count_call(Op op) {
  g_calls[static_cast<int>(op)].fetch_add(1, std::memory_order_relaxed);
}
inline uint64_t calls_of(int op) { return g_calls[op].load(std::memory_order_relaxed); }
void reset_calls();

}  // namespace capibara
