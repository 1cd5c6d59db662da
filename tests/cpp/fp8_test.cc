// SPDX-License-Identifier: Apache-2.0
// 8-bit floats: the scalar conversions against a definition of their own, and every implementation
// of the kernels against the scalar conversions, bit by bit.
#include "kernels/fp8/fp8.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

constexpr Fp8 kFormats[] = {Fp8::kE4M3, Fp8::kE5M2};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// The value as the formats' papers have it, in double precision.
double defined(Fp8 format, unsigned code) {
  const bool e4m3 = format == Fp8::kE4M3;
  const unsigned magnitude = code & 0x7f;
  const int exponent = static_cast<int>(e4m3 ? magnitude >> 3 : magnitude >> 2);
  const double fraction = e4m3 ? (magnitude & 7) / 8.0 : (magnitude & 3) / 4.0;
  const int bias = e4m3 ? 7 : 15;
  double value;
  if (e4m3 ? magnitude == 0x7f : magnitude > 0x7c) {
    value = kNaN;
  } else if (!e4m3 && magnitude == 0x7c) {
    value = kInfinity;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - bias);
  } else {
    value = std::ldexp(1 + fraction, exponent - bias);
  }
  return std::copysign(value, code & 0x80 ? -1.0 : 1.0);
}

bool is_finite(Fp8 format, unsigned code) { return std::isfinite(defined(format, code)); }

// The nearest of all finite values; of two, the even code.
uint8_t nearest(Fp8 format, float x) {
  const unsigned sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return static_cast<uint8_t>(sign | (format == Fp8::kE4M3 ? 0x7f : 0x7e));
  const double magnitude = std::min(std::fabs(double{x}), 1e6);  // far above, and differences exact
  unsigned best = 0;
  for (unsigned code = 1; code < 0x80; ++code) {
    if (!is_finite(format, code)) continue;
    const double better =
        std::fabs(defined(format, best) - magnitude) - std::fabs(defined(format, code) - magnitude);
    if (better > 0 || (better == 0 && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(sign | best);
}

// Numbers around everything where the rounding changes, and what is none.
std::vector<float> edges(Fp8 format) {
  std::vector<double> points = {
      largest_of(format) * (1 + 1.0 / 16), 480, 464, 512, 61440, 65504, 65520, 65536, 98304, 1e30};
  for (unsigned code = 0; code < 0x80 && is_finite(format, code); ++code) {
    points.push_back(defined(format, code));
    points.push_back((defined(format, code) + defined(format, code + (code < 0x7b))) / 2);
  }
  std::vector<float> edges = {0.0f,      1e-45f, 1.1754942e-38f, 1.17549435e-38f, 3.4028235e38f,
                              kInfinity, kNaN};
  for (uint32_t payload : {1u, 0x1234u, 0x3fffffu, 0x400001u, 0x7fffffu, 0x555555u}) {
    edges.push_back(float_of(0x7f800000u | payload));
  }
  for (double point : points) {
    const auto x = static_cast<float>(point);
    for (float y : {x, std::nextafter(x, kInfinity), std::nextafter(x, 0.0f)}) edges.push_back(y);
  }
  const size_t positive = edges.size();
  for (size_t i = 0; i < positive; ++i) edges.push_back(float_of(bits_of(edges[i]) | 0x80000000u));
  return edges;
}

// Every exponent with all leading bits of the mantissa, and trailing bits that are none, few, many
// or random.
std::vector<float> sample() {
  Random random;
  std::vector<float> sample;
  for (uint32_t top = 0; top < 1 << 16; ++top) {
    for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0xffffu, random.bits() & 0xffffu}) {
      sample.push_back(float_of(top << 16 | low));
    }
  }
  return sample;
}

TEST_CASE("fp8: scalar codes to f32") {
  for (Fp8 format : kFormats) {
    for (unsigned code = 0; code < 256; ++code) {
      INFO(name_of(format), " ", code);
      const double expected = defined(format, code);
      const float got = to_f32(format, static_cast<uint8_t>(code));
      CHECK((std::isnan(expected) ? std::isnan(got) : got == expected));
      CHECK(std::signbit(got) == std::signbit(expected));
      if (!std::isinf(expected)) {  // E5M2's other NaNs become the one
        const unsigned back = std::isnan(expected) ? nearest(format, got) : code;
        CHECK(to_fp8(format, got) == back);
      }
    }
    CHECK(to_f32(format, nearest(format, 1e9f)) == largest_of(format));
  }
}

TEST_CASE("fp8: scalar f32 to codes") {
  for (Fp8 format : kFormats) {
    const auto check = [&](float x) {
      const unsigned got = to_fp8(format, x), expected = nearest(format, x);
      if (got == expected) return;
      INFO(name_of(format), " ", x);
      CHECK(got == expected);
    };
    for (float x : edges(format)) check(x);
    for (uint32_t top = 0; top < 1 << 16; top += 3) {
      for (uint32_t low : {0u, 1u, 0x8000u, 0xffffu}) check(float_of(top << 16 | low));
    }
  }
}

// ---------------------------------------------------------------- kernels

uint32_t bits_at(DType dtype, const void* p, int64_t i) {
  if (dtype == DType::kF32) return bits_of(static_cast<const float*>(p)[i]);
  return static_cast<const uint16_t*>(p)[i];
}

float value_at(DType dtype, const void* p, int64_t i) {
  return dispatch(
      dtype, [&](auto element) { return to_f32(static_cast<const decltype(element)*>(p)[i]); });
}

bool intact(const GuardedBuffer& buffer, size_t bytes) {
  return is_canary(buffer.pages_begin(), buffer.data()) &&
         is_canary(buffer.data() + bytes, buffer.pages_end());
}

void check_decoded(Fp8 format, DType to, const std::vector<uint8_t>& codes, Guard guard) {
  const auto n = static_cast<int64_t>(codes.size());
  INFO(name_of(format), " to ", name_of(to), ", count ", n);
  const GuardedBuffer from(codes.size(), guard);
  std::copy(codes.begin(), codes.end(), reinterpret_cast<uint8_t*>(from.data()));
  for_each_kernel(fp8_decode_kernels(), [&](const Kernel<Fp8DecodeFn>& kernel) {
    const GuardedBuffer y(codes.size() * size_of(to), guard);
    kernel.run({format, reinterpret_cast<const uint8_t*>(from.data()), n, to, y.data()});
    CHECK(intact(y, codes.size() * size_of(to)));
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t code = codes[static_cast<size_t>(i)];
      const float expected = to_f32(format, code), got = value_at(to, y.data(), i);
      const bool same = std::isnan(expected)
                            ? std::isnan(got) && std::signbit(got) == std::signbit(expected)
                            : bits_of(got) == bits_of(expected);
      if (same) continue;
      INFO("code ", int{code}, " at ", i, ": bits ", bits_at(to, y.data(), i));
      CHECK(got == expected);
      return;
    }
  });
}

TEST_CASE("fp8: decoding every code at every place") {
  std::vector<uint8_t> codes;
  for (unsigned shift = 0; shift < 256; ++shift) {
    for (unsigned code = 0; code < 256; ++code) {
      codes.push_back(static_cast<uint8_t>(code * (2 * shift + 1) + shift));
    }
  }
  for (Fp8 format : kFormats) {
    for (DType to : kDTypes) check_decoded(format, to, codes, Guard::kAfter);
  }
}

TEST_CASE("fp8: decoding every count") {
  Random random;
  for (Fp8 format : kFormats) {
    for (DType to : kDTypes) {
      for (Guard guard : kGuards) {
        for (size_t n = 0; n <= 600; n += n < 140 ? 1 : 7) {
          std::vector<uint8_t> codes(n);
          for (uint8_t& code : codes) code = static_cast<uint8_t>(random.bits() >> 8);
          check_decoded(format, to, codes, guard);
        }
      }
    }
  }
}

// `x`: the elements' bits.
void check_encoded(DType from, Fp8 format, const std::vector<uint32_t>& x, float factor,
                   Guard guard = Guard::kAfter) {
  const auto n = static_cast<int64_t>(x.size());
  INFO(name_of(from), " to ", name_of(format), ", factor ", factor, ", count ", n);
  const GuardedBuffer buffer(x.size() * size_of(from), guard);
  for (size_t i = 0; i < x.size(); ++i) {
    std::memcpy(buffer.data() + i * size_of(from), &x[i], size_of(from));  // little-endian
  }
  std::vector<uint8_t> expected;
  for (int64_t i = 0; i < n; ++i) {
    expected.push_back(to_fp8(format, value_at(from, buffer.data(), i) * factor));
  }
  for_each_kernel(fp8_encode_kernels(), [&](const Kernel<Fp8EncodeFn>& kernel) {
    const GuardedBuffer codes(x.size(), guard);
    auto* got = reinterpret_cast<uint8_t*>(codes.data());
    kernel.run({from, buffer.data(), n, factor, format, got});
    CHECK(intact(codes, x.size()));
    const auto wrong = std::mismatch(expected.begin(), expected.end(), got).first;
    if (wrong == expected.end()) return;
    const auto i = wrong - expected.begin();
    INFO("bits ", x[static_cast<size_t>(i)], " at ", i);
    CHECK(int{got[i]} == int{*wrong});
  });
}

// A product of zero and infinity is a NaN whose sign is the machine's; the compiler's, where it
// computes the product itself. Left out, as is a NaN times a NaN.
constexpr float kFactors[] = {1.0f,   -1.0f,  0.37f, 3.0f,      1.0f / 448, 0x1p-9f,
                              448.0f, 1e-30f, 1e30f, 0x1p-140f, 3e38f};

TEST_CASE("fp8: encoding every 16-bit number") {
  std::vector<uint32_t> x(1 << 16);
  for (uint32_t bits = 0; bits < x.size(); ++bits) x[bits] = bits;
  for (DType from : {DType::kBF16, DType::kF16}) {
    for (Fp8 format : kFormats) {
      for (float factor : kFactors) check_encoded(from, format, x, factor);
    }
  }
}

TEST_CASE("fp8: encoding f32") {
  const std::vector<float> dense = sample();
  for (Fp8 format : kFormats) {
    for (const std::vector<float>& numbers : {edges(format), dense}) {
      std::vector<uint32_t> x;
      for (float number : numbers) x.push_back(bits_of(number));
      for (float factor : kFactors) check_encoded(DType::kF32, format, x, factor);
    }
  }
}

TEST_CASE("fp8: encoding every count") {
  Random random;
  for (DType from : kDTypes) {
    for (Fp8 format : kFormats) {
      for (Guard guard : kGuards) {
        for (size_t n = 0; n <= 300; n += n < 140 ? 1 : 7) {
          std::vector<uint32_t> x(n);
          for (uint32_t& bits : x) {
            const float number = 30 * random.normal();
            bits = dispatch(from, [&](auto element) {
              const auto rounded = from_f32<decltype(element)>(number);
              uint32_t bits_of_it = 0;
              std::memcpy(&bits_of_it, &rounded, sizeof rounded);
              return bits_of_it;
            });
          }
          check_encoded(from, format, x, 1.7f, guard);
        }
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
