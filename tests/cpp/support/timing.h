// SPDX-License-Identifier: Apache-2.0
// Medians of repeated runs.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace capibara::test {

inline double microseconds_now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double, std::micro>(Clock::now().time_since_epoch()).count();
}

// Median microseconds of one f(), over samples of at least 20 us (so that the clock's own time does
// not count), for about `budget_us` in all.
template <class F>
double median_us(const F& f, double budget_us = 2e5) {
  f();
  int64_t repeats = 1;
  const auto sample = [&] {
    const double start = microseconds_now();
    for (int64_t i = 0; i < repeats; ++i) f();
    return microseconds_now() - start;
  };
  while (sample() < 20) repeats *= 2;
  std::vector<double> samples;
  for (const double start = microseconds_now();
       samples.size() < 11 || microseconds_now() - start < budget_us;) {
    samples.push_back(sample() / static_cast<double>(repeats));
  }
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

}  // namespace capibara::test
