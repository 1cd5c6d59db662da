// SPDX-License-Identifier: Apache-2.0
// What arguments are checked for, whatever the operator. Each function throws std::invalid_argument
// or TypeMismatch with a message that names the argument, what was expected and what was given.
#pragma once

#include <initializer_list>
#include <string>

#include "bindings/tensor_view.h"
#include "ops/rows.h"

namespace capibara {

[[noreturn]] void fail(const TensorView& view, const std::string& expected,
                       const std::string& given);
std::string type_name_of(const TensorView& view);

// Finite as the float that the kernels take it as.
float finite_float(const char* name, double value);

void expect_dims(const TensorView& view, int least);
void expect_index_type(const TensorView& view, IndexType index);
void expect_value_type(const TensorView& view);
void expect_dtype_of(const TensorView& view, const TensorView& model);
void expect_dtype_or_f32(const TensorView& view, const TensorView& model);
void expect_shape_of(const TensorView& view, const TensorView& model);
void expect_writable(const TensorView& view);
void expect_apart(const TensorView& view, const TensorView& other);
// out may be the input itself, element for element, or lie apart from it.
void expect_no_partial_overlap(const TensorView& out, const TensorView& input);

// Some byte belongs to elements of both. Exact for rows at one stride, as columns of a wider
// tensor have; otherwise two extents that touch count as an overlap.
bool overlaps(const TensorView& a, const TensorView& b);
// Element for element the same memory.
bool same_layout(const TensorView& a, const TensorView& b);

// The rows of an argument lie at more nested strides than the driver knows: an input is copied and
// checked again; `out` and arguments that are changed in place are refused.
struct NeedsCopy {};

struct RowLayout {
  RowShape shape;
  Rows rows[4];
};

// The leading dimensions of views of one shape (except for the last), merged wherever the strides
// of all allow it, into at most `nested` (1 or 2). Throws NeedsCopy.
RowLayout merge_rows(std::initializer_list<const TensorView*> views, int nested = 2);

// A view that a kernel can read: contiguous and aligned rows. Throws otherwise for a tensor that is
// written (`writes`); returns false for one that may be copied instead.
bool check_readable(const TensorView& view, bool writes);

}  // namespace capibara
