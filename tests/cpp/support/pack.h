// SPDX-License-Identifier: Apache-2.0
// What the tests of packing share: one call, and how panels are compared.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/gemm/pack.h"
#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {

constexpr Packed kPacked[] = {Packed::kF32, Packed::kBF16, Packed::kF16,
                              Packed::kI8,  Packed::kU8,   Packed::kI16};
constexpr int kDepths[] = {1, 2, 4, 8};
inline bool is_integer(Packed type) { return type >= Packed::kI8; }

enum class Order { kLines, kColumns };

struct Case {
  Order order;
  DType from;
  Packed to;
  int depth;
  int64_t lines, length, panel_lines;
  int64_t padding = 0;
  Guard guard = Guard::kAfter;

  int64_t groups() const { return (length + depth - 1) / depth; }
  int64_t elements() const { return groups() * panel_lines * depth; }
  std::string text() const {
    return std::string(order == Order::kLines ? "lines" : "columns") + " of " + name_of(from) +
           " to type " + std::to_string(static_cast<int>(to)) + ", depth " + std::to_string(depth) +
           ", lines " + std::to_string(lines) + " of " + std::to_string(panel_lines) + ", length " +
           std::to_string(length) + ", padding " + std::to_string(padding);
  }
  Tensor source() const {
    const int64_t rows = order == Order::kLines ? lines : length;
    const int64_t cols = order == Order::kLines ? length : lines;
    return Tensor(from, rows, cols, cols + padding, guard);
  }
  const KernelTable<PackFn>& kernels() const {
    return order == Order::kLines ? pack_lines_kernels() : pack_columns_kernels();
  }
};

inline GuardedBuffer packed(PackFn* kernel, const Case& c, const Tensor& x,
                            const std::vector<float>& factors) {
  GuardedBuffer panel(static_cast<size_t>(c.elements() * size_of(c.to)), c.guard);
  kernel({c.from, x.data(), x.stride(), c.lines, c.length, c.to, c.panel_lines, c.depth,
          factors.data(), panel.data()});
  return panel;
}

inline double value_at(Packed type, const char* panel, int64_t i) {
  const auto load = [&](auto value) {
    std::memcpy(&value, panel + i * static_cast<int64_t>(sizeof value), sizeof value);
    return value;
  };
  switch (type) {
    case Packed::kF32:
      return load(float{});
    case Packed::kBF16:
      return to_f32(load(BF16{}));
    case Packed::kF16:
      return to_f32(load(F16{}));
    case Packed::kI8:
      return load(int8_t{});
    case Packed::kU8:
      return load(uint8_t{});
    default:
      return load(int16_t{});
  }
}

// Where two panels first differ, any two NaN being the same; -1 if nowhere.
inline int64_t first_difference(const Case& c, const GuardedBuffer& a, const GuardedBuffer& b) {
  const int64_t size = size_of(c.to);
  if (!std::memcmp(a.data(), b.data(), static_cast<size_t>(c.elements() * size))) return -1;
  for (int64_t i = 0; i < c.elements(); ++i) {
    const bool same = !std::memcmp(a.data() + i * size, b.data() + i * size, size);
    const bool nan = std::isnan(value_at(c.to, a.data(), i));
    if (!same && !(nan && std::isnan(value_at(c.to, b.data(), i)))) return i;
  }
  return -1;
}

inline bool canaries_intact(const Case& c, const GuardedBuffer& panel) {
  const char* end = panel.data() + c.elements() * size_of(c.to);
  return is_canary(panel.pages_begin(), panel.data()) && is_canary(end, panel.pages_end());
}

inline PackFn* reference(const Case& c) {
  return c.order == Order::kLines ? scalar::pack_lines : scalar::pack_columns;
}

// All but the reference itself.
inline void check_packed(const Case& c, const Tensor& x, const std::vector<float>& factors) {
  INFO(c.text());
  const GuardedBuffer expected = packed(reference(c), c, x, factors);
  REQUIRE(canaries_intact(c, expected));
  for_each_kernel(c.kernels(), [&](const Kernel<PackFn>& kernel) {
    if (kernel.isa == Isa::scalar) return;
    const GuardedBuffer got = packed(kernel.run, c, x, factors);
    CHECK(first_difference(c, got, expected) == -1);
    CHECK(canaries_intact(c, got));
  });
}

}  // namespace capibara::test
