// SPDX-License-Identifier: Apache-2.0
// pack_lines and pack_columns: every implementation bit for bit as the scalar reference, and the
// reference's layout as the contract has it. Rounding to integers: quantise_test.cc.
#include "support/pack.h"

#include <vector>

namespace capibara::test {
namespace {

std::vector<float> factors_of(const Case& c, const Tensor& x) {
  std::vector<float> scales(static_cast<size_t>(c.lines)), factors(scales);
  scalar::line_scales(
      {c.from, x.data(), x.stride(), c.lines, c.length, scales.data(), factors.data()});
  return factors;
}

// Any bits, NaN and subnormals among them; integers are made of numbers of about the same size.
void fill(const Case& c, Tensor& x, Random& random) {
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t i = 0; i < x.cols(); ++i) {
      if (is_integer(c.to)) {
        x.set(r, i, random.normal());
      } else {
        x.set_bits(r, i, random.bits());
      }
    }
  }
}

void check_sizes(Order order, int64_t lines, Random& random) {
  for (DType from : kDTypes) {
    for (Packed to : kPacked) {
      if (order == Order::kColumns && is_integer(to)) continue;
      for (int depth : kDepths) {
        for (int64_t length : {0, 1, 2, 3, 7, 8, 9, 31, 64, 65, 200}) {
          Case c{order, from, to, depth, lines, length, lines};
          c.padding = length % 3;
          c.guard = kGuards[(length + depth) % 2];
          // Exactly as many lines as there are, an even number of them, or many more.
          c.panel_lines += length % 4 == 1 ? lines % 2 : length % 4 == 3 ? 11 : 0;
          Tensor x = c.source();
          fill(c, x, random);
          check_packed(c, x, is_integer(to) ? factors_of(c, x) : std::vector<float>());
        }
      }
    }
  }
}

TEST_CASE("pack: every size of lines") {
  Random random;
  for (int64_t lines = 0; lines <= 13; ++lines) check_sizes(Order::kLines, lines, random);
  check_sizes(Order::kLines, 32, random);
}

TEST_CASE("pack: every size of columns") {
  Random random;
  for (int64_t lines = 0; lines <= 13; ++lines) check_sizes(Order::kColumns, lines, random);
  for (int64_t lines : {16, 31, 32, 33}) check_sizes(Order::kColumns, lines, random);
}

// More than is converted at a time.
TEST_CASE("pack: long lines and wide panels") {
  Random random;
  for (Order order : {Order::kLines, Order::kColumns}) {
    for (DType from : kDTypes) {
      for (Packed to : kPacked) {
        if (order == Order::kColumns && is_integer(to)) continue;
        for (int depth : kDepths) {
          const bool lines = order == Order::kLines;
          Case c{order, from, to, depth, lines ? 9 : 700, lines ? 1301 : 5, lines ? 10 : 701};
          Tensor x = c.source();
          fill(c, x, random);
          check_packed(c, x, is_integer(to) ? factors_of(c, x) : std::vector<float>());
        }
      }
    }
  }
}

// The formula of pack.h, over the reference: element k of a line is at [k / depth][line][k %
// depth], all others are zero. Whole numbers that every type holds.
TEST_CASE("pack: the reference's layout") {
  for (Order order : {Order::kLines, Order::kColumns}) {
    for (DType from : kDTypes) {
      for (Packed to : kPacked) {
        if (order == Order::kColumns && is_integer(to)) continue;
        for (int depth : kDepths) {
          const Case c{order, from, to, depth, 7, 13, 9};
          INFO(c.text());
          const auto value = [](int64_t line, int64_t k) {
            return static_cast<float>(1 + line * 13 + k);
          };
          Tensor x = c.source();
          for (int64_t line = 0; line < c.lines; ++line) {
            for (int64_t k = 0; k < c.length; ++k) {
              const bool lines = order == Order::kLines;
              x.set(lines ? line : k, lines ? k : line, value(line, k));
            }
          }
          const GuardedBuffer panel = packed(reference(c), c, x, std::vector<float>(7, 1.0f));
          for (int64_t i = 0; i < c.elements(); ++i) {
            const int64_t group = i / (c.panel_lines * depth),
                          in_group = i % (c.panel_lines * depth);
            const int64_t line = in_group / depth, k = group * depth + in_group % depth;
            const bool exists = line < c.lines && k < c.length;
            const double zero = to == Packed::kU8 ? 128 : 0;
            CHECK(value_at(to, panel.data(), i) == zero + (exists ? value(line, k) : 0));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
