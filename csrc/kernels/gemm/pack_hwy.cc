// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/gemm/interleave-inl.h"
#include "kernels/gemm/pack-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// Of one line, converted at a time: with eight lines, a buffer of up to 8 KB.
constexpr int64_t kChunk = 256;
constexpr int64_t kLines = 8;
constexpr int64_t kLargestAtom = 32;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lines of `to_size` * kChunk bytes, and an atom more: what is interleaved is whole atoms and
// blocks.
struct LineBuffer {
  static constexpr int64_t kStride = kChunk * 4 + kLargestAtom;
  HWY_ALIGN char bytes[kLines * kStride];

  char* line(int64_t i) { return bytes + i * kStride; }
};

class Packer {
 public:
  explicit Packer(const PackArgs& a)
      : a_(a),
        conversion_(conversion_of(a.from, a.to)),
        zero_(zero_byte(a.to)),
        depth_(a.depth),
        from_size_(static_cast<int64_t>(conversion_.from_size)),
        to_size_(static_cast<int64_t>(conversion_.to_size)),
        atom_(depth_ * to_size_),
        row_(a.panel_lines * atom_),
        panel_(static_cast<char*>(a.panel)) {}

  void pack_lines() const {
    if (a_.panel_lines == 1 && a_.lines == 1) return pack_single();
    for (int64_t first = 0; first < a_.panel_lines;) {
      const Interleaving interleaving =
          interleaving_of(static_cast<size_t>(atom_), a_.panel_lines - first);
      pack_group(first, interleaving);
      first += interleaving.lines;
    }
  }

  void pack_columns() const {
    int64_t done = 0;
    // Blocks of 16 bytes are read, so there must be one in a row.
    if (conversion_.copies && a_.lines * to_size_ >= 16) {
      done = a_.length / depth_;
      rows_function()(at(0, 0), a_.stride * from_size_, static_cast<size_t>(a_.lines),
                      static_cast<size_t>(done), panel_, static_cast<size_t>(row_));
      const int64_t written = a_.lines * atom_;
      for (int64_t group = 0; written < row_ && group < done; ++group) {
        fill_zeros(panel_ + group * row_ + written, row_ - written);
      }
    }
    for (int64_t group = done; group < divide_up(a_.length, depth_); ++group) {
      for (int64_t column = 0; column < a_.panel_lines; column += kChunk) {
        pack_some_columns(group, column, std::min(kChunk, a_.panel_lines - column));
      }
    }
  }

 private:
  const char* at(int64_t row, int64_t column) const {
    return static_cast<const char*>(a_.x) + (row * a_.stride + column) * from_size_;
  }
  void fill_zeros(char* p, int64_t bytes) const {
    std::memset(p, zero_, static_cast<size_t>(bytes));
  }
  float factor(int64_t line) const { return a_.to < Packed::kI8 ? 1.0f : a_.factors[line]; }
  InterleaveRowsFn* rows_function() const {
    return interleaving_of_rows(static_cast<size_t>(to_size_), a_.depth);
  }

  void pack_single() const {
    conversion_.run(a_.x, static_cast<size_t>(a_.length), factor(0), panel_);
    const int64_t rest = divide_up(a_.length, depth_) * depth_ - a_.length;
    if (rest) fill_zeros(panel_ + a_.length * to_size_, rest * to_size_);
  }

  // Lines from `first` on, as many as are interleaved together; those that do not exist are zero.
  void pack_group(int64_t first, const Interleaving& interleaving) const {
    char* const panel = panel_ + first * atom_;
    const int64_t lines = std::max<int64_t>(std::min(a_.lines - first, interleaving.lines), 0);
    int64_t k = 0;
    if (conversion_.copies && lines == interleaving.lines) {
      const int64_t block = std::max<int64_t>(atom_, 16) / to_size_;
      k = a_.length / block * block;
      interleaving.run(at(first, 0), a_.stride * from_size_, static_cast<size_t>(k / depth_), panel,
                       static_cast<size_t>(row_));
      if (k == a_.length) return;
    }
    LineBuffer buffer;
    for (int64_t i = lines; i < interleaving.lines; ++i) fill_zeros(buffer.line(i), buffer.kStride);
    for (; k < a_.length; k += kChunk) {
      const int64_t count = std::min(kChunk, a_.length - k);
      for (int64_t i = 0; i < lines; ++i) {
        conversion_.run(at(first + i, k), static_cast<size_t>(count), factor(first + i),
                        buffer.line(i));
        if (count < kChunk) fill_zeros(buffer.line(i) + count * to_size_, kLargestAtom);
      }
      interleaving.run(buffer.bytes, buffer.kStride, static_cast<size_t>(divide_up(count, depth_)),
                       panel + k / depth_ * row_, static_cast<size_t>(row_));
    }
  }

  // `count` columns of a group of rows from `column` on; those that do not exist are zero.
  void pack_some_columns(int64_t group, int64_t column, int64_t count) const {
    const int64_t columns = std::max<int64_t>(std::min(a_.lines - column, count), 0);
    char* const panel = panel_ + group * row_ + column * atom_;
    LineBuffer buffer;
    for (int64_t i = 0; i < depth_; ++i) {
      const int64_t k = group * depth_ + i, exist = k < a_.length ? columns : 0;
      char* const line = depth_ == 1 ? panel : buffer.line(i);
      if (exist) conversion_.run(at(k, column), static_cast<size_t>(exist), 1.0f, line);
      fill_zeros(line + exist * to_size_, (count - exist) * to_size_);
    }
    if (depth_ == 1) return;
    if (count * to_size_ >= 16) {
      return rows_function()(buffer.bytes, buffer.kStride, static_cast<size_t>(count), 1, panel, 0);
    }
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t i = 0; i < depth_; ++i) {
        std::memcpy(panel + (j * depth_ + i) * to_size_, buffer.line(i) + j * to_size_,
                    static_cast<size_t>(to_size_));
      }
    }
  }

  const PackArgs& a_;
  const Conversion conversion_;
  const int zero_;
  const int64_t depth_, from_size_, to_size_;
  const int64_t atom_, row_;  // bytes
  char* const panel_;
};

// ---------------------------------------------------------------- scales

// max |x| as bits: of numbers without their sign, the order is that of the integers they are stored
// as, with NaN above infinity.
template <class T>
uint32_t largest_magnitude(const T* x, size_t n) {
  using Bits = hwy::UnsignedFromSize<sizeof(T)>;
  const hn::ScalableTag<Bits> d;
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  const size_t lanes = hn::Lanes(d);
  const auto mask = hn::Set(d, kMagnitude);
  const Bits* bits = reinterpret_cast<const Bits*>(x);
  constexpr size_t kTotals = 4;
  Vecs<decltype(d), kTotals> largest;
  for (size_t k = 0; k < kTotals; ++k) largest.v[k] = hn::Zero(d);
  const auto add = [&](size_t k, const Bits* p) CAPIBARA_INLINE {
    largest.v[k] = hn::Max(largest.v[k], hn::And(hn::LoadU(d, p), mask));
  };
  size_t i = 0;
  for (; i + kTotals * lanes <= n; i += kTotals * lanes) {
    for (size_t k = 0; k < kTotals; ++k) add(k, bits + i + k * lanes);
  }
  for (; i + lanes <= n; i += lanes) add(0, bits + i);
  if (i < n && n >= lanes) {
    add(0, bits + n - lanes);  // some once more
  } else if (i < n) {
    Bits buffer[hn::MaxLanes(d)] = {};
    std::memcpy(buffer, bits, n * sizeof(T));
    add(0, buffer);
  }
  const auto all =
      hn::Max(hn::Max(largest.v[0], largest.v[1]), hn::Max(largest.v[2], largest.v[3]));
  Bits each[hn::MaxLanes(d)], result = 0;
  hn::StoreU(all, d, each);
  for (size_t k = 0; k < lanes; ++k) result = each[k] > result ? each[k] : result;
  return result;
}

}  // namespace

void pack_lines(const PackArgs& args) noexcept { Packer(args).pack_lines(); }

void pack_columns(const PackArgs& args) noexcept { Packer(args).pack_columns(); }

void line_scales(const LineScalesArgs& args) noexcept {
  dispatch(args.from, [&](auto element) CAPIBARA_INLINE {
    using T = decltype(element);
    const T* x = static_cast<const T*>(args.x);
    for (int64_t line = 0; line < args.lines; ++line) {
      const uint32_t bits =
          largest_magnitude(x + line * args.stride, static_cast<size_t>(args.length));
      T value;
      std::memcpy(&value, &bits, sizeof value);
      const float largest = to_f32(value);
      // As the reference computes them.
      float scale = largest / 127.0f, factor = 127.0f / largest;
      if (!std::isfinite(largest)) {
        scale = factor = std::numeric_limits<float>::quiet_NaN();
      } else if (largest == 0.0f) {
        factor = 0.0f;
      } else if (std::isinf(factor)) {
        factor = std::numeric_limits<float>::max();
      }
      args.scales[line] = scale;
      args.factors[line] = factor;
    }
  });
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
