// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace capibara {

// Implements torch.ops.capibara_axion.* for the CPU; the schemas must be defined already.
// `libtorch`: the path of the loaded libtorch_cpu. Does nothing the second time.
// Throws std::runtime_error if the library lacks a function of torch's stable C interface.
void register_torch_ops(const std::string& libtorch);

}  // namespace capibara
