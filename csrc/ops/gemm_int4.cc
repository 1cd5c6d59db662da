// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm_int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/rounding.h"
#include "ops/parallel.h"

namespace capibara {
namespace {

constexpr int kStep = 4;  // elements along K that lie side by side
constexpr uint8_t kMiddle = 8;
constexpr float kLargestCode = 15.0f;

const Int4Kernel& int4_kernel() { return *int4_kernels().chosen().run; }

// Where the codes of a panel are, and those of a weight.
struct Layout {
  int64_t n, k, cols, group, tile_group, tile_groups, panel_bytes;

  Layout(int64_t n, int64_t k, int64_t group, int64_t cols)
      : n(n),
        k(k),
        cols(cols),
        group(std::max<int64_t>(group, 1)),
        tile_group(int4_tile_group(group)),
        tile_groups(divide_up(k, tile_group)),
        panel_bytes(tile_groups * cols * int4_col_bytes(tile_group)) {}
  explicit Layout(const PackedHeader& h) : Layout(h.n, h.k, h.group, h.cols) {}

  int64_t panels() const { return divide_up(n, cols); }
  int64_t groups() const { return divide_up(k, group); }

  // Byte and shift of a code within a group of a panel.
  int64_t byte_of(int64_t column, int64_t at) const {
    return (at / kStep * (cols / 2) + column % (cols / 2)) * kStep + at % kStep;
  }
  int shift_of(int64_t column) const { return column < cols / 2 ? 0 : 4; }
  float* scales_of(char* block) const {
    return reinterpret_cast<float*>(block + cols * tile_group / 2);
  }
  int16_t* zeros_of(char* block) const {
    return reinterpret_cast<int16_t*>(scales_of(block) + cols);
  }

  // f(panel, its block, its columns from which on, how many, group of the tiles) on all threads.
  template <class F>
  void for_each_block(char* panels_begin, const F& f) const {
    parallel_for(panels(), panels() * panel_bytes, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t g = 0; g < tile_groups; ++g) {
          f(panels_begin + p * panel_bytes + g * cols * int4_col_bytes(tile_group), p * cols,
            std::min(cols, n - p * cols), g);
        }
      }
    });
  }
};

template <class T>
void quantise_group(const T* x, int64_t count, bool symmetric, uint8_t* codes, float* scale,
                    uint8_t* zero) {
  float least = 0.0f, greatest = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    const float value = to_f32(x[i]);
    least = std::min(least, value);
    greatest = std::max(greatest, value);
    finite = finite && std::isfinite(value);
  }
  const float step = symmetric ? std::max(greatest, -least) / (kLargestCode / 2)
                               : greatest / kLargestCode - least / kLargestCode;
  *scale = finite ? step : std::numeric_limits<float>::quiet_NaN();
  *zero = kMiddle;
  if (!finite || step == 0.0f) {
    std::fill_n(codes, count, kMiddle);
    return;
  }
  if (!symmetric) {
    *zero = static_cast<uint8_t>(std::clamp(std::nearbyint(-least / step), 0.0f, kLargestCode));
  }
  for (int64_t i = 0; i < count; ++i) {
    const float code = std::nearbyint(to_f32(x[i]) / step) + static_cast<float>(*zero);
    codes[i] = static_cast<uint8_t>(std::clamp(code, 0.0f, kLargestCode));
  }
}

}  // namespace

void quantise_int4(const MatrixView& weight, int64_t n, int64_t k, int64_t group, bool symmetric,
                   const Int4Weight& quantised) {
  if (n == 0 || k == 0) return;
  const int64_t groups = k / group;
  dispatch(weight.dtype, [&](auto element) {
    const auto* x = static_cast<const decltype(element)*>(weight.data);
    parallel_for(n, n * k * 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t g = 0; g < groups; ++g) {
          quantise_group(x + row * weight.stride + g * group, group, symmetric,
                         quantised.codes + row * k + g * group, quantised.scales + row * groups + g,
                         quantised.zeros + row * groups + g);
        }
      }
    });
  });
}

bool int4_fits_here(const PackedHeader& header) {
  const Int4Kernel& kernel = int4_kernel();
  return header.cols == kernel.cols && header.depth == kernel.kept.depth;
}

size_t packed_int4_bytes(int64_t n, int64_t k, int64_t group) {
  const Layout layout(n, k, group, int4_kernel().cols);
  return static_cast<size_t>(kPackedHeaderBytes + layout.panels() * layout.panel_bytes);
}

void pack_int4(const Int4Weight& weight, int64_t n, int64_t k, int64_t group, int digits,
               void* packed) {
  const Int4Kernel& kernel = int4_kernel();
  PackedHeader header = new_packed_header(GemmType::kInt4, n, k);
  header.a = header.b = Packed::kI8;
  header.cols = static_cast<uint8_t>(kernel.cols);
  header.depth = static_cast<uint8_t>(kernel.kept.depth);
  header.group = static_cast<int32_t>(group);
  header.digits = digits;
  header.bytes = static_cast<int64_t>(packed_int4_bytes(n, k, group));
  std::memset(packed, 0, static_cast<size_t>(header.bytes));
  std::memcpy(packed, &header, sizeof header);
  const Layout layout(header);
  char* const panels = static_cast<char*>(packed) + kPackedHeaderBytes;
  layout.for_each_block(panels, [&](char* block, int64_t first, int64_t columns, int64_t g) {
    const int64_t begin = g * layout.tile_group, count = std::min(layout.tile_group, k - begin);
    for (int64_t j = 0; j < columns; ++j) {
      const uint8_t* codes = weight.codes + (first + j) * k + begin;
      const int shift = layout.shift_of(j);
      for (int64_t i = 0; i < count; ++i) {
        block[layout.byte_of(j, i)] |= static_cast<char>(codes[i] << shift);
      }
      const int64_t of = (first + j) * layout.groups() + begin / layout.group;
      layout.scales_of(block)[j] = weight.scales[of];
      layout.zeros_of(block)[j] = weight.zeros ? weight.zeros[of] : kMiddle;
    }
  });
}

void unpack_int4(const void* packed, const Int4Weight& weight) {
  const auto& header = *static_cast<const PackedHeader*>(packed);
  const Layout layout(header);
  // What for_each_block gives is not written to.
  char* const panels = const_cast<char*>(int4_panels(packed));
  layout.for_each_block(panels, [&](char* block, int64_t first, int64_t columns, int64_t g) {
    const int64_t begin = g * layout.tile_group,
                  count = std::min(layout.tile_group, header.k - begin);
    for (int64_t j = 0; j < columns; ++j) {
      uint8_t* codes = weight.codes + (first + j) * header.k + begin;
      const int shift = layout.shift_of(j);
      for (int64_t i = 0; i < count; ++i) {
        codes[i] = static_cast<uint8_t>(block[layout.byte_of(j, i)] >> shift) & 15;
      }
      if (begin % layout.group != 0) continue;
      const int64_t of = (first + j) * layout.groups() + begin / layout.group;
      weight.scales[of] = layout.scales_of(block)[j];
      weight.zeros[of] = static_cast<uint8_t>(layout.zeros_of(block)[j]);
    }
  });
}

}  // namespace capibara
