// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/gemm/int4.h"
#include "kernels/gemm/int4_scale.h"

namespace capibara::scalar {
namespace {

constexpr int kCols = 8, kDepth = 4;

template <class T>
T element(const void* p, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(p) + index * static_cast<int64_t>(sizeof value),
              sizeof value);
  return value;
}

template <int rows>
void tile(int64_t groups, int64_t group, const void* a, const void* b, float* c, int64_t ldc,
          bool accumulate) {
  const char* left = static_cast<const char*>(a);
  const char* right = static_cast<const char*>(b);
  for (int r = 0; !accumulate && r < rows; ++r) std::fill_n(c + r * ldc, kCols, 0.0f);
  for (int64_t g = 0; g < groups; ++g) {
    const char* row_scales = left + rows * group;
    const char* row_sums = row_scales + rows * 4;
    const char* col_scales = right + kCols * group / 2;
    const char* zeros = col_scales + kCols * 4;
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < kCols; ++j) {
        int32_t sum = element<int32_t>(row_sums, r) * element<int16_t>(zeros, j);
        for (int64_t k = 0; k < group; ++k) {
          const int64_t step = k / kDepth, at = k % kDepth;
          const uint8_t both =
              element<uint8_t>(right, (step * (kCols / 2) + j % (kCols / 2)) * kDepth + at);
          const int code = j < kCols / 2 ? both & 15 : both >> 4;
          sum += code * element<int8_t>(left, (step * rows + r) * kDepth + at);
        }
        const float scale = element<float>(row_scales, r) * element<float>(col_scales, j);
        c[r * ldc + j] = std::fma(static_cast<float>(sum), scale, c[r * ldc + j]);
      }
    }
    left += rows * int4_row_bytes(group);
    right += kCols * int4_col_bytes(group);
  }
}

constexpr Int4Kernel kernel() {
  Int4Kernel kernel = {};
  kernel.cols = kCols;
  kernel.kept = {4, kDepth, 1, {tile<1>, tile<2>, tile<3>, tile<4>}};
  return kernel;
}

}  // namespace

const Int4Kernel gemm_int4 = kernel();

void int4_rows(const Int4RowsArgs& args) noexcept {
  char* block = static_cast<char*>(args.panel);
  const int64_t lines = args.panel_rows, group = args.group, depth = args.depth;
  dispatch(args.from, [&](auto type) {
    const auto* x = static_cast<const decltype(type)*>(args.x);
    for (int64_t first = 0; first < args.length; first += group) {
      const int64_t count = std::min(group, args.length - first);
      std::memset(block, 0, static_cast<size_t>(lines * int4_row_bytes(group)));
      float* const scales = reinterpret_cast<float*>(block + lines * group);
      int32_t* const sums = reinterpret_cast<int32_t*>(scales + lines);
      for (int64_t row = 0; row < args.rows; ++row) {
        const auto* values = x + row * args.stride + first;
        float largest = 0.0f;
        for (int64_t k = 0; k < count && !std::isnan(largest); ++k) {
          const float magnitude = std::fabs(to_f32(values[k]));
          if (!(magnitude <= largest)) largest = magnitude;
        }
        const Int4Scale scale = int4_scale(largest, args.digits);
        const int64_t line = row * args.digits;
        scales[line] = args.digits == 2 ? 256 * scale.scale : scale.scale;
        if (args.digits == 2) scales[line + 1] = scale.scale;
        for (int64_t k = 0; k < count && std::isfinite(largest); ++k) {
          const float scaled = to_f32(values[k]) * scale.factor;
          const int64_t at = (k / depth * lines + line) * depth + k % depth;
          int q = static_cast<int>(std::nearbyint(scaled));
          if (args.digits == 2) {
            const int high = (q + 128) >> 8;
            const int low = q - high * 256;
            block[at + depth] = static_cast<char>(low);
            if (args.sums) sums[line + 1] -= low;
            q = high;
          } else {
            q = std::clamp(q, -127, 127);
          }
          block[at] = static_cast<char>(q);
          if (args.sums) sums[line] -= q;
        }
      }
      block += lines * int4_row_bytes(group);
    }
  });
}

}  // namespace capibara::scalar
