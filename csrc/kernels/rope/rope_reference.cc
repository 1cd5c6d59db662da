// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope/rope.h"

namespace capibara::scalar {
namespace {

template <class T, class C>
void rotate(const RopeArgs& a, const RopeHeads& heads, int64_t token) {
  const int64_t half = a.rotary_dim / 2;
  const C* cos = static_cast<const C*>(a.cache) + position_of(a, token) * a.rotary_dim;
  const C* sin = cos + half;
  for (int64_t h = 0; h < heads.heads; ++h) {
    T* x = static_cast<T*>(heads.data) + token * heads.token_stride + h * heads.head_stride;
    for (int64_t i = 0; i < half; ++i) {
      T& first = a.neox ? x[i] : x[2 * i];
      T& second = a.neox ? x[i + half] : x[2 * i + 1];
      const float x1 = to_f32(first), x2 = to_f32(second);
      const float c = to_f32(cos[i]), s = to_f32(sin[i]);
      first = from_f32<T>(x1 * c - x2 * s);
      second = from_f32<T>(x2 * c + x1 * s);
    }
  }
}

}  // namespace

void rope(const RopeArgs& a, int64_t begin, int64_t end) noexcept {
  dispatch(a.dtype, [&](auto element) {
    dispatch(a.cache_dtype, [&](auto cache_element) {
      for (int64_t token = begin; token < end; ++token) {
        rotate<decltype(element), decltype(cache_element)>(a, a.q, token);
        rotate<decltype(element), decltype(cache_element)>(a, a.k, token);
      }
    });
  });
}

}  // namespace capibara::scalar
