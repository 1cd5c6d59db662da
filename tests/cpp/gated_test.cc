// SPDX-License-Identifier: Apache-2.0
// silu_and_mul, gelu_and_mul and gelu_tanh_and_mul: every implementation, the scalar reference
// among them, against double precision.
#include "kernels/gated/gated.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/activations.h"
#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

enum class Op { kSilu, kGelu, kGeluTanh };
constexpr Op kOps[] = {Op::kSilu, Op::kGelu, Op::kGeluTanh};

const KernelTable<GatedFn>& kernels_of(Op op) {
  return op == Op::kSilu   ? silu_and_mul_kernels()
         : op == Op::kGelu ? gelu_and_mul_kernels()
                           : gelu_tanh_and_mul_kernels();
}

enum class Layout { kSeparate, kPacked, kOverGate, kOverUp };
constexpr Layout kLayouts[] = {Layout::kSeparate, Layout::kPacked, Layout::kOverGate,
                               Layout::kOverUp};

struct Case {
  Op op;
  DType dtype;
  Layout layout = Layout::kSeparate;
  int64_t rows = 3, cols = 1, padding = 0;
  Guard guard = Guard::kAfter;

  std::string text() const {
    return "op " + std::to_string(static_cast<int>(op)) + ", " + name_of(dtype) + ", layout " +
           std::to_string(static_cast<int>(layout)) + ", rows " + std::to_string(rows) + ", cols " +
           std::to_string(cols) + ", padding " + std::to_string(padding);
  }
};

// `gate` has the columns of `up` beside its own if the layout is packed.
struct Tensors {
  Tensor gate, up, y;

  explicit Tensors(const Case& c)
      : gate(c.dtype, c.rows, c.layout == Layout::kPacked ? 2 * c.cols : c.cols,
             2 * c.cols + c.padding, c.guard),
        up(c.dtype, c.rows, c.cols, c.cols + 2 * c.padding, c.guard),
        y(c.dtype, c.rows, c.cols, c.cols + 3 * c.padding, c.guard) {
    y.fill([] { return 77.0f; });
  }

  const Tensor& result(const Case& c) const {
    return c.layout == Layout::kOverGate ? gate : c.layout == Layout::kOverUp ? up : y;
  }
  float gate_at(int64_t r, int64_t i) const { return gate.get(r, i); }
  float up_at(const Case& c, int64_t r, int64_t i) const {
    return c.layout == Layout::kPacked ? gate.get(r, c.cols + i) : up.get(r, i);
  }
};

void run(GatedFn* kernel, const Case& c, const Tensors& t, int64_t begin, int64_t end) {
  const bool packed = c.layout == Layout::kPacked;
  const Tensor &up = packed ? t.gate : t.up, &y = t.result(c);
  kernel({c.dtype, c.cols, t.gate.data(), t.gate.stride(), up.at(0, packed ? c.cols : 0),
          up.stride(), y.data(), y.stride()},
         begin, end);
}

Approx expected_of(Op op, const Bounds& bounds, double gate, double up) {
  return op == Op::kSilu   ? silu(bounds, gate, up)
         : op == Op::kGelu ? gelu(bounds, gate, up)
                           : gelu_tanh(bounds, gate, up);
}

void check(const Case& c, const Tensors& before, int64_t begin, int64_t end) {
  INFO(c.text(), ", rows [", begin, ", ", end, ")");
  for_each_kernel(kernels_of(c.op), [&](const Kernel<GatedFn>& kernel) {
    const Tensors got = before;
    run(kernel.run, c, got, begin, end);
    const Bounds bounds{kernel.isa, c.dtype};
    const auto expected = [&](int64_t r, int64_t i) {
      return expected_of(c.op, bounds, before.gate_at(r, i), before.up_at(c, r, i));
    };
    CHECK(out_of_bounds(got.result(c), begin, end, expected) == "");
    CHECK(difference_outside(got.result(c), before.result(c), begin, end) == "");
    if (c.layout != Layout::kOverGate) CHECK(difference(got.gate, before.gate) == "");
    if (c.layout != Layout::kOverUp) CHECK(difference(got.up, before.up) == "");
  });
}

void fill_normal(Tensors& tensors, float deviation) {
  Random random;
  tensors.gate.fill([&] { return deviation * random.normal(); });
  tensors.up.fill([&] { return random.normal(); });
}

TEST_CASE("gated: every size and layout") {
  for (Op op : kOps) {
    for (int64_t cols : sizes()) {
      for (DType dtype : kDTypes) {
        for (Layout layout : kLayouts) {
          for (Guard guard : kGuards) {
            Case c{op, dtype, layout};
            c.cols = cols, c.guard = guard, c.padding = cols % 4;
            Tensors tensors(c);
            fill_normal(tensors, 3);
            check(c, tensors, 0, c.rows);
          }
        }
      }
    }
  }
}

TEST_CASE("gated: every range of rows") {
  for (Op op : kOps) {
    for (int64_t rows = 0; rows <= 5; ++rows) {
      Case c{op, kDTypes[rows % 3], kLayouts[rows % 4]};
      c.rows = rows, c.cols = 37, c.padding = 3;
      Tensors tensors(c);
      fill_normal(tensors, 3);
      for (int64_t begin = 0; begin <= rows; ++begin) {
        for (int64_t end = begin; end <= rows; ++end) check(c, tensors, begin, end);
      }
    }
  }
}

// From the linear part near zero to where the tails underflow, and beyond.
TEST_CASE("gated: the whole range of arguments") {
  std::vector<float> gates = {0.0f,   -0.0f,   1e-45f,  -1e-40f, 1e-38f, -1e-38f, 88.4f, -88.5f,
                              -88.8f, -104.2f, -149.0f, 1e4f,    -1e4f,  1e30f,   -1e30f};
  for (float x = -20; x < 20; x += 0.0371f) gates.push_back(x);
  for (float x = -110; x < 110; x += 0.737f) gates.push_back(x);
  for (Op op : kOps) {
    for (DType dtype : kDTypes) {
      Case c{op, dtype};
      c.cols = static_cast<int64_t>(gates.size()), c.rows = 4;
      Tensors tensors(c);
      const float ups[] = {1, -1.7f, dtype == DType::kF16 ? 6e4f : 1e25f, 1e-6f};
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t i = 0; i < c.cols; ++i) {
          tensors.gate.set(r, i, gates[static_cast<size_t>(i)]);
          tensors.up.set(r, i, ups[r]);
        }
      }
      check(c, tensors, 0, c.rows);
    }
  }
}

// In double precision all of it follows from IEEE arithmetic: infinity up, NaN (-infinity * 0)
// down. Gates are small, so that no activation rounds to zero, which infinity turns into NaN.
TEST_CASE("gated: NaN and infinity") {
  const float specials[] = {NAN, INFINITY, -INFINITY};
  for (Op op : kOps) {
    for (DType dtype : kDTypes) {
      Case c{op, dtype};
      c.cols = 75;
      Tensors tensors(c);
      fill_normal(tensors, 0.3f);
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t column : {i, 30 + i, 72 + i}) tensors.gate.set(0, column, specials[i]);
        for (int64_t column : {i, 30 + i, 72 + i}) tensors.up.set(1, column, specials[i]);
      }
      check(c, tensors, 0, c.rows);
    }
  }
}

}  // namespace
}  // namespace capibara::test
