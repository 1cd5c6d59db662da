// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/kv_cache/kv_cache.h"

namespace capibara::scalar {
namespace {

template <class T>
void put(CacheType type, void* block, int64_t at, T x, float factor) {
  const auto keep = [&](auto element) {
    std::memcpy(static_cast<char*>(block) + at * size_of(type), &element, sizeof element);
  };
  if (is_fp8(type)) return keep(to_fp8(fp8_of(type), to_f32(x) * factor));
  dispatch(static_cast<DType>(type), [&](auto element) {
    using Stored = decltype(element);
    if constexpr (DTypeOf<T>::value == DTypeOf<Stored>::value) {
      keep(x);
    } else {
      keep(from_f32<Stored>(to_f32(x)));
    }
  });
}

// What a token's elements are multiplied with; stores the scale.
template <class T>
float own_factor(Fp8 format, const T* x, int64_t n, float* scale) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(to_f32(x[i]));
    if (!(magnitude <= largest)) largest = magnitude;
    if (std::isnan(largest)) break;
  }
  *scale = 1.0f;
  if (largest == 0.0f) return 1.0f;
  if (!std::isfinite(largest)) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    return 1.0f;
  }
  *scale = largest / largest_of(format);
  if (*scale >= kSmallestTokenScale) return largest_of(format) / largest;
  *scale = kSmallestTokenScale;
  return 1.0f / kSmallestTokenScale;
}

}  // namespace

void kv_cache_write(const CacheWriteArgs& a) noexcept {
  const CacheLayout& layout = a.layout;
  dispatch(a.from, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < a.count; ++i) {
      const int64_t position = a.first + i;
      const T* key = static_cast<const T*>(a.key) + i * a.key_stride;
      const T* value = static_cast<const T*>(a.value) + i * a.value_stride;
      float key_factor = a.key_factor, value_factor = a.value_factor;
      if (is_fp8(layout.type) && a.scales_of_keys) {
        const Fp8 format = fp8_of(layout.type);
        key_factor = own_factor(format, key, layout.head_dim, a.scales_of_keys + position);
        value_factor = own_factor(format, value, layout.head_dim, a.scales_of_values + position);
      }
      for (int64_t d = 0; d < layout.head_dim; ++d) {
        put(layout.type, a.block, layout.key_at(position, d), key[d], key_factor);
        put(layout.type, a.block, layout.value_at(position, d), value[d], value_factor);
      }
    }
  });
}

}  // namespace capibara::scalar
