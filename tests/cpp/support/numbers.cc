// SPDX-License-Identifier: Apache-2.0
#include "support/numbers.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>

namespace capibara::test {
namespace {

// Through f32, as the kernels do: they compute an f32 and round that.
float rounded(DType dtype, double x) {
  return dispatch(dtype, [&](auto element) {
    return to_f32(from_f32<decltype(element)>(static_cast<float>(x)));
  });
}

unsigned announced_seed() {
  const unsigned seed = doctest::getContextOptions()->rand_seed;
  std::printf("random numbers: repeat with --rand-seed=%u\n", seed);
  std::fflush(stdout);
  return seed;
}

}  // namespace

bool admits(const Approx& approx, DType dtype, float got) {
  if (std::isnan(approx.value)) return std::isnan(got);
  if (std::isinf(approx.value)) return got == approx.value;
  return rounded(dtype, approx.value - approx.error) <= got &&
         got <= rounded(dtype, approx.value + approx.error);
}

std::string describe(const Approx& approx, DType dtype, float got, int64_t row, int64_t col) {
  char text[200];
  std::snprintf(text, sizeof text,
                "[%d, %d]: got %.9g, expected %.12g +- %.3g rounded to %s (error %.3g, relative "
                "%.3g)",
                static_cast<int>(row), static_cast<int>(col), got, approx.value, approx.error,
                name_of(dtype), got - approx.value, (got - approx.value) / approx.value);
  return text;
}

Random::Random() {
  static const unsigned seed = announced_seed();
  engine_.seed(seed);
}

}  // namespace capibara::test
