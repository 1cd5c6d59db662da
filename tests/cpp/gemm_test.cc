// SPDX-License-Identifier: Apache-2.0
// The matrix tiles: every implementation, the scalar references among them, on panels that are made
// here, against double precision. Integers are exact in it.
#include "kernels/gemm/gemm.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "support/kernels.h"
#include "support/panel.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

constexpr GemmType kTypes[] = {GemmType::kF32, GemmType::kBF16, GemmType::kF16, GemmType::kInt8};
using Entry = Kernel<const GemmKernel>;

// f(kernel, its type) for every implementation that runs here.
template <class F>
void for_each_gemm(const F& f) {
  for (GemmType type : kTypes) {
    INFO("type: ", name_of(type));
    for_each_kernel(gemm_kernels(type), [&](const Entry& kernel) { f(kernel, type); });
  }
}

struct Operands {
  int rows, cols;
  int64_t steps;
  Panel a, b;

  Operands(const GemmKernel& kernel, int count, int64_t steps_, Guard guard)
      : rows(count),
        cols(kernel.cols),
        steps(steps_),
        a(kernel.a, kernel.packed_rows(count), kernel.depth, steps, guard),
        b(kernel.b, kernel.cols, kernel.depth, steps, guard) {}

  template <class F>
  void fill(const F& next) {
    a.fill(rows, [&] { return next(a.type()); });
    b.fill(cols, [&] { return next(b.type()); });
  }
};

// Numbers of any of a type's exponents whose products neither overflow nor underflow in f32; all of
// f16's, the subnormal ones too.
float any_exponent(Packed type, Random& random) {
  const bool f16 = type == Packed::kF16;
  const auto exponent = static_cast<int>(random.integer(f16 ? -25 : -40, f16 ? 14 : 40));
  const float mantissa = 1 + static_cast<float>(random.integer(0, (1 << 23) - 1)) * 0x1p-23f;
  return std::ldexp(random.bits() & 1 ? mantissa : -mantissa, exponent);
}

bool is_integer(Packed type) { return type >= Packed::kI8; }
float lowest(Packed type) { return type == Packed::kU8 ? 0 : -127; }
float highest(Packed type) { return type == Packed::kU8 ? 255 : 127; }

float any_number(Packed type, Random& random) {
  if (!is_integer(type)) return random.normal();
  return static_cast<float>(
      random.integer(static_cast<int64_t>(lowest(type)), static_cast<int64_t>(highest(type))));
}

// BFMMLA, BFDOT, VDPBF16PS: those multiply bf16 as it is.
bool dots_of_bf16(const Entry& kernel) {
  return kernel.isa != Isa::scalar && kernel.run->a == Packed::kBF16;
}

// How far from the exact sum c may be, given the sum of all magnitudes (that of the former c too).
//
// K terms: in whatever order they are added, a term goes through at most K - 1 additions, and the
// rounding of its product unless that is fused (or exact); one addition more for the former c. Each
// is off by at most u relative to what it rounds: gamma_n = n u to the first order. Results below
// 2^-126 are off by 2^-150 instead.
//
// Dot products of bf16: the products are exact. VDPBF16PS adds them by two fused operations, K
// roundings. The Arm instructions add two products and then the pair to the sum; both roundings are
// to odd, off by less than 2 u, and a term goes through one of the former and K / 2 of the latter:
// (K + 2) u. Either sets each result below 2^-126 to zero.
double bound(const Entry& kernel, int64_t k, bool accumulate, double magnitude) {
  const bool dots = dots_of_bf16(kernel);
  const auto n = static_cast<double>(k + (dots ? 2 : 0) + (accumulate ? 1 : 0));
  return kSecondOrder * n * kUnitRoundoff * magnitude + 2 * n * (dots ? 0x1p-126 : 0x1p-150);
}

// The tile's c before and after. Integers are in it as their bits.
struct Product {
  Tensor before, c;

  Product(const GemmKernel& kernel, const Operands& x, bool accumulate, int64_t padding,
          Guard guard)
      : before(initial(kernel, x, padding, guard)), c(before) {
    kernel.tiles[x.rows - 1](x.steps, x.a.data(), x.b.data(), c.data(), c.stride(), accumulate);
  }

 private:
  static Tensor initial(const GemmKernel& kernel, const Operands& x, int64_t padding, Guard guard) {
    Tensor c(DType::kF32, kernel.packed_rows(x.rows), kernel.cols, kernel.cols + padding, guard);
    Random random;
    for (int64_t r = 0; r < c.rows(); ++r) {
      for (int64_t j = 0; j < c.cols(); ++j) {
        if (is_integer(kernel.a)) {
          c.set_bits(r, j, static_cast<uint32_t>(random.integer(-1000000000, 1000000000)));
        } else {
          c.set(r, j, random.normal());
        }
      }
    }
    return c;
  }
};

double integer_at(const Tensor& c, int64_t row, int64_t col) {
  return static_cast<int32_t>(c.bits(row, col));
}

void check(const Entry& kernel, const Operands& x, Guard guard) {
  INFO(x.rows, " rows, ", x.steps, " steps");
  const size_t cols = static_cast<size_t>(x.cols);
  std::vector<double> sums(x.rows * cols), magnitudes(x.rows * cols);
  for (int64_t k = 0; k < x.a.length(); ++k) {
    for (int r = 0; r < x.rows; ++r) {
      for (int j = 0; j < x.cols; ++j) {
        const double product = x.a.value(r, k) * x.b.value(j, k);
        sums[r * cols + j] += product;
        magnitudes[r * cols + j] += std::abs(product);
      }
    }
  }
  for (bool accumulate : {false, true}) {
    for (int64_t padding : {0, 5}) {
      INFO("accumulate ", accumulate, ", padding ", padding);
      const Product got(*kernel.run, x, accumulate, padding, guard);
      CHECK(got.c.padding_intact());
      if (is_integer(kernel.run->a)) {
        int64_t wrong = 0;
        for (int r = 0; r < x.rows; ++r) {
          for (int j = 0; j < x.cols; ++j) {
            const double former = accumulate ? integer_at(got.before, r, j) : 0;
            wrong += integer_at(got.c, r, j) != former + sums[r * cols + j];
          }
        }
        CHECK(wrong == 0);
        continue;
      }
      CHECK(out_of_bounds(got.c, 0, x.rows, [&](int64_t r, int64_t j) {
              const double former = accumulate ? got.before.get(r, j) : 0;
              const double magnitude = std::abs(former) + magnitudes[r * cols + j];
              return Approx{former + sums[r * cols + j],
                            bound(kernel, x.a.length(), accumulate, magnitude)};
            }) == "");
    }
  }
}

TEST_CASE("gemm: what the tables say") {
  for_each_gemm([](const Entry& kernel, GemmType type) {
    const GemmKernel& gemm = *kernel.run;
    CHECK(gemm.rows >= 1);
    REQUIRE(gemm.rows <= kMaxTileRows);
    CHECK((gemm.depth == 1 || gemm.depth == 2 || gemm.depth == 4 || gemm.depth == 8));
    CHECK(gemm.packed_rows(gemm.rows) == gemm.rows);
    CHECK(is_integer(gemm.a) == (type == GemmType::kInt8));
    CHECK(is_integer(gemm.b) == (type == GemmType::kInt8));
    for (int i = 0; i < kMaxTileRows; ++i) CHECK((gemm.tiles[i] != nullptr) == (i < gemm.rows));
  });
}

TEST_CASE("gemm: every number of rows, few and many steps") {
  Random random;
  for_each_gemm([&](const Entry& kernel, GemmType) {
    for (int rows = 1; rows <= kernel.run->rows; ++rows) {
      for (int64_t steps : {0, 1, 2, 3, 5, 7, 8, 16, 17, 33, 100}) {
        for (Guard guard : kGuards) {
          Operands x(*kernel.run, rows, steps, guard);
          x.fill([&](Packed type) { return any_number(type, random); });
          check(kernel, x, guard);
        }
      }
    }
  });
}

TEST_CASE("gemm: a long sum, and every exponent") {
  Random random;
  for_each_gemm([&](const Entry& kernel, GemmType type) {
    for (int rows : {1, 2, kernel.run->rows}) {
      Operands x(*kernel.run, rows, 1000, Guard::kAfter);
      x.fill([&](Packed packed) { return any_number(packed, random); });
      check(kernel, x, Guard::kAfter);
      if (type == GemmType::kInt8) continue;
      Operands y(*kernel.run, rows, 9, Guard::kAfter);
      y.fill([&](Packed packed) {
        return type == GemmType::kF16 ? any_exponent(Packed::kF16, random)
                                      : any_exponent(packed, random);
      });
      check(kernel, y, Guard::kAfter);
    }
  });
}

TEST_CASE("gemm: the extremes of int8") {
  Random random;
  for_each_kernel(gemm_kernels(GemmType::kInt8), [&](const Entry& kernel) {
    const GemmKernel& gemm = *kernel.run;
    for (int rows = 1; rows <= gemm.rows; ++rows) {
      Operands x(gemm, rows, 40, Guard::kAfter);
      for (float a : {lowest(gemm.a), highest(gemm.a)}) {
        for (float b : {-127.0f, 127.0f}) {
          x.a.fill(rows, [&] { return a; });
          x.b.fill(gemm.cols, [&] { return b; });
          check(kernel, x, Guard::kAfter);
        }
      }
      x.fill([&](Packed type) { return random.bits() & 1 ? lowest(type) : highest(type); });
      check(kernel, x, Guard::kAfter);
    }
  });
}

// What an element of A or B that is not finite makes of its row or column; all else is as without.
TEST_CASE("gemm: NaN and infinity stay in their row or column") {
  Random random;
  for_each_gemm([&](const Entry& kernel, GemmType type) {
    if (type == GemmType::kInt8) return;
    const GemmKernel& gemm = *kernel.run;
    for (int rows : {1, 2, 3, gemm.rows}) {
      Operands x(gemm, rows, 7, Guard::kAfter);
      x.fill([&](Packed) { return 0.1f + std::abs(random.normal()); });
      const Product without(gemm, x, true, 0, Guard::kAfter);
      for (bool of_a : {true, false}) {
        Panel& panel = of_a ? x.a : x.b;
        for (int line = 0; line < (of_a ? rows : gemm.cols); ++line) {
          for (int64_t k : {int64_t{0}, panel.length() - 1}) {
            for (float special : {NAN, INFINITY, -INFINITY}) {
              INFO(rows, " rows, ", special, " in ", of_a ? "A" : "B", " at ", line, ", k = ", k);
              const auto was = static_cast<float>(panel.value(line, k));
              panel.set(line, k, special);
              const Product got(gemm, x, true, 0, Guard::kAfter);
              panel.set(line, k, was);
              CHECK(out_of_bounds(got.c, 0, rows, [&](int64_t r, int64_t j) {
                      if ((of_a ? r : j) == line) return Approx{special, 0};
                      return Approx{without.c.get(r, j), 0};
                    }) == "");
            }
          }
        }
      }
    }
  });
}

TEST_CASE("gemm: only the dot products of bf16 take subnormals for zero") {
  for_each_gemm([&](const Entry& kernel, GemmType type) {
    if (type == GemmType::kInt8) return;
    Operands x(*kernel.run, kernel.run->rows, 5, Guard::kAfter);
    const float small = type == GemmType::kF16 ? 0x1p-24f : 0x1p-133f;
    x.a.fill(x.rows, [&] { return small; });
    x.b.fill(x.cols, [] { return 0x1p10f; });
    const Product got(*kernel.run, x, false, 0, Guard::kAfter);
    const double sum = dots_of_bf16(kernel) ? 0 : static_cast<double>(x.a.length()) * small * 1024;
    CHECK(out_of_bounds(got.c, 0, x.rows, [&](int64_t, int64_t) { return Approx{sum, 0}; }) == "");
  });
}

}  // namespace
}  // namespace capibara::test
