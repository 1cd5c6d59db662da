// SPDX-License-Identifier: Apache-2.0
// NEGEMM of Arm Compute Library, alone and under the driver, against products in double.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "backends/acl/gemm.h"
#include "base/buffer.h"
#include "ops/gemm.h"
#include "ops/gemm_acl.h"
#include "ops/gemm_backend.h"
#include "support/numbers.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

struct Shape {
  int64_t m, n, k;
};
// Around the 8 x 12 tile of its kernel, one row, and a product of several blocks.
constexpr Shape kShapes[] = {{1, 1, 1},   {1, 64, 33},  {7, 11, 5},    {8, 12, 16},
                             {9, 13, 17}, {33, 40, 65}, {64, 64, 300}, {1, 256, 512}};

Tensor random_tensor(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
  static Random random;
  Tensor tensor(dtype, rows, cols, stride, Guard::kAfter);
  tensor.fill([] { return random.normal(); });
  return tensor;
}

DType dtype_of(GemmType type) {
  return type == GemmType::kBF16  ? DType::kBF16
         : type == GemmType::kF16 ? DType::kF16
                                  : DType::kF32;
}

// Element of x as it is multiplied: rounded to bf16 if products are of that.
double multiplied(GemmType type, float x) {
  return type == GemmType::kBF16 ? to_f32(to_bf16(x)) : x;
}

// The exact product, and what k roundings of products and of sums, in any order, can move it. The
// bf16 instructions round a sum of two products to odd, which is two roundings to nearest.
template <class B>
Approx exact_product(GemmType type, const Tensor& x, int64_t row, const B& b) {
  double value = 0, magnitude = 0;
  for (int64_t d = 0; d < x.cols(); ++d) {
    const double term = multiplied(type, x.get(row, d)) * multiplied(type, b(d));
    value += term;
    magnitude += std::abs(term);
  }
  const auto roundings = static_cast<double>((type == GemmType::kBF16 ? 2 : 1) * x.cols() + 1);
  return {value, kSecondOrder * kUnitRoundoff * roundings * magnitude};
}

class Choice {
 public:
  explicit Choice(GemmChoice choice) : before_(gemm_choice()) { set_gemm_choice(choice); }
  ~Choice() { set_gemm_choice(before_); }
  Choice(const Choice&) = delete;
  Choice& operator=(const Choice&) = delete;

 private:
  const GemmChoice before_;
};

// What stderr says while f() runs.
template <class F>
std::string printed(const F& f) {
  std::fflush(stderr);
  std::FILE* const file = std::tmpfile();
  const int stderr_before = dup(2);
  REQUIRE(file);
  dup2(fileno(file), 2);
  f();
  dup2(stderr_before, 2);
  close(stderr_before);
  std::string text(static_cast<size_t>(std::max(lseek(fileno(file), 0, SEEK_END), off_t{0})), '\0');
  std::rewind(file);
  CHECK(std::fread(text.data(), 1, text.size(), file) == text.size());
  std::fclose(file);
  return text;
}

// Weights, [n, k], and what is packed of them.
class Weights {
 public:
  Weights(GemmType type, int64_t n, int64_t k)
      : type(type),
        values(random_tensor(dtype_of(type), n, k, k + 5)),
        packed_(allocate_aligned(packed_bytes(type, n, k))) {
    pack_weights(type, n, k, view(), packed_);
  }
  ~Weights() { free_aligned(packed_); }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  MatrixView view() const { return {values.dtype(), values.data(), values.stride()}; }
  GemmCall call(const Tensor& x, Tensor& y) const {
    GemmCall call = {};
    call.type = type;
    call.m = x.rows();
    call.n = values.rows();
    call.k = values.cols();
    call.x = {x.dtype(), x.data(), x.stride()};
    call.packed = packed_;
    call.b_transposed = true;
    call.y_dtype = y.dtype();
    call.y = y.data();
    call.y_stride = y.stride();
    return call;
  }
  Approx expected(const Tensor& x, int64_t row, int64_t col) const {
    return exact_product(type, x, row, [&](int64_t d) { return values.get(col, d); });
  }

  const GemmType type;
  const Tensor values;

 private:
  void* const packed_;
};

// Runs the call; the result must be right, and ACL's unless it is `native`.
void check(const Weights& weights, const Tensor& x, GemmCall call, Tensor& y, bool native = false) {
  const uint64_t before = acl_use().runs;
  gemm(call);
  CHECK(acl_use().runs - before == (native ? 0 : 1));
  const auto expected = [&](int64_t r, int64_t c) { return weights.expected(x, r, c); };
  CHECK(out_of_bounds(y, 0, y.rows(), expected) == "");
  CHECK(y.padding_intact());
}

void check_packed(const Weights& weights, int64_t m, DType x_dtype = DType::kF32) {
  CAPTURE(m);
  const Tensor x = random_tensor(x_dtype, m, weights.values.cols(), weights.values.cols() + 3);
  Tensor y(DType::kF32, m, weights.values.rows(), weights.values.rows() + 1, Guard::kAfter);
  check(weights, x, weights.call(x, y), y);
}

constexpr GemmType kRunByAcl[] = {GemmType::kF32, GemmType::kBF16};

}  // namespace

TEST_CASE("Arm Compute Library says which release it is") {
  CHECK(acl::version().find("arm_compute_version") != std::string::npos);
  CHECK(acl_version() == acl::version());
}

TEST_CASE("NEGEMM multiplies, as often as asked") {
  for (const Shape& s : kShapes) {
    CAPTURE(s.m);
    CAPTURE(s.n);
    CAPTURE(s.k);
    const Tensor b = random_tensor(DType::kF32, s.k, s.n, s.n);
    Tensor y(DType::kF32, s.m, s.n, s.n, Guard::kAfter);
    std::string reason;
    const auto gemm = acl::Gemm::prepare(
        {s.m, s.n, s.k, DType::kF32, false},
        [&](void* to, int64_t stride) {
          for (int64_t r = 0; r < s.k; ++r) {
            std::memcpy(static_cast<float*>(to) + r * stride, b.at(r), s.n * sizeof(float));
          }
        },
        &reason);
    REQUIRE_MESSAGE(gemm, reason);
    CHECK(gemm->bytes() >= (s.m * s.k + s.m * s.n) * 4);
    for (int repeat = 0; repeat < 2; ++repeat) {
      const Tensor a = random_tensor(DType::kF32, s.m, s.k, s.k);
      for (int64_t r = 0; r < s.m; ++r) {
        std::memcpy(static_cast<float*>(gemm->a()) + r * gemm->a_stride(), a.at(r),
                    s.k * sizeof(float));
      }
      gemm->run();
      for (int64_t r = 0; r < s.m; ++r) {
        std::memcpy(y.at(r), static_cast<const float*>(gemm->y()) + r * gemm->y_stride(),
                    s.n * sizeof(float));
      }
      CHECK(out_of_bounds(y, 0, s.m, [&](int64_t r, int64_t c) {
              return exact_product(GemmType::kF32, a, r, [&](int64_t d) { return b.get(d, c); });
            }) == "");
    }
  }
}

TEST_CASE("what ACL's integers cannot hold is refused") {
  std::string reason;
  const auto never = [](void*, int64_t) { FAIL("asked for weights"); };
  CHECK(!acl::Gemm::prepare({1, 1 << 16, 1 << 16, DType::kF32, false}, never, &reason));
  CHECK(reason != "");
}

TEST_CASE("the driver's products by ACL, of packed weights and of others") {
  const Choice choice(GemmChoice::kAcl);
  for (const GemmType type : kRunByAcl) {
    for (const Shape& s : kShapes) {
      CAPTURE(s.m);
      CAPTURE(s.n);
      CAPTURE(s.k);
      const Weights weights(type, s.n, s.k);
      for (const DType x_dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        const Tensor x = random_tensor(x_dtype, s.m, s.k, s.k + 3);
        Tensor y(DType::kF32, s.m, s.n, s.n + 1, Guard::kAfter);
        GemmCall call = weights.call(x, y);
        check(weights, x, call, y);
        check(weights, x, call, y);
        call.packed = nullptr;
        call.b = weights.view();
        check(weights, x, call, y);
        Tensor straight(dtype_of(type), s.k, s.n, s.n + 2, Guard::kAfter);
        for (int64_t d = 0; d < s.k; ++d) {
          for (int64_t j = 0; j < s.n; ++j) straight.set(d, j, weights.values.get(j, d));
        }
        call.b = {straight.dtype(), straight.data(), straight.stride()};
        call.b_transposed = false;
        check(weights, x, call, y);
      }
    }
  }
}

TEST_CASE("weights of a wider type are rounded as the products are") {
  const Choice choice(GemmChoice::kAcl);
  const Weights f32(GemmType::kF32, 29, 37);
  const Tensor x = random_tensor(DType::kF32, 5, 37, 37);
  Tensor y(DType::kF32, 5, 29, 29, Guard::kAfter);
  GemmCall call = f32.call(x, y);
  call.type = GemmType::kBF16;
  call.packed = nullptr;
  call.b = f32.view();
  gemm(call);
  CHECK(out_of_bounds(y, 0, 5, [&](int64_t r, int64_t c) {
          return exact_product(GemmType::kBF16, x, r,
                               [&](int64_t d) { return f32.values.get(c, d); });
        }) == "");
}

TEST_CASE("bias, activation and residual of ACL's sums") {
  const Choice choice(GemmChoice::kAcl);
  const int64_t m = 19, n = 45, k = 33;
  const Tensor bias = random_tensor(DType::kF32, 1, n, n);
  for (const GemmType type : kRunByAcl) {
    const Weights weights(type, n, k);
    const Tensor x = random_tensor(dtype_of(type), m, k, k);
    for (const DType y_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const Activation activation : {Activation::kNone, Activation::kSilu}) {
        Tensor y = random_tensor(y_dtype, m, n, n + 4);
        const Tensor residual = y;
        GemmCall call = weights.call(x, y);
        call.bias = static_cast<const float*>(bias.data());
        call.activation = activation;
        call.residual = {y_dtype, y.data(), y.stride()};
        const uint64_t before = acl_use().runs;
        gemm(call);
        CHECK(acl_use().runs == before + 1);
        CHECK(y.padding_intact());
        const auto expected = [&](int64_t r, int64_t c) -> Approx {
          Approx sum = weights.expected(x, r, c);
          sum.value += bias.get(0, c);
          sum.error += 2 * kUnitRoundoff * std::abs(sum.value);
          // silu's slope is below 1.1; eight roundings for its own arithmetic.
          const bool silu = activation == Activation::kSilu;
          const double value = silu ? sum.value / (1 + std::exp(-sum.value)) : sum.value;
          const double error = (silu ? 1.1 : 1.0) * sum.error + 8 * kUnitRoundoff * std::abs(value);
          const double total = value + residual.get(r, c);
          return {total, error + 2 * kUnitRoundoff * std::abs(total)};
        };
        CHECK(out_of_bounds(y, 0, m, expected) == "");
      }
    }
  }
}

TEST_CASE("many row counts: what is kept stays within bounds, and dropped weights come back") {
  const Choice choice(GemmChoice::kAcl);
  const Weights weights(GemmType::kF32, 20, 24);
  for (int64_t m = 1; m <= static_cast<int64_t>(kMostKeptByAcl) + 10; ++m) {
    check_packed(weights, m);
    CHECK(acl_use().kept <= kMostKeptByAcl);
    CHECK(acl_use().bytes <= kMostBytesKeptByAcl);
  }
  CHECK(acl_use().kept == kMostKeptByAcl);
  check_packed(weights, 1);  // the oldest, dropped by now
  check_packed(weights, 1);
}

TEST_CASE("bytes bound what is kept as well") {
  const Choice choice(GemmChoice::kAcl);
  const int64_t n = 8192, k = 4096, each = n * k * 4;
  const Weights weights(GemmType::kF32, n, k);
  const Tensor x = random_tensor(DType::kF32, 5, k, k);
  for (int64_t m = 1; m <= kMostBytesKeptByAcl / each + 1; ++m) {
    Tensor y(DType::kF32, m, n, n, Guard::kAfter);
    GemmCall call = weights.call(x, y);
    call.m = m;
    gemm(call);
    CHECK(acl_use().bytes >= each);
    CHECK(acl_use().bytes <= kMostBytesKeptByAcl);
  }
}

TEST_CASE("two threads at once, with the same weights and with others") {
  const Choice choice(GemmChoice::kAcl);
  const int64_t m = 24, n = 120, k = 200;
  const Weights shared(GemmType::kF32, n, k), own(GemmType::kBF16, n, k);
  const Tensor x = random_tensor(DType::kBF16, m, k, k);
  const auto work = [&](std::string* error) {
    for (int repeat = 0; repeat < 30 && error->empty(); ++repeat) {
      const Weights& weights = repeat % 3 == 0 ? own : shared;
      Tensor y(DType::kF32, m, n, n, Guard::kAfter);
      gemm(weights.call(x, y));
      *error =
          out_of_bounds(y, 0, m, [&](int64_t r, int64_t c) { return weights.expected(x, r, c); });
    }
  };
  std::string errors[2];
  std::thread other(work, &errors[1]);
  work(&errors[0]);
  other.join();
  CHECK(errors[0] == "");
  CHECK(errors[1] == "");
}

TEST_CASE("a refusal is said once, and the native kernels run") {
  const Choice choice(GemmChoice::kAcl);
  const Weights weights(GemmType::kF16, 31, 40);
  const Tensor x = random_tensor(DType::kF16, 9, 40, 40);
  Tensor native(DType::kF32, 9, 31, 31, Guard::kAfter);
  {
    const Choice of_native(GemmChoice::kNative);
    gemm(weights.call(x, native));
  }
  const uint64_t before = acl_use().runs;
  const std::string text = printed([&] {
    for (int repeat = 0; repeat < 3; ++repeat) {
      Tensor y(DType::kF32, 9, 31, 31, Guard::kAfter);
      GemmCall call = weights.call(x, y);
      gemm(call);
      const bool by_acl = acl_use().runs > before;
      if (!by_acl) CHECK(difference(y, native) == "");
      call.packed = nullptr;
      call.b = weights.view();
      gemm(call);
      if (!by_acl) CHECK(difference(y, native) == "");
    }
  });
  if (acl_use().runs > before) {
    MESSAGE("this build of ACL multiplies f16");
    CHECK(text == "");
    return;
  }
  MESSAGE(text);
  CHECK(text.find("capibara_axion: Arm Compute Library does not multiply f16") == 0);
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
}

TEST_CASE("int8, no depth, and the native choice are not for ACL") {
  const uint64_t before = acl_use().runs;
  {
    const Choice choice(GemmChoice::kAcl);
    CHECK(choose(GemmType::kInt8, 64, 64, 64, 1) == GemmBackend::kNative);
    CHECK(choose(GemmType::kF32, 64, 64, 64, 8) == GemmBackend::kAcl);
    const Tensor x = random_tensor(DType::kF32, 3, 0, 1);
    Tensor y(DType::kF32, 3, 7, 7, Guard::kAfter);
    gemm(Weights(GemmType::kF32, 7, 0).call(x, y));
    for (int64_t j = 0; j < 7; ++j) CHECK(y.get(2, j) == 0.0f);
  }
  const Choice choice(GemmChoice::kNative);
  CHECK(choose(GemmType::kF32, 64, 64, 64, 1) == GemmBackend::kNative);
  const Weights weights(GemmType::kF32, 30, 20);
  const Tensor x = random_tensor(DType::kF32, 3, 20, 20);
  Tensor y(DType::kF32, 3, 30, 30, Guard::kAfter);
  check(weights, x, weights.call(x, y), y, true);
  CHECK(acl_use().runs == before);
}

TEST_CASE("the table is for this CPU, and products of several threads are native") {
  const Choice choice(GemmChoice::kAuto);
  for (const Crossover& row : gemm_crossovers()) {
    CHECK(cpu_info().features.contains(row.required));
    CHECK(row.type != GemmType::kInt8);
    CHECK(row.least_m <= row.most_m);
    CHECK(std::string(row.measured) != "");
    CHECK(choose(row.type, row.least_m, 1 << 20, 1 << 20, 2) == GemmBackend::kNative);
  }
  // The first row that applies decides.
  if (!gemm_crossovers().empty()) {
    const Crossover& row = gemm_crossovers().front();
    const GemmBackend chosen = choose(row.type, row.least_m, 1 << 20, 1 << 10, 1);
    if (chosen == GemmBackend::kAcl) CHECK(row.backend == GemmBackend::kAcl);
  }
}

}  // namespace capibara::test
