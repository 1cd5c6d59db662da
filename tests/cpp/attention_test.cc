// SPDX-License-Identifier: Apache-2.0
// The driver of attention against softmax(q k) v in double precision: dense tensors and paged
// caches, all masks, in the ISA that is chosen (forced_isa runs others by CAPIBARA_AXION_ISA).
#include "ops/attention.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "ops/kv_cache.h"
#include "ops/parallel.h"

namespace capibara::test {
namespace {

constexpr double kU = 0x1p-24;

struct Problem {
  DType dtype = DType::kBF16;
  int64_t heads = 2, kv_heads = 1, dim = 64;
  std::vector<int32_t> queries = {5}, keys = {9};  // of each sequence
  float scale = 0.125f;
  bool causal = true;
  int64_t left = kNoWindow, right = kNoWindow;
  float softcap = 0;
  bool alibi = false, sinks = false;
  std::vector<BidirectionalRange> ranges;
  int64_t block_size = 0;  // 0: dense
  CacheType cache = CacheType::kBF16;
  CacheScales scales = CacheScales::kTensor;
};

class Values {
 public:
  Values(DType dtype, int64_t count, float size, unsigned seed) : dtype_(dtype) {
    bytes.resize(static_cast<size_t>(count) * size_of(dtype));
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0, size);
    for (int64_t i = 0; i < count; ++i) set(i, normal(engine));
  }
  void set(int64_t i, float value) {
    dispatch(dtype_, [&](auto element) {
      using T = decltype(element);
      reinterpret_cast<T*>(bytes.data())[i] = from_f32<T>(value);
    });
  }
  double at(int64_t i) const {
    return dispatch(dtype_, [&](auto element) -> double {
      return to_f32(reinterpret_cast<const decltype(element)*>(bytes.data())[i]);
    });
  }
  std::vector<char> bytes;

 private:
  DType dtype_;
};

double roundoff(DType dtype) {
  return dtype == DType::kF32 ? kU : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}
double exp_error(DType dtype) {
  return dtype == DType::kF32 ? 4 * kU : dtype == DType::kF16 ? 4e-6 : 8.5e-5;
}

class Run {
 public:
  explicit Run(const Problem& problem, unsigned seed = 1) : p_(problem) {
    query_start_ = key_start_ = {0};
    for (size_t s = 0; s < p_.queries.size(); ++s) {
      query_start_.push_back(query_start_.back() + p_.queries[s]);
      key_start_.push_back(key_start_.back() + p_.keys[s]);
    }
    const int64_t d = p_.dim;
    q_ = Values(p_.dtype, query_start_.back() * p_.heads * d, 1, seed);
    k_ = Values(p_.dtype, key_start_.back() * p_.kv_heads * d, 1, seed + 1);
    v_ = Values(p_.dtype, key_start_.back() * p_.kv_heads * d, 1, seed + 2);
    out = Values(p_.dtype, query_start_.back() * p_.heads * d, 7, seed + 3);
    for (int64_t h = 0; h < p_.heads; ++h) {
      slopes_.push_back(-0.01f * static_cast<float>(h + 1));
      sinks_.push_back(0.5f * static_cast<float>(h) - 1);
    }
    if (p_.block_size) fill_cache();
  }

  void run() {
    AttentionCall call = {};
    call.dtype = p_.dtype;
    call.num_heads = p_.heads;
    call.num_kv_heads = p_.kv_heads;
    call.head_dim = p_.dim;
    call.sequences = static_cast<int64_t>(p_.queries.size());
    call.query_start = query_start_.data();
    call.key_lengths = p_.keys.data();
    call.q = {q_.bytes.data(), p_.heads * p_.dim, p_.dim};
    call.out = out.bytes.data();
    call.out_token_stride = p_.heads * p_.dim;
    call.out_head_stride = p_.dim;
    if (p_.block_size) {
      call.cache = &cache_;
      call.block_table = table_.data();
      call.block_table_stride = table_stride_;
    } else {
      call.k = {k_.bytes.data(), p_.kv_heads * p_.dim, p_.dim};
      call.v = {v_.bytes.data(), p_.kv_heads * p_.dim, p_.dim};
      call.key_start = key_start_.data();
    }
    call.scale = p_.scale;
    call.causal = p_.causal;
    call.window_left = p_.left;
    call.window_right = p_.right;
    call.softcap = p_.softcap;
    call.alibi_slopes = p_.alibi ? slopes_.data() : nullptr;
    call.sinks = p_.sinks ? sinks_.data() : nullptr;
    call.ranges = p_.ranges.data();
    call.num_ranges = static_cast<int64_t>(p_.ranges.size());
    attention(call);
  }

  // The largest error in units of its bound.
  double worst() const {
    double worst = 0;
    std::vector<double> exact(static_cast<size_t>(p_.dim)), size(static_cast<size_t>(p_.dim));
    for (size_t s = 0; s < p_.queries.size(); ++s) {
      for (int64_t i = 0; i < p_.queries[s]; ++i) {
        for (int64_t h = 0; h < p_.heads; ++h) {
          const double relative = row(s, i, h, exact, size);
          for (int64_t d = 0; d < p_.dim; ++d) {
            const auto at = static_cast<size_t>(d);
            const double got = out.at(((query_start_[s] + i) * p_.heads + h) * p_.dim + d);
            const double bound = relative * size[at] + roundoff(p_.dtype) * std::abs(exact[at]) +
                                 (p_.dtype == DType::kF16 ? 0x1p-24 : 1e-37);
            const double error = std::abs(got - exact[at]) / bound;
            if (!(error <= worst)) worst = error;  // NaN stays
          }
        }
      }
    }
    return worst;
  }

  Values out{DType::kF32, 0, 1, 0};

 private:
  bool visible(size_t s, int64_t position, int64_t key) const {
    for (const BidirectionalRange& range : p_.ranges) {
      if (range.sequence == static_cast<int32_t>(s) && range.begin <= position &&
          position < range.end && range.begin <= key && key < range.end) {
        return true;
      }
    }
    if (p_.causal && key > position) return false;
    if (p_.left != kNoWindow && key < position - p_.left) return false;
    return p_.right == kNoWindow || key <= position + p_.right;
  }

  // Keys and values as attention sees them.
  double key(int64_t i) const { return stored_k_.empty() ? k_.at(i) : stored_k_[size_t(i)]; }
  double value(int64_t i) const { return stored_v_.empty() ? v_.at(i) : stored_v_[size_t(i)]; }

  // A row of the result, the sums of its terms' magnitudes, and the relative error of these terms.
  double row(size_t s, int64_t i, int64_t h, std::vector<double>& exact,
             std::vector<double>& size) const {
    const int64_t position = p_.keys[s] - p_.queries[s] + i, kv = h / (p_.heads / p_.kv_heads);
    std::vector<double> z;
    std::vector<int64_t> keys;
    double largest = -std::numeric_limits<double>::infinity(), score_error = 0;
    for (int64_t j = 0; j < p_.keys[s]; ++j) {
      if (!visible(s, position, j)) continue;
      double dot = 0, terms = 0;
      for (int64_t d = 0; d < p_.dim; ++d) {
        const double product = q_.at(((query_start_[s] + i) * p_.heads + h) * p_.dim + d) *
                               key(((key_start_[s] + j) * p_.kv_heads + kv) * p_.dim + d);
        dot += product;
        terms += std::abs(product);
      }
      dot *= p_.scale;
      if (p_.softcap != 0) dot = p_.softcap * std::tanh(dot / p_.softcap);
      if (p_.alibi) dot += slopes_[size_t(h)] * static_cast<double>(j - position);
      z.push_back(dot);
      keys.push_back(j);
      largest = std::max(largest, dot);
      // The products' sums, four more roundings of the logit, and those of bias and base change.
      score_error =
          std::max(score_error, kU * ((static_cast<double>(p_.dim) + 4) * terms * p_.scale +
                                      8 * std::abs(dot) + 0.1 * 4096));
    }
    if (p_.sinks) largest = std::max(largest, double{slopes_.empty() ? 0 : sinks_[size_t(h)]});
    double total = p_.sinks ? std::exp(sinks_[size_t(h)] - largest) : 0;
    for (double logit : z) total += std::exp(logit - largest);
    std::fill(exact.begin(), exact.end(), 0.0);
    std::fill(size.begin(), size.end(), 0.0);
    for (size_t n = 0; n < keys.size(); ++n) {
      const double p = std::exp(z[n] - largest) / total;
      for (int64_t d = 0; d < p_.dim; ++d) {
        const double term = p * value(((key_start_[s] + keys[n]) * p_.kv_heads + kv) * p_.dim + d);
        exact[size_t(d)] += term;
        size[size_t(d)] += std::abs(term);
      }
    }
    // In numerator and denominator alike; then p is rounded, and keys + 20 sums and products are.
    return 2 * (score_error + exp_error(p_.dtype)) + roundoff(p_.dtype) +
           kU * (static_cast<double>(keys.size()) + 20);
  }

  void fill_cache() {
    const CacheLayout layout = cache_layout(p_.cache, p_.dtype, p_.block_size, p_.dim);
    std::vector<int32_t> order;
    table_stride_ = 0;
    for (int32_t length : p_.keys) {
      const int64_t blocks = (length + p_.block_size - 1) / p_.block_size;
      table_stride_ = std::max(table_stride_, blocks + 1);
    }
    const auto sequences = static_cast<int64_t>(p_.keys.size());
    const int64_t blocks = sequences * table_stride_ + 3;
    for (int32_t b = 0; b < blocks; ++b) order.push_back(b);
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    table_.assign(order.begin(), order.begin() + sequences * table_stride_);
    // What nobody writes is NaN.
    const int64_t elements = blocks * p_.kv_heads * 2 * layout.half();
    data_.assign(static_cast<size_t>(elements * size_of(p_.cache)), static_cast<char>(0xff));
    cache_ = {layout,
              data_.data(),
              p_.kv_heads * 2 * layout.half(),
              2 * layout.half(),
              blocks,
              p_.kv_heads,
              p_.scales,
              nullptr,
              nullptr};
    if (is_fp8(p_.cache)) {
      key_scales_.assign(static_cast<size_t>(blocks * p_.kv_heads * p_.block_size), 0.01f);
      for (int64_t h = 0; h < p_.kv_heads; ++h) {
        key_scales_[size_t(h)] = 0.02f * static_cast<float>(h + 1);
      }
      value_scales_ = key_scales_;
      value_scales_[0] = 0.015f;
      cache_.key_scales = key_scales_.data();
      cache_.value_scales = value_scales_.data();
    }
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t j = 0; j < p_.keys[size_t(s)]; ++j) {
        const int64_t block = table_[size_t(s * table_stride_ + j / p_.block_size)];
        slots.push_back(block * p_.block_size + j % p_.block_size);
      }
    }
    const int64_t token = p_.kv_heads * p_.dim;
    const auto tokens = static_cast<int64_t>(slots.size());
    kv_cache_append({cache_, p_.dtype, tokens, k_.bytes.data(), v_.bytes.data(), token, p_.dim,
                     token, p_.dim, slots.data()});
    std::vector<float> keys(size_t(tokens * token)), values(size_t(tokens * token));
    kv_cache_gather({cache_, tokens, slots.data(), DType::kF32, keys.data(), values.data()});
    stored_k_.assign(keys.begin(), keys.end());
    stored_v_.assign(values.begin(), values.end());
  }

  const Problem p_;
  std::vector<int32_t> query_start_, key_start_, table_;
  int64_t table_stride_ = 0;
  Values q_{DType::kF32, 0, 1, 0}, k_{DType::kF32, 0, 1, 0}, v_{DType::kF32, 0, 1, 0};
  std::vector<float> slopes_, sinks_, key_scales_, value_scales_;
  std::vector<double> stored_k_, stored_v_;
  std::vector<char> data_;
  CacheView cache_ = {};
};

// Under an emulator or sanitizers, the double precision of the expected results takes minutes.
#ifdef CAPIBARA_SAMPLED
constexpr bool kSampled = true;
#else
constexpr bool kSampled = false;
#endif
int g_checks = 0;

void check(const Problem& problem, int every = 1) {
  if (kSampled && ++g_checks % every != 0) return;
  Run run(problem);
  run.run();
  CHECK(run.worst() <= 1);
}

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST_CASE("dense: head sizes, groups, lengths") {
  for (DType dtype : kTypes) {
    for (int64_t dim : {16, 32, 80, 112, 128, 256, 512}) {
      CAPTURE(name_of(dtype));
      CAPTURE(dim);
      Problem p;
      p.dtype = dtype;
      p.dim = dim;
      p.heads = 6;
      p.kv_heads = dim == 80 ? 6 : 2;
      p.queries = {7, 1, 0, 19};
      p.keys = {7, 40, 3, 150};
      check(p, 2);
    }
  }
}

TEST_CASE("dense: masks") {
  for (DType dtype : kTypes) {
    CAPTURE(name_of(dtype));
    Problem p;
    p.dtype = dtype;
    p.queries = {70, 33};
    p.keys = {70, 300};
    SUBCASE("causal") { check(p); }
    SUBCASE("full") {
      p.causal = false;
      check(p);
    }
    SUBCASE("sliding window") {
      for (int64_t left : {0, 3, 31, 100}) {
        p.left = left;
        check(p);
      }
    }
    SUBCASE("window to both sides") {
      p.causal = false;
      p.left = 20;
      p.right = 9;
      check(p);
    }
    SUBCASE("soft cap") {
      p.softcap = 2;
      check(p);
    }
    SUBCASE("ALiBi") {
      p.alibi = true;
      check(p);
    }
    SUBCASE("sinks") {
      p.sinks = true;
      check(p);
    }
    SUBCASE("images") {
      p.left = 12;
      p.ranges = {{0, 5, 40}, {0, 50, 52}, {1, 260, 295}};
      check(p);
    }
    SUBCASE("negative scale") {
      p.scale = -0.1f;
      check(p);
    }
  }
}

TEST_CASE("paged: types, block sizes, lengths") {
  for (DType dtype : kTypes) {
    for (int64_t block_size : {16, 32, 48, 128}) {
      for (int type = 0; type < 3; ++type) {
        for (int64_t dim : {64, 80}) {
          CAPTURE(name_of(dtype));
          CAPTURE(block_size);
          CAPTURE(type);
          CAPTURE(dim);
          Problem p;
          p.dtype = dtype;
          p.dim = dim;
          p.heads = 4;
          p.kv_heads = 2;
          p.block_size = block_size;
          p.cache = type == 0   ? static_cast<CacheType>(dtype)
                    : type == 1 ? CacheType::kE4M3
                                : CacheType::kE5M2;
          p.scales = static_cast<CacheScales>(block_size == 16 ? 0 : block_size == 32 ? 1 : 2);
          p.queries = {1, 1, 23, 4};
          p.keys = {131, 1, 23, 157};
          check(p, 5);
          p.left = 20;
          check(p, 5);
        }
      }
    }
  }
}

TEST_CASE("many keys: several blocks, several parts") {
  for (DType dtype : kTypes) {
    CAPTURE(name_of(dtype));
    Problem p;
    p.dtype = dtype;
    p.dim = 32;
    p.queries = {1, kSampled ? 13 : 60, 1};
    p.keys = {4500, 1100, 2049};
    p.heads = 2;
    p.sinks = true;
    check(p);
    p.block_size = 64;
    p.cache = static_cast<CacheType>(dtype);
    check(p);
    p.left = 2100;
    check(p);
  }
}

TEST_CASE("results do not depend on threads or on the rest of the batch") {
  Problem p;
  p.heads = 8;
  p.kv_heads = 2;
  p.queries = {1, kSampled ? 90 : 200, 13};
  p.keys = {4200, 200, 700};
  set_num_threads(1);
  Run one(p);
  one.run();
  for (int threads : {2, 3, 5}) {
    set_num_threads(threads);
    Run many(p);
    many.run();
    CHECK(many.out.bytes == one.out.bytes);
  }
  set_num_threads(0);
}

}  // namespace
}  // namespace capibara::test
