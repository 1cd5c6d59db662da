// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/gemm/pack.h"

namespace capibara::scalar {
namespace {

int quantised(float x, float factor) {
  const float scaled = x * factor;
  if (std::isnan(scaled)) return 0;
  return static_cast<int>(std::nearbyint(std::clamp(scaled, -127.0f, 127.0f)));
}

template <class T>
void put(const PackArgs& args, int64_t at, int64_t line, T value) {
  const float x = to_f32(value);
  switch (args.to) {
    case Packed::kF32:
      static_cast<float*>(args.panel)[at] = x;
      return;
    case Packed::kBF16:
      static_cast<BF16*>(args.panel)[at] = from_f32<BF16>(x);
      return;
    case Packed::kF16:
      static_cast<F16*>(args.panel)[at] = from_f32<F16>(x);
      return;
    case Packed::kI8:
      static_cast<int8_t*>(args.panel)[at] = static_cast<int8_t>(quantised(x, args.factors[line]));
      return;
    case Packed::kU8:
      static_cast<uint8_t*>(args.panel)[at] =
          static_cast<uint8_t>(quantised(x, args.factors[line]) + 128);
      return;
    case Packed::kI16:
      static_cast<int16_t*>(args.panel)[at] =
          static_cast<int16_t>(quantised(x, args.factors[line]));
      return;
  }
}

// element(line, k): its place in x.
template <class F>
void pack(const PackArgs& args, const F& element) {
  const int64_t groups = (args.length + args.depth - 1) / args.depth;
  const int64_t elements = groups * args.panel_lines * args.depth;
  // An integer zero that kU8 stores has 128 added, like every other.
  std::memset(args.panel, args.to == Packed::kU8 ? 128 : 0,
              static_cast<size_t>(elements * size_of(args.to)));
  dispatch(args.from, [&](auto type) {
    const auto* x = static_cast<const decltype(type)*>(args.x);
    for (int64_t line = 0; line < args.lines; ++line) {
      for (int64_t k = 0; k < args.length; ++k) {
        const int64_t group = k / args.depth;
        const int64_t at = (group * args.panel_lines + line) * args.depth + k % args.depth;
        put(args, at, line, x[element(line, k)]);
      }
    }
  });
}

}  // namespace

void pack_lines(const PackArgs& args) noexcept {
  pack(args, [&](int64_t line, int64_t k) { return line * args.stride + k; });
}

void pack_columns(const PackArgs& args) noexcept {
  pack(args, [&](int64_t line, int64_t k) { return k * args.stride + line; });
}

void line_scales(const LineScalesArgs& args) noexcept {
  dispatch(args.from, [&](auto type) {
    const auto* x = static_cast<const decltype(type)*>(args.x);
    for (int64_t line = 0; line < args.lines; ++line) {
      float largest = 0.0f;
      for (int64_t k = 0; k < args.length; ++k) {
        const float magnitude = std::fabs(to_f32(x[line * args.stride + k]));
        if (!(magnitude <= largest)) largest = magnitude;
        if (std::isnan(largest)) break;
      }
      // A factor that overflows, where the largest value is below 127 / the largest f32, would make
      // infinities of what is to be 127.
      const float factor = std::min(127.0f / largest, std::numeric_limits<float>::max());
      const bool finite = std::isfinite(largest);
      const float nan = std::numeric_limits<float>::quiet_NaN();
      args.scales[line] = finite ? largest / 127.0f : nan;
      args.factors[line] = !finite ? nan : largest == 0.0f ? 0.0f : factor;
    }
  });
}

}  // namespace capibara::scalar
