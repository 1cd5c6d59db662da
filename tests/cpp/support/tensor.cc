// SPDX-License-Identifier: Apache-2.0
#include "support/tensor.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace capibara::test {

Tensor::Tensor(DType dtype, int64_t rows, int64_t cols, int64_t stride, Guard guard)
    : dtype_(dtype),
      rows_(rows),
      cols_(cols),
      stride_(stride),
      buffer_(rows ? static_cast<size_t>((rows - 1) * stride + cols) * size_of(dtype) : 0, guard) {}

void* Tensor::at(int64_t row, int64_t col) const {
  return buffer_.data() + (row * stride_ + col) * static_cast<int64_t>(size_of(dtype_));
}

float Tensor::get(int64_t row, int64_t col) const {
  return dispatch(dtype_, [&](auto element) {
    std::memcpy(&element, at(row, col), sizeof element);
    return to_f32(element);
  });
}

void Tensor::set(int64_t row, int64_t col, float value) {
  dispatch(dtype_, [&](auto element) {
    element = from_f32<decltype(element)>(value);
    std::memcpy(at(row, col), &element, sizeof element);
  });
}

uint32_t Tensor::bits(int64_t row, int64_t col) const {
  uint32_t bits = 0;  // little-endian, as every machine that this runs on
  std::memcpy(&bits, at(row, col), size_of(dtype_));
  return bits;
}

void Tensor::set_bits(int64_t row, int64_t col, uint32_t bits) {
  std::memcpy(at(row, col), &bits, size_of(dtype_));
}

bool Tensor::padding_intact() const {
  const char* begin = buffer_.pages_begin();
  for (int64_t r = 0; r < rows_; ++r) {
    if (!is_canary(begin, static_cast<const char*>(at(r)))) return false;
    begin = static_cast<const char*>(at(r, cols_));
  }
  return is_canary(begin, buffer_.pages_end());
}

std::string difference(const Tensor& got, const Tensor& expected) {
  return difference_outside(got, expected, 0, 0);
}

std::string difference_outside(const Tensor& got, const Tensor& expected, int64_t begin,
                               int64_t end) {
  for (int64_t r = 0; r < got.rows(); ++r) {
    if (r >= begin && r < end) continue;
    if (!std::memcmp(got.at(r), expected.at(r), got.cols() * size_of(got.dtype()))) continue;
    for (int64_t c = 0; c < got.cols(); ++c) {
      const float a = got.get(r, c), b = expected.get(r, c);
      if (got.bits(r, c) == expected.bits(r, c) || (std::isnan(a) && std::isnan(b))) continue;
      char text[160];
      std::snprintf(text, sizeof text, "[%d, %d]: got %.9g (%#x), expected %.9g (%#x)",
                    static_cast<int>(r), static_cast<int>(c), a, got.bits(r, c), b,
                    expected.bits(r, c));
      return text;
    }
  }
  return got.padding_intact() ? "" : "the padding around the rows was written to";
}

}  // namespace capibara::test
