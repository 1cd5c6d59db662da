// SPDX-License-Identifier: Apache-2.0
#include "kernels/fp8/fp8.h"

namespace capibara::scalar {

void fp8_decode(const Fp8DecodeArgs& a) noexcept {
  dispatch(a.to, [&](auto element) {
    using T = decltype(element);
    T* y = static_cast<T*>(a.y);
    for (int64_t i = 0; i < a.count; ++i) y[i] = from_f32<T>(to_f32(a.format, a.codes[i]));
  });
}

void fp8_encode(const Fp8EncodeArgs& a) noexcept {
  dispatch(a.from, [&](auto element) {
    using T = decltype(element);
    const T* x = static_cast<const T*>(a.x);
    for (int64_t i = 0; i < a.count; ++i) a.codes[i] = to_fp8(a.format, to_f32(x[i]) * a.factor);
  });
}

}  // namespace capibara::scalar
