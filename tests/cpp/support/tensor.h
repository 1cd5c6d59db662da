// SPDX-License-Identifier: Apache-2.0
// Rows of elements in guarded memory, and how tests compare them.
#pragma once

#include <cstdint>
#include <string>

#include "base/dtype.h"
#include "support/guarded_buffer.h"
#include "support/numbers.h"

namespace capibara::test {

class Tensor {
 public:
  // `stride`: elements from row to row. The last row ends with its last element, without padding.
  Tensor(DType dtype, int64_t rows, int64_t cols, int64_t stride, Guard guard);

  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t stride() const { return stride_; }

  void* at(int64_t row, int64_t col = 0) const;
  void* data() const { return buffer_.data(); }

  float get(int64_t row, int64_t col) const;
  void set(int64_t row, int64_t col, float value);  // rounded to the dtype
  uint32_t bits(int64_t row, int64_t col) const;
  void set_bits(int64_t row, int64_t col, uint32_t bits);

  // Each element becomes next(), in the order of rows.
  template <class F>
  void fill(F&& next) {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) set(r, c, next());
    }
  }

  // Nothing was written between the rows nor around them.
  bool padding_intact() const;

 private:
  DType dtype_;
  int64_t rows_, cols_, stride_;
  GuardedBuffer buffer_;
};

// Where `got` first differs from `expected`, a tensor of the same layout: in an element's bits
// (any two NaN are the same) or in the padding. Empty if nowhere.
std::string difference(const Tensor& got, const Tensor& expected);

// Where an element of `got` in rows [begin, end) first lies outside of expected(row, col), an
// Approx; empty if nowhere.
template <class F>
std::string out_of_bounds(const Tensor& got, int64_t begin, int64_t end, const F& expected) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < got.cols(); ++c) {
      const Approx approx = expected(r, c);
      if (!admits(approx, got.dtype(), got.get(r, c))) {
        return describe(approx, got.dtype(), got.get(r, c), r, c);
      }
    }
  }
  return {};
}

// Like difference(), leaving out rows [begin, end).
std::string difference_outside(const Tensor& got, const Tensor& expected, int64_t begin,
                               int64_t end);

}  // namespace capibara::test
