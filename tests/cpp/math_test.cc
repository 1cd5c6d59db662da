// SPDX-License-Identifier: Apache-2.0
// exp, sigmoid, tanh and erfc over every f32, against libm in double precision.
//
// The arguments are taken as consecutive bit patterns, 4096 to a chunk, so that a chunk has one
// sign and lies within one binade. Its reference is computed once and serves all implementations.
// libm's double functions err by less than 2^-52, and the short series below by less than 2^-40,
// of the result: at most 2^-16 ULP of f32, in the last digit that is printed.
#include "kernels/math/math.h"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <limits>
#include <thread>
#include <vector>

#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

constexpr uint32_t kChunk = 4096;
constexpr uint32_t kChunks = uint32_t{1} << 20;
#ifdef CAPIBARA_SAMPLED
constexpr uint32_t kChunkStep = 509;
#else
constexpr uint32_t kChunkStep = 1;
#endif
// The scalar reference calls libm, which is not ours to test exhaustively. glibc's tanhf and erfcf
// err by up to 2.2 and 3 ULP.
constexpr uint32_t kScalarChunkStep = 61;
constexpr double kLibmBound = 3;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Each computes one chunk; x[0] is the argument nearest zero.
using Reference = void(const float* x, double* y);

template <class F>
void for_chunk(const float* x, double* y, const F& f) {
  for (uint32_t i = 0; i < kChunk; ++i) y[i] = f(double{x[i]});
}

void exp_of(const float* x, double* y) {
  if (std::abs(x[0]) >= 128 && std::isfinite(x[0])) {
    for_chunk(x, y, [&, limit = x[0] > 0 ? kInfinity : 0.0](double) { return limit; });
  } else if (std::abs(x[0]) < 0x1p-25f) {  // the next term, x^2 / 2, is below 2^-51
    for_chunk(x, y, [](double v) { return 1 + v; });
  } else {
    for_chunk(x, y, [](double v) { return std::exp(v); });
  }
}

void sigmoid_of(const float* x, double* y) {
  if (std::abs(x[0]) >= 128 && std::isfinite(x[0])) {
    for_chunk(x, y, [&, limit = x[0] > 0 ? 1.0 : 0.0](double) { return limit; });
  } else if (std::abs(x[0]) < 0x1p-12f) {  // the next term, x^3 / 48, is below 2^-41
    for_chunk(x, y, [](double v) { return 0.5 + 0.25 * v; });
  } else {
    for_chunk(x, y, [](double v) { return 1 / (1 + std::exp(-v)); });
  }
}

void tanh_of(const float* x, double* y) {
  if (std::abs(x[0]) >= 32 && std::isfinite(x[0])) {  // 1 - tanh(32) < 2^-91
    for_chunk(x, y, [&, limit = x[0] > 0 ? 1.0 : -1.0](double) { return limit; });
  } else if (std::abs(x[0]) < 0x1p-10f) {  // the next term, 2 x^5 / 15, is below 2^-42 of x
    for_chunk(x, y, [](double v) { return v - v * v * v / 3; });
  } else {
    for_chunk(x, y, [](double v) { return std::tanh(v); });
  }
}

void erfc_of(const float* x, double* y) {
  if (std::abs(x[0]) >= 16 && std::isfinite(x[0])) {
    for_chunk(x, y, [&, limit = x[0] > 0 ? 0.0 : 2.0](double) { return limit; });
  } else if (std::abs(x[0]) < 0x1p-9f) {  // the next term, x^5 / (5 sqrt(pi)), is below 2^-46
    const double slope = 2 / std::sqrt(std::acos(-1.0));
    for_chunk(x, y, [&](double v) { return 1 - slope * (v - v * v * v / 3); });
  } else {
    for_chunk(x, y, [](double v) { return std::erfc(v); });
  }
}

// |got - exact| in units of f32's last place at `exact`, which is finite.
double ulps(float got, double exact) {
  uint64_t bits;
  std::memcpy(&bits, &exact, sizeof bits);
  const int exponent = std::max(static_cast<int>((bits >> 52) & 0x7ff) - 1023, -126);
  const uint64_t inverse_bits = static_cast<uint64_t>(1023 + 23 - exponent) << 52;
  double inverse;
  std::memcpy(&inverse, &inverse_bits, sizeof inverse);
  return std::abs(got - exact) * inverse;
}

struct Worst {
  double ulps = 0;  // 0: always the nearest f32
  float argument = 0;
  // Results that are infinite or NaN where the rounded exact one is not, or the reverse; likewise
  // zero, if the function promises that.
  uint64_t wrong_kind = 0;
  float wrong_argument = 0;

  void merge(const Worst& other) {
    if (other.ulps > ulps) ulps = other.ulps, argument = other.argument;
    if (!wrong_kind) wrong_argument = other.wrong_argument;
    wrong_kind += other.wrong_kind;
  }
};

bool same_kind(float a, float b, bool exact_zeros) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (std::isinf(a) || std::isinf(b)) return a == b;
  return !exact_zeros || (a == 0) == (b == 0);
}

void compare(const float* x, const float* got, const double* exact, const float* nearest,
             bool exact_zeros, Worst& worst) {
  if (!std::memcmp(got, nearest, kChunk * sizeof(float))) return;
  constexpr uint32_t kBlock = 64;
  for (uint32_t begin = 0; begin < kChunk; begin += kBlock) {
    uint32_t differing = 0;
    for (uint32_t i = begin; i < begin + kBlock; ++i) {
      differing |= bits_of(got[i]) ^ bits_of(nearest[i]);
    }
    if (!differing) continue;
    for (uint32_t i = begin; i < begin + kBlock; ++i) {
      if (got[i] == nearest[i]) continue;
      if (!same_kind(got[i], nearest[i], exact_zeros)) {
        if (!worst.wrong_kind++) worst.wrong_argument = x[i];
      } else if (std::isfinite(nearest[i])) {
        const double error = ulps(got[i], exact[i]);
        if (error > worst.ulps) worst.ulps = error, worst.argument = x[i];
      }
    }
  }
}

// The errors that math.h states, in ULP. [0]: x >= 0; [1]: x < 0.
struct Function {
  const char* name;
  const KernelTable<UnaryF32Fn>& table;
  Reference* reference;
  double bound[2], bound_without_fma[2];
  bool exact_zeros;  // zero exactly where the rounded result is

  double bound_of(Isa isa, int negative) const {
    if (isa == Isa::scalar) return kLibmBound;
    return has_fma(isa) ? bound[negative] : bound_without_fma[negative];
  }
};

// [kernel][x < 0]
using Findings = std::vector<std::array<Worst, 2>>;

void measure_chunk(const Function& function, uint32_t chunk, Findings& findings) {
  float x[kChunk], got[kChunk], nearest[kChunk];
  double exact[kChunk];
  for (uint32_t i = 0; i < kChunk; ++i) x[i] = float_of(chunk * kChunk + i);
  function.reference(x, exact);
  for (uint32_t i = 0; i < kChunk; ++i) nearest[i] = static_cast<float>(exact[i]);
  const bool negative = std::signbit(x[0]);
  const auto& kernels = function.table.all();
  for (size_t k = 0; k < kernels.size(); ++k) {
    if (!runs_here(kernels[k].isa)) continue;
    if (kernels[k].isa == Isa::scalar && chunk % kScalarChunkStep) continue;
    kernels[k].run(x, got, kChunk);
    compare(x, got, exact, nearest, function.exact_zeros, findings[k][negative]);
  }
}

Findings measure(const Function& function) {
  const size_t kernels = function.table.all().size();
  const Findings empty(kernels);
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<Findings> of_thread(threads, empty);
  std::atomic<uint32_t> next{0};
  std::vector<std::thread> pool;
  for (Findings& findings : of_thread) {
    pool.emplace_back([&] {
      for (;;) {
        constexpr uint32_t kBatch = 64;
        const uint32_t begin = next.fetch_add(kBatch);
        if (begin >= kChunks / kChunkStep) return;
        for (uint32_t i = begin; i < begin + kBatch; ++i) {
          if (i < kChunks / kChunkStep) measure_chunk(function, i * kChunkStep, findings);
        }
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  Findings merged = empty;
  for (const Findings& findings : of_thread) {
    for (size_t k = 0; k < kernels; ++k) {
      for (int negative : {0, 1}) merged[k][negative].merge(findings[k][negative]);
    }
  }
  return merged;
}

void check(const Function& function) {
  const Findings findings = measure(function);
  const auto& kernels = function.table.all();
  for (size_t k = 0; k < kernels.size(); ++k) {
    if (!runs_here(kernels[k].isa)) continue;
    for (int negative : {0, 1}) {
      const Worst& worst = findings[k][negative];
      const std::string isa = info_of(kernels[k].isa).name, side = negative ? "x < 0" : "x >= 0";
      std::printf("%-8s %-10s %-7s at most %.4f ULP, at %.9g\n", function.name, isa.c_str(),
                  side.c_str(), worst.ulps, worst.argument);
      INFO("implementation: ", isa, ", ", side,
           "; first of the wrong kind: ", worst.wrong_argument);
      CHECK(worst.ulps <= function.bound_of(kernels[k].isa, negative));
      CHECK(worst.wrong_kind == 0);
    }
  }
}

TEST_CASE("exp: every f32") { check({"exp", exp_kernels(), exp_of, {1.0, 1.0}, {1.3, 1.3}, true}); }

TEST_CASE("sigmoid: every f32") {
  check({"sigmoid", sigmoid_kernels(), sigmoid_of, {2.5, 2.5}, {2.5, 2.5}, false});
}

TEST_CASE("tanh: every f32") {
  check({"tanh", tanh_kernels(), tanh_of, {1.4, 1.4}, {1.4, 1.4}, false});
}

TEST_CASE("erfc: every f32") {
  check({"erfc", erfc_kernels(), erfc_of, {7.5, 3.5}, {7.5, 3.5}, false});
}

// Element by element: what stands beside an element, and how many there are, changes nothing.
TEST_CASE("math: every size, in place and not, between guard pages") {
  for (const auto* table : {&exp_kernels(), &sigmoid_kernels(), &tanh_kernels(), &erfc_kernels()}) {
    for_each_kernel(*table, [](const Kernel<UnaryF32Fn>& kernel) {
      for (int64_t n = 0; n <= 140; ++n) {
        for (Guard guard : kGuards) {
          Tensor x(DType::kF32, 1, n, n, guard);
          Random random;
          x.fill([&] { return 3 * random.normal(); });
          const Tensor separate(DType::kF32, 1, n, n, guard), in_place = x;
          Tensor one_by_one = x;
          for (int64_t i = 0; i < n; ++i) {
            auto* element = static_cast<float*>(one_by_one.at(0, i));
            kernel.run(element, element, 1);
          }
          const auto data = [](const Tensor& t) { return static_cast<float*>(t.data()); };
          kernel.run(data(x), data(separate), static_cast<size_t>(n));
          kernel.run(data(in_place), data(in_place), static_cast<size_t>(n));
          CHECK(difference(separate, one_by_one) == "");
          CHECK(difference(in_place, one_by_one) == "");
        }
      }
    });
  }
}

}  // namespace
}  // namespace capibara::test
