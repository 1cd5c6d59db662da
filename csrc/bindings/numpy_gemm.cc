// SPDX-License-Identifier: Apache-2.0
// The matrix products on NumPy arrays, and the memory of packed weights.
#include "base/buffer.h"
#include "bindings/gemm_operators.h"
#include "bindings/numpy.h"
#include "bindings/numpy_backend.h"

namespace py = pybind11;

namespace capibara {
namespace {

using B = NumPyBackend;

py::array matmul_numpy(const py::object& a, const py::object& b, const py::object& out) {
  return matmul<B>(as_array(a, "a", true), as_array(b, "b"), optional_array(out, "out"));
}

LinearArguments<B> linear_arguments(const py::object& bias, const py::object& residual,
                                    int64_t activation, const py::object& out) {
  return {optional_array(bias, "bias"), optional_array(residual, "residual"), activation,
          optional_array(out, "out")};
}

py::array linear_numpy(const py::object& x, const py::object& weight, const py::object& bias,
                       const py::object& residual, int64_t activation, const py::object& out) {
  return linear<B>(as_array(x, "x", true), as_array(weight, "weight"),
                   linear_arguments(bias, residual, activation, out));
}

py::array packed_linear_numpy(const py::object& x, const py::object& packed, int64_t out_features,
                              const py::object& bias, const py::object& residual,
                              int64_t activation, const py::object& out) {
  return packed_linear<B>(as_array(x, "x", true), as_array(packed, "packed"), out_features,
                          linear_arguments(bias, residual, activation, out));
}

void pack_linear_numpy(const py::object& weight, const py::object& packed, int64_t type) {
  pack_linear<B>(as_array(weight, "weight", true), as_array(packed, "packed"), type);
}

int64_t packed_nbytes(int64_t type, int64_t n, int64_t k) {
  return check_packed_bytes("weight", check_gemm_type(type), n, k);
}

py::array aligned_empty(int64_t nbytes) {
  if (nbytes < 0) {
    throw std::invalid_argument("nbytes: expected a number that is not negative, got " +
                                std::to_string(nbytes));
  }
  void* data = allocate_aligned(static_cast<size_t>(nbytes));
  const py::capsule owner(data, &free_aligned);
  return py::array(py::dtype::of<uint8_t>(), {static_cast<py::ssize_t>(nbytes)}, {1}, data, owner);
}

// ---------------------------------------------------------------- the weights themselves
//
// bfloat16 as its bits: the type is not NumPy's own.

const char* numpy_name(GemmType type) {
  constexpr const char* kNames[kGemmTypes] = {"float32", "uint16", "float16", "int8"};
  return kNames[static_cast<int>(type)];
}

// (values, scales or None)
py::tuple unpack_linear(const py::object& packed) {
  const py::array bytes = as_array(packed, "packed");
  const TensorView view = B::view_of(bytes, "packed");
  const PackedHeader& header = expect_packed(view);
  if (header.type == GemmType::kInt4) fail(view, "weights of another type", "int4");
  py::array values(py::dtype(numpy_name(header.type)), {header.n, header.k});
  py::object scales = py::none();
  float* numbers = nullptr;
  if (header.type == GemmType::kInt8) {
    py::array_t<float> array(header.n);
    numbers = array.mutable_data();
    scales = std::move(array);
  }
  void* const to = values.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    unpack_weights(&header, to, numbers);
  }
  return py::make_tuple(values, scales);
}

py::array contiguous(const py::object& value, const char* name, const char* dtype) {
  const py::array array = as_array(value, name);
  if (!array.dtype().equal(py::dtype(dtype))) {
    throw TypeMismatch(std::string(name) + ": expected " + dtype + ", got " +
                       py::str(array.dtype()).cast<std::string>());
  }
  return py::array::ensure(array, py::array::c_style);
}

// What unpack_linear gave, packed again.
void repack_linear(int64_t type, const py::object& values, const py::object& scales,
                   const py::object& packed) {
  const GemmType of = check_gemm_type(type);
  const py::array weight = contiguous(values, "weight", numpy_name(of));
  if (weight.ndim() != 2) {
    throw std::invalid_argument("weight: expected 2 dimensions, got " +
                                std::to_string(weight.ndim()));
  }
  const int64_t n = weight.shape(0), k = weight.shape(1);
  const float* numbers = nullptr;
  py::array factors;
  if (of == GemmType::kInt8) {
    factors = contiguous(scales, "scales", "float32");
    if (factors.ndim() != 1 || factors.shape(0) != n) {
      throw std::invalid_argument("scales: expected shape [" + std::to_string(n) + "], got " +
                                  B::view_of(factors, "scales").shape_text());
    }
    numbers = static_cast<const float*>(factors.data());
  }
  const int64_t bytes = check_packed_bytes("weight", of, n, k);
  const py::array target = as_array(packed, "packed");
  const TensorView view = B::view_of(target, "packed");
  expect_packed_memory(view, bytes);
  const py::gil_scoped_release unlocked;
  repack_weights(of, n, k, weight.data(), numbers, view.data);
}

}  // namespace

void bind_numpy_gemm(py::module_& m) {
  using py::arg;
  m.def("matmul", &matmul_numpy, arg("a"), arg("b"), arg("out"));
  m.def("linear", &linear_numpy, arg("x"), arg("weight"), arg("bias"), arg("residual"),
        arg("activation"), arg("out"));
  m.def("packed_linear", &packed_linear_numpy, arg("x"), arg("packed"), arg("out_features"),
        arg("bias"), arg("residual"), arg("activation"), arg("out"));
  m.def("pack_linear", &pack_linear_numpy, arg("weight"), arg("packed"), arg("type"));
  m.def("unpack_linear", &unpack_linear, arg("packed"));
  m.def("repack_linear", &repack_linear, arg("type"), arg("values"), arg("scales"), arg("packed"));
  m.def("packed_nbytes", &packed_nbytes, arg("type"), arg("n"), arg("k"));
  bind_numpy_int4(m);
  m.def("aligned_empty", &aligned_empty, arg("nbytes"));
}

}  // namespace capibara
