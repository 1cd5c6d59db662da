// SPDX-License-Identifier: Apache-2.0
// The driver on weights of 4 bits, to the last bit of what the contract of the kernels fixes: plain
// loops over what scalar::int4_rows makes of each token.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "ops/gemm_int4.h"
#include "ops/parallel.h"
#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

struct Bytes {
  explicit Bytes(size_t bytes) : size(bytes), data(allocate_aligned(bytes)) {}
  ~Bytes() { free_aligned(data); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  size_t size;
  void* data;
};

struct Weight {
  int64_t n, k, group;
  std::vector<uint8_t> codes, zeros;
  std::vector<float> scales;

  Weight(int64_t n, int64_t k, int64_t group) : n(n), k(k), group(group) {
    Random random;
    for (int64_t i = 0; i < n * k; ++i) codes.push_back(static_cast<uint8_t>(random.bits() & 15));
    for (int64_t i = 0; i < n * groups(); ++i) {
      zeros.push_back(static_cast<uint8_t>(random.integer(0, 16)));
      scales.push_back(random.normal());
    }
  }
  int64_t groups() const { return k / group; }
  Int4Weight view() { return {codes.data(), scales.data(), zeros.data()}; }
  float scale(int64_t j, int64_t k_) const { return scales[j * groups() + k_ / group]; }
  int value(int64_t j, int64_t k_) const {
    return codes[j * k + k_] - zeros[j * groups() + k_ / group];
  }
};

struct PackedWeight : Bytes {
  PackedWeight(Weight& weight, int digits)
      : Bytes(packed_int4_bytes(weight.n, weight.k, weight.group)) {
    pack_int4(weight.view(), weight.n, weight.k, weight.group, digits, data);
  }
};

struct Problem {
  Weight weight;
  Tensor x;
  int digits;
  Bytes bytes;

  Problem(int64_t m, int64_t n, int64_t k, int64_t group, int digits, DType dtype)
      : weight(n, k, group),
        x(dtype, m, k, k + 3, Guard::kAfter),
        digits(digits),
        bytes(packed_int4_bytes(n, k, group)) {
    Random random;
    x.fill([&] { return random.normal(); });
    pack_int4(weight.view(), n, k, group, digits, bytes.data);
  }

  GemmCall call(Tensor& y) const {
    GemmCall call = {};
    call.type = GemmType::kInt4;
    call.m = x.rows();
    call.n = weight.n;
    call.k = weight.k;
    call.x = {x.dtype(), x.data(), x.stride()};
    call.packed = bytes.data;
    call.y_dtype = y.dtype();
    call.y = y.data();
    call.y_stride = y.stride();
    return call;
  }

  // Without an epilogue.
  std::vector<float> expected() const {
    const int64_t m = x.rows(), k = weight.k;
    const int group = int4_tile_group(weight.group);
    std::vector<float> y;
    std::vector<char> panel(
        static_cast<size_t>((k + group - 1) / group * digits * int4_row_bytes(group)));
    for (int64_t r = 0; r < m; ++r) {
      scalar::int4_rows(
          {x.dtype(), x.at(r), x.stride(), 1, k, digits, group, 4, digits, true, panel.data()});
      for (int64_t j = 0; j < weight.n; ++j) {
        float sums[2] = {};
        for (int digit = 0; digit < digits; ++digit) {
          const char* block = panel.data();
          for (int64_t begin = 0; begin < k; begin += group) {
            int64_t d = 0;
            for (int64_t i = 0; i < std::min<int64_t>(group, k - begin); ++i) {
              const auto q = static_cast<int8_t>(block[(i / 4 * digits + digit) * 4 + i % 4]);
              d += q * weight.value(j, begin + i);
            }
            float scale;
            std::memcpy(&scale, block + digits * group + 4 * digit, sizeof scale);
            sums[digit] =
                std::fma(static_cast<float>(d), scale * weight.scale(j, begin), sums[digit]);
            block += digits * int4_row_bytes(group);
          }
        }
        y.push_back(digits == 2 ? sums[0] + sums[1] : sums[0]);
      }
    }
    return y;
  }
};

void expect_equal(const Tensor& y, const std::vector<float>& expected) {
  REQUIRE(y.padding_intact());
  int64_t wrong = 0;
  Tensor rounded(y.dtype(), 1, 1, 1, Guard::kAfter);
  for (int64_t i = 0; i < y.rows() * y.cols(); ++i) {
    rounded.set(0, 0, expected[static_cast<size_t>(i)]);
    const float got = y.get(i / y.cols(), i % y.cols()), wanted = rounded.get(0, 0);
    wrong += got != wanted && !(std::isnan(got) && std::isnan(wanted));
  }
  CHECK(wrong == 0);
}

void check(const Problem& p, DType y_dtype) {
  INFO(p.x.rows(), " x ", p.weight.n, " x ", p.weight.k, ", groups of ", p.weight.group, ", ",
       p.digits, " digits, ", name_of(p.x.dtype()), " to ", name_of(y_dtype));
  Tensor y(y_dtype, p.x.rows(), p.weight.n, p.weight.n + 2, Guard::kAfter);
  gemm(p.call(y));
  expect_equal(y, p.expected());
}

// Depth and group; whole columns are any depth.
struct Depth {
  int64_t k, group;
};
#if defined(CAPIBARA_SAMPLED)
constexpr int64_t kRows[] = {1, 8, 13}, kCols[] = {7, 33};
constexpr Depth kDepths[] = {{96, 32}, {256, 128}, {75, 75}};
#else
constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25};
constexpr int64_t kCols[] = {1, 8, 15, 32, 33, 71};
constexpr Depth kDepths[] = {{32, 32}, {96, 32}, {128, 64}, {256, 128},
                             {1, 1},   {75, 75}, {200, 200}};
#endif

TEST_CASE("int4: every small shape") {
  for (const int digits : {1, 2}) {
    for (const int64_t m : kRows) {
      for (const int64_t n : kCols) {
        for (const Depth& depth : kDepths) {
          check(Problem(m, n, depth.k, depth.group, digits, DType::kF32), DType::kF32);
        }
      }
    }
  }
}

TEST_CASE("int4: nothing, and several blocks along each dimension") {
  for (const int digits : {1, 2}) {
    check(Problem(0, 5, 32, 32, digits, DType::kF32), DType::kF32);
    check(Problem(3, 0, 32, 32, digits, DType::kF32), DType::kF32);
    check(Problem(14, 40, 14080, 128, digits, DType::kF32), DType::kF32);
    check(Problem(530, 40, 64, 32, digits, DType::kBF16), DType::kF32);
    check(Problem(17, 700, 128, 128, digits, DType::kBF16), DType::kF32);
  }
}

TEST_CASE("int4: types of x and y") {
  for (const DType x : kDTypes) {
    for (const DType y : kDTypes) {
      for (const int digits : {1, 2}) check(Problem(13, 41, 256, 64, digits, x), y);
    }
  }
}

TEST_CASE("int4: NaN and infinity spoil their row, or column, alone") {
  for (const int digits : {1, 2}) {
    Problem p(11, 20, 128, 32, digits, DType::kF32);
    p.x.set(3, 77, INFINITY);
    p.x.set(5, 0, NAN);
    p.weight.scales[4 * 4 + 1] = NAN;
    pack_int4(p.weight.view(), 20, 128, 32, digits, p.bytes.data);
    Tensor y(DType::kF32, 11, 20, 20, Guard::kAfter);
    gemm(p.call(y));
    for (int64_t r = 0; r < 11; ++r) {
      for (int64_t j = 0; j < 20; ++j) {
        CHECK(std::isnan(y.get(r, j)) == (r == 3 || r == 5 || j == 4));
      }
    }
  }
}

TEST_CASE("int4: the number of threads changes no bit") {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{1, 700, 1024}, {7, 333, 896}, {150, 300, 384}}) {
    const Problem p(m, n, k, 128, 1 + static_cast<int>(m % 2), DType::kBF16);
    Tensor first(DType::kF32, m, n, n, Guard::kAfter);
    for (const int threads : {1, 2, 5}) {
      set_num_threads(threads);
      Tensor y(DType::kF32, m, n, n, Guard::kAfter);
      gemm(p.call(threads == 1 ? first : y));
      if (threads > 1) CHECK(difference(y, first) == "");
    }
    set_num_threads(0);
  }
}

TEST_CASE("int4: bias, activation and residual") {
  for (const int digits : {1, 2}) {
    const Problem p(19, 45, 128, 64, digits, DType::kF32);
    std::vector<float> bias(45), expected = p.expected();
    Random random;
    for (float& value : bias) value = random.normal();
    Tensor y(DType::kF32, 19, 45, 47, Guard::kAfter);
    y.fill([&] { return random.normal(); });
    const Tensor residual = y;
    GemmCall call = p.call(y);
    call.bias = bias.data();
    call.activation = Activation::kSilu;
    call.residual = {DType::kF32, y.data(), y.stride()};
    gemm(call);
    for (int64_t i = 0; i < 19 * 45; ++i) {
      const float sum = expected[i] + bias[i % 45];
      const float wanted = sum / (1.0f + std::exp(-sum)) + residual.get(i / 45, i % 45);
      CHECK(y.get(i / 45, i % 45) == doctest::Approx(wanted).epsilon(1e-5));
    }
  }
}

TEST_CASE("int4: weights are packed and unpacked exactly") {
  for (const Depth& depth : {Depth{96, 32}, {128, 64}, {384, 128}, {75, 75}, {400, 400}, {0, 32}}) {
    for (const int64_t n : {0, 1, 45}) {
      Weight weight(n, depth.k, depth.group), again = weight;
      const PackedWeight bytes(weight, 1);
      again.codes.assign(again.codes.size(), 99);
      again.zeros.assign(again.zeros.size(), 99);
      again.scales.assign(again.scales.size(), 99);
      unpack_int4(bytes.data, again.view());
      CHECK(again.codes == weight.codes);
      CHECK(again.zeros == weight.zeros);
      CHECK(again.scales == weight.scales);
      const PackedHeader& header =
          packed_header(bytes.data, static_cast<int64_t>(bytes.size), "packed");
      CHECK(header.group == depth.group);
      CHECK(header.digits == 1);
    }
  }
}

TEST_CASE("int4: without zero points they are 8") {
  Weight weight(9, 64, 32), again = weight;
  Int4Weight view = weight.view();
  view.zeros = nullptr;
  const Bytes bytes(packed_int4_bytes(9, 64, 32));
  pack_int4(view, 9, 64, 32, 1, bytes.data);
  unpack_int4(bytes.data, again.view());
  CHECK(again.zeros == std::vector<uint8_t>(18, 8));
  CHECK(again.codes == weight.codes);
}

TEST_CASE("int4: what was packed for another instruction set is refused") {
  Weight weight(9, 64, 32);
  const PackedWeight bytes(weight, 2);
  const auto size = static_cast<int64_t>(bytes.size);
  CHECK_THROWS_WITH_AS(packed_header(bytes.data, size - 64, "packed"),
                       doctest::Contains("bytes that should be"), std::invalid_argument);
  static_cast<PackedHeader*>(bytes.data)->cols += 2;
  CHECK_THROWS_WITH_AS(packed_header(bytes.data, size, "packed"),
                       doctest::Contains("another instruction set"), std::invalid_argument);
}

TEST_CASE("int4: quantised weights are within half a scale") {
  Random random;
  for (const DType dtype : kDTypes) {
    for (const bool symmetric : {false, true}) {
      for (const float shift : {0.0f, 1.0f, -5.0f}) {
        Tensor w(dtype, 7, 96, 99, Guard::kAfter);
        w.fill([&] { return random.normal() + shift; });
        for (int64_t i = 0; i < 32; ++i) w.set(2, i, 0.0f);
        w.set(4, 50, NAN);
        w.set(5, 95, -INFINITY);
        Weight q(7, 96, 32);
        quantise_int4({dtype, w.data(), w.stride()}, 7, 96, 32, symmetric, q.view());
        for (int64_t r = 0; r < 7; ++r) {
          for (int64_t i = 0; i < 96; ++i) {
            const float scale = q.scale(r, i);
            const bool spoilt = (r == 4 && i / 32 == 1) || (r == 5 && i / 32 == 2);
            CHECK(std::isnan(scale) == spoilt);
            CHECK(q.codes[r * 96 + i] <= 15);
            if (spoilt) continue;
            CHECK(std::abs(scale * q.value(r, i) - w.get(r, i)) <= scale * 0.50001);
            if (symmetric) CHECK(q.zeros[r * 3 + i / 32] == 8);
            CHECK(q.zeros[r * 3 + i / 32] <= 15);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
