// SPDX-License-Identifier: Apache-2.0
#include "bindings/expect.h"

#include <cmath>
#include <utility>

namespace capibara {

void fail(const TensorView& view, const std::string& expected, const std::string& given) {
  throw std::invalid_argument(std::string(view.name) + ": expected " + expected + ", got " + given);
}

std::string type_name_of(const TensorView& view) {
  if (view.index == IndexType::kUInt8) return "uint8";
  if (view.index == IndexType::kInt32) return "int32";
  if (view.index == IndexType::kInt64) return "int64";
  return name_of(view.dtype);
}

float finite_float(const char* name, double value) {
  const float narrowed = static_cast<float>(value);
  if (std::isfinite(narrowed)) return narrowed;
  throw std::invalid_argument(std::string(name) + ": expected a finite float32, got " +
                              std::to_string(value));
}

void expect_index_type(const TensorView& view, IndexType index) {
  if (view.index == index) return;
  const char* const name = index == IndexType::kInt32   ? "int32"
                           : index == IndexType::kInt64 ? "int64"
                                                        : "uint8";
  throw TypeMismatch(std::string(view.name) + ": expected " + name + ", got " + type_name_of(view));
}

void expect_dims(const TensorView& view, int least) {
  if (view.dims < least) {
    fail(view, "at least " + std::to_string(least) + " dimension(s)", "shape " + view.shape_text());
  }
}

void expect_value_type(const TensorView& view) {
  if (view.index == IndexType::kNone) return;
  throw TypeMismatch(std::string(view.name) + ": expected float32, float16 or bfloat16, got " +
                     type_name_of(view));
}

void expect_dtype_of(const TensorView& view, const TensorView& model) {
  expect_value_type(view);
  if (view.dtype == model.dtype) return;
  throw TypeMismatch(std::string(view.name) + ": expected the dtype of " + model.name + ", " +
                     type_name_of(model) + ", got " + type_name_of(view));
}

void expect_dtype_or_f32(const TensorView& view, const TensorView& model) {
  expect_value_type(view);
  if (view.dtype != DType::kF32) expect_dtype_of(view, model);
}

void expect_shape_of(const TensorView& view, const TensorView& model) {
  bool same = view.dims == model.dims;
  for (int i = 0; same && i < view.dims; ++i) same = view.shape[i] == model.shape[i];
  if (!same) {
    fail(view, std::string("the shape of ") + model.name + ", " + model.shape_text(),
         view.shape_text());
  }
}

bool overlaps(const TensorView& a, const TensorView& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto extent = [](const TensorView& view) {
    int64_t low = 0, high = 1;
    for (int i = 0; i < view.dims; ++i) {
      const int64_t reach = (view.shape[i] - 1) * view.strides[i];
      (reach < 0 ? low : high) += reach;
    }
    const auto size = static_cast<int64_t>(view.element_size());
    const auto base = reinterpret_cast<intptr_t>(view.data);
    return std::pair<int64_t, int64_t>(base + low * size, base + high * size);
  };
  const auto [a_low, a_high] = extent(a);
  const auto [b_low, b_high] = extent(b);
  if (a_high <= b_low || b_high <= a_low) return false;
  if (a.dims == 2 && b.dims == 2 && a.strides[0] == b.strides[0] && a.strides[0] > 0) {
    const int64_t size = static_cast<int64_t>(a.element_size()), period = a.strides[0] * size;
    const int64_t shift = ((b_low - a_low) % period + period) % period;
    return shift < a.last() * size || period - shift < b.last() * size;
  }
  return true;
}

bool same_layout(const TensorView& a, const TensorView& b) {
  if (a.data != b.data || a.dims != b.dims) return false;
  for (int i = 0; i < a.dims; ++i) {
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

void expect_writable(const TensorView& view) {
  if (view.numel() == 0) return;
  if (!view.writable) fail(view, "a writable array", "a read-only one");
  for (int i = 0; i < view.dims; ++i) {
    if (view.shape[i] > 1 && view.strides[i] == 0) {
      fail(view, "elements that do not overlap", "a broadcast array");
    }
  }
}

void expect_no_partial_overlap(const TensorView& out, const TensorView& input) {
  if (!same_layout(out, input) && overlaps(out, input)) {
    fail(out, std::string("memory apart from ") + input.name + ", or the same elements",
         "a partial overlap");
  }
}

RowLayout merge_rows(std::initializer_list<const TensorView*> views, int nested) {
  struct Level {
    int64_t size, strides[4];
  };
  Level levels[kMaxDims];
  int count = 0;
  const TensorView& model = **views.begin();
  if (model.numel() == 0) return {{0, 1}, {}};
  for (int i = 0; i < model.dims - 1; ++i) {
    if (model.shape[i] == 1) continue;
    Level level{model.shape[i], {}};
    int v = 0;
    for (const TensorView* view : views) level.strides[v++] = view->strides[i];
    bool merges = count > 0;
    for (int j = 0; merges && j < v; ++j) {
      merges = levels[count - 1].strides[j] == level.strides[j] * level.size;
    }
    if (merges) {
      level.size *= levels[count - 1].size;
      levels[count - 1] = level;
    } else {
      levels[count++] = level;
    }
  }
  if (count > nested) throw NeedsCopy{};
  RowLayout layout{{1, 1}, {}};
  int v = 0;
  for (const TensorView* view : views) {
    layout.rows[v].data = view->data;
    if (count == 2) layout.rows[v].outer_stride = levels[0].strides[v];
    if (count >= 1) layout.rows[v].inner_stride = levels[count - 1].strides[v];
    ++v;
  }
  if (count == 2) layout.shape.outer = levels[0].size;
  if (count >= 1) layout.shape.inner = levels[count - 1].size;
  return layout;
}

void expect_apart(const TensorView& view, const TensorView& other) {
  if (overlaps(view, other)) {
    fail(view, std::string("memory apart from ") + other.name, "an overlap");
  }
}

bool TensorView::contiguous() const {
  int64_t expected = 1;
  for (int i = dims - 1; i >= 0; --i) {
    if (shape[i] > 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

std::string TensorView::shape_text() const {
  std::string text = "[";
  for (int i = 0; i < dims; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

bool check_readable(const TensorView& view, bool writes) {
  if (writes) expect_writable(view);
  if (view.numel() == 0) return true;
  if (view.rows_contiguous() && view.aligned()) return true;
  if (writes) {
    fail(view, "a last dimension of stride 1, aligned to its elements",
         view.aligned() ? "stride " + std::to_string(view.strides[view.dims - 1])
                        : std::string("a misaligned array"));
  }
  return false;
}

}  // namespace capibara
