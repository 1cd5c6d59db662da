// SPDX-License-Identifier: Apache-2.0
// The backend of operators.h on NumPy arrays, and how Python's arguments become its arrays.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>

#include "bindings/tensor_view.h"

namespace capibara {

std::string type_name(const pybind11::handle& value);

// The first argument decides between NumPy and torch, the others follow it.
pybind11::array as_array(const pybind11::handle& value, const char* name, bool first = false);
std::optional<pybind11::array> optional_array(const pybind11::object& value, const char* name);
double as_double(const pybind11::handle& value, const char* name);

struct NumPyBackend {
  using Array = pybind11::array;
  using Unlocked = pybind11::gil_scoped_release;

  static TensorView view_of(const pybind11::array& array, const char* name);
  static pybind11::array empty(const pybind11::array& array, const TensorView& view, int64_t cols);
  static pybind11::array contiguous_copy(const pybind11::array& array, const TensorView& view);
};

}  // namespace capibara
