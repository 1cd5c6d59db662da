// SPDX-License-Identifier: Apache-2.0
// How drivers see a tensor: rows of contiguous elements, at one stride or at two nested ones (the
// heads of a token that lie in a wider row, such as q within qkv).
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/parallel.h"

namespace capibara {

struct RowShape {
  int64_t outer, inner;
  int64_t count() const { return outer * inner; }
};

// Strides in elements.
struct Rows {
  void* data = nullptr;
  int64_t outer_stride = 0, inner_stride = 0;

  void* outer(int64_t index, size_t element_size) const {
    return static_cast<char*>(data) + index * outer_stride * static_cast<int64_t>(element_size);
  }
};

// Splits the rows over threads, each range into runs that lie at one stride, and calls
// f(outer index, inner begin, inner end) on each run.
template <class F>
void parallel_rows(RowShape shape, int64_t bytes_per_row, const F& f) {
  parallel_for(shape.count(), shape.count() * bytes_per_row, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t outer = begin / shape.inner, inner = begin % shape.inner;
      const int64_t run = std::min(end - begin, shape.inner - inner);
      f(outer, inner, inner + run);
      begin += run;
    }
  });
}

}  // namespace capibara
