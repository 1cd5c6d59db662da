// SPDX-License-Identifier: Apache-2.0
// line_scales, and how pack_lines rounds to integers: every implementation, the scalar reference
// among them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/pack.h"

namespace capibara::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
struct Quantised {
  float x, factor;
  int expected;
};

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr Quantised kQuantised[] = {
    // Ties, to even.
    {0.5f, 1, 0},
    {1.5f, 1, 2},
    {2.5f, 1, 2},
    {-0.5f, 1, 0},
    {-1.5f, 1, -2},
    {-2.5f, 1, -2},
    {125.5f, 1, 126},
    {126.5f, 1, 126},
    {-126.5f, 1, -126},
    {0.25f, 2, 0},
    {0.75f, 2, 2},
    // Ends.
    {127, 1, 127},
    {-127, 1, -127},
    {127.5f, 1, 127},
    {-127.5f, 1, -127},
    {128, 1, 127},
    {-128, 1, -127},
    {-129, 1, -127},
    {255, 1, 127},
    {256, 1, 127},
    {32767, 1, 127},
    {32768, 1, 127},
    {-32769, 1, -127},
    {65535, 1, 127},
    {60000, 1e30f, 127},
    {-60000, 1e30f, -127},
    {60000, 3e38f, 127},
    {-60000, 3e38f, -127},
    {40000, 53688.0f, 127},  // above 2^31
    {-40000, 53688.0f, -127},
    {40000, 107375.0f, 127},  // about 2^32
    {kInfinity, 1, 127},
    {-kInfinity, 1, -127},
    {1, kInfinity, 127},
    {-1, kInfinity, -127},
    // No numbers.
    {kNaN, 1, 0},
    {kInfinity, 0, 0},
    {0, kInfinity, 0},
    {kNaN, kNaN, 0},
    {1, kNaN, 0},
    {kInfinity, kNaN, 0},
    {0, 1, 0},
    {-0.0f, 1, 0},
    {1e-7f, 1, 0},
};

TEST_CASE("pack: rounding to integers") {
  for (Packed to : {Packed::kI8, Packed::kU8, Packed::kI16}) {
    for (int64_t length : {1, 8, 70}) {
      for (const Quantised& q : kQuantised) {
        Case c{Order::kLines, DType::kF32, to, 4, 3, length, 3};
        INFO(q.x, " * ", q.factor, ", ", c.text());
        Tensor x = c.source();
        x.fill([&] { return q.x; });
        const std::vector<float> factors = {q.factor, 1, q.factor};
        for_each_kernel(c.kernels(), [&](const Kernel<PackFn>& kernel) {
          const GuardedBuffer panel = packed(kernel.run, c, x, factors);
          const int zero = to == Packed::kU8 ? 128 : 0;
          for (int64_t k = 0; k < length; ++k) {
            CHECK(value_at(to, panel.data(), k / 4 * 12 + k % 4) == q.expected + zero);
          }
        });
      }
    }
  }
}

TEST_CASE("pack: integers of any bits") {
  Random random;
  for (DType from : kDTypes) {
    for (Packed to : {Packed::kI8, Packed::kU8, Packed::kI16}) {
      for (int scale = -40; scale <= 40; scale += 8) {
        Case c{Order::kLines, from, to, 4, 5, 301, 5};
        Tensor x = c.source();
        for (int64_t r = 0; r < x.rows(); ++r) {
          for (int64_t i = 0; i < x.cols(); ++i) x.set_bits(r, i, random.bits());
        }
        check_packed(c, x, std::vector<float>(5, std::ldexp(1.37f, scale)));
      }
    }
  }
}

struct Scales {
  std::vector<float> scales, factors;
};

Scales scales_by(LineScalesFn* kernel, const Tensor& x) {
  const size_t bytes = static_cast<size_t>(x.rows()) * sizeof(float);
  const GuardedBuffer scales(bytes, Guard::kAfter), factors(bytes, Guard::kAfter);
  auto* const s = reinterpret_cast<float*>(scales.data());
  auto* const f = reinterpret_cast<float*>(factors.data());
  kernel({x.dtype(), x.data(), x.stride(), x.rows(), x.cols(), s, f});
  return {{s, s + x.rows()}, {f, f + x.rows()}};
}

bool same(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }

void check_scales(const Tensor& x) {
  INFO(name_of(x.dtype()), ", rows ", x.rows(), ", cols ", x.cols());
  for_each_kernel(line_scales_kernels(), [&](const Kernel<LineScalesFn>& kernel) {
    const Scales got = scales_by(kernel.run, x);
    for (int64_t r = 0; r < x.rows(); ++r) {
      float largest = 0;
      bool finite = true;
      for (int64_t i = 0; i < x.cols(); ++i) {
        finite = finite && std::isfinite(x.get(r, i));
        largest = std::max(largest, std::fabs(x.get(r, i)));
      }
      const float most = std::numeric_limits<float>::max();
      const float factor = largest == 0 ? 0 : std::min(127 / largest, most);
      CHECK(same(got.scales[r], finite ? largest / 127 : kNaN));
      CHECK(same(got.factors[r], finite ? factor : kNaN));
    }
  });
}

TEST_CASE("line_scales: every length") {
  Random random;
  for (DType dtype : kDTypes) {
    for (int64_t cols : sizes()) {
      for (Guard guard : kGuards) {
        Tensor x(dtype, 3, cols, cols + cols % 3, guard);
        x.fill([&] { return random.normal(); });
        check_scales(x);
        // The largest one anywhere, and what makes a line's scale NaN.
        if (cols == 0) continue;
        x.set(0, random.integer(0, cols - 1), -50);
        for (float special : {kNaN, -kNaN, kInfinity, -kInfinity}) {
          x.set(1, random.integer(0, cols - 1), special);
          x.set(2, random.integer(0, cols - 1), special);
          check_scales(x);
          x.set(2, random.integer(0, cols - 1), 1.0f);
        }
      }
    }
  }
}

TEST_CASE("line_scales: the smallest and largest") {
  for (DType dtype : kDTypes) {
    for (float value : {0.0f, -0.0f, 1e-45f, -1e-42f, 1e-40f, 3e-38f, 4e-37f, 6e-8f, 6e-5f, 6e4f,
                        -3e38f, std::numeric_limits<float>::max()}) {
      for (int64_t cols : {1, 9, 77}) {
        Tensor x(dtype, 2, cols, cols, Guard::kAfter);
        x.fill([&] { return value; });
        check_scales(x);
      }
    }
  }
}

// scale * integer is within half a scale of x; a line's largest element becomes +-127.
TEST_CASE("line_scales: what integers stand for") {
  Random random;
  for (DType dtype : kDTypes) {
    for (float deviation : {1e-4f, 1.0f, 300.0f}) {
      Case c{Order::kLines, dtype, Packed::kI8, 8, 6, 200, 6};
      Tensor x = c.source();
      x.fill([&] { return deviation * random.normal(); });
      const Scales scales = scales_by(scalar::line_scales, x);
      const GuardedBuffer panel = packed(reference(c), c, x, scales.factors);
      for (int64_t line = 0; line < c.lines; ++line) {
        double most = 0;
        for (int64_t k = 0; k < c.length; ++k) {
          const double value = value_at(c.to, panel.data(), (k / 8 * 6 + line) * 8 + k % 8);
          const double scale = scales.scales[line];
          CHECK(std::abs(scale * value - x.get(line, k)) <= scale * 0.50002);
          most = std::max(most, std::abs(value));
        }
        CHECK(most == 127);
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
