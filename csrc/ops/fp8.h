// SPDX-License-Identifier: Apache-2.0
// The conversions of kernels/fp8, split over threads.
#pragma once

#include "kernels/fp8/fp8.h"

namespace capibara {

void fp8_encode(const Fp8EncodeArgs& call);
void fp8_decode(const Fp8DecodeArgs& call);

}  // namespace capibara
