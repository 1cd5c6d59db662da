// SPDX-License-Identifier: Apache-2.0
// kv_cache_write: every implementation byte for byte as the scalar reference, whatever the layout,
// and the reference as the contract has it. The drivers: kv_cache_ops_test.cc.
#include "kernels/kv_cache/kv_cache.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

struct Geometry {
  int cols, depth;
};
// Those of tiles (scalar code among them), and some that no tile has.
constexpr Geometry kGeometries[] = {{4, 1},  {8, 1},  {8, 2},  {8, 4},  {16, 1}, {16, 2},
                                    {16, 4}, {32, 1}, {32, 2}, {32, 4}, {12, 2}, {24, 8}};

// What is stored, what attention computes in, what it comes from.
struct Types {
  CacheType type;
  DType compute, from;
};

std::vector<Types> all_types() {
  std::vector<Types> types;
  for (DType compute : kDTypes) {
    for (CacheType type : {static_cast<CacheType>(compute), CacheType::kE4M3, CacheType::kE5M2}) {
      types.push_back({type, compute, compute});
      if (compute != DType::kF32) types.push_back({type, compute, DType::kF32});
    }
  }
  return types;
}

struct Case {
  Types types;
  Geometry geometry;
  int64_t block_size, head_dim, first, count;
  int64_t key_padding, value_padding;
  bool own_scales;
  Guard guard;

  CacheLayout layout() const {
    return {types.type, types.compute, block_size, head_dim, geometry.cols, geometry.depth};
  }
  size_t bytes() const { return static_cast<size_t>(2 * layout().half() * size_of(types.type)); }
  Tensor tokens(int64_t padding) const {
    return Tensor(types.from, count, head_dim, head_dim + padding, guard);
  }
  std::string text() const {
    return "cache type " + std::to_string(static_cast<int>(types.type)) + " from " +
           name_of(types.from) + ", panels of " + std::to_string(geometry.cols) + " x " +
           std::to_string(geometry.depth) + ", block of " + std::to_string(block_size) + " x " +
           std::to_string(head_dim) + ", tokens " + std::to_string(first) + " + " +
           std::to_string(count) + (own_scales ? ", scales of their own" : "");
  }
};

// A block and its scales, with something in them.
struct Cache {
  GuardedBuffer block;
  std::vector<float> key_scales, value_scales;

  explicit Cache(const Case& c)
      : block(c.bytes(), c.guard),
        key_scales(static_cast<size_t>(c.block_size), 0.25f),
        value_scales(key_scales) {
    for (size_t i = 0; i < c.bytes(); ++i) block.data()[i] = static_cast<char>(i % 251);
  }
};

CacheWriteArgs arguments(const Case& c, const Tensor& key, const Tensor& value, Cache& cache) {
  CacheWriteArgs args = {};
  args.layout = c.layout();
  args.from = c.types.from;
  args.key = key.data();
  args.value = value.data();
  args.key_stride = key.stride();
  args.value_stride = value.stride();
  args.first = c.first;
  args.count = c.count;
  args.block = cache.block.data();
  args.key_factor = 37.5f;
  args.value_factor = 0.3f;
  if (c.own_scales) {
    args.scales_of_keys = cache.key_scales.data();
    args.scales_of_values = cache.value_scales.data();
  }
  return args;
}

bool same(const Cache& a, const Cache& b) {
  const auto pages = static_cast<size_t>(a.block.pages_end() - a.block.pages_begin());
  const auto scales = [](const std::vector<float>& x, const std::vector<float>& y) {
    return !std::memcmp(x.data(), y.data(), x.size() * sizeof(float));
  };
  return !std::memcmp(a.block.pages_begin(), b.block.pages_begin(), pages) &&
         scales(a.key_scales, b.key_scales) && scales(a.value_scales, b.value_scales);
}

void check(const Case& c, const Tensor& key, const Tensor& value) {
  Cache expected(c);
  scalar::kv_cache_write(arguments(c, key, value, expected));
  for_each_kernel(kv_cache_write_kernels(), [&](const Kernel<CacheWriteFn>& kernel) {
    if (kernel.isa == Isa::scalar) return;
    Cache got(c);
    kernel.run(arguments(c, key, value, got));
    CHECK_MESSAGE(same(got, expected), c.text());
  });
}

// Numbers of all magnitudes, with no NaN but the quiet ones without payload: others change theirs
// where they are converted.
float any_number(Random& random) {
  switch (random.integer(0, 39)) {
    case 0:
      return std::numeric_limits<float>::infinity();
    case 1:
      return -std::numeric_limits<float>::quiet_NaN();
    case 2:
      return 0.0f;
    case 3:
    case 4: {
      const float x = float_of(random.bits());
      return std::isnan(x) ? float_of(0x7fc00000u) : x;
    }
    default:
      return random.normal();
  }
}

void fill_any(Tensor& x, bool copied, Random& random) {
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t i = 0; i < x.cols(); ++i) {
      if (copied) {
        x.set_bits(r, i, random.bits());
      } else {
        x.set(r, i, any_number(random));
      }
    }
  }
}

// Rows as tokens with a scale of their own may be: of zeros, with NaN, with infinities, of the
// smallest numbers and of the largest, and of any others.
void fill_tokens(Tensor& x, Random& random) {
  for (int64_t r = 0; r < x.rows(); ++r) {
    const int64_t kind = random.integer(0, 7);
    const float factor = kind == 1 ? 0.0f : kind == 2 ? 1e-40f : kind == 3 ? 1e37f : 3.0f;
    for (int64_t i = 0; i < x.cols(); ++i) x.set(r, i, random.normal() * factor);
    if (kind == 4) x.set(r, random.integer(0, x.cols() - 1), -__builtin_nanf(""));
    if (kind == 5) x.set(r, random.integer(0, x.cols() - 1), -__builtin_inff());
    if (kind == 6) x.set(r, random.integer(0, x.cols() - 1), 1e5f);
  }
}

void fill_for(const Case& c, Tensor& x, Random& random) {
  if (c.own_scales) {
    fill_tokens(x, random);
  } else {
    fill_any(x, !is_fp8(c.types.type) && c.types.from == c.types.compute, random);
  }
}

void check_at(Case c, int64_t first, int64_t count, Random& random) {
  c.first = first;
  c.count = count;
  c.key_padding = random.integer(0, 1) * random.integer(1, 40);
  c.value_padding = random.integer(0, 1) * random.integer(1, 40);
  c.own_scales = is_fp8(c.types.type) && random.integer(0, 1);
  c.guard = kGuards[random.integer(0, 1)];
  Tensor key = c.tokens(c.key_padding), value = c.tokens(c.value_padding);
  fill_for(c, key, random);
  fill_for(c, value, random);
  check(c, key, value);
}

// Under an emulator or sanitizers a quarter of the cases, others in each run.
#ifdef CAPIBARA_SAMPLED
bool left_out(Random& random) { return random.integer(0, 3) != 0; }
#else
bool left_out(Random&) { return false; }
#endif

TEST_CASE("kv_cache_write: every head size and block size") {
  Random random;
  for (const Types& types : all_types()) {
    for (const Geometry& geometry : kGeometries) {
      for (int64_t head_dim : {16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 512}) {
        for (int64_t block_size : {16, 32, 48, 128}) {
          if ((head_dim > 128 && block_size != 32) || left_out(random)) continue;
          const Case c = {types, geometry, block_size, head_dim, 0, 0, 0, 0, false, Guard::kAfter};
          check_at(c, random.integer(0, block_size - 1), 1, random);
          const int64_t first = random.integer(0, block_size - 1);
          check_at(c, first, random.integer(1, std::min<int64_t>(block_size - first, 20)), random);
        }
      }
    }
  }
}

TEST_CASE("kv_cache_write: every beginning and number of tokens") {
  Random random;
  for (const Types& types : all_types()) {
    for (const Geometry& geometry : kGeometries) {
      for (int64_t first : {0, 1, 2, 3, 5, 7, 8, 12, 16, 29, 47}) {
        const Case c = {types, geometry, 48, 32, 0, 0, 0, 0, false, Guard::kAfter};
        for (int64_t count : {0, 1, 2, 4, 7, 9, 17}) {
          if (count <= 48 - first && !left_out(random)) check_at(c, first, count, random);
        }
        check_at(c, first, 48 - first, random);
      }
    }
  }
}

TEST_CASE("kv_cache_write: whole blocks") {
  Random random;
  for (const Types& types : all_types()) {
    for (const Geometry& geometry : kGeometries) {
      const Case c = {types, geometry, 128, 128, 0, 0, 0, 0, false, Guard::kAfter};
      check_at(c, 0, 128, random);
    }
  }
}

// ---------------------------------------------------------------- the reference

// Panels side by side fill a block, and elements lie as the contract says.
TEST_CASE("kv_cache_write: the layout") {
  for (const Geometry& g : kGeometries) {
    const int64_t block_size = 48, head_dim = 80;
    const CacheLayout layout = {CacheType::kF32, DType::kF32, block_size,
                                head_dim,        g.cols,      g.depth};
    std::set<int64_t> places;
    int64_t wrong = 0;
    for (int64_t token = 0; token < block_size; ++token) {
      for (int64_t d = 0; d < head_dim; ++d) {
        const int64_t key = layout.key_at(token, d), value = layout.value_at(token, d);
        wrong += key < 0 || key >= layout.half();
        wrong += value < layout.half() || value >= 2 * layout.half();
        places.insert(key);
        places.insert(value);
        if (block_size % g.cols == 0) {
          const int64_t panel = token / g.cols, line = token % g.cols;
          wrong += key != ((panel * (head_dim / g.depth) + d / g.depth) * g.cols + line) * g.depth +
                              d % g.depth;
        }
        if (head_dim % g.cols == 0) {
          const int64_t panel = d / g.cols, line = d % g.cols;
          wrong += value - layout.half() !=
                   ((panel * (block_size / g.depth) + token / g.depth) * g.cols + line) * g.depth +
                       token % g.depth;
        }
      }
    }
    CHECK(wrong == 0);
    CHECK(places.size() == static_cast<size_t>(2 * layout.half()));
  }
}

float stored(const Case& c, const Cache& cache, int64_t at) {
  const char* p = cache.block.data() + at * size_of(c.types.type);
  const auto load = [&](auto element) {
    std::memcpy(&element, p, sizeof element);
    return element;
  };
  if (is_fp8(c.types.type)) return to_f32(fp8_of(c.types.type), load(uint8_t{}));
  return dispatch(c.types.compute, [&](auto element) { return to_f32(load(element)); });
}

// Everything but the tokens that are written stays; those are the input, rounded.
TEST_CASE("kv_cache_write: what the reference stores") {
  Random random;
  for (const Types& types : all_types()) {
    const Case c = {types, {8, 4}, 32, 48, 5, 9, 3, 0, false, Guard::kAfter};
    INFO(c.text());
    Tensor key = c.tokens(3), value = c.tokens(0);
    key.fill([&] { return random.normal(); });
    value.fill([&] { return random.normal(); });
    Cache before(c), after(c);
    const CacheWriteArgs args = arguments(c, key, value, after);
    scalar::kv_cache_write(args);
    const auto rounded = [&](float x, float factor) {
      if (is_fp8(types.type)) {
        const Fp8 format = fp8_of(types.type);
        return to_f32(format, to_fp8(format, x * factor));
      }
      return dispatch(types.compute,
                      [&](auto element) { return to_f32(from_f32<decltype(element)>(x)); });
    };
    const auto size = static_cast<size_t>(size_of(types.type));
    int64_t wrong = 0;
    for (int64_t token = 0; token < c.block_size; ++token) {
      const bool written = token >= c.first && token < c.first + c.count;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        const int64_t places[] = {c.layout().key_at(token, d), c.layout().value_at(token, d)};
        if (written) {
          wrong +=
              stored(c, after, places[0]) != rounded(key.get(token - c.first, d), args.key_factor);
          wrong += stored(c, after, places[1]) !=
                   rounded(value.get(token - c.first, d), args.value_factor);
          continue;
        }
        for (int64_t place : places) {
          const size_t at = static_cast<size_t>(place) * size;
          wrong += std::memcmp(after.block.data() + at, before.block.data() + at, size) != 0;
        }
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("kv_cache_write: a token's own scale") {
  for (CacheType type : {CacheType::kE4M3, CacheType::kE5M2}) {
    const float largest = largest_of(fp8_of(type));
    const Case c = {
        {type, DType::kF32, DType::kF32}, {8, 4}, 16, 16, 3, 6, 0, 0, true, Guard::kAfter};
    Tensor x = c.tokens(0);
    x.fill([] { return 0.0f; });
    x.set(1, 4, -3.0f);
    x.set(1, 5, 1.5f);
    x.set(2, 2, std::numeric_limits<float>::max());
    x.set(3, 2, 0x1p-149f);
    x.set(4, 7, -__builtin_inff());
    x.set(5, 7, __builtin_nanf(""));
    x.set(5, 9, 1e30f);
    Cache cache(c);
    scalar::kv_cache_write(arguments(c, x, x, cache));
    for (const std::vector<float>* all : {&cache.key_scales, &cache.value_scales}) {
      const float* scales = all->data() + c.first;
      CHECK(scales[0] == 1.0f);
      CHECK(scales[1] == 3.0f / largest);
      CHECK(scales[2] == std::numeric_limits<float>::max() / largest);
      CHECK(scales[3] == kSmallestTokenScale);
      CHECK(std::isnan(scales[4]));
      CHECK(std::isnan(scales[5]));
    }
    const CacheLayout layout = c.layout();
    CHECK(stored(c, cache, layout.key_at(3, 4)) == 0.0f);
    CHECK(stored(c, cache, layout.key_at(4, 4)) == -largest);
    CHECK(stored(c, cache, layout.value_at(4, 5)) == largest / 2);
    CHECK(stored(c, cache, layout.value_at(5, 2)) == largest);
    CHECK(stored(c, cache, layout.key_at(7, 7)) == -largest);
    CHECK(std::isnan(stored(c, cache, layout.key_at(8, 7))));
  }
}

}  // namespace
}  // namespace capibara::test
