// SPDX-License-Identifier: Apache-2.0
// Weights of 4 bits as NumPy arrays.
#include "bindings/gemm_operators.h"
#include "bindings/numpy.h"
#include "bindings/numpy_backend.h"

namespace py = pybind11;

namespace capibara {
namespace {

using B = NumPyBackend;

void quantize_int4_numpy(const py::object& weight, int64_t group, bool symmetric,
                         const py::object& codes, const py::object& scales,
                         const py::object& zeros) {
  quantize_int4<B>(as_array(weight, "weight", true), group, symmetric, as_array(codes, "codes"),
                   as_array(scales, "scales"), as_array(zeros, "zeros"));
}

void pack_int4_numpy(const py::object& codes, const py::object& scales, const py::object& zeros,
                     int64_t digits, const py::object& packed) {
  const py::array code_array = as_array(codes, "codes", true);
  const py::array scale_array = as_array(scales, "scales");
  const std::optional<py::array> zero_array = optional_array(zeros, "zeros");
  const py::array target = as_array(packed, "packed");
  const TensorView code_view = B::view_of(code_array, "codes");
  const TensorView scale_view = B::view_of(scale_array, "scales");
  const TensorView packed_view = B::view_of(target, "packed");
  TensorView zero_view = {};
  if (zero_array) zero_view = B::view_of(*zero_array, "zeros");
  const Int4Shape shape = int4_shape_of(code_view, scale_view);
  const Int4Weight weight =
      check_int4_weight(shape, code_view, scale_view, zero_array ? &zero_view : nullptr, false);
  const int of_digits = check_int4_digits(digits);
  expect_packed_memory(packed_view, check_packed_int4_bytes(shape));
  const py::gil_scoped_release unlocked;
  expect_int4_values(shape, weight);
  pack_int4(weight, shape.n, shape.k, shape.group, of_digits, packed_view.data);
}

// (codes, scales, zeros)
py::tuple unpack_int4_numpy(const py::object& packed) {
  const py::array bytes = as_array(packed, "packed");
  const TensorView view = B::view_of(bytes, "packed");
  const PackedHeader& header = expect_packed(view);
  if (header.type != GemmType::kInt4) fail(view, "weights of 4 bits", "others");
  const Int4Shape shape = {header.n, header.k, header.group};
  py::array_t<uint8_t> codes({shape.n, shape.k}), zeros({shape.n, shape.groups()});
  py::array_t<float> scales({shape.n, shape.groups()});
  const Int4Weight weight = {codes.mutable_data(), scales.mutable_data(), zeros.mutable_data()};
  {
    const py::gil_scoped_release unlocked;
    unpack_int4(&header, weight);
  }
  return py::make_tuple(codes, scales, zeros);
}

int64_t packed_int4_nbytes(int64_t n, int64_t k, int64_t group) {
  return check_packed_int4_bytes(check_int4_shape(n, k, group));
}

}  // namespace

void bind_numpy_int4(py::module_& m) {
  using py::arg;
  m.def("quantize_int4", &quantize_int4_numpy, arg("weight"), arg("group_size"), arg("symmetric"),
        arg("codes"), arg("scales"), arg("zeros"));
  m.def("pack_int4", &pack_int4_numpy, arg("codes"), arg("scales"), arg("zeros"), arg("digits"),
        arg("packed"));
  m.def("unpack_int4", &unpack_int4_numpy, arg("packed"));
  m.def("packed_int4_nbytes", &packed_int4_nbytes, arg("n"), arg("k"), arg("group_size"));
}

}  // namespace capibara
