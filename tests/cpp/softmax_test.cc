// SPDX-License-Identifier: Apache-2.0
// softmax: every implementation, the scalar reference among them, against double precision.
#include "kernels/softmax/softmax.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

struct Case {
  DType dtype;
  int64_t rows = 3, cols = 1;
  int64_t padding = 0;
  float scale = 1;
  bool in_place = false;
  Guard guard = Guard::kAfter;
  std::vector<int32_t> lengths = {};  // empty: all columns

  int64_t length(int64_t row) const { return lengths.empty() ? cols : lengths[row]; }
  std::string text() const {
    return std::string(name_of(dtype)) + ", rows " + std::to_string(rows) + ", cols " +
           std::to_string(cols) + ", padding " + std::to_string(padding) + ", scale " +
           std::to_string(scale) + ", in place " + std::to_string(in_place) + ", lengths " +
           std::to_string(!lengths.empty());
  }
};

struct Tensors {
  Tensor x, y, scratch;

  explicit Tensors(const Case& c)
      : x(c.dtype, c.rows, c.cols, c.cols + c.padding, c.guard),
        y(c.dtype, c.rows, c.cols, c.cols + 2 * c.padding, c.guard),
        scratch(DType::kF32, c.dtype == DType::kF32 ? 0 : 1, scratch_elements(c),
                scratch_elements(c), c.guard) {
    y.fill([] { return 77.0f; });
  }

  static int64_t scratch_elements(const Case& c) {
    return (c.cols + kSoftmaxScratchMultiple - 1) / kSoftmaxScratchMultiple *
           kSoftmaxScratchMultiple;
  }
  const Tensor& result(const Case& c) const { return c.in_place ? x : y; }
};

void run(SoftmaxFn* kernel, const Case& c, const Tensors& t, int64_t begin, int64_t end) {
  // Guarded as well: a row's length must not be read where there is no row.
  GuardedBuffer lengths(c.lengths.size() * sizeof(int32_t), c.guard);
  std::copy(c.lengths.begin(), c.lengths.end(), reinterpret_cast<int32_t*>(lengths.data()));
  const Tensor& y = t.result(c);
  kernel({c.dtype, c.cols, t.x.data(), t.x.stride(), y.data(), y.stride(), c.scale,
          c.lengths.empty() ? nullptr : reinterpret_cast<const int32_t*>(lengths.data())},
         begin, end, static_cast<float*>(t.scratch.data()));
}

// The largest relative error of e^z, in unit roundoffs, given that z itself is exact.
//   f32: one unit in the last place (math.h), or 1.3 without FMA.
//   16 bits: the polynomial's 2.6e-6 and its five roundings, of which the last counts whole and the
//   others add up to less than another one; z / ln(2) is rounded and so is 1 / ln(2) (by 0.23 u),
//   errors of the exponent, which the result's relative error repeats.
// The reference calls libm for all: below one unit in the last place.
double exp_roundoffs(const Case& c, Isa isa, double z) {
  if (isa == Isa::scalar || c.dtype == DType::kF32) return 2 * 1.3;
  return 2.6e-6 / kUnitRoundoff + 2 + 1.23 * std::abs(z);
}

// One row in double precision, and how far an implementation may be from it.
struct Expected {
  std::vector<double> probability, roundoffs;  // of each term
  double average_roundoffs = 0;                // weighted by the probabilities

  // The products s x and the maximum are rounded in f32 before the maximum is taken away (math: the
  // definition of the contract), so they are no error. The subtraction rounds: u |z| in the
  // exponent.
  Expected(const Case& c, Isa isa, const Tensor& x, int64_t row) {
    const auto length = static_cast<size_t>(c.length(row));
    std::vector<double> z(length);
    double maximum = -INFINITY, sum = 0;
    for (size_t i = 0; i < length; ++i) {
      z[i] = x.get(row, static_cast<int64_t>(i)) * c.scale;
      if (!(z[i] <= maximum)) maximum = z[i];  // NaN too
    }
    for (double& value : z) sum += std::exp(value -= maximum);
    for (double value : z) {
      probability.push_back(std::exp(value) / sum);
      roundoffs.push_back(exp_roundoffs(c, isa, value) + std::abs(value));
      if (probability.back() > 0) average_roundoffs += probability.back() * roundoffs.back();
    }
    probability.resize(static_cast<size_t>(c.cols), 0.0);  // past the length: zero
  }

  // A term e / sum: the term's own error, the sum's (its terms' average and its additions), the
  // reciprocal and the product. Exponentials below the smallest normal number may be zero; those of
  // 16 bits from 2^-126.5 on.
  Approx operator()(Isa isa, int64_t length, int64_t i) const {
    const auto index = static_cast<size_t>(i);
    if (i >= length) return {0, 0};
    const double p = probability[index];
    if (p == 0) return {0, 0x1p-125};
    const double relative = roundoffs[index] + average_roundoffs + additions(isa, length) + 2;
    return {p, kSecondOrder * relative * kUnitRoundoff * p + 0x1p-125};
  }
};

void check(const Case& c, const Tensors& before, int64_t begin, int64_t end) {
  INFO(c.text(), ", rows [", begin, ", ", end, ")");
  for_each_kernel(softmax_kernels(), [&](const Kernel<SoftmaxFn>& kernel) {
    const Tensors got = before;
    run(kernel.run, c, got, begin, end);
    for (int64_t r = begin; r < end; ++r) {
      const Expected row(c, kernel.isa, before.x, r);
      const auto expected = [&](int64_t, int64_t i) { return row(kernel.isa, c.length(r), i); };
      CHECK(out_of_bounds(got.result(c), r, r + 1, expected) == "");
    }
    const Tensor& was = c.in_place ? before.x : before.y;
    CHECK(difference_outside(got.result(c), was, begin, end) == "");
    if (!c.in_place) CHECK(difference(got.x, before.x) == "");
    CHECK(got.scratch.padding_intact());
  });
}

void fill_normal(Tensors& tensors, float deviation) {
  Random random;
  tensors.x.fill([&] { return deviation * random.normal(); });
}

TEST_CASE("softmax: every size, scale and length") {
  Random random;
  for (int64_t cols : sizes()) {
    for (DType dtype : kDTypes) {
      for (Guard guard : kGuards) {
        for (bool in_place : {false, true}) {
          for (float scale : {1.0f, 0.125f, -0.7f, 0.0f}) {
            Case c{dtype};
            c.cols = cols, c.guard = guard, c.in_place = in_place, c.scale = scale;
            c.padding = cols % 4;
            Tensors tensors(c);
            fill_normal(tensors, 5);
            check(c, tensors, 0, c.rows);
            for (int64_t r = 0; r < c.rows; ++r) {
              c.lengths.push_back(static_cast<int32_t>(random.integer(0, cols)));
            }
            check(c, tensors, 0, c.rows);
          }
        }
      }
    }
  }
}

TEST_CASE("softmax: every length of a row") {
  for (DType dtype : kDTypes) {
    Case c{dtype};
    c.rows = 1, c.cols = 70;
    Tensors tensors(c);
    fill_normal(tensors, 3);
    for (int32_t length = 0; length <= 70; ++length) {
      c.lengths = {length};
      check(c, tensors, 0, 1);
    }
  }
}

TEST_CASE("softmax: every range of rows") {
  for (DType dtype : kDTypes) {
    for (int64_t rows = 0; rows <= 5; ++rows) {
      Case c{dtype};
      c.rows = rows, c.cols = 37, c.padding = 3;
      Tensors tensors(c);
      fill_normal(tensors, 3);
      for (int64_t begin = 0; begin <= rows; ++begin) {
        for (int64_t end = begin; end <= rows; ++end) check(c, tensors, begin, end);
      }
    }
  }
}

// e^0 is exact, so is a sum of up to 2^24 ones: all that is left is 1 / n and its rounding, and
// exp for 16 bits is 1 within its own error.
TEST_CASE("softmax: equal elements share equally") {
  for (DType dtype : kDTypes) {
    for (float value : {0.0f, -3.5f, 6e4f}) {
      Case c{dtype};
      c.cols = 129, c.scale = value == 0 ? 1.0f : 0.3f;
      Tensors tensors(c);
      tensors.x.fill([&] { return value; });
      check(c, tensors, 0, c.rows);
    }
  }
}

// The largest term's exponent is zero exactly: a product and a subtraction must not be fused, or
// the product's rounding, here up to 2^-24 * 1e38, would be the exponent.
TEST_CASE("softmax: large magnitudes") {
  Random random;
  for (DType dtype : kDTypes) {
    const float largest = dtype == DType::kF16 ? 6e4f : 1e38f;
    for (float magnitude : {300.0f, 3e4f, 1e9f, 1e38f}) {
      for (float scale : {1.0f, 0.7f, -1.3f}) {
        Case c{dtype};
        c.cols = 77, c.scale = scale;
        Tensors tensors(c);
        const float reach = std::min(magnitude, largest);
        tensors.x.fill(
            [&] { return reach * (static_cast<float>(random.integer(-999, 999)) / 999); });
        for (int64_t r = 0; r < c.rows;
             ++r) {  // the largest twice: in a whole vector, and at the end
          for (int64_t i : {r, c.cols - 1}) tensors.x.set(r, i, std::copysign(reach, scale));
        }
        check(c, tensors, 0, c.rows);
      }
    }
  }
}

TEST_CASE("softmax: -infinity is probability zero") {
  for (DType dtype : kDTypes) {
    for (float scale : {1.0f, 0.7f}) {
      for (int64_t cols : {1, 5, 33, 100}) {
        Case c{dtype};
        c.cols = cols, c.scale = scale;
        Tensors tensors(c);
        fill_normal(tensors, 2);
        for (int64_t i = 1; i < cols; i += 2) tensors.x.set(1, i, -INFINITY);
        tensors.x.set(0, cols - 1, cols > 1 ? -INFINITY : 0.5f);
        check(c, tensors, 0, c.rows);
      }
    }
  }
}

TEST_CASE("softmax: NaN, +infinity and nothing but -infinity give NaN") {
  for (DType dtype : kDTypes) {
    for (float scale : {1.0f, 0.7f, 0.0f}) {
      for (int64_t cols : {1, 7, 32, 33, 100}) {
        for (float special : {NAN, INFINITY, -INFINITY}) {
          for (int64_t at : {int64_t{0}, cols / 2, cols - 1}) {
            Case c{dtype};
            c.cols = cols, c.scale = scale, c.lengths = {0, 0, 0};
            std::fill(c.lengths.begin(), c.lengths.end(), static_cast<int32_t>(cols));
            Tensors tensors(c);
            fill_normal(tensors, 2);
            if (special < 0) {
              for (int64_t i = 0; i < cols; ++i) tensors.x.set(1, i, special);
            }
            tensors.x.set(1, at, special);
            c.lengths[2] = static_cast<int32_t>(at);  // what lies past it does not count
            tensors.x.set(2, at, special);
            INFO(c.text(), ", ", special, " at ", at);
            for_each_kernel(softmax_kernels(), [&](const Kernel<SoftmaxFn>& kernel) {
              const Tensors got = tensors;
              run(kernel.run, c, got, 0, c.rows);
              int64_t nan = 0;
              for (int64_t i = 0; i < cols; ++i) {
                nan += std::isnan(got.y.get(1, i));
                nan -= std::isnan(got.y.get(0, i)) || std::isnan(got.y.get(2, i));
              }
              CHECK(nan == cols);
            });
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
