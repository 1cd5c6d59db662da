// SPDX-License-Identifier: Apache-2.0
// Activations in double precision, times a factor, with the bounds of what kernels may make of
// them.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/isa.h"
#include "support/numbers.h"

namespace capibara::test {

constexpr double kPi = 3.14159265358979323846;

// f(x) u with the bounds on the f32 result. In each, "v" is the vector code: everything but the
// reference. u = unit roundoff; times_sigmoid is x / (1 + e^-y).
struct Bounds {
  Isa isa;
  DType dtype;

  bool reference() const { return isa == Isa::scalar; }
  bool short_exp() const { return !reference() && dtype != DType::kF32; }

  // Relative error of x sigmoid(y), times `up`, in roundoffs, y exact. e^-|y| is within 2.6 u
  // (1.3 ULP) and at most half of 1 + e^-|y|, so half of it counts; in front, it counts whole. Sum,
  // product in front, quotient and the product with `up` round.
  // For 16 bits, as softmax_test.cc derives, e^-y has up to 2.6e-6 / u + 2 + 1.23 |y|, and counts
  // whole.
  double sigmoid_roundoffs(double y) const {
    if (short_exp()) return 2.6e-6 / kUnitRoundoff + 2 + 1.23 * std::abs(y) + 3;
    return 1.5 * 2.6 + 4;
  }

  // What is lost where exponentials overflow. The reference's e^-y is infinite from
  // 2^128 on, that for 16 bits from 2^127.5 on: the sigmoid, below 2^-127, is then zero.
  double overflow(double x, double up) const {
    return reference() || short_exp() ? 0x1p-127 * std::abs(x * up) : 0;
  }
  // A subnormal is off by up to 2^-149: the exponential, multiplied by x; its product with x and
  // the result, both by `up`.
  static double underflow(double x, double up) {
    return (std::abs(x) + 1) * std::max(std::abs(up), 1.0) * 0x1p-148;
  }
  double tail(double x, double up) const { return overflow(x, up) + underflow(x, up); }
};

inline Approx silu(const Bounds& bounds, double x, double up) {
  const double y = x / (1 + std::exp(-x)) * up;
  const double relative = bounds.sigmoid_roundoffs(x) * kUnitRoundoff;
  return {y, kSecondOrder * relative * std::abs(y) + bounds.tail(x, up)};
}

inline Approx gelu(const Bounds& bounds, double x, double up) {
  const double u = kUnitRoundoff, z = std::abs(x) / std::sqrt(2.0);
  const double y = 0.5 * x * std::erfc(-x / std::sqrt(2.0)) * up;
  const double slope = 2 / std::sqrt(kPi) * std::exp(-z * z);  // of erf at z
  // z is a rounded product with a constant that is off by 0.3 u.
  const double from_argument = 1.3 * u * z * slope;
  if (bounds.reference()) {
    // erf, below one unit in the last place, and the sum with 1 round at the size of 1, however
    // small the sum; then three products.
    const double sum_error = 2 * u + from_argument + u;
    return {y, kSecondOrder * (0.5 * std::abs(x * up) * sum_error + 3 * u * std::abs(y)) +
                   Bounds::underflow(x, up)};
  }
  // erfc(z) is within 7.5 ULP (math.h). Its half is the result's factor if x is negative, else 1
  // less it, which rounds. Two products.
  const double erfc_error = 15 * u * std::erfc(z) + from_argument;
  const double factor_error = 0.5 * erfc_error + (x < 0 ? 0 : u);
  return {y, kSecondOrder * (std::abs(x * up) * factor_error + 2 * u * std::abs(y)) +
                 2 * Bounds::underflow(x, up)};
}

inline Approx gelu_tanh(const Bounds& bounds, double x, double up) {
  const double u = kUnitRoundoff;
  const double w = std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x);
  const double y = x / (1 + std::exp(-2 * w)) * up;
  // Two constants, and their product; the cube, the sum (of equal signs) and the factor round.
  const double argument = 6 * u;
  if (bounds.reference()) {
    // tanh, within 2.2 units in the last place, and 1 + tanh round at the size of 1.
    const double slope = 1 / (std::cosh(w) * std::cosh(w));
    const double moved = slope > 0 ? argument * std::abs(w) * slope : 0;
    const double sum_error = 4.4 * u + moved + u;
    return {y, kSecondOrder * (0.5 * std::abs(x * up) * sum_error + 3 * u * std::abs(y)) +
                   Bounds::underflow(x, up)};
  }
  // sigmoid(2 w) changes by 2 |w| (1 - sigmoid(2 w)) times the relative change of w.
  const double moved = y == 0 ? 0 : argument * 2 * std::abs(w) / (1 + std::exp(2 * w));
  const double relative = bounds.sigmoid_roundoffs(std::min(std::abs(2 * w), 90.0)) * u + moved;
  return {y, kSecondOrder * relative * std::abs(y) + bounds.tail(x, up)};
}

}  // namespace capibara::test
