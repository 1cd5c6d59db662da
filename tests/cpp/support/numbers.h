// SPDX-License-Identifier: Apache-2.0
// Bounds on rounded results, and random numbers.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>

#include "base/dtype.h"

namespace capibara::test {

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The unit roundoff u of f32: fl(a op b) = (a op b)(1 + d), |d| <= u. An error of one unit in the
// last place is at most 2 u of the value.
constexpr double kUnitRoundoff = 0x1p-24;
// First-order bounds (sums of roundoffs) leave out products of two of them. Those are below a
// thousandth of the sum for the sizes here, at most some thousand roundoffs.
constexpr double kSecondOrder = 1.001;

// The exact result, and how far from it the f32 may lie that is then rounded to the dtype.
struct Approx {
  double value, error;
};

// `got` lies between the roundings of both ends of `approx`. Rounding is monotonic, so this is all
// that the f32 bound implies, and no more: a bf16 result must in nearly all cases be the one value.
bool admits(const Approx& approx, DType dtype, float got);
std::string describe(const Approx& approx, DType dtype, float got, int64_t row, int64_t col);

// The seed of a run is doctest's --rand-seed, random unless given and printed once. Equal
// constructions give equal numbers within a run.
class Random {
 public:
  Random();
  float normal() { return normal_(engine_); }
  // Uniform over the whole numbers of [low, high].
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  uint32_t bits() { return static_cast<uint32_t>(engine_()); }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

}  // namespace capibara::test
