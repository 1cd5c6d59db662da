// SPDX-License-Identifier: Apache-2.0
// The driver of matrix products. Its operands are whole numbers so small that every sum is exact,
// in any order and type: results must equal plain loops to the last bit.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "ops/gemm.h"
#include "ops/gemm_blocking.h"
#include "ops/gemm_packed.h"
#include "ops/parallel.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

constexpr GemmType kTypes[] = {GemmType::kF32, GemmType::kBF16, GemmType::kF16, GemmType::kInt8};

struct Bytes {
  explicit Bytes(size_t bytes) : data(allocate_aligned(bytes)) {}
  ~Bytes() { free_aligned(data); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  void* data;
};

DType value_type(GemmType type) {
  return type == GemmType::kBF16  ? DType::kBF16
         : type == GemmType::kF16 ? DType::kF16
                                  : DType::kF32;
}

// Whole numbers of [-largest, largest]; with `scaled`, each row begins with 127, so that int8 has a
// scale of 1 and holds them exactly.
Tensor integers(DType dtype, int64_t rows, int64_t cols, int64_t stride, int largest, bool scaled) {
  Tensor tensor(dtype, rows, cols, stride, Guard::kAfter);
  Random random;
  tensor.fill([&] { return static_cast<float>(random.integer(-largest, largest)); });
  for (int64_t r = 0; scaled && cols > 0 && r < rows; ++r) tensor.set(r, 0, 127.0f);
  return tensor;
}

struct Problem {
  GemmType type;
  int64_t m, n, k;
  bool transposed = true, prepacked = true;
  DType x_dtype;
  Tensor x, b;

  Problem(GemmType type, int64_t m, int64_t n, int64_t k, DType x_dtype, bool transposed)
      : type(type),
        m(m),
        n(n),
        k(k),
        transposed(transposed),
        x_dtype(x_dtype),
        x(integers(x_dtype, m, k, k + 3, 3, type == GemmType::kInt8)),
        b(integers(value_type(type), transposed ? n : k, transposed ? k : n,
                   (transposed ? k : n) + 5, 3, type == GemmType::kInt8)) {}

  float weight(int64_t depth, int64_t col) const {
    return transposed ? b.get(col, depth) : b.get(depth, col);
  }

  GemmCall call(Tensor& y) const {
    GemmCall call = {};
    call.type = type;
    call.m = m;
    call.n = n;
    call.k = k;
    call.x = {x_dtype, x.data(), x.stride()};
    call.b = {b.dtype(), b.data(), b.stride()};
    call.b_transposed = transposed;
    call.y_dtype = y.dtype();
    call.y = y.data();
    call.y_stride = y.stride();
    return call;
  }

  // What y must hold, before the epilogue.
  std::vector<float> expected() const {
    std::vector<float> left(m * k), right(k * n), sums(m * n);
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t d = 0; d < k; ++d) left[r * k + d] = x.get(r, d);
    }
    for (int64_t d = 0; d < k; ++d) {
      for (int64_t j = 0; j < n; ++j) right[d * n + j] = weight(d, j);
    }
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t d = 0; d < k; ++d) {
        for (int64_t j = 0; j < n; ++j) sums[r * n + j] += left[r * k + d] * right[d * n + j];
      }
    }
    return sums;
  }
};

void expect_equal(const Tensor& y, const std::vector<float>& expected) {
  REQUIRE(y.padding_intact());
  for (int64_t r = 0; r < y.rows(); ++r) {
    for (int64_t j = 0; j < y.cols(); ++j) {
      Tensor rounded(y.dtype(), 1, 1, 1, Guard::kAfter);
      const float value = expected[static_cast<size_t>(r * y.cols() + j)];
      if (y.get(r, j) == value) continue;
      rounded.set(0, 0, value);
      INFO("at ", r, ", ", j);
      REQUIRE(y.get(r, j) == rounded.get(0, 0));
    }
  }
}

std::string text_of(const Problem& p) {
  return std::string(name_of(p.type)) + " " + std::to_string(p.m) + "x" + std::to_string(p.n) +
         "x" + std::to_string(p.k) + (p.transposed ? " of the transpose" : "") + ", x " +
         name_of(p.x_dtype);
}

// Runs with b as it is, if products are of b's own type, and packed.
void check(const Problem& p, DType y_dtype) {
  const std::string what = text_of(p);
  INFO(what);
  const std::vector<float> expected = p.expected();
  Tensor y(y_dtype, p.m, p.n, p.n + 2, Guard::kAfter);
  GemmCall call = p.call(y);
  if (p.type != GemmType::kInt8) {
    gemm(call);
    expect_equal(y, expected);
  }
  if (!p.transposed) return;
  const size_t bytes = packed_bytes(p.type, p.n, p.k);
  const Bytes packed(bytes);
  pack_weights(p.type, p.n, p.k, {p.b.dtype(), p.b.data(), p.b.stride()}, packed.data);
  CHECK(packed_header(packed.data, static_cast<int64_t>(bytes), "packed").n == p.n);
  Tensor again(y_dtype, p.m, p.n, p.n + 2, Guard::kAfter);
  GemmCall packed_call = p.call(again);
  packed_call.packed = packed.data;
  gemm(packed_call);
  expect_equal(again, expected);
}

// Emulated or under sanitizers a twentieth of them must do.
#if defined(CAPIBARA_SAMPLED)
constexpr int64_t kRows[] = {1, 3, 8, 13}, kCols[] = {7, 32, 33}, kDepths[] = {1, 9, 64};
#else
constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 25};
constexpr int64_t kCols[] = {1, 7, 8, 9, 31, 32, 33};
constexpr int64_t kDepths[] = {1, 2, 3, 4, 5, 8, 9, 17, 64};
#endif

TEST_CASE("every small shape") {
  for (const GemmType type : kTypes) {
    for (const int64_t m : kRows) {
      for (const int64_t n : kCols) {
        for (const int64_t k : kDepths) {
          check(Problem(type, m, n, k, value_type(type), (m + n + k) % 2 == 0), value_type(type));
        }
      }
    }
  }
}

TEST_CASE("no rows, columns or depth") {
  for (const GemmType type : kTypes) {
    for (const auto& [m, n, k] :
         {std::array<int64_t, 3>{0, 5, 5}, {5, 0, 5}, {5, 5, 0}, {0, 0, 0}}) {
      check(Problem(type, m, n, k, value_type(type), true), value_type(type));
    }
  }
}

TEST_CASE("several blocks along each dimension") {
  for (const GemmType type : kTypes) {
    // More rows than are packed at a time; a depth and columns above a block of small caches. Sums
    // stay below 2^11, which f16 still holds exactly.
    check(Problem(type, 530, 70, 40, value_type(type), true), DType::kF32);
    check(Problem(type, 17, 1100, 130, value_type(type), true), DType::kF32);
    check(Problem(type, 14, 40, 7001, value_type(type), true), DType::kF32);
    check(Problem(type, 3, 40, 7001, value_type(type), false), DType::kF32);
  }
}

TEST_CASE("x and y of other types than the products'") {
  for (const GemmType type : kTypes) {
    for (const DType x_dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const DType y_dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        check(Problem(type, 13, 41, 67, x_dtype, true), y_dtype);
      }
    }
  }
}

TEST_CASE("the number of threads changes no bit") {
  Random random;
  for (const GemmType type : kTypes) {
    for (const auto& [m, n, k] :
         {std::array<int64_t, 3>{1, 700, 900}, {7, 333, 900}, {150, 300, 400}, {601, 40, 300}}) {
      Problem p(type, m, n, k, value_type(type), true);
      p.x.fill([&] { return random.normal(); });
      p.b.fill([&] { return random.normal(); });
      const Bytes packed(packed_bytes(type, n, k));
      pack_weights(type, n, k, {p.b.dtype(), p.b.data(), p.b.stride()}, packed.data);
      Tensor first(DType::kF32, m, n, n, Guard::kAfter);
      for (const int threads : {1, 2, 3, 5, 8}) {
        set_num_threads(threads);
        Tensor y(DType::kF32, m, n, n, Guard::kAfter);
        GemmCall call = p.call(threads == 1 ? first : y);
        call.packed = packed.data;
        gemm(call);
        INFO(text_of(p), " on ", threads, " threads");
        if (threads > 1) CHECK(difference(y, first) == "");
      }
      set_num_threads(0);
    }
  }
}

TEST_CASE("bias, activation and residual") {
  for (const GemmType type : kTypes) {
    const int64_t m = 19, n = 45;
    const Problem p(type, m, n, 33, value_type(type), true);
    const Bytes packed(packed_bytes(type, n, p.k));
    pack_weights(type, n, p.k, {p.b.dtype(), p.b.data(), p.b.stride()}, packed.data);
    Random random;
    std::vector<float> bias(n);
    for (float& value : bias) value = static_cast<float>(random.integer(-9, 9));
    const Tensor residual = integers(DType::kF32, m, n, n + 1, 50, false);
    Tensor y(DType::kF32, m, n, n + 2, Guard::kAfter);
    GemmCall call = p.call(y);
    call.packed = packed.data;
    call.bias = bias.data();
    call.residual = {DType::kF32, residual.data(), residual.stride()};
    gemm(call);
    std::vector<float> expected = p.expected(), activated = expected;
    for (int64_t i = 0; i < m * n; ++i) {
      const float sum = expected[i] + bias[i % n], x = residual.get(i / n, i % n);
      expected[i] = sum + x;
      activated[i] = sum / (1.0f + std::exp(-sum)) + x;
    }
    expect_equal(y, expected);

    // Over the residual itself.
    Tensor in_place = integers(DType::kF32, m, n, n + 1, 50, false);
    call.residual = {DType::kF32, in_place.data(), in_place.stride()};
    call.y = in_place.data();
    call.y_stride = in_place.stride();
    call.activation = Activation::kSilu;
    gemm(call);
    for (int64_t i = 0; i < m * n; ++i) {
      CHECK(in_place.get(i / n, i % n) == doctest::Approx(activated[i]).epsilon(1e-5));
    }
  }
}

TEST_CASE("weights are packed and unpacked exactly") {
  for (const GemmType type : kTypes) {
    const int64_t n = 45, k = 37;
    const Problem p(type, 1, n, k, value_type(type), true);
    const size_t bytes = packed_bytes(type, n, k);
    const Bytes packed(bytes), again(bytes);
    pack_weights(type, n, k, {p.b.dtype(), p.b.data(), p.b.stride()}, packed.data);
    const size_t size = type == GemmType::kInt8 ? 1 : size_of(value_type(type));
    std::vector<char> values(static_cast<size_t>(n * k) * size);
    std::vector<float> scales(n);
    unpack_weights(packed.data, values.data(), scales.data());
    for (int64_t i = 0; i < n * k; ++i) {
      if (type == GemmType::kInt8) {
        CHECK(static_cast<float>(static_cast<int8_t>(values[i])) == p.b.get(i / k, i % k));
      } else {
        CHECK(std::memcmp(&values[i * size], p.b.at(i / k, i % k), size) == 0);
      }
    }
    repack_weights(type, n, k, values.data(), scales.data(), again.data);
    // All but the number of the packing.
    auto& header = *static_cast<PackedHeader*>(again.data);
    header.id = static_cast<const PackedHeader*>(packed.data)->id;
    CHECK(std::memcmp(packed.data, again.data, bytes) == 0);
  }
}

TEST_CASE("what is no packed weight is refused") {
  const size_t bytes = packed_bytes(GemmType::kF32, 10, 10);
  const Bytes packed(bytes);
  std::memset(packed.data, 0, bytes);
  CHECK_THROWS_WITH_AS(packed_header(packed.data, static_cast<int64_t>(bytes), "packed"),
                       doctest::Contains("got something else"), std::invalid_argument);
  const Tensor weight = integers(DType::kF32, 10, 10, 10, 3, false);
  pack_weights(GemmType::kF32, 10, 10, {DType::kF32, weight.data(), 10}, packed.data);
  CHECK_THROWS_WITH_AS(packed_header(packed.data, static_cast<int64_t>(bytes) - 4, "packed"),
                       doctest::Contains("bytes that should be"), std::invalid_argument);
  static_cast<PackedHeader*>(packed.data)->cols += 1;
  CHECK_THROWS_WITH_AS(packed_header(packed.data, static_cast<int64_t>(bytes), "packed"),
                       doctest::Contains("another instruction set"), std::invalid_argument);
}

TEST_CASE("blocks are whole tiles, and cover everything") {
  for (const GemmType type : kTypes) {
    const GemmKernel& kernel = gemm_kernel(type);
    for (const int64_t m : {1, 13, 5000}) {
      for (const int64_t n : {1, 1000, 150000}) {
        for (const int64_t k : {0, 1, 100, 40000}) {
          const Blocking block = blocking_of(kernel, m, n, k, m % 2 == 0);
          CHECK(block.mc > 0);
          CHECK(block.nc > 0);
          CHECK(block.kc > 0);
          CHECK(block.mc % kernel.rows == 0);
          CHECK(block.nc % kernel.cols == 0);
          CHECK(block.kc % kernel.depth == 0);
        }
      }
    }
  }
}

TEST_CASE("a grid of threads has no idle ones where there is work for all") {
  for (int64_t threads = 1; threads <= 16; ++threads) {
    const Grid wide = grid_of(threads, 1, 128), tall = grid_of(threads, 128, 1);
    CHECK(wide.rows == 1);
    CHECK((128 + wide.cols - 1) / wide.cols == (128 + threads - 1) / threads);
    CHECK((128 + tall.rows - 1) / tall.rows == (128 + threads - 1) / threads);
    const Grid both = grid_of(threads, 43, 128);
    CHECK(both.rows * both.cols <= threads);
    CHECK((43 + both.rows - 1) / both.rows * ((128 + both.cols - 1) / both.cols) <=
          43 * 128 / threads * 1.15 + 1);
  }
}

}  // namespace
}  // namespace capibara::test
