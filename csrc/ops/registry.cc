// SPDX-License-Identifier: Apache-2.0
#include "ops/registry.h"

#include "kernels/attention/attention.h"
#include "kernels/fp8/fp8.h"
#include "kernels/gated/gated.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/int4.h"
#include "kernels/kv_cache/kv_cache.h"
#include "kernels/norm/norm.h"
#include "kernels/rope/rope.h"
#include "kernels/softmax/softmax.h"

namespace capibara {
namespace {

template <class Fn>
OpInfo describe(const char* name, const KernelTable<Fn>& table) {
  OpInfo info{name, {}, table.chosen().isa};
  for (const Kernel<Fn>& kernel : table.all()) info.built.push_back(kernel.isa);
  return info;
}

}  // namespace

std::vector<OpInfo> list_ops() {
  return {
      describe("rms_norm", rms_norm_kernels()),
      describe("fused_add_rms_norm", fused_add_rms_norm_kernels()),
      describe("layer_norm", layer_norm_kernels()),
      describe("softmax", softmax_kernels()),
      describe("rope", rope_kernels()),
      describe("silu_and_mul", silu_and_mul_kernels()),
      describe("gelu_and_mul", gelu_and_mul_kernels()),
      describe("gelu_tanh_and_mul", gelu_tanh_and_mul_kernels()),
      describe("gemm_f32", gemm_kernels(GemmType::kF32)),
      describe("gemm_bf16", gemm_kernels(GemmType::kBF16)),
      describe("gemm_f16", gemm_kernels(GemmType::kF16)),
      describe("gemm_int8", gemm_kernels(GemmType::kInt8)),
      describe("gemm_int4", int4_kernels()),
      describe("attention", attention_softmax_kernels()),
      describe("kv_cache_append", kv_cache_write_kernels()),
      describe("fp8_decode", fp8_decode_kernels()),
      describe("fp8_encode", fp8_encode_kernels()),
  };
}

void reset_calls() {
  for (auto& calls : g_calls) calls.store(0, std::memory_order_relaxed);
}

}  // namespace capibara
