// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm_packed.h"

#include <atomic>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>

#include "base/rounding.h"
#include "kernels/gemm/pack.h"
#include "ops/gemm_int4.h"
#include "ops/parallel.h"

namespace capibara {
namespace {

constexpr char kMagic[8] = {'c', 'a', 'p', 'i', 'g', 'e', 'm', 'm'};
constexpr uint32_t kVersion = 2;

// Where each part begins.
struct Layout {
  int64_t scales, offsets, panels, panel_bytes, end;

  Layout(GemmType type, Packed a, Packed b, int64_t cols, int64_t depth, int64_t n, int64_t k) {
    const int64_t columns = round_up(n, cols);
    scales = kPackedHeaderBytes;
    offsets = scales + (type == GemmType::kInt8 ? round_up(columns * 4, kPackedAlignment) : 0);
    panels = offsets + (a == Packed::kU8 ? round_up(columns * 4, kPackedAlignment) : 0);
    panel_bytes = round_up(k, depth) * cols * size_of(b);
    end = panels + columns / cols * panel_bytes;
  }
  explicit Layout(const PackedHeader& h) : Layout(h.type, h.a, h.b, h.cols, h.depth, h.n, h.k) {}
};

PackedHeader header_for(GemmType type, int64_t n, int64_t k) {
  const GemmKernel& kernel = gemm_kernel(type);
  PackedHeader header = new_packed_header(type, n, k);
  header.a = kernel.a;
  header.b = kernel.b;
  header.cols = static_cast<uint8_t>(kernel.cols);
  header.depth = static_cast<uint8_t>(kernel.depth);
  header.bytes = Layout(header).end;
  return header;
}

template <class F>
void for_each_panel(const PackedHeader& header, const F& f) {
  const int64_t panels = divide_up(header.n, header.cols);
  parallel_for(panels, header.bytes, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) f(p);
  });
}

// Calls f(element within the panel, column within it, k) for what is no padding.
template <class F>
void for_each_element(const PackedHeader& h, int64_t panel, const F& f) {
  const int64_t cols = std::min<int64_t>(h.cols, h.n - panel * h.cols);
  for (int64_t group = 0; group < divide_up(h.k, h.depth); ++group) {
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t d = 0; d < std::min<int64_t>(h.depth, h.k - group * h.depth); ++d) {
        f((group * h.cols + j) * h.depth + d, j, group * h.depth + d);
      }
    }
  }
}

void add_offsets(const PackedHeader& header, int64_t panel, const int8_t* values,
                 int32_t* offsets) {
  for_each_element(header, panel, [&](int64_t element, int64_t column, int64_t) {
    offsets[panel * header.cols + column] += 128 * values[element];
  });
}

bool fits_here(const PackedHeader& header) {
  const GemmKernel& kernel = gemm_kernel(header.type);
  return header.a == kernel.a && header.b == kernel.b && header.cols == kernel.cols &&
         header.depth == kernel.depth;
}

}  // namespace

PackedHeader new_packed_header(GemmType type, int64_t n, int64_t k) {
  // Packed bytes may come from another process: two packings with one id would be taken for one.
  static std::atomic<uint64_t> next_id{(uint64_t{std::random_device()()} << 32)};
  PackedHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.type = type;
  header.n = n;
  header.k = k;
  header.id = next_id.fetch_add(1, std::memory_order_relaxed);
  return header;
}

PackedParts::PackedParts(const void* packed) {
  const auto& header = *static_cast<const PackedHeader*>(packed);
  const char* base = static_cast<const char*>(packed);
  const Layout layout(header);
  panels = base + layout.panels;
  if (header.type != GemmType::kInt8) return;
  scales = reinterpret_cast<const float*>(base + layout.scales);
  if (header.a == Packed::kU8) offsets = reinterpret_cast<const int32_t*>(base + layout.offsets);
}

size_t packed_bytes(GemmType type, int64_t n, int64_t k) {
  const GemmKernel& kernel = gemm_kernel(type);
  return static_cast<size_t>(Layout(type, kernel.a, kernel.b, kernel.cols, kernel.depth, n, k).end);
}

void pack_weights(GemmType type, int64_t n, int64_t k, const MatrixView& weight, void* packed) {
  const PackedHeader header = header_for(type, n, k);
  const Layout layout(header);
  char* const base = static_cast<char*>(packed);
  std::memset(base, 0, static_cast<size_t>(layout.panels));
  std::memcpy(base, &header, sizeof header);
  float* const scales = reinterpret_cast<float*>(base + layout.scales);
  int32_t* const offsets = reinterpret_cast<int32_t*>(base + layout.offsets);
  const int64_t size = static_cast<int64_t>(size_of(weight.dtype));
  PackFn* const pack_lines = pack_lines_kernels().chosen().run;
  LineScalesFn* const line_scales = line_scales_kernels().chosen().run;
  for_each_panel(header, [&](int64_t p) {
    const int64_t column = p * header.cols, lines = std::min<int64_t>(header.cols, n - column);
    const char* x = static_cast<const char*>(weight.data) + column * weight.stride * size;
    char* const panel = base + layout.panels + p * layout.panel_bytes;
    float factors[256];
    if (type == GemmType::kInt8) {
      line_scales({weight.dtype, x, weight.stride, lines, k, scales + column, factors});
    }
    pack_lines({weight.dtype, x, weight.stride, lines, k, header.b, header.cols, header.depth,
                factors, panel});
    if (header.a == Packed::kU8) {
      add_offsets(header, p, reinterpret_cast<const int8_t*>(panel), offsets);
    }
  });
}

void unpack_weights(const void* packed, void* values, float* scales) {
  const auto& header = *static_cast<const PackedHeader*>(packed);
  const PackedParts parts(packed);
  const Layout layout(header);
  const int64_t size = size_of(header.b);
  for_each_panel(header, [&](int64_t p) {
    const char* panel = parts.panels + p * layout.panel_bytes;
    for_each_element(header, p, [&](int64_t element, int64_t column, int64_t k) {
      const int64_t to = (p * header.cols + column) * header.k + k;
      std::memcpy(static_cast<char*>(values) + to * size, panel + element * size,
                  static_cast<size_t>(size));
    });
  });
  if (header.type == GemmType::kInt8) {
    std::memcpy(scales, parts.scales, static_cast<size_t>(header.n) * sizeof(float));
  }
}

void repack_weights(GemmType type, int64_t n, int64_t k, const void* values, const float* scales,
                    void* packed) {
  const PackedHeader header = header_for(type, n, k);
  const Layout layout(header);
  char* const base = static_cast<char*>(packed);
  std::memset(base, 0, static_cast<size_t>(layout.end));
  std::memcpy(base, &header, sizeof header);
  if (type == GemmType::kInt8) {
    std::memcpy(base + layout.scales, scales, static_cast<size_t>(n) * sizeof(float));
  }
  const int64_t size = size_of(header.b);
  for_each_panel(header, [&](int64_t p) {
    char* const panel = base + layout.panels + p * layout.panel_bytes;
    for_each_element(header, p, [&](int64_t element, int64_t column, int64_t depth) {
      const int64_t from = (p * header.cols + column) * k + depth;
      std::memcpy(panel + element * size, static_cast<const char*>(values) + from * size,
                  static_cast<size_t>(size));
    });
    if (header.a == Packed::kU8) {
      add_offsets(header, p, reinterpret_cast<const int8_t*>(panel),
                  reinterpret_cast<int32_t*>(base + layout.offsets));
    }
  });
}

const PackedHeader& packed_header(const void* packed, int64_t bytes, const char* what) {
  const auto fail = [&](const std::string& got) {
    throw std::invalid_argument(std::string(what) +
                                ": expected weights that were packed here, got " + got);
  };
  if (bytes < kPackedHeaderBytes || std::memcmp(packed, kMagic, sizeof kMagic) != 0) {
    fail("something else");
  }
  if (reinterpret_cast<uintptr_t>(packed) % kPackedAlignment != 0)
    fail("memory that is not aligned");
  const auto& header = *static_cast<const PackedHeader*>(packed);
  const bool int4 = header.type == GemmType::kInt4;
  if (header.version != kVersion || (!int4 && static_cast<int>(header.type) >= kGemmTypes)) {
    fail("something else");
  }
  const bool fits = int4 ? int4_fits_here(header) : fits_here(header);
  if (!fits) fail("some that were packed for another instruction set");
  const int64_t expected =
      int4 ? static_cast<int64_t>(packed_int4_bytes(header.n, header.k, header.group))
           : Layout(header).end;
  if (header.n < 0 || header.k < 0 || header.bytes != bytes || expected != bytes) {
    fail(std::to_string(bytes) + " bytes that should be " + std::to_string(header.bytes));
  }
  return header;
}

}  // namespace capibara
