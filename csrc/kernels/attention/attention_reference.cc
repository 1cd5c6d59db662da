// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/attention/attention.h"

namespace capibara::scalar {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What is added to the maximum where there is none yet.
float finite_or_zero(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

float logit(const AttentionSoftmaxArgs& a, int64_t r, int64_t j) {
  float z = a.scores[r * a.stride + j] * a.scale;
  if (a.key_scales) z *= a.key_scales[j];
  if (a.softcap != 0.0f) z = a.softcap * std::tanh(z / a.softcap);
  if (a.slopes) z += a.slopes[r] * static_cast<float>(j) + a.offsets[r];
  return z * kLog2E;
}

template <class T>
void softmax_row(const AttentionSoftmaxArgs& a, int64_t r) {
  float* scores = a.scores + r * a.stride;
  float maximum = a.maxima[r];
  for (int64_t j = 0; j < a.keys; ++j) {
    scores[j] = a.begin[r] <= j && j < a.end[r] ? logit(a, r, j) : -kInfinity;
    if (scores[j] > maximum) maximum = scores[j];
  }
  const float subtrahend = finite_or_zero(maximum);
  a.corrections[r] = std::exp2(a.maxima[r] - subtrahend);
  float sum = 0.0f;
  T* p = static_cast<T*>(a.p);
  for (int64_t j = 0; j < a.keys; ++j) {
    const float e = std::exp2(scores[j] - subtrahend);
    sum += e;
    const float weighted = a.value_scales ? e * a.value_scales[j] : e;
    p[a.atoms ? (j / 4 * a.rows + r) * 4 + j % 4 : r * a.p_stride + j] = from_f32<T>(weighted);
  }
  a.sums[r] = a.sums[r] * a.corrections[r] + sum;
  a.maxima[r] = maximum;
}

}  // namespace

void attention_softmax(const AttentionSoftmaxArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    if (a.to == Packed::kF32) {
      softmax_row<float>(a, r);
    } else if (a.to == Packed::kF16) {
      softmax_row<F16>(a, r);
    } else {
      softmax_row<BF16>(a, r);
    }
  }
}

void attention_rescale(const AttentionRescaleArgs& a) noexcept {
  for (int64_t r = 0; r < a.rows; ++r) {
    if (a.factors[r] == 1.0f) continue;
    for (int64_t d = 0; d < a.cols; ++d) a.o[r * a.stride + d] *= a.factors[r];
  }
}

void attention_finish(const AttentionFinishArgs& a) noexcept {
  dispatch(a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = 0; r < a.rows; ++r) {
      T* out = static_cast<T*>(a.out[r]);
      for (int64_t d = 0; d < a.cols; ++d) {
        out[d] = from_f32<T>(a.o[r * a.stride + d] * a.factors[r]);
      }
    }
  });
}

}  // namespace capibara::scalar
