// SPDX-License-Identifier: Apache-2.0
// When a second thread pays: what it costs to start two threads on nothing, and how long one and
// two threads take for growing work. The size from which two win sets kBytesPerThread in
// csrc/ops/parallel.cc: threads_for() starts the second at twice that.
#include <cstdio>
#include <thread>
#include <vector>

#include "kernels/gated/gated.h"
#include "kernels/norm/norm.h"
#include "ops/parallel.h"
#include "support/timing.h"

namespace capibara::test {
namespace {

constexpr int64_t kCols = 1024;  // small rows, so that small work splits evenly

// f(begin, end) of `rows` on two threads, whatever threads_for() thinks of it.
template <class F>
void on_two_threads(int64_t rows, const F& f) {
  run_ranges(
      rows, 2,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      const_cast<F*>(&f));
}

// The runtime's idle threads spin for a while, then sleep: the first call after a pause wakes them.
double fork_join_after_pause_us(std::chrono::milliseconds pause) {
  std::vector<double> samples;
  for (int i = 0; i < 101; ++i) {
    std::this_thread::sleep_for(pause);
    const double start = microseconds_now();
    on_two_threads(2, [](int64_t, int64_t) {});
    samples.push_back(microseconds_now() - start);
  }
  std::nth_element(samples.begin(), samples.begin() + 50, samples.end());
  return samples[50];
}

void rms_norm_rows(const std::vector<BF16>& in, std::vector<BF16>& out, int64_t begin,
                   int64_t end) {
  const NormArgs args = {DType::kBF16, DType::kBF16, kCols, in.data(), kCols, out.data(),
                         kCols,        nullptr,      0,     in.data(), 1,     1e-6f};
  rms_norm_kernels().chosen().run(args, begin, end);
}

// Packed [gate | up] rows.
void silu_and_mul_rows(const std::vector<BF16>& in, std::vector<BF16>& out, int64_t begin,
                       int64_t end) {
  const GatedArgs args = {DType::kBF16,      kCols,     in.data(),  2 * kCols,
                          in.data() + kCols, 2 * kCols, out.data(), kCols};
  silu_and_mul_kernels().chosen().run(args, begin, end);
}

using RowsFn = void(const std::vector<BF16>&, std::vector<BF16>&, int64_t, int64_t);

// `streams`: rows of kCols that are read or written for each row, as csrc/ops counts them.
void print_table(const char* op, RowsFn* run, int64_t streams) {
  std::printf("\n%s, bfloat16, %d columns\n%10s %10s %10s %8s\n", op, static_cast<int>(kCols),
              "KiB", "1 thread", "2 threads", "speedup");
  for (int64_t rows = 2; rows <= 1024; rows *= 2) {
    const auto elements = static_cast<size_t>(rows * kCols);
    const std::vector<BF16> in(2 * elements, to_bf16(0.5f));
    std::vector<BF16> out(elements);
    const auto range = [&](int64_t begin, int64_t end) { run(in, out, begin, end); };
    const double one = median_us([&] { range(0, rows); });
    const double two = median_us([&] { on_two_threads(rows, range); });
    std::printf("%10d %7.2f us %7.2f us %8.2f\n",
                static_cast<int>(rows * kCols * streams * 2 / 1024), one, two, one / two);
  }
}

}  // namespace
}  // namespace capibara::test

int main() {
  using namespace capibara;
  using namespace capibara::test;
  std::printf("OpenMP: %s\n", openmp_library().c_str());
  if (openmp_library().empty()) return 1;
  // At first both threads may be on one core; the system takes a while to part them.
  median_us([] { on_two_threads(2, [](int64_t, int64_t) {}); }, 1e6);
  std::printf("fork and join of 2 threads: %.2f us",
              median_us([] { on_two_threads(2, [](int64_t, int64_t) {}); }));
  for (int pause : {1, 10, 100}) {
    std::printf("; after %d ms %.2f us", pause,
                fork_join_after_pause_us(std::chrono::milliseconds(pause)));
  }
  std::puts("");
  print_table("rms_norm", rms_norm_rows, 2);
  print_table("silu_and_mul", silu_and_mul_rows, 3);
}
