// SPDX-License-Identifier: Apache-2.0
// The panels that matrix tiles read, element by element in the layout that gemm.h documents.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "base/dtype.h"
#include "kernels/gemm/gemm.h"
#include "support/guarded_buffer.h"

namespace capibara::test {

template <class T>
float keep(char* at, T element, float value) {
  std::memcpy(at, &element, sizeof element);
  return value;
}

// Stores x as an element of a panel; returns what it has become.
inline float store(Packed type, char* at, float x) {
  switch (type) {
    case Packed::kBF16:
      return keep(at, to_bf16(x), to_f32(to_bf16(x)));
    case Packed::kF16:
      return keep(at, to_f16(x), to_f32(to_f16(x)));
    case Packed::kI8:
      return keep(at, static_cast<int8_t>(x), x);
    case Packed::kU8:
      return keep(at, static_cast<uint8_t>(x), x);
    case Packed::kI16:
      return keep(at, static_cast<int16_t>(x), x);
    default:
      return keep(at, x, x);
  }
}

// [K / depth][lines][depth] in guarded memory.
class Panel {
 public:
  Panel(Packed type, int lines, int depth, int64_t steps, Guard guard)
      : type_(type),
        lines_(lines),
        depth_(depth),
        length_(steps * depth),
        values_(static_cast<size_t>(lines * length_)),
        buffer_(values_.size() * size_of(type), guard) {}

  Packed type() const { return type_; }
  int64_t length() const { return length_; }
  const void* data() const { return buffer_.data(); }
  double value(int line, int64_t k) const { return values_[k * lines_ + line]; }

  void set(int line, int64_t k, float x) {
    const int64_t index = (k / depth_ * lines_ + line) * depth_ + k % depth_;
    values_[k * lines_ + line] = store(type_, buffer_.data() + index * size_of(type_), x);
  }
  // The first `lines` become next(); others, which fill up a pair of rows, zero.
  template <class F>
  void fill(int lines, const F& next) {
    for (int64_t k = 0; k < length_; ++k) {
      for (int line = 0; line < lines_; ++line) set(line, k, line < lines ? next() : 0.0f);
    }
  }

 private:
  Packed type_;
  int lines_, depth_;
  int64_t length_;
  std::vector<float> values_;
  GuardedBuffer buffer_;
};

}  // namespace capibara::test
