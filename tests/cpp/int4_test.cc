// SPDX-License-Identifier: Apache-2.0
// Tiles of 4-bit weights, and the integers that they multiply: every implementation to the last
// bit, which the contract fixes.
#include "kernels/gemm/int4.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "support/kernels.h"
#include "support/tensor.h"

namespace capibara::test {
namespace {

#if defined(CAPIBARA_SAMPLED)
constexpr int64_t kGroupCounts[] = {0, 2};
#else
constexpr int64_t kGroupCounts[] = {0, 1, 2, 5};
#endif

template <class T>
void put(char* p, int64_t index, T value) {
  std::memcpy(p + index * static_cast<int64_t>(sizeof value), &value, sizeof value);
}

// Operands of a tile, as numbers and as panels in guarded memory.
struct Operands {
  int rows, cols, panels;
  int64_t groups, group, depth;
  std::vector<int> q, codes, zeros;  // [row or column][k or group]
  std::vector<float> row_scales, col_scales;
  GuardedBuffer a, b;

  Operands(const Int4Kernel& kernel, const Int4Tiles& tiles, int rows, int panels, int64_t groups,
           int64_t group, Guard guard, bool extremes)
      : rows(rows),
        cols(kernel.cols * panels),
        panels(panels),
        groups(groups),
        group(group),
        depth(tiles.depth),
        a(static_cast<size_t>(tiles.packed_rows(rows) * groups * int4_row_bytes(group)), guard),
        b(static_cast<size_t>(cols * groups * int4_col_bytes(group)), guard) {
    Random random;
    const int64_t k = groups * group;
    const auto integer = [&](int64_t low, int64_t high) {
      if (extremes) return static_cast<int>(random.bits() % 8 == 0 ? low : high);
      return static_cast<int>(random.integer(low, high));
    };
    for (int64_t i = 0; i < rows * k; ++i) q.push_back(integer(-128, 127));
    for (int64_t i = 0; i < cols * k; ++i) codes.push_back(integer(0, 15));
    for (int64_t i = 0; i < cols * groups; ++i) zeros.push_back(integer(0, 16));
    for (int64_t i = 0; i < rows * groups; ++i) row_scales.push_back(random.normal());
    for (int64_t i = 0; i < cols * groups; ++i) col_scales.push_back(random.normal());
    if (groups > 0) row_scales[0] = 0;
    fill_a(tiles.packed_rows(rows));
    for (int p = 0; p < panels; ++p) fill_b(p, kernel.cols);
  }

  int64_t panel_stride() const { return cols / panels * groups * int4_col_bytes(group); }

  // As the contract has it.
  float expected(int r, int j, float sum) const {
    for (int64_t g = 0; g < groups; ++g) {
      int64_t d = 0;
      for (int64_t k = g * group; k < (g + 1) * group; ++k) {
        d += q[r * groups * group + k] * (codes[j * groups * group + k] - zeros[j * groups + g]);
      }
      const float scale = row_scales[r * groups + g] * col_scales[j * groups + g];
      sum = std::fma(static_cast<float>(d), scale, sum);
    }
    return sum;
  }

 private:
  void fill_a(int lines) {
    std::memset(a.data(), 0, static_cast<size_t>(lines * groups * int4_row_bytes(group)));
    for (int64_t g = 0; g < groups; ++g) {
      char* const block = a.data() + g * lines * int4_row_bytes(group);
      for (int r = 0; r < rows; ++r) {
        int32_t sum = 0;
        for (int64_t k = 0; k < group; ++k) {
          const int value = q[(r * groups + g) * group + k];
          block[(k / depth * lines + r) * depth + k % depth] = static_cast<char>(value);
          sum -= value;
        }
        put(block + lines * group, r, row_scales[r * groups + g]);
        put(block + lines * (group + 4), r, sum);
      }
    }
  }
  void fill_b(int panel, int width) {
    char* const begin = b.data() + panel * panel_stride();
    std::memset(begin, 0, static_cast<size_t>(panel_stride()));
    for (int64_t g = 0; g < groups; ++g) {
      char* const block = begin + g * width * int4_col_bytes(group);
      for (int j = 0; j < width; ++j) {
        const int64_t column = panel * width + j, half = width / 2;
        for (int64_t k = 0; k < group; ++k) {
          const int code = codes[(column * groups + g) * group + k];
          char& byte = block[(k / 4 * half + j % half) * 4 + k % 4];
          byte = static_cast<char>(byte | (j < half ? code : code << 4));
        }
        put(block + width * group / 2, j, col_scales[column * groups + g]);
        put(block + width * (group / 2 + 4), j, static_cast<int16_t>(zeros[column * groups + g]));
      }
    }
  }
};

// run(c, ldc, accumulate): the tile on x.
template <class F>
void check(const Operands& x, int packed_rows, Guard guard, const F& run) {
  for (bool accumulate : {false, true}) {
    INFO(x.rows, " rows, ", x.panels, " panels, ", x.groups, " groups of ", x.group,
         ", accumulate ", accumulate);
    Tensor before(DType::kF32, packed_rows, x.cols, x.cols + 3, guard);
    Random random;
    before.fill([&] { return random.normal(); });
    Tensor c = before;
    run(static_cast<float*>(c.data()), c.stride(), accumulate);
    CHECK(c.padding_intact());
    int64_t wrong = 0;
    for (int r = 0; r < x.rows; ++r) {
      for (int j = 0; j < x.cols; ++j) {
        const float expected = x.expected(r, j, accumulate ? before.get(r, j) : 0.0f);
        wrong += c.bits(r, j) != bits_of(expected) && !(c.get(r, j) == 0 && expected == 0);
      }
    }
    CHECK(wrong == 0);
  }
}

// f(operands) for all sizes of a tile.
template <class F>
void for_each_size(const Int4Kernel& kernel, const Int4Tiles& tiles, int rows, int panels,
                   const F& f) {
  for (int group : kInt4Groups) {
    for (int64_t groups : kGroupCounts) {
      const Guard guard = kGuards[(rows + groups) % 2];
      f(Operands(kernel, tiles, rows, panels, groups, group, guard, false), guard);
    }
    f(Operands(kernel, tiles, rows, panels, 2, group, Guard::kAfter, true), Guard::kAfter);
  }
}

TEST_CASE("int4: what the table says") {
  for_each_kernel(int4_kernels(), [](const Kernel<const Int4Kernel>& kernel) {
    const Int4Kernel& int4 = *kernel.run;
    CHECK(int4.cols % 2 == 0);
    CHECK((int4.decode != nullptr) == (int4.decoded.rows > 0));
    for (const Int4Tiles* tiles : {&int4.kept, &int4.decoded}) {
      REQUIRE(tiles->rows <= kMaxTileRows);
      CHECK(tiles->rows % 2 == 0);  // both digits of a token in one panel
      CHECK(tiles->packed_rows(tiles->rows) == tiles->rows);
      for (int i = 0; i < kMaxTileRows; ++i) {
        CHECK((tiles->tiles[i] != nullptr) == (i < tiles->rows));
      }
    }
  });
}

TEST_CASE("int4: tiles of kept codes, every number of rows") {
  for_each_kernel(int4_kernels(), [](const Kernel<const Int4Kernel>& kernel) {
    const Int4Kernel& int4 = *kernel.run;
    for (int rows = 1; rows <= int4.kept.rows; ++rows) {
      for_each_size(int4, int4.kept, rows, 1, [&](const Operands& x, Guard guard) {
        check(x, rows, guard, [&](float* c, int64_t ldc, bool accumulate) {
          int4.kept.tiles[rows - 1](x.groups, x.group, x.a.data(), x.b.data(), c, ldc, accumulate);
        });
      });
    }
    for (int rows = 1; rows <= kMaxWideRows; ++rows) {
      const auto& wide = int4.wide[rows - 1];
      if (!wide.run) continue;
      for_each_size(int4, int4.kept, rows, wide.panels, [&](const Operands& x, Guard guard) {
        check(x, rows, guard, [&](float* c, int64_t ldc, bool accumulate) {
          wide.run(x.groups, x.group, x.a.data(), x.b.data(), x.panel_stride(), c, ldc, accumulate);
        });
      });
    }
  });
}

TEST_CASE("int4: tiles of decoded codes") {
  for_each_kernel(int4_kernels(), [](const Kernel<const Int4Kernel>& kernel) {
    const Int4Kernel& int4 = *kernel.run;
    for (int rows = 1; rows <= int4.decoded.rows; ++rows) {
      for_each_size(int4, int4.decoded, rows, 1, [&](const Operands& x, Guard guard) {
        const int64_t bytes = int4.cols * x.groups * int4_decoded_bytes(x.group);
        const GuardedBuffer decoded(static_cast<size_t>(bytes), guard);
        int4.decode(x.groups, x.group, x.b.data(), decoded.data());
        check(x, int4.decoded.packed_rows(rows), guard,
              [&](float* c, int64_t ldc, bool accumulate) {
                int4.decoded.tiles[rows - 1](x.groups, x.group, x.a.data(), decoded.data(), c, ldc,
                                             accumulate);
              });
      });
    }
  });
}

// ---------------------------------------------------------------- rows of A

struct Rows {
  Tensor x;
  int digits, group, depth, panel_rows;
  bool sums = true;

  int64_t bytes() const {
    const int64_t groups = (x.cols() + group - 1) / group;
    return groups * panel_rows * int4_row_bytes(group);
  }
  GuardedBuffer run(Int4RowsFn* kernel, Guard guard) const {
    GuardedBuffer panel(static_cast<size_t>(bytes()), guard);
    kernel({x.dtype(), x.data(), x.stride(), x.rows(), x.cols(), digits, group, depth, panel_rows,
            sums, panel.data()});
    CHECK(is_canary(panel.pages_begin(), panel.data()));
    CHECK(is_canary(panel.data() + bytes(), panel.pages_end()));
    return panel;
  }
  void check() const {
    INFO(name_of(x.dtype()), ", ", x.rows(), " rows of ", x.cols(), ", ", digits,
         " digits, groups of ", group, ", depth ", depth, ", ", panel_rows, " in the panel");
    const GuardedBuffer expected = run(scalar::int4_rows, Guard::kAfter);
    for_each_kernel(int4_rows_kernels(), [&](const Kernel<Int4RowsFn>& kernel) {
      for (Guard guard : kGuards) {
        const GuardedBuffer got = run(kernel.run, guard);
        CHECK(std::memcmp(got.data(), expected.data(), static_cast<size_t>(bytes())) == 0);
      }
    });
  }
};

TEST_CASE("int4: rows, every implementation as the reference") {
  Random random;
  for (DType dtype : kDTypes) {
    for (int digits : {1, 2}) {
      for (int group : kInt4Groups) {
        for (int depth : {4, 8}) {
          for (int64_t length : {1, 31, 32, 100, 128, 300}) {
            const int rows = 1 + static_cast<int>(random.integer(0, 7));
            const int panel_rows = rows * digits + static_cast<int>(length % 2) * (rows % 2);
            Rows test = {Tensor(dtype, rows, length, length + length % 3, Guard::kAfter), digits,
                         group, depth, panel_rows};
            test.x.fill([&] { return random.normal(); });
            test.check();
            // Any bits in the last row: infinities, NaN, numbers of very different sizes.
            for (int64_t i = 0; i < length; ++i) test.x.set_bits(rows - 1, i, random.bits());
            test.check();
            test.sums = false;
            test.check();
          }
        }
      }
    }
  }
}

TEST_CASE("int4: rows at the ends of the exponents' range") {
  for (DType dtype : kDTypes) {
    for (int digits : {1, 2}) {
      for (float value : {0.0f, -0.0f, 1e-45f, -1e-40f, 3e-38f, 6e-8f, 6e4f, -3e38f, 3.39e38f, 1.0f,
                          1.984375f, 1.9921875f, -1.99f, 255.0f, 65504.0f}) {
        for (int64_t length : {1, 40}) {
          Rows test = {Tensor(dtype, 2, length, length, Guard::kAfter), digits, 32, 4, 2 * digits};
          test.x.fill([&] { return value; });
          test.x.set(1, 0, value / 3);
          test.check();
        }
      }
    }
  }
}

// scale * integer is within half a scale of x. With two digits, scale is at most 2^-13.98 of the
// largest: bf16 values down to 2^-6 of it are exact.
TEST_CASE("int4: what integers stand for") {
  Random random;
  constexpr int kGroup = 64;
  for (DType dtype : kDTypes) {
    for (int digits : {1, 2}) {
      for (float deviation : {1e-3f, 1.0f, 300.0f}) {
        Rows test = {Tensor(dtype, 1, kGroup, kGroup, Guard::kAfter), digits, kGroup, 4, digits};
        test.x.fill([&] { return deviation * random.normal(); });
        const GuardedBuffer panel = test.run(scalar::int4_rows, Guard::kAfter);
        double largest = 0;
        for (int64_t k = 0; k < kGroup; ++k) {
          largest = std::max(largest, std::fabs(static_cast<double>(test.x.get(0, k))));
        }
        float scales[2];
        std::memcpy(scales, panel.data() + digits * kGroup, sizeof(float) * digits);
        const double scale = scales[digits - 1];
        CHECK(scale <= largest * (digits == 1 ? 0.0078741 : 0x1p-13 * 0.5035));
        int32_t sums[2], totals[2] = {};
        std::memcpy(sums, panel.data() + digits * (kGroup + 4), sizeof(int32_t) * digits);
        for (int64_t k = 0; k < kGroup; ++k) {
          double value = 0;
          for (int digit = 0; digit < digits; ++digit) {
            const auto q = static_cast<int8_t>(panel.data()[(k / 4 * digits + digit) * 4 + k % 4]);
            value += static_cast<double>(scales[digit]) * q;
            totals[digit] -= q;
          }
          const double x = test.x.get(0, k);
          CHECK(std::abs(value - x) <= scale * 0.50002);
          if (digits == 2 && dtype == DType::kBF16 && std::abs(x) * 64 >= largest)
            CHECK(value == x);
        }
        for (int digit = 0; digit < digits; ++digit) CHECK(sums[digit] == totals[digit]);
      }
    }
  }
}

}  // namespace
}  // namespace capibara::test
