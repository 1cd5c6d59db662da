// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

namespace capibara {

void bind_numpy(pybind11::module_& m);
void bind_numpy_gemm(pybind11::module_& m);
void bind_numpy_int4(pybind11::module_& m);
void bind_numpy_attention(pybind11::module_& m);

}  // namespace capibara
