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

// Blocks v[line group * parts + part], part after part of each group's units side by side: at first
// one block for each line, in the end one for each part of a row, as wide as a row or as a block.
template <size_t unit, size_t parts = 1, size_t n>
HWY_INLINE Blocks<n> interleaved(const Blocks<n>& x) {
  constexpr size_t groups = n / parts;
  if constexpr (unit == 16 || groups == 1) {
    return x;
  } else {
    const hn::Repartition<hwy::UnsignedFromSize<unit>, Bytes> d;
    Blocks<n> y;
    for (size_t g = 0; g < groups / 2; ++g) {
      for (size_t part = 0; part < parts; ++part) {
        const auto a = hn::BitCast(d, x.v[2 * g * parts + part]);
        const auto b = hn::BitCast(d, x.v[(2 * g + 1) * parts + part]);
        y.v[2 * (g * parts + part)] = hn::BitCast(Bytes(), hn::InterleaveLower(d, a, b));
        y.v[2 * (g * parts + part) + 1] = hn::BitCast(Bytes(), hn::InterleaveUpper(d, a, b));
      }
    }
    return interleaved<2 * unit, 2 * parts>(y);
  }
}

// `atoms` atoms of each of so many lines, `stride` bytes apart, into rows `row` bytes apart. Whole
// blocks of each line are read, the last one too.
using InterleaveFn = void(const char* x, ptrdiff_t stride, size_t atoms, char* panel, size_t row);

template <size_t atom, size_t lines>
HWY_INLINE void interleave_block(const char* x, ptrdiff_t stride, size_t rows, char* panel,
                                 size_t row) {
  const Bytes d;
  constexpr size_t unit = HWY_MIN(size_t{16}, atom * lines), parts = unit / atom;
  Blocks<lines> blocks;
  for (size_t i = 0; i < lines; ++i) {
    blocks.v[i] =
        hn::LoadU(d, reinterpret_cast<const uint8_t*>(x) + static_cast<ptrdiff_t>(i) * stride);
  }
  blocks = interleaved<atom>(blocks);
  uint8_t* const to = reinterpret_cast<uint8_t*>(panel);
  if constexpr (unit == 16) {
    for (size_t part = 0; part < parts; ++part) {
      if (part >= rows) return;
      for (size_t g = 0; g < lines / parts; ++g) {
        hn::StoreU(blocks.v[g * parts + part], d, to + part * row + g * 16);
      }
    }
  } else {
    static_assert(unit == 8, "two rows to a block");
    const hn::Half<Bytes> half;
    for (size_t part = 0; part < parts; ++part) {
      if (2 * part >= rows) return;
      hn::StoreU(hn::LowerHalf(blocks.v[part]), half, to + 2 * part * row);
      if (2 * part + 1 >= rows) return;
      hn::StoreU(hn::UpperHalf(half, blocks.v[part]), half, to + (2 * part + 1) * row);
    }
  }
}

template <size_t atom, size_t lines>
void interleave(const char* x, ptrdiff_t stride, size_t atoms, char* panel, size_t row) {
  constexpr size_t rows = 16 / atom;
  for (size_t blocks = atoms / rows; blocks != 0; --blocks) {
    interleave_block<atom, lines>(x, stride, rows, panel, row);
    x += 16;
    panel += rows * row;
  }
  if (atoms % rows) interleave_block<atom, lines>(x, stride, atoms % rows, panel, row);
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

template <size_t size, size_t depth>
void interleave_rows(const char* x, ptrdiff_t stride, size_t columns, size_t groups, char* panel,
                     size_t panel_row) {
  constexpr size_t a_block = 16 / size;
  if (columns == a_block) {
    for (; groups != 0; --groups) {
      interleave_columns<size, depth>(x, stride, panel);
      x += static_cast<ptrdiff_t>(depth) * stride;
      panel += panel_row;
    }
    return;
  }
  for (; groups != 0; --groups) {
    size_t column = 0;
    do {
      interleave_columns<size, depth>(x + column * size, stride, panel + column * size * depth);
      column += a_block;
    } while (column + a_block <= columns);
    if (column < columns) {  // some columns once more
      column = columns - a_block;
      interleave_columns<size, depth>(x + column * size, stride, panel + column * size * depth);
    }
    x += static_cast<ptrdiff_t>(depth) * stride;
    panel += panel_row;
  }
}

template <size_t size>
InterleaveRowsFn* interleaving_of_rows(int depth) {
  switch (depth) {
    case 1:
      return interleave_rows<size, 1>;
    case 2:
      return interleave_rows<size, 2>;
    case 4:
      return interleave_rows<size, 4>;
    default:
      return interleave_rows<size, 8>;
  }
}

inline InterleaveRowsFn* interleaving_of_rows(size_t size, int depth) {
  return size == 4 ? interleaving_of_rows<4>(depth) : interleaving_of_rows<2>(depth);
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
