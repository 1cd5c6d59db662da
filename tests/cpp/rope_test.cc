// SPDX-License-Identifier: Apache-2.0
// RoPE: every implementation against the scalar reference, and both against double precision.
#include "kernels/rope/rope.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

constexpr int64_t kPositions = 7;

struct Case {
  DTypePair dtypes;
  bool neox = true, positions_64 = true;
  int64_t half = 1, extra_dim = 0;  // rotary_dim / 2; head_dim beyond rotary_dim
  int64_t tokens = 2, q_heads = 2, k_heads = 1;
  int64_t token_padding = 0;  // between tokens, in elements
  Guard guard = Guard::kAfter;

  int64_t rotary_dim() const { return 2 * half; }
  int64_t head_dim() const { return rotary_dim() + extra_dim; }
};

// q and k in one tensor, as a projection leaves them: token rows [q heads | k heads].
struct Inputs {
  Tensor qk, cache;
  GuardedBuffer positions;
  std::vector<int64_t> position;

  explicit Inputs(const Case& c)
      : qk(c.dtypes.element, c.tokens, (c.q_heads + c.k_heads) * c.head_dim(),
           (c.q_heads + c.k_heads) * c.head_dim() + c.token_padding, c.guard),
        cache(c.dtypes.parameter, kPositions, c.rotary_dim(), c.rotary_dim(), c.guard),
        positions(static_cast<size_t>(c.tokens) * (c.positions_64 ? 8 : 4), c.guard) {
    Random random;
    for (int64_t t = 0; t < c.tokens; ++t) {
      position.push_back(random.integer(0, kPositions - 1));
      const auto narrow = static_cast<int32_t>(position[t]);
      char* to = positions.data() + t * (c.positions_64 ? 8 : 4);
      if (c.positions_64) {
        std::memcpy(to, &position[t], 8);
      } else {
        std::memcpy(to, &narrow, 4);
      }
    }
  }
};

RopeArgs args_of(const Case& c, const Inputs& in, const Tensor& qk) {
  const int64_t d = c.head_dim();
  return {c.dtypes.element,
          c.dtypes.parameter,
          c.neox,
          c.rotary_dim(),
          {qk.data(), c.q_heads, qk.stride(), d},
          {c.k_heads && c.tokens ? qk.at(0, c.q_heads * d) : nullptr, c.k_heads, qk.stride(), d},
          in.cache.data(),
          in.positions.data(),
          c.positions_64};
}

// Whole quarters times whole 32nds: products and sums are exact in f32, so that fused and separate
// multiplications agree, and what is left is one rounding to the dtype.
void fill_exact(Inputs& in) {
  Random random;
  in.qk.fill([&] { return 0.25f * static_cast<float>(random.integer(-100, 100)); });
  in.cache.fill([&] { return static_cast<float>(random.integer(-32, 32)) / 32; });
}

void check_exact(const Case& c, int64_t begin, int64_t end) {
  INFO("element ", std::string(name_of(c.dtypes.element)), ", cache ",
       std::string(name_of(c.dtypes.parameter)), ", neox ", c.neox, ", half ", c.half, "+",
       c.extra_dim, ", tokens [", begin, ", ", end, "), heads ", c.q_heads, "+", c.k_heads,
       ", padding ", c.token_padding);
  Inputs in(c);
  fill_exact(in);
  const Tensor cache_before = in.cache;
  Tensor expected = in.qk;
  scalar::rope(args_of(c, in, expected), begin, end);
  for_each_kernel(rope_kernels(), [&](const Kernel<RopeFn>& kernel) {
    Tensor got = in.qk;
    kernel.run(args_of(c, in, got), begin, end);
    CHECK(difference(got, expected) == "");
  });
  CHECK(difference(in.cache, cache_before) == "");
}

TEST_CASE("rope: every size, exactly as the reference") {
  std::vector<int64_t> halves;
  for (int64_t half = 1; half <= 70; ++half) halves.push_back(half);
  halves.insert(halves.end(), {96, 127, 128, 129});
  for (int64_t half : halves) {
    for (DTypePair dtypes : kDTypePairs) {
      for (bool neox : {true, false}) {
        for (Guard guard : kGuards) {
          Case c;
          c.dtypes = dtypes, c.neox = neox, c.half = half, c.guard = guard;
          c.positions_64 = half % 2;
          c.extra_dim = half % 4 == 3 ? 5 : 0;
          c.token_padding = half % 3;
          check_exact(c, 0, c.tokens);
        }
      }
    }
  }
}

TEST_CASE("rope: tokens, heads and ranges, exactly as the reference") {
  for (bool neox : {true, false}) {
    for (int64_t tokens = 0; tokens <= 5; ++tokens) {
      for (int64_t q_heads = 0; q_heads <= 3; ++q_heads) {
        for (int64_t k_heads = 0; k_heads <= 3; ++k_heads) {
          Case c;
          c.dtypes = kDTypePairs[(tokens + q_heads + k_heads) % 5];
          c.neox = neox, c.half = 13, c.extra_dim = 2 * q_heads, c.token_padding = 3;
          c.tokens = tokens, c.q_heads = q_heads, c.k_heads = k_heads;
          for (int64_t begin = 0; begin <= tokens; ++begin) check_exact(c, begin, tokens);
          check_exact(c, 0, tokens / 2);
        }
      }
    }
  }
}

TEST_CASE("rope: rounding") {
  for (DTypePair dtypes : kDTypePairs) {
    for (bool neox : {true, false}) {
      CAPTURE(neox);
      Case c;
      c.dtypes = dtypes, c.neox = neox, c.half = 203;
      Inputs in(c);
      Random random;
      in.qk.fill([&] { return 4 * random.normal(); });
      for (int64_t p = 0; p < kPositions; ++p) {
        for (int64_t i = 0; i < c.half; ++i) {
          const double angle = static_cast<double>(p) * std::pow(1e4, -1.0 * i / c.half);
          in.cache.set(p, i, static_cast<float>(std::cos(angle)));
          in.cache.set(p, i + c.half, static_cast<float>(std::sin(angle)));
        }
      }
      // a b - c d: each product is rounded, or one is not; then their difference.
      const auto expected = [&](int64_t t, int64_t col) -> Approx {
        const int64_t head = col / c.head_dim() * c.head_dim(), at = col % c.head_dim();
        const int64_t pair = neox ? at % c.half : at / 2;
        const bool first = neox ? at < c.half : at % 2 == 0;
        const double x1 = in.qk.get(t, head + (neox ? pair : 2 * pair));
        const double x2 = in.qk.get(t, head + (neox ? pair + c.half : 2 * pair + 1));
        const double cos = in.cache.get(in.position[t], pair);
        const double sin = in.cache.get(in.position[t], pair + c.half);
        const double a = first ? x1 * cos : x2 * cos, b = first ? -x2 * sin : x1 * sin;
        const double error = kUnitRoundoff * (std::abs(a) + std::abs(b) + std::abs(a + b));
        return {a + b, kSecondOrder * error};
      };
      for_each_kernel(rope_kernels(), [&](const Kernel<RopeFn>& kernel) {
        Tensor got = in.qk;
        kernel.run(args_of(c, in, got), 0, c.tokens);
        CHECK(out_of_bounds(got, 0, c.tokens, expected) == "");
      });
    }
  }
}

TEST_CASE("rope: NaN and infinity stay in their pair") {
  for (DTypePair dtypes : kDTypePairs) {
    for (bool neox : {true, false}) {
      for (float special : {NAN, INFINITY, -INFINITY}) {
        Case c;
        c.dtypes = dtypes, c.neox = neox, c.half = 37;
        Inputs in(c);
        fill_exact(in);
        for (int64_t t = 0; t < c.tokens; ++t) in.qk.set(t, 11 * t + 3, special);
        in.cache.set(in.position[0], 29, special);
        Tensor expected = in.qk;
        scalar::rope(args_of(c, in, expected), 0, c.tokens);
        for_each_kernel(rope_kernels(), [&](const Kernel<RopeFn>& kernel) {
          Tensor got = in.qk;
          kernel.run(args_of(c, in, got), 0, c.tokens);
          CHECK(difference(got, expected) == "");
        });
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
