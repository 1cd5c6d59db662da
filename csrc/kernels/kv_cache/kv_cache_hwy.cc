// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "kernels/common/vec-inl.h"
#include "kernels/fp8/fp8.h"
#include "kernels/gemm/interleave-inl.h"
#include "kernels/kv_cache/kv_cache.h"

namespace capibara {
namespace CAPIBARA_ISA {

decltype(scalar::fp8_encode) fp8_encode;

namespace {

// Tokens that are stored at a time, from a multiple of as many on: what is interleaved together of
// keys, and whole groups of values for every depth.
constexpr int64_t kTokens = 8;

// ---------------------------------------------------------------- where tokens go

// Tokens as the cache holds them, in rows `stride` bytes apart.
struct Tokens {
  const char* x;
  int64_t stride;
};

// A head's keys or its values. Sizes and distances in bytes, but for lines and depth.
struct Panels {
  char* data;
  int64_t lines, length;  // in elements
  int64_t cols, depth, size;

  Panels(const CacheLayout& l, char* to, int64_t lines_, int64_t length_)
      : data(to),
        lines(lines_),
        length(length_),
        cols(l.cols),
        depth(l.depth),
        size(size_of(l.type)) {}

  int64_t atom() const { return depth * size; }
  int64_t width(int64_t first) const { return std::min(cols, lines - first); }
  char* panel(int64_t first) const { return data + first * length * size; }
};

// A token's units, `step` bytes apart. Eight bytes are loaded at a time: what was just stored to a
// buffer would otherwise be waited for again and again.
template <class Unit>
HWY_INLINE void scatter(const char* x, size_t units, char* to, size_t step) {
  constexpr size_t kUnits = sizeof(uint64_t) / sizeof(Unit);
  for (; units >= kUnits; units -= kUnits) {
    uint64_t several;
    std::memcpy(&several, x, sizeof several);
    x += sizeof several;
    for (size_t i = 0; i < kUnits; ++i) {
      const auto unit = static_cast<Unit>(several >> (8 * sizeof(Unit) * i));
      std::memcpy(to, &unit, sizeof unit);
      to += step;
    }
  }
  for (; units != 0; --units) {
    std::memcpy(to, x, sizeof(Unit));
    x += sizeof(Unit);
    to += step;
  }
}

void scatter(size_t unit, const char* x, size_t units, char* to, size_t step) {
  switch (unit) {
    case 1:
      return scatter<uint8_t>(x, units, to, step);
    case 2:
      return scatter<uint16_t>(x, units, to, step);
    case 4:
      return scatter<uint32_t>(x, units, to, step);
    case 8:
      return scatter<uint64_t>(x, units, to, step);
    default:
      for (; units != 0; --units) {
        std::memcpy(to, x, unit);
        x += unit;
        to += step;
      }
  }
}

Interleaving interleaving_for(int64_t atom, int64_t lines) {
  if (atom == 1 && lines >= 8) return {interleave<1, 8>, 8};
  return interleaving_of(static_cast<size_t>(atom), lines);
}

void put_keys(const Panels& keys, Tokens tokens, int64_t position, int64_t count) {
  const int64_t atom = keys.atom();
  const auto atoms = static_cast<size_t>(keys.length / keys.depth);
  while (count > 0) {
    const int64_t first = position / keys.cols * keys.cols, width = keys.width(first);
    const int64_t line = position - first;
    const Interleaving next = interleaving_for(atom, std::min(count, width - line));
    char* const to = keys.panel(first) + line * atom;
    const auto row = static_cast<size_t>(width * atom);
    if (next.lines == 1) {
      scatter(static_cast<size_t>(atom), tokens.x, atoms, to, row);
    } else {
      next.run(tokens.x, tokens.stride, atoms, to, row);
    }
    tokens.x += next.lines * tokens.stride;
    position += next.lines;
    count -= next.lines;
  }
}

// Codes of whole groups of tokens, which lie in a buffer that may be read past a token's end.
template <size_t depth>
void interleave_codes(const char* x, ptrdiff_t stride, size_t columns, size_t groups, char* panel,
                      size_t panel_row) {
  const Bytes d;
  for (; groups != 0; --groups) {
    for (size_t column = 0; column < columns; column += 16) {
      Blocks<depth> blocks;
      for (size_t i = 0; i < depth; ++i) {
        const char* row = x + static_cast<ptrdiff_t>(i) * stride + column;
        blocks.v[i] = hn::LoadU(d, reinterpret_cast<const uint8_t*>(row));
      }
      blocks = interleaved<1>(blocks);
      const size_t bytes = HWY_MIN(columns - column, size_t{16}) * depth;
      uint8_t* to = reinterpret_cast<uint8_t*>(panel) + column * depth;
      for (size_t i = 0; i < depth; ++i) {
        if (16 * (i + 1) <= bytes) {
          hn::StoreU(blocks.v[i], d, to + 16 * i);
        } else if (16 * i < bytes) {
          HWY_ALIGN uint8_t rest[16];
          hn::Store(blocks.v[i], d, rest);
          std::memcpy(to + 16 * i, rest, bytes - 16 * i);
        }
      }
    }
    x += static_cast<ptrdiff_t>(depth) * stride;
    panel += panel_row;
  }
}

InterleaveRowsFn* interleaving_for_codes(int64_t depth) {
  switch (depth) {
    case 1:
      return interleave_codes<1>;
    case 2:
      return interleave_codes<2>;
    case 4:
      return interleave_codes<4>;
    default:
      return interleave_codes<8>;
  }
}

// `groups` groups of `depth` tokens.
void put_groups_of_values(const Panels& values, Tokens tokens, int64_t position, int64_t groups) {
  for (int64_t first = 0; first < values.lines; first += values.cols) {
    const int64_t width = values.width(first), row = width * values.atom();
    const auto columns = static_cast<size_t>(width);
    char* to = values.panel(first) + position / values.depth * row;
    const char* x = tokens.x + first * values.size;
    if (values.size == 1 || width * values.size >= 16) {
      InterleaveRowsFn* const run =
          values.size == 1 ? interleaving_for_codes(values.depth)
                           : interleaving_of_rows(static_cast<size_t>(values.size),
                                                  static_cast<int>(values.depth), columns);
      run(x, tokens.stride, columns, static_cast<size_t>(groups), to, static_cast<size_t>(row));
      continue;
    }
    for (int64_t i = 0; i < groups * values.depth; ++i) {
      char* const token = to + i / values.depth * row + i % values.depth * values.size;
      for (int64_t j = 0; j < width; ++j) {
        std::memcpy(token + j * values.atom(), x + i * tokens.stride + j * values.size,
                    static_cast<size_t>(values.size));
      }
    }
  }
}

#if HWY_ARCH_X86
// A token's elements among those of the others of its group, which keep theirs: a vector at a time,
// and not a store for each element.
template <class Group, class T>
void merge(const char* x, size_t columns, char* to, int shift) {
  const hn::CappedTag<Group, 16> d;
  const hn::Rebind<T, decltype(d)> element;
  const auto others = hn::Set(d, static_cast<Group>(~(Group{static_cast<T>(~T{0})} << shift)));
  for (size_t i = 0; i < columns; i += hn::Lanes(d)) {
    auto* groups = reinterpret_cast<Group*>(to) + i;
    const auto added = hn::PromoteTo(d, hn::LoadU(element, reinterpret_cast<const T*>(x) + i));
    const auto kept = hn::And(hn::LoadU(d, groups), others);
    hn::StoreU(hn::Or(kept, hn::ShiftLeftSame(added, shift)), d, groups);
  }
}
#endif

void put_value(const Panels& values, const char* x, int64_t position) {
  const int64_t atom = values.atom(), place = position % values.depth;
  for (int64_t first = 0; first < values.lines; first += values.cols) {
    const int64_t width = values.width(first);
    const auto columns = static_cast<size_t>(width);
    char* const group = values.panel(first) + position / values.depth * width * atom;
    const char* from = x + first * values.size;
#if HWY_ARCH_X86
    if (width % 16 == 0) {
      const int shift = static_cast<int>(8 * place * values.size);
      if (values.size == 2 && atom == 4) {
        merge<uint32_t, uint16_t>(from, columns, group, shift);
        continue;
      }
      if (values.size == 1 && atom == 2) {
        merge<uint16_t, uint8_t>(from, columns, group, shift);
        continue;
      }
    }
#endif
    scatter(static_cast<size_t>(values.size), from, columns, group + place * values.size,
            static_cast<size_t>(atom));
  }
}

void put_values(const Panels& values, Tokens tokens, int64_t position, int64_t count) {
  while (count > 0) {
    const bool whole = position % values.depth == 0 && count >= values.depth;
    const int64_t done = whole ? count / values.depth * values.depth : 1;
    if (whole) {
      put_groups_of_values(values, tokens, position, done / values.depth);
    } else {
      put_value(values, tokens.x, position);
    }
    tokens.x += done * tokens.stride;
    position += done;
    count -= done;
  }
}

// ---------------------------------------------------------------- what becomes of their elements

template <class P>
void convert(const float* x, int64_t n, void* to) {
  P* y = static_cast<P*>(to);
  for_each_extent(FullF32(), static_cast<size_t>(n), [&](size_t i, auto extent) CAPIBARA_INLINE {
    store<Order::kSequential>(FullF32(), y + i, load<Order::kSequential>(FullF32(), x + i, extent),
                              extent);
  });
}

// max |x|: without their sign, numbers are in the order of the integers they are stored as, with
// NaN above infinity. n is a multiple of 16.
template <class T>
float largest_magnitude(const T* x, int64_t n) {
  using Bits = hwy::UnsignedFromSize<sizeof(T)>;
  const hn::CappedTag<Bits, 16> d;
  constexpr size_t kTotals = 16 / hn::MaxLanes(d);
  const auto mask = hn::Set(d, static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1));
  const Bits* p = reinterpret_cast<const Bits*>(x);
  hn::Vec<decltype(d)> totals[kTotals];
  for (auto& total : totals) total = hn::Zero(d);
  for (int64_t i = 0; i < n; i += 16) {
    for (size_t k = 0; k < kTotals; ++k) {
      totals[k] = hn::Max(totals[k], hn::And(hn::LoadU(d, p + k * hn::Lanes(d)), mask));
    }
    p += 16;
  }
  for (size_t k = 1; k < kTotals; ++k) totals[0] = hn::Max(totals[0], totals[k]);
  if constexpr (sizeof(T) == 4) {
    return hn::GetLane(hn::BitCast(hn::Rebind<float, decltype(d)>(), hn::MaxOfLanes(d, totals[0])));
  } else {
    const hn::Half<decltype(d)> half;
    const hn::Rebind<uint32_t, decltype(half)> wide;
    const auto both = hn::Max(hn::LowerHalf(half, totals[0]), hn::UpperHalf(half, totals[0]));
    const auto largest = hn::GetLane(hn::MaxOfLanes(wide, hn::PromoteTo(wide, both)));
    return to_f32(T{static_cast<uint16_t>(largest)});
  }
}

// What a token's elements are multiplied with; stores the scale.
float own_factor(Fp8 format, DType from, const char* x, int64_t n, float* scale) {
  const float largest = dispatch(from, [&](auto element) CAPIBARA_INLINE {
    return largest_magnitude(reinterpret_cast<const decltype(element)*>(x), n);
  });
  *scale = 1.0f;
  if (largest == 0.0f) return 1.0f;
  if (!(largest <= std::numeric_limits<float>::max())) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    return 1.0f;
  }
  *scale = largest / largest_of(format);
  if (*scale >= kSmallestTokenScale) return largest_of(format) / largest;
  *scale = kSmallestTokenScale;
  return 1.0f / kSmallestTokenScale;
}

// Keys or values, on their way to the cache.
struct Source {
  const char* x;
  int64_t stride;  // bytes
  float factor;
  float* scales;  // by position; null: factor
};

// Tokens in the cache's type, with room to read on for a block. The rows of a power of two of bytes
// would fall into the same sets of level 1.
struct Buffer {
  static constexpr int64_t kStride = 2 * kLargestHeadDim + 64;
  HWY_ALIGN char rows[kTokens * kStride];
};

Tokens converted(const CacheLayout& layout, DType from, const Source& s, int64_t position,
                 int64_t count, Buffer& buffer) {
  for (int64_t i = 0; i < count; ++i) {
    const char* x = s.x + i * s.stride;
    char* to = buffer.rows + i * Buffer::kStride;
    if (is_fp8(layout.type)) {
      const Fp8 format = fp8_of(layout.type);
      const float factor =
          s.scales ? own_factor(format, from, x, layout.head_dim, s.scales + position + i)
                   : s.factor;
      fp8_encode({from, x, layout.head_dim, factor, format, reinterpret_cast<uint8_t*>(to)});
    } else if (layout.type == CacheType::kBF16) {
      convert<BF16>(reinterpret_cast<const float*>(x), layout.head_dim, to);
    } else {
      convert<F16>(reinterpret_cast<const float*>(x), layout.head_dim, to);
    }
  }
  return {buffer.rows, Buffer::kStride};
}

}  // namespace

void kv_cache_write(const CacheWriteArgs& a) noexcept {
  const CacheLayout& layout = a.layout;
  const auto from_size = static_cast<int64_t>(size_of(a.from));
  const bool copies = !is_fp8(layout.type) && a.from == static_cast<DType>(layout.type);
  char* const block = static_cast<char*>(a.block);
  const Panels keys(layout, block, layout.block_size, layout.head_dim);
  const Panels values(layout, block + layout.half() * size_of(layout.type), layout.head_dim,
                      layout.block_size);
  Source key = {static_cast<const char*>(a.key), a.key_stride * from_size, a.key_factor,
                a.scales_of_keys};
  Source value = {static_cast<const char*>(a.value), a.value_stride * from_size, a.value_factor,
                  a.scales_of_values};
  Buffer buffer;
  int64_t position = a.first;
  for (const int64_t end = a.first + a.count; position < end;) {
    const int64_t count = std::min(kTokens - position % kTokens, end - position);
    const auto tokens_of = [&](Source& s) {
      const Tokens tokens =
          copies ? Tokens{s.x, s.stride} : converted(layout, a.from, s, position, count, buffer);
      s.x += count * s.stride;
      return tokens;
    };
    put_keys(keys, tokens_of(key), position, count);
    put_values(values, tokens_of(value), position, count);
    position += count;
  }
}

}  // namespace CAPIBARA_ISA
}  // namespace capibara
