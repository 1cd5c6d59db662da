// SPDX-License-Identifier: Apache-2.0
// The scalar conversions against independent arithmetic, and the vector kernels' loads and stores
// against the scalar ones, bit by bit.
//
// RoPE shows both. With (x1, x2) = (1, 0) and sin = 0 it stores round(1 * cos - 0 * 0) as the first
// element, any f32 that we put into an f32 cache, rounded once. With any x1 it loads that, and
// multiplies. neox style converts pairs in sequential order, interleaved style in even-odd order.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "kernels/rope/rope.h"
#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {

#if defined(__aarch64__)
using Half = __fp16;  // GCC before 13 has no _Float16 in C++ there
#else
using Half = _Float16;
#endif
namespace {

constexpr uint32_t kCodes = 1 << 16;

template <class T>
T of_bits(uint32_t bits) {
  return T{static_cast<uint16_t>(bits)};
}

template <class T>
constexpr uint32_t kInfinityBits = DTypeOf<T>::value == DType::kF16 ? 0x7c00u : 0x7f80u;

// The value of a code with 2^emax above the largest in place of infinity: where overflow begins.
template <class T>
double value_of(uint32_t code) {
  const double limit = DTypeOf<T>::value == DType::kF16 ? 0x1p16 : 0x1p128;
  return code == kInfinityBits<T> ? limit : to_f32(of_bits<T>(code));
}

// f32 bit patterns where a conversion to T can go wrong: every value of T, every middle of two
// neighbours, and their f32 neighbours; NaNs of all payloads' ends; and every 1999th pattern.
template <class T>
std::vector<uint32_t> f32_sample() {
  std::vector<uint32_t> sample;
  const auto add_around = [&](double value) {
    const uint32_t bits = bits_of(static_cast<float>(value));
    for (uint32_t offset : {-1u, 0u, 1u}) {
      sample.push_back(bits + offset);
      sample.push_back((bits + offset) ^ 0x80000000u);
    }
  };
  for (uint32_t code = 0; code < kInfinityBits<T>; ++code) {
    add_around(value_of<T>(code));
    add_around((value_of<T>(code) + value_of<T>(code + 1)) / 2);
  }
  for (uint32_t bits = 0x7f800000u; bits < 0x80000000u; bits += 0x1001u) {
    sample.insert(sample.end(), {bits, bits ^ 0x80000000u, bits | 0xffffu});
  }
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 1999) {
    sample.push_back(static_cast<uint32_t>(bits));
  }
  return sample;
}

template <class T>
bool is_nan_code(uint32_t code) {
  return (code & 0x7fffu) > kInfinityBits<T>;
}

// Kernels promise that NaN stays NaN, not which.
template <class T>
bool same(uint32_t a, uint32_t b) {
  return a == b || (is_nan_code<T>(a) && is_nan_code<T>(b));
}

// Round to nearest even, by comparing exact differences to the two neighbours.
template <class T>
uint32_t nearest_even(float x) {
  const double magnitude = std::abs(double{x});
  const uint32_t sign = std::signbit(x) ? 0x8000u : 0u;
  if (magnitude >= value_of<T>(kInfinityBits<T>)) return sign | kInfinityBits<T>;
  uint32_t below = 0, above = kInfinityBits<T>;
  while (above - below > 1) {
    const uint32_t middle = (below + above) / 2;
    (value_of<T>(middle) <= magnitude ? below : above) = middle;
  }
  const double to_below = magnitude - value_of<T>(below), to_above = value_of<T>(above) - magnitude;
  if (to_below == to_above) return sign | (below % 2 ? above : below);
  return sign | (to_below < to_above ? below : above);
}

TEST_CASE_TEMPLATE("scalar: every 16-bit code comes back", T, BF16, F16) {
  uint32_t wrong = 0;
  for (uint32_t code = 0; code < kCodes; ++code) {
    const float x = to_f32(of_bits<T>(code));
    const uint32_t back = from_f32<T>(x).bits;
    const bool nan = is_nan_code<T>(code);
    const uint32_t quiet = DTypeOf<T>::value == DType::kF16 ? 0x200u : 0x40u;
    wrong += std::isnan(x) != nan || back != (nan ? code | quiet : code);
  }
  CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("scalar: f32 rounds to nearest even", T, BF16, F16) {
  uint32_t wrong = 0, first = 0;
  for (uint32_t bits : f32_sample<T>()) {
    const float x = float_of(bits);
    const uint32_t got = from_f32<T>(x).bits;
    const bool right =
        std::isnan(x) ? is_nan_code<T>(got) && got >> 15 == bits >> 31 : got == nearest_even<T>(x);
    if (!right && !wrong++) first = bits;
  }
  INFO("first: ", first);
  CHECK(wrong == 0);
}

TEST_CASE("scalar: values of known codes") {
  CHECK(to_f32(BF16{0x3f80}) == 1.0f);
  CHECK(to_f32(BF16{0xc2f7}) == -123.5f);
  CHECK(to_f32(BF16{0x0001}) == 0x1p-133f);
  CHECK(to_f32(F16{0x3c00}) == 1.0f);
  CHECK(to_f32(F16{0x7bff}) == 65504.0f);
  CHECK(to_f32(F16{0x8001}) == -0x1p-24f);
  CHECK(to_f16(65519.996f).bits == 0x7bff);
  CHECK(to_f16(65520.0f).bits == 0x7c00);
}

#ifdef __FLT16_MAX__
TEST_CASE("scalar: f16 as the compiler's own type") {
  uint32_t wrong = 0;
  for (uint32_t code = 0; code < kCodes; ++code) {
    const auto bits = static_cast<uint16_t>(code);
    Half value;
    std::memcpy(&value, &bits, sizeof value);
    const auto compilers = static_cast<float>(value);
    const float ours = to_f32(F16{bits});
    wrong += std::isnan(ours) ? !std::isnan(compilers) : bits_of(ours) != bits_of(compilers);
  }
  for (uint32_t bits : f32_sample<F16>()) {
    const auto value = static_cast<Half>(float_of(bits));
    uint16_t compilers;
    std::memcpy(&compilers, &value, sizeof value);
    const uint16_t ours = to_f16(float_of(bits)).bits;
    wrong += is_nan_code<F16>(ours) ? !is_nan_code<F16>(compilers) : ours != compilers;
  }
  CHECK(wrong == 0);
}
#endif

// One token and head; the pairs' first elements are x1, their second ones zero; all sines are zero.
// The first elements afterwards.
template <class T>
std::vector<uint32_t> turned(RopeFn* kernel, bool neox, const std::vector<T>& x1,
                             const std::vector<float>& cos) {
  const size_t half = x1.size();
  std::vector<T> x(2 * half, from_f32<T>(0.0f));
  for (size_t i = 0; i < half; ++i) x[neox ? i : 2 * i] = x1[i];
  std::vector<float> cache(cos);
  cache.resize(2 * half, 0.0f);
  const int64_t position = 0, dim = static_cast<int64_t>(2 * half);
  const RopeArgs args = {DTypeOf<T>::value, DType::kF32, neox, dim, {x.data(), 1, dim, dim}, {},
                         cache.data(),      &position,   true};
  kernel(args, 0, 1);
  std::vector<uint32_t> first(half);
  for (size_t i = 0; i < half; ++i) first[i] = x[neox ? i : 2 * i].bits;
  return first;
}

TEST_CASE_TEMPLATE("vector stores round as the scalar conversion", T, BF16, F16) {
  std::vector<float> values;
  for (uint32_t bits : f32_sample<T>()) values.push_back(float_of(bits));
  const std::vector<T> ones(values.size(), from_f32<T>(1.0f));
  for_each_kernel(rope_kernels(), [&](const Kernel<RopeFn>& kernel) {
    for (bool neox : {true, false}) {
      CAPTURE(neox);
      const std::vector<uint32_t> got = turned(kernel.run, neox, ones, values);
      uint32_t wrong = 0, first = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        const uint32_t expected = from_f32<T>(values[i]).bits;
        if (!same<T>(got[i], expected) && !wrong++) first = bits_of(values[i]);
      }
      INFO("first, as bits: ", first);
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE_TEMPLATE("vector loads widen as the scalar conversion", T, BF16, F16) {
  std::vector<T> codes;
  for (uint32_t code = 0; code < kCodes; ++code) codes.push_back(of_bits<T>(code));
  // Powers of two bring the digits of subnormals and of huge values into view; the others, with
  // full mantissas, change the result if any digit of the loaded value does.
  for (float factor : {1.0f, 0x1p20f, 0x1p-20f, 1.7320508f, -3.1415927f}) {
    CAPTURE(factor);
    const std::vector<float> cos(kCodes, factor);
    for_each_kernel(rope_kernels(), [&](const Kernel<RopeFn>& kernel) {
      for (bool neox : {true, false}) {
        CAPTURE(neox);
        const std::vector<uint32_t> got = turned(kernel.run, neox, codes, cos);
        uint32_t wrong = 0, first = 0;
        for (uint32_t code = 0; code < kCodes; ++code) {
          const uint32_t expected = from_f32<T>(to_f32(codes[code]) * factor).bits;
          if (!same<T>(got[code], expected) && !wrong++) first = code;
        }
        INFO("first, as bits: ", first);
        CHECK(wrong == 0);
      }
    });
  }
}

}  // namespace
}  // namespace capibara::test
