// SPDX-License-Identifier: Apache-2.0
#include "ops/fp8.h"

#include <algorithm>

#include "ops/parallel.h"
#include "ops/registry.h"

namespace capibara {
namespace {

constexpr int64_t kRun = 4096;  // elements; threads take whole runs

// f(begin, end) on ranges of `count` elements, each `size` bytes beside its code.
template <class F>
void parallel_runs(int64_t count, size_t size, F f) {
  const int64_t bytes = count * static_cast<int64_t>(size + 1);
  parallel_for((count + kRun - 1) / kRun, bytes,
               [&](int64_t begin, int64_t end) { f(begin * kRun, std::min(end * kRun, count)); });
}

}  // namespace

void fp8_encode(const Fp8EncodeArgs& call) {
  static Fp8EncodeFn* const kernel = fp8_encode_kernels().chosen().run;
  count_call(Op::fp8_encode);
  const size_t size = size_of(call.from);
  parallel_runs(call.count, size, [&](int64_t begin, int64_t end) {
    Fp8EncodeArgs args = call;
    args.x = static_cast<const char*>(call.x) + begin * static_cast<int64_t>(size);
    args.codes = call.codes + begin;
    args.count = end - begin;
    kernel(args);
  });
}

void fp8_decode(const Fp8DecodeArgs& call) {
  static Fp8DecodeFn* const kernel = fp8_decode_kernels().chosen().run;
  count_call(Op::fp8_decode);
  const size_t size = size_of(call.to);
  parallel_runs(call.count, size, [&](int64_t begin, int64_t end) {
    Fp8DecodeArgs args = call;
    args.codes = call.codes + begin;
    args.y = static_cast<char*>(call.y) + begin * static_cast<int64_t>(size);
    args.count = end - begin;
    kernel(args);
  });
}

}  // namespace capibara
