// SPDX-License-Identifier: Apache-2.0
// Elements of several lines put side by side; local to the including source, as vecs-inl.h says.
//
// An atom is what a panel holds together of one line: PackArgs::depth elements. Atoms of several
// lines change places in blocks of 16 bytes, whatever the ISA: wider vectors interleave within each
// 16 bytes only, and loads and stores are what takes the time.
#pragma once

#include <cstring>

#include "kernels/common/vecs-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

using Bytes = hn::FixedTag<uint8_t, 16>;
using Block = hn::Vec<Bytes>;

template <size_t n>
struct Blocks {
  Block v[n];
};

template <size_t unit>
HWY_INLINE Block lower_units(Block a, Block b) {
#if HWY_ARCH_ARM_A64
  // LLVM makes two instructions of this one, of which it does not use the name where the unit is
  // half of a vector: a copy of `a` and the insertion of b's half.
  if constexpr (unit == 8) {
    uint8x16_t both;
    __asm__("zip1 %0.2d, %1.2d, %2.2d" : "=w"(both) : "w"(a.raw), "w"(b.raw));
    return Block(both);
  }
#endif
  const hn::Repartition<hwy::UnsignedFromSize<unit>, Bytes> d;
  return hn::BitCast(Bytes(), hn::InterleaveLower(d, hn::BitCast(d, a), hn::BitCast(d, b)));
}

template <size_t unit>
HWY_INLINE Block upper_units(Block a, Block b) {
  const hn::Repartition<hwy::UnsignedFromSize<unit>, Bytes> d;
  return hn::BitCast(Bytes(), hn::InterleaveUpper(d, hn::BitCast(d, a), hn::BitCast(d, b)));
}

// Blocks v[group of lines * parts + part], part after part of the group's units side by side: at
// first one block for each line, in the end one for each part of a row, as wide as a row or as a
// block.
template <size_t unit, size_t parts = 1, size_t n>
HWY_INLINE Blocks<n> interleaved(const Blocks<n>& x) {
  constexpr size_t groups = n / parts;
  if constexpr (unit == 16 || groups == 1) {
    return x;
  } else {
    Blocks<n> y;
    for (size_t g = 0; g < groups / 2; ++g) {
      for (size_t part = 0; part < parts; ++part) {
        const Block a = x.v[2 * g * parts + part], b = x.v[(2 * g + 1) * parts + part];
        y.v[2 * (g * parts + part)] = lower_units<unit>(a, b);
        y.v[2 * (g * parts + part) + 1] = upper_units<unit>(a, b);
      }
    }
    return interleaved<2 * unit, 2 * parts>(y);
  }
}

// Where the next block of each line is.
template <size_t n>
struct Lines {
  const uint8_t* p[n];

  HWY_INLINE Lines(const char* x, ptrdiff_t stride) {
    for (size_t i = 0; i < n; ++i) {
      p[i] = reinterpret_cast<const uint8_t*>(x) + static_cast<ptrdiff_t>(i) * stride;
    }
  }
  HWY_INLINE Blocks<n> load(size_t offset) const {
    Blocks<n> blocks;
    for (size_t i = 0; i < n; ++i) blocks.v[i] = hn::LoadU(Bytes(), p[i] + offset);
    return blocks;
  }
  HWY_INLINE void advance(size_t bytes) {
    for (size_t i = 0; i < n; ++i) {
      p[i] += bytes;
#if HWY_ARCH_ARM_A64
      // No instruction. The compiler would otherwise compute each line's place from the last one's,
      // where loads move their pointers for nothing.
      __asm__("" : "+r"(p[i]));
#endif
    }
  }
};

// Each line's atoms of one block, as `rows` rows, `row` bytes apart.
template <size_t atom, size_t lines>
HWY_INLINE void interleave_block(const Blocks<lines>& x, size_t rows, uint8_t* panel, size_t row) {
  const Bytes d;
  constexpr size_t unit = HWY_MIN(size_t{16}, atom * lines), parts = unit / atom;
  const Blocks<lines> blocks = interleaved<atom>(x);
  if constexpr (unit == 16) {
    for (size_t part = 0; part < parts; ++part) {
      if (part >= rows) return;
      for (size_t g = 0; g < lines / parts; ++g) {
        hn::StoreU(blocks.v[g * parts + part], d, panel + part * row + g * 16);
      }
    }
  } else {
    static_assert(unit == 8, "two rows to a block");
    const hn::Half<Bytes> half;
    for (size_t part = 0; part < parts; ++part) {
      if (2 * part >= rows) return;
      hn::StoreU(hn::LowerHalf(blocks.v[part]), half, panel + 2 * part * row);
      if (2 * part + 1 >= rows) return;
      hn::StoreU(hn::UpperHalf(half, blocks.v[part]), half, panel + (2 * part + 1) * row);
    }
  }
}

// `atoms` atoms of each of so many lines, `stride` bytes apart, into rows `row` bytes apart. Whole
// blocks of each line are read, the last one too.
using InterleaveFn = void(const char* x, ptrdiff_t stride, size_t atoms, char* panel, size_t row);

// `whole_rows`: there is nothing between them, and a place in a panel is a constant.
template <size_t atom, size_t lines, bool whole_rows>
HWY_INLINE void interleave_rows_of(const char* x, ptrdiff_t stride, size_t atoms, char* panel,
                                   size_t row) {
  constexpr size_t rows = 16 / atom;
  // On Arm, an instruction loads two blocks; other registers are too few for those of eight lines.
  constexpr size_t together = HWY_ARCH_ARM_A64 && atom == 8 ? 2 : 1;
  if (whole_rows) row = atom * lines;
  Lines<lines> at(x, stride);
  uint8_t* to = reinterpret_cast<uint8_t*>(panel);
  for (size_t steps = atoms / (together * rows); steps != 0; --steps) {
    Blocks<lines> blocks[together];
    for (size_t i = 0; i < together; ++i) blocks[i] = at.load(16 * i);
    at.advance(16 * together);
    for (size_t i = 0; i < together; ++i) {
      interleave_block<atom>(blocks[i], rows, to + i * rows * row, row);
    }
    to += together * rows * row;
  }
  for (size_t left = atoms % (together * rows); left != 0;) {
    const size_t now = HWY_MIN(left, rows);
    interleave_block<atom>(at.load(0), now, to, row);
    at.advance(16);
    to += rows * row;
    left -= now;
  }
}

template <size_t atom, size_t lines>
void interleave(const char* x, ptrdiff_t stride, size_t atoms, char* panel, size_t row) {
  if (row == atom * lines) {
    interleave_rows_of<atom, lines, true>(x, stride, atoms, panel, row);
  } else {
    interleave_rows_of<atom, lines, false>(x, stride, atoms, panel, row);
  }
}

// One line: its atoms only move apart.
template <size_t atom>
void spread(const char* x, ptrdiff_t, size_t atoms, char* panel, size_t row) {
  for (; atoms != 0; --atoms) {
    std::memcpy(panel, x, atom);
    x += atom;
    panel += row;
  }
}

struct Interleaving {
  InterleaveFn* run;
  int64_t lines;
};

template <size_t atom>
Interleaving interleaving_of(int64_t lines) {
  if constexpr (atom >= 2 && atom <= 8) {
    if (lines >= 8) return {interleave<atom, 8>, 8};
    if (lines >= 4) return {interleave<atom, 4>, 4};
    if constexpr (atom >= 4) {
      if (lines >= 2) return {interleave<atom, 2>, 2};
    }
  }
  return {spread<atom>, 1};
}

// For as many of the lines as go together.
inline Interleaving interleaving_of(size_t atom, int64_t lines) {
  switch (atom) {
    case 1:
      return interleaving_of<1>(lines);
    case 2:
      return interleaving_of<2>(lines);
    case 4:
      return interleaving_of<4>(lines);
    case 8:
      return interleaving_of<8>(lines);
    case 16:
      return interleaving_of<16>(lines);
    default:
      return interleaving_of<32>(lines);
  }
}

// ---------------------------------------------------------------- of columns

// For each of `groups` groups of `depth` rows, one after another and `stride` bytes apart: the
// first `columns` elements of all its rows, column by column. At least a block of columns; groups
// `panel_row` bytes apart.
using InterleaveRowsFn = void(const char* x, ptrdiff_t stride, size_t columns, size_t groups,
                              char* panel, size_t panel_row);

template <size_t size, size_t depth>
HWY_INLINE void interleave_columns(const char* x, ptrdiff_t stride, char* panel) {
  const Bytes d;
  constexpr size_t unit = HWY_MIN(size_t{16}, size * depth), parts = unit / size;
  Blocks<depth> blocks;
  for (size_t i = 0; i < depth; ++i) {
    blocks.v[i] =
        hn::LoadU(d, reinterpret_cast<const uint8_t*>(x) + static_cast<ptrdiff_t>(i) * stride);
  }
  blocks = interleaved<size>(blocks);
  for (size_t part = 0; part < parts; ++part) {
    for (size_t g = 0; g < depth / parts; ++g) {
      hn::StoreU(blocks.v[g * parts + part], d,
                 reinterpret_cast<uint8_t*>(panel) + part * (depth / parts) * 16 + g * 16);
    }
  }
}

// `blocks` blocks of columns, a constant, or as many as there are if it is 0.
template <size_t size, size_t depth, size_t blocks>
void interleave_rows(const char* x, ptrdiff_t stride, size_t columns, size_t groups, char* panel,
                     size_t panel_row) {
  constexpr size_t a_block = 16 / size;
  const size_t whole = blocks ? blocks : columns / a_block;
  for (; groups != 0; --groups) {
    for (size_t i = 0; i < whole; ++i) {
      interleave_columns<size, depth>(x + 16 * i, stride, panel + 16 * depth * i);
    }
    if (blocks == 0 && columns % a_block) {  // some columns once more
      const size_t column = columns - a_block;
      interleave_columns<size, depth>(x + column * size, stride, panel + column * size * depth);
    }
    x += static_cast<ptrdiff_t>(depth) * stride;
    panel += panel_row;
  }
}

template <size_t size, size_t depth>
InterleaveRowsFn* interleaving_of_rows(size_t columns) {
  switch (columns * size) {
    case 16:
      return interleave_rows<size, depth, 1>;
    case 32:
      return interleave_rows<size, depth, 2>;
    case 64:
      return interleave_rows<size, depth, 4>;
    default:
      return interleave_rows<size, depth, 0>;
  }
}

template <size_t size>
InterleaveRowsFn* interleaving_of_rows(int depth, size_t columns) {
  switch (depth) {
    case 1:
      // Copies; as wide as panels of f32 are for AVX-512.
      if (columns * size == 128) return interleave_rows<size, 1, 8>;
      return interleaving_of_rows<size, 1>(columns);
    case 2:
      return interleaving_of_rows<size, 2>(columns);
    case 4:
      return interleaving_of_rows<size, 4>(columns);
    default:
      return interleaving_of_rows<size, 8>(columns);
  }
}

inline InterleaveRowsFn* interleaving_of_rows(size_t size, int depth, size_t columns) {
  return size == 4 ? interleaving_of_rows<4>(depth, columns)
                   : interleaving_of_rows<2>(depth, columns);
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
