// SPDX-License-Identifier: Apache-2.0
// gemm_epilogue: every implementation, the scalar reference among them. Without activation all
// results are those of the contract's f32 operations; with one, within its bounds of double
// precision.
#include "kernels/gemm/epilogue.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "support/activations.h"
#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

constexpr Activation kEachActivation[] = {Activation::kNone, Activation::kSilu, Activation::kGelu,
                                          Activation::kGeluTanh};

enum class Residual { kNone, kSeparate, kInPlace };
constexpr Residual kResiduals[] = {Residual::kNone, Residual::kSeparate, Residual::kInPlace};

struct Case {
  DType dtype;
  bool integers = false, offsets = false, bias = false;
  Activation activation = Activation::kNone;
  Residual residual = Residual::kNone;
  int64_t rows = 3, cols = 1, padding = 0;
  Guard guard = Guard::kAfter;

  std::string text() const {
    return std::string(integers ? "int32" : "f32") + " to " + name_of(dtype) + ", offsets " +
           std::to_string(offsets) + ", bias " + std::to_string(bias) + ", activation " +
           std::to_string(static_cast<int>(activation)) + ", residual " +
           std::to_string(static_cast<int>(residual)) + ", rows " + std::to_string(rows) +
           ", cols " + std::to_string(cols) + ", padding " + std::to_string(padding);
  }
};

// Integers are kept as their bits in tensors of f32.
int32_t integer_at(const Tensor& x, int64_t row, int64_t col) {
  const uint32_t bits = x.bits(row, col);
  int32_t value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Tensors {
  Tensor c, row_scales, col_scales, col_offsets, bias, residual, y;

  explicit Tensors(const Case& a)
      : c(DType::kF32, a.rows, a.cols, a.cols + a.padding, a.guard),
        row_scales(DType::kF32, 1, a.rows, a.rows, a.guard),
        col_scales(columns(a)),
        col_offsets(columns(a)),
        bias(columns(a)),
        residual(a.dtype, a.rows, a.cols, a.cols + 3 * a.padding, a.guard),
        y(a.dtype, a.rows, a.cols, a.cols + 2 * a.padding, a.guard) {}

  static Tensor columns(const Case& a) { return {DType::kF32, 1, a.cols, a.cols, a.guard}; }

  // Sums of about `deviation`, once they are scaled.
  void fill(const Case& a, float deviation) {
    Random random;
    row_scales.fill([&] { return 0.001f * (1 + std::fabs(random.normal())); });
    col_scales.fill([&] { return deviation * 0.01f * random.normal(); });
    for (int64_t j = 0; j < a.cols; ++j) {
      col_offsets.set_bits(0, j, static_cast<uint32_t>(random.integer(-100000, 100000)));
    }
    bias.fill([&] { return 0.3f * deviation * random.normal(); });
    residual.fill([&] { return random.normal(); });
    y.fill([&] { return random.normal(); });
    c.fill([&] { return deviation * random.normal(); });
    for (int64_t r = 0; a.integers && r < a.rows; ++r) {
      for (int64_t j = 0; j < a.cols; ++j) {
        c.set_bits(r, j, static_cast<uint32_t>(random.integer(-200000, 200000)));
      }
    }
  }

  const Tensor& added(const Case& a) const {
    return a.residual == Residual::kInPlace ? y : residual;
  }

  // What the activation is given, in f32 as the contract has it.
  float argument(const Case& a, int64_t r, int64_t j) const {
    float x = c.get(r, j);
    if (a.integers) {
      const int32_t sum = integer_at(c, r, j) - (a.offsets ? integer_at(col_offsets, 0, j) : 0);
      x = static_cast<float>(sum) * (row_scales.get(0, r) * col_scales.get(0, j));
    }
    return a.bias ? x + bias.get(0, j) : x;
  }
};

template <class T = float>
const T* data_if(bool used, const Tensor& tensor) {
  return used ? static_cast<const T*>(tensor.data()) : nullptr;
}

void run(EpilogueFn* kernel, const Case& a, const Tensors& t, const Tensor& y) {
  const Tensor& added = a.residual == Residual::kInPlace ? y : t.residual;
  kernel({a.rows, a.cols, t.c.data(), t.c.stride(), data_if(a.integers, t.row_scales),
          data_if(a.integers, t.col_scales), data_if<int32_t>(a.offsets, t.col_offsets),
          data_if(a.bias, t.bias), a.activation,
          data_if<void>(a.residual != Residual::kNone, added), added.stride(), a.dtype, y.data(),
          y.stride()});
}

Approx activated(Activation activation, const Bounds& bounds, double x) {
  switch (activation) {
    case Activation::kSilu:
      return silu(bounds, x, 1);
    case Activation::kGelu:
      return gelu(bounds, x, 1);
    case Activation::kGeluTanh:
      return gelu_tanh(bounds, x, 1);
    default:
      return {x, 0};
  }
}

Approx expected_of(const Case& a, Isa isa, const Tensors& t, int64_t r, int64_t j) {
  const float argument = t.argument(a, r, j);
  const float added = a.residual == Residual::kNone ? 0 : t.added(a).get(r, j);
  if (a.activation == Activation::kNone) {
    return {a.residual == Residual::kNone ? argument : argument + added, 0};
  }
  Approx expected = activated(a.activation, {isa, a.dtype}, argument);
  if (a.residual == Residual::kNone) return expected;
  // The sum rounds.
  expected.value += added;
  expected.error += kUnitRoundoff * (std::abs(expected.value) + expected.error);
  return expected;
}

void check(const Case& a, const Tensors& t) {
  INFO(a.text());
  const Tensor c = t.c, residual = t.residual;
  for_each_kernel(gemm_epilogue_kernels(), [&](const Kernel<EpilogueFn>& kernel) {
    const Tensor y = t.y;
    run(kernel.run, a, t, y);
    const auto expected = [&](int64_t r, int64_t j) { return expected_of(a, kernel.isa, t, r, j); };
    CHECK(out_of_bounds(y, 0, a.rows, expected) == "");
    CHECK(y.padding_intact());
  });
  CHECK(difference(t.c, c) == "");
  CHECK(difference(t.residual, residual) == "");
}

// f for every combination of what there may be besides products.
template <class F>
void for_each_option(const F& f) {
  for (DType dtype : kDTypes) {
    for (Activation activation : kEachActivation) {
      for (Residual residual : kResiduals) {
        for (bool bias : {false, true}) {
          Case a{dtype};
          a.activation = activation, a.residual = residual, a.bias = bias;
          f(a);
          a.integers = true;
          f(a);
          a.offsets = true;
          f(a);
        }
      }
    }
  }
}

TEST_CASE("epilogue: every option, sizes around those of vectors") {
  for_each_option([](Case a) {
    for (int64_t cols : {0, 1, 5, 8, 17, 33, 67, 131}) {
      a.cols = cols, a.padding = cols % 4, a.guard = kGuards[cols % 3 % 2];
      Tensors tensors(a);
      tensors.fill(a, 3);
      check(a, tensors);
    }
  });
}

TEST_CASE("epilogue: every number of columns and rows") {
  for (DType dtype : kDTypes) {
    for (Activation activation : {Activation::kNone, Activation::kSilu}) {
      for (int64_t cols : sizes()) {
        if (cols > 300) continue;
        for (int64_t rows : {0, 1, 4}) {
          Case a{dtype};
          a.activation = activation, a.rows = rows, a.cols = cols, a.padding = cols % 5;
          a.integers = cols % 2, a.bias = cols % 3 == 0;
          Tensors tensors(a);
          tensors.fill(a, 3);
          check(a, tensors);
        }
      }
    }
  }
}

// From the linear part near zero to where tails underflow; NaN and infinities, as arithmetic has
// them. An exponential of -infinity would be 0 * infinity.
TEST_CASE("epilogue: the whole range of products") {
  std::vector<float> products = {0.0f,    -0.0f, 1e-45f, -1e-40f, 1e-38f, 88.4f, -88.5f,  -104.2f,
                                 -149.0f, 1e4f,  -1e4f,  1e30f,   -1e30f, NAN,   INFINITY};
  for (float x = -110; x < 110; x += 0.437f) products.push_back(x);
  for (DType dtype : kDTypes) {
    for (Activation activation : kEachActivation) {
      for (Residual residual : kResiduals) {
        Case a{dtype};
        a.activation = activation, a.residual = residual, a.rows = 2;
        a.cols = static_cast<int64_t>(products.size());
        Tensors tensors(a);
        tensors.fill(a, 1);
        for (int64_t r = 0; r < a.rows; ++r) {
          for (int64_t j = 0; j < a.cols; ++j) {
            tensors.c.set(r, j, products[static_cast<size_t>((j + r) % a.cols)]);
          }
        }
        check(a, tensors);
      }
    }
  }
}

// Without activation to the bit, also where the sign of zero or the last of three roundings counts.
TEST_CASE("epilogue: any bits") {
  Random random;
  for (DType dtype : kDTypes) {
    for (bool integers : {false, true}) {
      for (bool bias : {false, true}) {
        for (Residual residual : kResiduals) {
          Case a{dtype, integers};
          a.bias = bias, a.residual = residual, a.cols = 300;
          Tensors tensors(a);
          tensors.fill(a, 1);
          for (int64_t r = 0; r < a.rows; ++r) {
            for (int64_t j = 0; j < a.cols; ++j) {
              tensors.c.set_bits(r, j, random.bits());
              tensors.residual.set_bits(r, j, random.bits());
            }
          }
          INFO(a.text());
          const Tensor expected = tensors.y;
          run(scalar::gemm_epilogue, a, tensors, expected);
          check(a, tensors);
          for_each_kernel(gemm_epilogue_kernels(), [&](const Kernel<EpilogueFn>& kernel) {
            const Tensor y = tensors.y;
            run(kernel.run, a, tensors, y);
            CHECK(difference(y, expected) == "");
          });
        }
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
