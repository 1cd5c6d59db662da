// SPDX-License-Identifier: Apache-2.0
// rms_norm, fused_add_rms_norm and layer_norm: every implementation against the scalar reference,
// and both against double precision.
#include "kernels/norm/norm.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

enum class Op { kRms, kFusedAdd, kLayer };
constexpr Op kOps[] = {Op::kRms, Op::kFusedAdd, Op::kLayer};

const KernelTable<NormFn>& kernels_of(Op op) {
  return op == Op::kRms        ? rms_norm_kernels()
         : op == Op::kFusedAdd ? fused_add_rms_norm_kernels()
                               : layer_norm_kernels();
}

struct Case {
  Op op;
  DTypePair dtypes;
  int64_t rows = 3, cols = 1;
  int64_t padding = 0;  // between rows, in elements; another one for each tensor
  int64_t weight_rows = 1;
  bool in_place = false;
  float eps = 1e-6f;
  Guard guard = Guard::kAfter;

  std::string text() const {
    return "op " + std::to_string(static_cast<int>(op)) + ", element " + name_of(dtypes.element) +
           ", weight " + name_of(dtypes.parameter) + ", rows " + std::to_string(rows) + ", cols " +
           std::to_string(cols) + ", padding " + std::to_string(padding) + ", weight rows " +
           std::to_string(weight_rows) + ", in place " + std::to_string(in_place);
  }
};

// What a kernel reads and writes.
struct Tensors {
  Tensor x, y, residual, weight;

  explicit Tensors(const Case& c)
      : x(c.dtypes.element, c.rows, c.cols, c.cols + c.padding, c.guard),
        y(c.dtypes.element, c.rows, c.cols, c.cols + 2 * c.padding, c.guard),
        residual(c.dtypes.element, c.rows, c.cols, c.cols + c.padding / 2, c.guard),
        weight(c.dtypes.parameter, c.weight_rows, c.cols, c.cols, c.guard) {
    y.fill([] { return 77.0f; });
  }

  const Tensor& result(const Case& c) const { return c.in_place ? x : y; }
};

void run(NormFn* kernel, const Case& c, const Tensors& t, int64_t begin, int64_t end) {
  const Tensor& y = t.result(c);
  kernel(
      {c.dtypes.element, c.dtypes.parameter, c.cols, t.x.data(), t.x.stride(), y.data(), y.stride(),
       t.residual.data(), t.residual.stride(), t.weight.data(), c.weight_rows, c.eps},
      begin, end);
}

// Whole numbers, in rows whose mean is whole too: sums of x, of squares and of squared deviations
// are exact, in whatever order, and what follows is the same few rounded operations everywhere.
void fill_exact(const Case& c, Tensors& t) {
  Random random;
  const int64_t largest_mean = c.dtypes.element == DType::kBF16 ? 60 : 900;
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t mean = c.op == Op::kLayer ? random.integer(-largest_mean, largest_mean) : 0;
    for (int64_t i = 0; i < c.cols; ++i) {
      const int64_t deviation = random.integer(-4, 4);
      t.x.set(r, i, static_cast<float>(mean + deviation));
      // Elements i and cols - 1 - i deviate by opposite amounts; a middle one not at all.
      const int64_t mirrored = c.cols - 1 - i;
      if (c.op == Op::kLayer && mirrored <= i) {
        const float opposite = static_cast<float>(2 * mean) - t.x.get(r, mirrored);
        t.x.set(r, i, mirrored == i ? static_cast<float>(mean) : opposite);
      }
      t.residual.set(r, i, static_cast<float>(random.integer(-4, 4)));
    }
  }
  t.weight.fill([&] { return static_cast<float>(random.integer(-20, 20)) / 16; });
}

// All tensors after rows [begin, end) are those after the reference.
void check_against_reference(const Case& c, const Tensors& before, int64_t begin, int64_t end) {
  INFO(c.text(), ", rows [", begin, ", ", end, ")");
  const Tensors expected = before;
  run(kernels_of(c.op).all().front().run, c, expected, begin, end);
  for_each_kernel(kernels_of(c.op), [&](const Kernel<NormFn>& kernel) {
    const Tensors got = before;
    run(kernel.run, c, got, begin, end);
    CHECK(difference(got.x, expected.x) == "");
    CHECK(difference(got.y, expected.y) == "");
    CHECK(difference(got.residual, expected.residual) == "");
    CHECK(difference(got.weight, before.weight) == "");
  });
}

TEST_CASE("norm: every size, exactly as the reference") {
  for (Op op : kOps) {
    for (int64_t cols : sizes()) {
      for (DTypePair dtypes : kDTypePairs) {
        for (Guard guard : kGuards) {
          for (bool in_place : {false, true}) {
            Case c{op, dtypes};
            c.cols = cols, c.guard = guard, c.in_place = in_place;
            c.padding = cols % 4;
            c.weight_rows = op == Op::kLayer ? 1 + cols % 3 : 1;
            Tensors tensors(c);
            fill_exact(c, tensors);
            check_against_reference(c, tensors, 0, c.rows);
          }
        }
      }
    }
  }
}

TEST_CASE("norm: every range of rows, exactly as the reference") {
  for (Op op : kOps) {
    for (int64_t rows = 0; rows <= 5; ++rows) {
      for (int64_t weight_rows : {1, 2, 3}) {
        Case c{op, kDTypePairs[rows % 5]};
        c.rows = rows, c.cols = 37, c.padding = 3, c.weight_rows = weight_rows;
        Tensors tensors(c);
        fill_exact(c, tensors);
        for (int64_t begin = 0; begin <= rows; ++begin) {
          for (int64_t end = begin; end <= rows; ++end) {
            check_against_reference(c, tensors, begin, end);
          }
        }
      }
    }
  }
}

TEST_CASE("norm: NaN, infinity and overflow, as the reference") {
  for (Op op : kOps) {
    for (DTypePair dtypes : kDTypePairs) {
      for (float special : {NAN, INFINITY, -INFINITY, 3e38f}) {
        for (int64_t at : {0, 20, 66}) {
          Case c{op, dtypes};
          c.cols = 67;
          Tensors tensors(c);
          fill_exact(c, tensors);
          tensors.x.set(1, at, special);
          check_against_reference(c, tensors, 0, c.rows);
        }
      }
    }
  }
}

// u = unit roundoff, k = additions(): how many roundings a term of a sum goes through.
//
// rms_norm: squares round once and sum within k u; the division by n and the addition of eps round
// once each, the root halves what came before, and root, reciprocal and two products round.
Approx rms_norm_of(const Tensor& x, const Tensor& weight, const Case& c, Isa isa, int64_t row,
                   int64_t col, double mean_square) {
  const double y =
      x.get(row, col) / std::sqrt(mean_square + c.eps) * weight.get(row % c.weight_rows, col);
  const double roundings = (additions(isa, c.cols) + 3) / 2 + 4;
  return {y, kSecondOrder * roundings * kUnitRoundoff * std::abs(y) + 0x1p-149};
}

struct Moments {
  double mean = 0, mean_magnitude = 0, mean_square = 0, variance = 0;
  Moments(const Tensor& x, int64_t row) {
    const auto n = static_cast<double>(x.cols());
    for (int64_t i = 0; i < x.cols(); ++i) {
      const double value = x.get(row, i);
      mean += value / n;
      mean_magnitude += std::abs(value) / n;
      mean_square += value * value / n;
    }
    for (int64_t i = 0; i < x.cols(); ++i) {
      variance += (x.get(row, i) - mean) * (x.get(row, i) - mean) / n;
    }
  }
};

// layer_norm: the mean is off by a = k u mean|x| + u |mean|, and with it every deviation, which
// rounds once; that adds a^2 to the variance, whose terms carry two more roundings (the squared
// deviation's) than in rms_norm.
Approx layer_norm_of(const Tensor& x, const Tensor& weight, const Case& c, Isa isa, int64_t row,
                     int64_t col, const Moments& moments) {
  const double k = additions(isa, c.cols), u = kUnitRoundoff;
  const double scale = weight.get(row % c.weight_rows, col) / std::sqrt(moments.variance + c.eps);
  const double deviation = x.get(row, col) - moments.mean, y = deviation * scale;
  const double a = u * (k * moments.mean_magnitude + std::abs(moments.mean));
  const double variance_error = a * a / (moments.variance + c.eps) + (k + 5) * u;
  const double error =
      std::abs(scale) * (a + u * std::abs(deviation)) + std::abs(y) * (variance_error / 2 + 4 * u);
  return {y, kSecondOrder * error + 0x1p-149};
}

TEST_CASE("norm: rounding") {
  for (Op op : kOps) {
    for (int64_t cols : {1, 7, 64, 333, 1000, 4096, 16384}) {
      for (DTypePair dtypes : kDTypePairs) {
        for (float mean : {0.0f, 300.0f}) {
          Case c{op, dtypes};
          c.cols = cols, c.weight_rows = 2, c.padding = 1;
          Tensors tensors(c);
          Random random;
          tensors.x.fill([&] { return random.normal() + (op == Op::kLayer ? mean : 0); });
          tensors.residual.fill([&] { return 3 * random.normal(); });
          tensors.weight.fill([&] { return 1 + 0.2f * random.normal(); });
          // A residual is one addition and its rounding, the same everywhere.
          const Tensors reference = tensors;
          run(kernels_of(op).all().front().run, c, reference, 0, c.rows);
          const Tensor& normalised = op == Op::kFusedAdd ? reference.residual : tensors.x;
          std::vector<Moments> moments;
          for (int64_t r = 0; r < c.rows; ++r) moments.emplace_back(normalised, r);
          INFO(c.text(), ", mean ", mean);
          for_each_kernel(kernels_of(op), [&](const Kernel<NormFn>& kernel) {
            const Tensors got = tensors;
            run(kernel.run, c, got, 0, c.rows);
            CHECK(difference(got.residual, reference.residual) == "");
            const auto expected = [&](int64_t r, int64_t i) {
              return op == Op::kLayer ? layer_norm_of(normalised, tensors.weight, c, kernel.isa, r,
                                                      i, moments[r])
                                      : rms_norm_of(normalised, tensors.weight, c, kernel.isa, r, i,
                                                    moments[r].mean_square);
            };
            CHECK(out_of_bounds(got.y, 0, c.rows, expected) == "");
          });
        }
      }
    }
  }
}

TEST_CASE("norm: rows of zeros and of one value stay finite") {
  for (Op op : kOps) {
    for (float value : {0.0f, 5.0f}) {
      Case c{op, kDTypePairs[0]};
      c.cols = 19;
      Tensors tensors(c);
      tensors.x.fill([&] { return value; });
      tensors.residual.fill([] { return 0.0f; });
      tensors.weight.fill([] { return 1.0f; });
      check_against_reference(c, tensors, 0, c.rows);
      run(kernels_of(op).chosen().run, c, tensors, 0, c.rows);
      const float expected = op == Op::kLayer || value == 0 ? 0.0f : 1.0f;
      CHECK(tensors.y.get(1, 18) == doctest::Approx(expected));
    }
  }
}

}  // namespace
}  // namespace capibara::test
