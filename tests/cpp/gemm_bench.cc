// SPDX-License-Identifier: Apache-2.0
// How close the matrix tiles come to what bounds them, on one thread:
//   the full tile, panels in the caches: percent of the multiplications a second that the ISA's
//   instruction reaches in a loop that touches nothing but registers;
//   one row, panels of B from memory: GB/s, and percent of a loop that only loads them.
// Panels of B make up 33 MiB, or argv[1] MiB. Each is measured by turns with its bound, and the
// least time of many counts: what else the machine does only adds to it.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "kernels/gemm/gemm.h"
#include "support/register_loops.h"
#include "support/timing.h"

namespace capibara::test {
namespace {

// The instruction of the kernel's own, or else the multiply-add of f32; null if unknown.
const Peak* peak_of(GemmType type, Isa isa) {
  for (std::string_view of : {std::string_view(name_of(type)), std::string_view("f32")}) {
    for (const Peak& peak : kPeaks) {
      if (peak.type == of && peak.isa == info_of(isa).name) return &peak;
    }
    if (type == GemmType::kInt8) break;
  }
  return nullptr;
}

struct Times {
  double a, b;
};
// The least microseconds of either, measured by turns.
template <class A, class B>
Times least_us(int turns, const A& a, const B& b) {
  Times least = {1e30, 1e30};
  for (int i = 0; i < turns; ++i) {
    const double start = microseconds_now();
    a();
    const double between = microseconds_now();
    b();
    least.a = std::min(least.a, between - start);
    least.b = std::min(least.b, microseconds_now() - between);
  }
  return least;
}

void* allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{1} << 21;
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* p = std::aligned_alloc(kHugePage, rounded);
  if (!p) std::abort();
  madvise(p, rounded, MADV_HUGEPAGE);
  std::memset(p, 0x3c, rounded);  // small numbers in every type
  return p;
}

struct Buffers {
  size_t b_bytes;
  void *a, *b, *c;
};

void print_kernel(GemmType type, const Kernel<const GemmKernel>& kernel, const Buffers& buffers) {
  const GemmKernel& gemm = *kernel.run;
  std::printf("%-5s %-12s %2d x %2d |", name_of(type), info_of(kernel.isa).name, gemm.rows,
              gemm.cols);
  const Peak* peak = peak_of(type, kernel.isa);
  for (int64_t k : {256, 512, 1024}) {
    constexpr int kRepeats = 4;
    const auto products = static_cast<double>(kRepeats * gemm.rows * gemm.cols * k);
    const auto tile = [&] {
      for (int i = 0; i < kRepeats; ++i) {
        gemm.tiles[gemm.rows - 1](k / gemm.depth, buffers.a, buffers.b, buffers.c, gemm.cols, true);
      }
    };
    const int64_t n = peak ? static_cast<int64_t>(products) / peak->products : 0;
    const Times us = least_us(2000, tile, [&] {
      if (peak) peak->loop(n, buffers.a);
    });
    std::printf(" %7.1f", products / us.a / 1e3);
    if (peak) std::printf(" (%5.1f %%)", products / us.a / (n * peak->products / us.b) * 100);
  }

  constexpr int64_t kDepthOfOneRow = 4096;
  const int64_t panel_bytes = kDepthOfOneRow * gemm.cols * size_of(gemm.b);
  const int64_t panels = static_cast<int64_t>(buffers.b_bytes) / panel_bytes;
  const double bytes = static_cast<double>(panels * panel_bytes);
  const Times us = least_us(
      50,
      [&] {
        for (int64_t i = 0; i < panels; ++i) {
          gemm.tiles[0](kDepthOfOneRow / gemm.depth, buffers.a,
                        static_cast<const char*>(buffers.b) + i * panel_bytes, buffers.c, gemm.cols,
                        false);
        }
      },
      [&] { read_loop()(panels * panel_bytes / 512, buffers.b); });
  std::printf(" | %6.2f GB/s of %6.2f (%5.1f %%)\n", bytes / us.a / 1e3, bytes / us.b / 1e3,
              100 * us.b / us.a);
}

}  // namespace
}  // namespace capibara::test

int main(int argc, char** argv) {
  using namespace capibara;
  using namespace capibara::test;
  const size_t mib = argc > 1 ? static_cast<size_t>(std::atoi(argv[1])) : 33;
  const Buffers buffers = {mib << 20, allocate(1 << 20), allocate(mib << 20), allocate(1 << 16)};
  std::printf(
      "%-18s  rows x cols | 10^9 products/s (of the peak) at k = 256, 512, 1024 | one row\n", "");
  for (int type = 0; type < kGemmTypes; ++type) {
    for (const auto& kernel : gemm_kernels(static_cast<GemmType>(type)).all()) {
      if (kernel.isa == Isa::scalar || !runs_here(kernel.isa)) continue;
      print_kernel(static_cast<GemmType>(type), kernel, buffers);
    }
  }
}
