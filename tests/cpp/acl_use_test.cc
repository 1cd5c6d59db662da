// SPDX-License-Identifier: Apache-2.0
// What the driver keeps prepared for Arm Compute Library, several threads, refusals.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>

#include "support/acl.h"

namespace capibara::test {
namespace {

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

void check_packed(const Weights& weights, int64_t m, DType x_dtype = DType::kF32) {
  CAPTURE(m);
  const Tensor x = random_tensor(x_dtype, m, weights.values.cols(), weights.values.cols() + 3);
  Tensor y(DType::kF32, m, weights.values.rows(), weights.values.rows() + 1, Guard::kAfter);
  check(weights, x, weights.call(x, y), y);
}

}  // namespace

TEST_CASE("many row counts: what is kept stays within bounds, and dropped weights come back") {
  const Choice choice(GemmChoice::kAcl);
  const Weights weights(GemmType::kF32, 20, 24);
  for (int64_t m = 1; m <= static_cast<int64_t>(kAclBounds.entries) + 10; ++m) {
    check_packed(weights, m);
    CHECK(acl_use().kept <= kAclBounds.entries);
    CHECK(acl_use().bytes <= kAclBounds.bytes);
  }
  CHECK(acl_use().kept == kAclBounds.entries);
  check_packed(weights, 1);  // the oldest, dropped by now
  check_packed(weights, 1);
}

TEST_CASE("bytes bound what is kept as well") {
  const Choice choice(GemmChoice::kAcl);
  const Weights weights(GemmType::kF32, 64, 256);
  const int64_t each = 64 * 256 * 4;
  set_acl_bounds({kAclBounds.entries, 4 * each});
  for (int64_t m = 1; m <= 6; ++m) {
    check_packed(weights, m);
    CHECK(acl_use().bytes >= each);
    CHECK(acl_use().bytes <= 4 * each);
  }
  CHECK(acl_use().kept == 3);
  // More than may be kept is prepared in every call.
  set_acl_bounds({kAclBounds.entries, each});
  for (int repeat = 0; repeat < 2; ++repeat) {
    check_packed(weights, 6);
    CHECK(acl_use().kept == 0);
    CHECK(acl_use().bytes == 0);
  }
  set_acl_bounds(kAclBounds);
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
  INFO(text);
  CHECK(text.find("capibara_axion: Arm Compute Library does not multiply f16") == 0);
  CHECK(std::count(text.begin(), text.end(), '\n') == 1);
}

}  // namespace capibara::test
