// SPDX-License-Identifier: Apache-2.0
// The drivers: shapes, threads, counters and the list of operators.
#include "ops/ops.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "kernels/gated/gated.h"
#include "kernels/norm/norm.h"
#include "kernels/softmax/softmax.h"
#include "ops/attention.h"
#include "ops/fp8.h"
#include "ops/gemm.h"
#include "ops/gemm_batch.h"
#include "ops/kv_cache.h"
#include "ops/parallel.h"
#include "ops/registry.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

// Numbers of [-2, 2), cheap: there are millions here.
Tensor random_rows(DType dtype, int64_t rows, int64_t cols) {
  Tensor tensor(dtype, rows, cols, cols, Guard::kAfter);
  Random random;
  tensor.fill([&] { return static_cast<float>(random.bits() >> 20) / 1024 - 2; });
  return tensor;
}

// q within qkv: `outer` tokens, in each `inner` heads of `cols` elements, then others' elements.
struct Heads {
  RowShape shape;
  int64_t cols, others;
  Tensor tensor;

  Heads(DType dtype, RowShape shape, int64_t cols, int64_t others)
      : shape(shape),
        cols(cols),
        others(others),
        tensor(random_rows(dtype, shape.outer, shape.inner * cols + others)) {}

  Rows rows() const { return {tensor.data(), shape.inner * cols + others, cols}; }
};

// Every operator in place on the heads of `x`.
struct Operator {
  const char* name;
  std::function<void(const Heads& x)> run;
};

std::vector<Operator> operators() {
  const auto norm = [](void (*op)(const NormCall&)) {
    return [op](const Heads& x) {
      const Tensor weight = random_rows(x.tensor.dtype(), 1, x.cols);
      const Tensor residual = random_rows(x.tensor.dtype(), x.shape.count(), x.cols);
      op({x.tensor.dtype(),
          x.tensor.dtype(),
          x.shape,
          x.cols,
          x.rows(),
          x.rows(),
          {residual.data(), x.shape.inner * x.cols, x.cols},
          weight.data(),
          1,
          1e-6f});
    };
  };
  const auto gated = [](void (*op)(const GatedCall&)) {
    return [op](const Heads& x) {
      const Tensor up = random_rows(x.tensor.dtype(), x.shape.count(), x.cols);
      op({x.tensor.dtype(),
          x.shape,
          x.cols,
          x.rows(),
          {up.data(), x.shape.inner * x.cols, x.cols},
          x.rows()});
    };
  };
  const auto softmax_with_lengths = [](const Heads& x) {
    std::vector<int32_t> lengths(static_cast<size_t>(x.shape.count()));
    for (size_t i = 0; i < lengths.size(); ++i) lengths[i] = static_cast<int32_t>(i % x.cols);
    softmax({x.tensor.dtype(), x.shape, x.cols, x.rows(), x.rows(), 0.5f, lengths.data()});
  };
  const auto rope_of_tokens = [](const Heads& x) {
    constexpr int64_t kPositions = 11;
    const Tensor cache = random_rows(x.tensor.dtype(), kPositions, x.cols);
    std::vector<int32_t> positions(static_cast<size_t>(x.shape.outer));
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i) % 11;
    const RopeHeads q = {x.tensor.data(), x.shape.inner, x.tensor.stride(), x.cols};
    rope({x.tensor.dtype(),
          x.tensor.dtype(),
          true,
          x.cols,
          q,
          {},
          cache.data(),
          positions.data(),
          false},
         x.shape.outer);
  };
  return {{"rms_norm", norm(rms_norm)},
          {"fused_add_rms_norm", norm(fused_add_rms_norm)},
          {"layer_norm", norm(layer_norm)},
          {"softmax", softmax_with_lengths},
          {"rope", rope_of_tokens},
          {"silu_and_mul", gated(silu_and_mul)},
          {"gelu_and_mul", gated(gelu_and_mul)},
          {"gelu_tanh_and_mul", gated(gelu_tanh_and_mul)}};
}

// The last that the chosen ISA includes: it need not have an implementation of its own.
Isa best_of(const std::vector<Isa>& built) {
  Isa best = Isa::scalar;
  for (const Isa isa : built) {
    if (info_of(chosen_isa()).required.contains(info_of(isa).required)) best = isa;
  }
  return best;
}

struct ThreadSetting {
  explicit ThreadSetting(int threads) { set_num_threads(threads); }
  ~ThreadSetting() { set_num_threads(0); }
};

constexpr int64_t kMuchWork = int64_t{1} << 30;

TEST_CASE("ops: the same bits on any number of threads") {
  for (const Operator& op : operators()) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      for (RowShape shape : {RowShape{1, 61}, RowShape{61, 1}, RowShape{23, 3}}) {
        const Heads input(dtype, shape, 4096, 64);  // work for seven threads
        Heads expected = input;
        {
          const ThreadSetting one(1);
          op.run(expected);
        }
        for (int threads : {2, 3, 5}) {
          INFO(std::string(op.name), ", ", std::string(name_of(dtype)), ", shape [", shape.outer,
               ", ", shape.inner, "], threads ", threads);
          const ThreadSetting setting(threads);
          REQUIRE(threads_for(kMuchWork, 4 * shape.count() * input.cols) == threads);
          Heads got = input;
          op.run(got);
          CHECK(difference(got.tensor, expected.tensor) == "");
        }
      }
    }
  }
}

TEST_CASE("ops: nested strides give the same rows as one stride, and leave the others alone") {
  for (const Operator& op : operators()) {
    if (std::string(op.name) == "rope") continue;  // its tokens have positions of their own
    for (RowShape shape : {RowShape{1, 1}, RowShape{5, 3}, RowShape{0, 3}, RowShape{40, 20}}) {
      const Heads nested(DType::kBF16, shape, 96, 32);
      Heads flat(DType::kBF16, {shape.count(), 1}, 96, 0);
      for (int64_t r = 0; r < shape.count(); ++r) {
        for (int64_t i = 0; i < 96; ++i) {
          flat.tensor.set(r, i, nested.tensor.get(r / shape.inner, r % shape.inner * 96 + i));
        }
      }
      Heads expected = nested;
      op.run(flat);
      for (int64_t r = 0; r < shape.count(); ++r) {
        for (int64_t i = 0; i < 96; ++i) {
          expected.tensor.set(r / shape.inner, r % shape.inner * 96 + i, flat.tensor.get(r, i));
        }
      }
      INFO(std::string(op.name), ", shape [", shape.outer, ", ", shape.inner, "]");
      op.run(nested);
      CHECK(difference(nested.tensor, expected.tensor) == "");
    }
  }
}

TEST_CASE("ops: drivers run the chosen implementation, row for row") {
  constexpr int64_t kRows = 9, kCols = 1001;
  const Tensor weight = random_rows(DType::kF32, 1, kCols);
  const Tensor x = random_rows(DType::kF32, kRows, kCols), got = x, expected = x;
  const Rows rows = {got.data(), kCols, kCols};
  rms_norm({DType::kF32, DType::kF32, {kRows, 1}, kCols, rows, rows, {}, weight.data(), 1, 1e-6f});
  rms_norm_kernels().chosen().run({DType::kF32, DType::kF32, kCols, expected.data(), kCols,
                                   expected.data(), kCols, nullptr, 0, weight.data(), 1, 1e-6f},
                                  0, kRows);
  CHECK(difference(got, expected) == "");
  CHECK(rms_norm_kernels().chosen().isa == best_of(list_ops().front().built));
}

TEST_CASE("ops: weight rows follow the inner index") {
  constexpr int64_t kOuter = 4, kInner = 3, kCols = 33;
  const Tensor weight = random_rows(DType::kF32, kInner, kCols);
  const Heads x(DType::kF32, {kOuter, kInner}, kCols, 5);
  const Heads got = x;
  layer_norm({DType::kF32,
              DType::kF32,
              x.shape,
              kCols,
              got.rows(),
              got.rows(),
              {},
              weight.data(),
              kInner,
              1e-5f});
  for (int64_t head = 0; head < kInner; ++head) {
    const Heads one = x;
    const Rows rows = {one.tensor.at(0, head * kCols), one.tensor.stride(), 0};
    layer_norm(
        {DType::kF32, DType::kF32, {kOuter, 1}, kCols, rows, rows, {}, weight.at(head), 1, 1e-5f});
    for (int64_t token = 0; token < kOuter; ++token) {
      CHECK(std::memcmp(one.tensor.at(token, head * kCols), got.tensor.at(token, head * kCols),
                        kCols * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("ops: a batch of products is the products one by one, on any number of threads") {
  constexpr int64_t kM = 5, kN = 70, kK = 90;
  const GemmBatchDim dims[] = {{2, 3 * kM * kK, 0, 3 * kM * kN}, {3, kM * kK, kK * kN, kM * kN}};
  const Tensor x = random_rows(DType::kBF16, 2 * 3 * kM, kK);
  const Tensor b = random_rows(DType::kBF16, 3 * kK, kN);
  const Tensor expected = random_rows(DType::kBF16, 2 * 3 * kM, kN);
  GemmCall call = {};
  call.type = GemmType::kBF16;
  call.m = kM;
  call.n = kN;
  call.k = kK;
  call.y_dtype = DType::kBF16;
  call.y_stride = kN;
  for (int64_t i = 0; i < 6; ++i) {
    call.x = {DType::kBF16, x.at(i * kM), kK};
    call.b = {DType::kBF16, b.at(i % 3 * kK), kN};
    call.y = expected.at(i * kM);
    gemm(call);
  }
  call.x.data = x.data();
  call.b.data = b.data();
  for (int threads : {1, 3, 8}) {
    const ThreadSetting setting(threads);
    const Tensor got = random_rows(DType::kBF16, 2 * 3 * kM, kN);
    call.y = got.data();
    gemm_batch(call, dims, 2);
    CHECK(difference(got, expected) == "");
  }
}

TEST_CASE("parallel: small work stays on the caller's thread") {
  const ThreadSetting setting(8);
  CHECK(threads_for(1000, 1024) == 1);
  CHECK(threads_for(1, kMuchWork) == 1);
  CHECK(threads_for(0, 0) == 1);
  CHECK(threads_for(3, kMuchWork) == 3);
  CHECK(threads_for(1000, kMuchWork) == 8);
}

TEST_CASE("parallel: ranges cover all items, each once") {
  for (int threads : {1, 2, 3, 5}) {
    const ThreadSetting setting(threads);
    for (int64_t items : {1, 2, 4, 7, 100}) {
      std::vector<int> touched(static_cast<size_t>(items));
      parallel_for(items, kMuchWork, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++touched[static_cast<size_t>(i)];
      });
      CHECK(std::all_of(touched.begin(), touched.end(), [](int times) { return times == 1; }));
    }
  }
}

TEST_CASE("parallel: no threads within threads") {
  const ThreadSetting setting(2);
  std::vector<int> inner_threads(2);
  parallel_for(2, kMuchWork, [&](int64_t begin, int64_t) {
    inner_threads[static_cast<size_t>(begin)] = threads_for(1000, kMuchWork);
  });
  CHECK(inner_threads == std::vector<int>{1, 1});
}

TEST_CASE("parallel: settings") {
  CHECK(openmp_library() != "");
  CHECK(num_threads() >= 1);
  {
    const ThreadSetting setting(3);
    CHECK(num_threads() == 3);
    CHECK(num_threads_setting() == 3);
  }
  CHECK(num_threads_setting() == 0);
  const std::string before = openmp_library();
  rebind_openmp();
  CHECK(openmp_library() == before);
}

TEST_CASE("registry: every operator is listed, with its implementations") {
  std::vector<std::string> expected;
  for (const Operator& op : operators()) expected.push_back(op.name);
  const size_t vector_ops = expected.size();
  for (int type = 0; type < kGemmTypes; ++type) {
    expected.push_back(std::string("gemm_") + name_of(static_cast<GemmType>(type)));
  }
  for (const char* name :
       {"gemm_int4", "attention", "kv_cache_append", "fp8_decode", "fp8_encode"}) {
    expected.push_back(name);
  }
  const std::vector<OpInfo> ops = list_ops();
  REQUIRE(ops.size() == kOps);
  REQUIRE(expected.size() == kOps);
  for (size_t i = 0; i < ops.size(); ++i) {
    CHECK(ops[i].name == expected[i]);
    CHECK(ops[i].chosen == best_of(ops[i].built));
    CHECK(ops[i].built.front() == Isa::scalar);
    CHECK(std::is_sorted(ops[i].built.begin(), ops[i].built.end()));
    if (i < vector_ops) CHECK(ops[i].built == ops.front().built);
  }
}

// y = x x^T
void run_gemm(GemmType type) {
  constexpr int64_t kSize = 3;
  const Tensor x = random_rows(DType::kF32, kSize, kSize), y = x;
  GemmCall call = {};
  call.type = type;
  call.m = call.n = call.k = kSize;
  call.x = call.b = {DType::kF32, x.data(), x.stride()};
  call.b_transposed = true;
  call.y_dtype = DType::kF32;
  call.y = y.data();
  call.y_stride = y.stride();
  void* packed = allocate_aligned(packed_bytes(type, kSize, kSize));
  pack_weights(type, kSize, kSize, call.b, packed);
  call.packed = packed;
  gemm(call);
  free_aligned(packed);
}

// With nothing to do.
void run_other(Op op) {
  switch (op) {
    case Op::gemm_int4: {
      GemmCall call = {};
      call.type = GemmType::kInt4;
      return gemm(call);
    }
    case Op::attention:
      return attention({});
    case Op::kv_cache_append: {
      CacheAppendCall call = {};
      call.cache.layout = cache_layout(CacheType::kBF16, DType::kBF16, 16, 16);
      return kv_cache_append(call);
    }
    case Op::fp8_decode:
      return fp8_decode({});
    default:
      return fp8_encode({});
  }
}

TEST_CASE("registry: calls are counted, one a call") {
  reset_calls();
  const std::vector<Operator> all = operators();
  const int vector_ops = static_cast<int>(all.size());
  for (int i = 0; i < kOps; ++i) {
    for (int times = 0; times <= i; ++times) {
      if (i < vector_ops) {
        all[static_cast<size_t>(i)].run(Heads(DType::kF32, {2, 2}, 16, 0));
      } else if (i < vector_ops + kGemmTypes) {
        run_gemm(static_cast<GemmType>(i - vector_ops));
      } else {
        run_other(static_cast<Op>(i));
      }
    }
  }
  for (int i = 0; i < kOps; ++i) CHECK(calls_of(i) == static_cast<uint64_t>(i) + 1);
  reset_calls();
  for (int i = 0; i < kOps; ++i) CHECK(calls_of(i) == 0);
}

}  // namespace
}  // namespace capibara::test
