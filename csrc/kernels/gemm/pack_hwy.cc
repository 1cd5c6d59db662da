// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/gemm/interleave-inl.h"
#include "kernels/gemm/pack-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// What is converted of a line at a time: with eight lines, 8 KB that stay in level 1.
constexpr int64_t kChunkBytes = 1024;
constexpr int64_t kLines = 8;
constexpr int64_t kLargestAtom = 32;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lines of `to_size` * kChunk bytes, and an atom more: what is interleaved is whole atoms and
// blocks.
struct LineBuffer {
  static constexpr int64_t kStride = kChunkBytes + kLargestAtom;
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
        chunk_(kChunkBytes / to_size_),
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
    const int64_t done = pack_whole_groups();
    const int64_t written = a_.lines * atom_;
    for (int64_t group = 0; written < row_ && group < done; ++group) {
      fill_zeros(panel_ + group * row_ + written, row_ - written);
    }
    for (int64_t group = done; group < divide_up(a_.length, depth_); ++group) {
      for (int64_t column = 0; column < a_.panel_lines; column += chunk_) {
        pack_some_columns(group, column, std::min(chunk_, a_.panel_lines - column));
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
  // `length` elements of each of so many lines, from (row, column) of x on.
  void convert(int64_t row, int64_t column, int64_t lines, int64_t length, char* to,
               int64_t to_stride) const {
    const float* factors = a_.to < Packed::kI8 ? nullptr : a_.factors + row;
    conversion_.run({static_cast<size_t>(lines), static_cast<size_t>(length), at(row, column),
                     a_.stride * from_size_, factors, to, to_stride});
  }
  void interleave_rows(const char* x, int64_t stride, int64_t columns, int64_t groups,
                       char* panel) const {
    const auto n = static_cast<size_t>(columns);
    interleaving_of_rows(static_cast<size_t>(to_size_), a_.depth, n)(
        x, stride, n, static_cast<size_t>(groups), panel, static_cast<size_t>(row_));
  }

  void pack_single() const {
    convert(0, 0, 1, a_.length, panel_, 0);
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
    for (; k < a_.length; k += chunk_) {
      const int64_t count = std::min(chunk_, a_.length - k);
      convert(first, k, lines, count, buffer.bytes, buffer.kStride);
      for (int64_t i = 0; count < chunk_ && i < lines; ++i) {
        fill_zeros(buffer.line(i) + count * to_size_, kLargestAtom);
      }
      interleaving.run(buffer.bytes, buffer.kStride, static_cast<size_t>(divide_up(count, depth_)),
                       panel + k / depth_ * row_, static_cast<size_t>(row_));
    }
  }

  // All columns that exist, in as many groups as can be done at once: how many.
  int64_t pack_whole_groups() const {
    // Blocks of 16 bytes are read, so there must be one in a row.
    if (conversion_.copies && a_.lines * to_size_ >= 16) {
      const int64_t groups = a_.length / depth_;
      interleave_rows(at(0, 0), a_.stride * from_size_, a_.lines, groups, panel_);
      return groups;
    }
    if (depth_ > 1) return 0;
    convert(0, 0, a_.length, a_.lines, panel_, row_);
    return a_.length;
  }

  // `count` columns of a group of rows from `column` on; those that do not exist are zero.
  void pack_some_columns(int64_t group, int64_t column, int64_t count) const {
    const int64_t columns = std::max<int64_t>(std::min(a_.lines - column, count), 0);
    char* const panel = panel_ + group * row_ + column * atom_;
    LineBuffer buffer;
    for (int64_t i = 0; i < depth_; ++i) {
      const int64_t k = group * depth_ + i, exist = k < a_.length ? columns : 0;
      if (exist) convert(k, column, 1, exist, buffer.line(i), 0);
      fill_zeros(buffer.line(i) + exist * to_size_, (count - exist) * to_size_);
    }
    if (count * to_size_ >= 16) {
      return interleave_rows(buffer.bytes, buffer.kStride, count, 1, panel);
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
  const int64_t chunk_;       // elements
  char* const panel_;
};

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
