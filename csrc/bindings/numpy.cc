// SPDX-License-Identifier: Apache-2.0
// The operators on NumPy arrays.
#include "bindings/numpy.h"

#include "bindings/numpy_backend.h"
#include "bindings/operators.h"

namespace py = pybind11;

namespace capibara {
namespace {

// ml_dtypes.bfloat16 is a NumPy user type, whose number is known once the package is imported.
bool is_bfloat16(const py::dtype& dtype) {
  static int known = -1;
  const int number = dtype.num();
  if (number == known) return true;
  if (number < 256) return false;  // NPY_USERDEF
  if (py::str(dtype.attr("name")).cast<std::string>() != "bfloat16") return false;
  known = number;
  return true;
}

}  // namespace

std::string type_name(const py::handle& value) {
  return py::str(py::type::handle_of(value).attr("__name__"));
}

py::array as_array(const py::handle& value, const char* name, bool first) {
  if (py::isinstance<py::array>(value)) return py::reinterpret_borrow<py::array>(value);
  throw TypeMismatch(std::string(name) + ": expected a NumPy array" +
                     (first ? " or a torch tensor" : ", as the first argument is") + ", got " +
                     type_name(value));
}

std::optional<py::array> optional_array(const py::object& value, const char* name) {
  if (value.is_none()) return std::nullopt;
  return as_array(value, name);
}

double as_double(const py::handle& value, const char* name) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number != -1.0 || !PyErr_Occurred()) return number;
  PyErr_Clear();
  throw TypeMismatch(std::string(name) + ": expected a number, got " + type_name(value));
}

TensorView NumPyBackend::view_of(const py::array& array, const char* name) {
  TensorView view = {};
  view.name = name;
  view.whole_strides = true;
  const py::dtype dtype = array.dtype();
  const int number = dtype.num();
  const bool native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
  if (native && number == py::detail::npy_api::NPY_FLOAT_) {
    view.dtype = DType::kF32;
  } else if (native && number == 23) {  // NPY_HALF, which pybind11 has no name for
    view.dtype = DType::kF16;
  } else if (native && is_bfloat16(dtype)) {
    view.dtype = DType::kBF16;
  } else if (native && dtype.kind() == 'i' && dtype.itemsize() == 4) {
    view.index = IndexType::kInt32;
  } else if (native && dtype.kind() == 'i' && dtype.itemsize() == 8) {
    view.index = IndexType::kInt64;
  } else if (dtype.kind() == 'u' && dtype.itemsize() == 1) {
    view.index = IndexType::kUInt8;
  } else {
    throw TypeMismatch(std::string(name) + ": expected float32, float16 or bfloat16, got " +
                       py::str(dtype).cast<std::string>());
  }
  if (array.ndim() > kMaxDims) {
    throw std::invalid_argument(std::string(name) + ": expected at most " +
                                std::to_string(kMaxDims) + " dimensions, got " +
                                std::to_string(array.ndim()));
  }
  view.dims = static_cast<int>(array.ndim());
  view.data = const_cast<void*>(array.data());
  view.writable = array.writeable();
  for (int i = 0; i < view.dims; ++i) {
    view.shape[i] = array.shape(i);
    const auto size = static_cast<int64_t>(view.element_size());
    view.strides[i] = array.strides(i) / size;
    // Elements of a structured array can lie anywhere: no kernel can follow that.
    if (array.strides(i) % size && array.shape(i) > 1) view.whole_strides = false;
  }
  return view;
}

py::array NumPyBackend::empty(const py::array& array, const TensorView& view, int64_t cols) {
  std::vector<py::ssize_t> shape(view.shape, view.shape + view.dims);
  if (!shape.empty()) shape.back() = cols;
  return py::array(array.dtype(), shape);
}

py::array NumPyBackend::contiguous_copy(const py::array& array, const TensorView&) {
  return array.attr("copy")("C");
}

namespace {

using B = NumPyBackend;

template <NormDriver driver, bool heads>
py::array norm_numpy(const py::object& x, const py::object& weight, const py::object& eps,
                     const py::object& out) {
  return norm<B>(driver, heads, as_array(x, "x", true), as_array(weight, "weight"),
                 as_double(eps, "eps"), optional_array(out, "out"));
}

void fused_add_rms_norm_numpy(const py::object& x, const py::object& residual,
                              const py::object& weight, const py::object& eps) {
  fused_add_norm<B>(as_array(x, "x", true), as_array(residual, "residual"),
                    as_array(weight, "weight"), as_double(eps, "eps"));
}

py::array softmax_numpy(const py::object& x, const py::object& scale, const py::object& lengths,
                        const py::object& out) {
  return softmax_rows<B>(as_array(x, "x", true), as_double(scale, "scale"),
                         optional_array(lengths, "lengths"), optional_array(out, "out"));
}

template <GatedDriver driver>
py::array gated_numpy(const py::object& gate, const py::object& up, const py::object& out) {
  return gated<B>(driver, as_array(gate, up.is_none() ? "gate_up" : "gate", true),
                  optional_array(up, "up"), optional_array(out, "out"));
}

void rope_numpy(const py::object& q, const py::object& k, const py::object& cos_sin_cache,
                const py::object& positions, int64_t head_dim, bool neox) {
  rotate<B>(as_array(q, "q", true), optional_array(k, "k"),
            as_array(cos_sin_cache, "cos_sin_cache"), as_array(positions, "positions"), head_dim,
            neox);
}

}  // namespace

void bind_numpy(py::module_& m) {
  using py::arg;
  bind_numpy_gemm(m);
  bind_numpy_attention(m);
  m.def("rms_norm", &norm_numpy<rms_norm, false>, arg("x"), arg("weight"), arg("eps"), arg("out"));
  m.def("layer_norm", &norm_numpy<layer_norm, true>, arg("x"), arg("weight"), arg("eps"),
        arg("out"));
  m.def("fused_add_rms_norm", &fused_add_rms_norm_numpy, arg("x"), arg("residual"), arg("weight"),
        arg("eps"));
  m.def("softmax", &softmax_numpy, arg("x"), arg("scale"), arg("lengths"), arg("out"));
  m.def("silu_and_mul", &gated_numpy<silu_and_mul>, arg("gate"), arg("up"), arg("out"));
  m.def("gelu_and_mul", &gated_numpy<gelu_and_mul>, arg("gate"), arg("up"), arg("out"));
  m.def("gelu_tanh_and_mul", &gated_numpy<gelu_tanh_and_mul>, arg("gate"), arg("up"), arg("out"));
  m.def("rope", &rope_numpy, arg("q"), arg("k"), arg("cos_sin_cache"), arg("positions"),
        arg("head_dim"), arg("neox"));
}

}  // namespace capibara
