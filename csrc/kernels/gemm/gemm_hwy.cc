// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/vec-inl.h"
#include "kernels/gemm/tile-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// Each row takes two registers of 32 or 16; two more hold B, one the broadcast of A, and one what
// is between: a mask, or a product before it is added. Without fused multiply-adds, more rows than
// four gain nothing.
#if HWY_TARGET <= HWY_AVX3
[[maybe_unused]] constexpr int kRows = 12;
#elif HWY_TARGET == HWY_AVX2
[[maybe_unused]] constexpr int kRows = 6;
#elif HWY_ARCH_X86
[[maybe_unused]] constexpr int kRows = 4;
#else
[[maybe_unused]] constexpr int kRows = 8;
#endif

template <class T>
struct Sums {
  using D = hn::ScalableTag<T>;
  using C = T;
  using Sum = hn::Vec<D>;
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

  static HWY_INLINE Sum zero() { return hn::Zero(D()); }
  static HWY_INLINE Sum read(const T* c) { return hn::LoadU(D(), c); }
  static HWY_INLINE void write(Sum sum, T* c) { hn::StoreU(sum, D(), c); }
  static HWY_INLINE Sum add(Sum x, Sum y) { return hn::Add(x, y); }
};

// Elements of B that become f32 one vector at a time.
template <class T, Packed packed>
struct Widened : Sums<float> {
  using A = float;
  using B = T;
  static constexpr Packed kA = Packed::kF32, kB = packed;
  static constexpr int kDepth = 1;

  template <int rows>
  static HWY_INLINE void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const Pair<D> columns = load<Order::kSequential>(D(), b);
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      const Sum x = hn::Set(D(), a[r]);
      sums[r][0] = hn::MulAdd(x, columns.v[0], sums[r][0]);
      sums[r][1] = hn::MulAdd(x, columns.v[1], sums[r][1]);
    });
  }
};

#if HWY_ARCH_X86
constexpr bool kFused = HWY_TARGET <= HWY_AVX2;  // MulAdd is one instruction

// No instruction. The sums have new values only now, and what they were made of still has its own:
// else GCC puts sums into the registers of their operands, and copies or spills them later.
template <class V>
HWY_INLINE void keep_in_place(V (&sums)[2], V x, V y, V z) {
  __asm__("" : "+v"(sums[0].raw), "+v"(sums[1].raw) : "v"(x.raw), "v"(y.raw), "v"(z.raw));
}

// Two bf16 along K in each 32 bits: one is a shift away from f32, the other a mask.
struct PairsOfBF16 : Sums<float> {
  using A = float;
  using B = BF16;
  static constexpr Packed kA = Packed::kF32, kB = Packed::kBF16;
  static constexpr int kDepth = 2;

  using U = hn::RebindToUnsigned<D>;
  static HWY_INLINE hn::Vec<U> pairs(const B* b) {
    return hn::LoadU(U(), reinterpret_cast<const uint32_t*>(b));
  }
  static HWY_INLINE Sum first(const B* b) { return hn::BitCast(D(), hn::ShiftLeft<16>(pairs(b))); }
  static HWY_INLINE Sum second(const B* b) {
    return hn::BitCast(D(), hn::And(pairs(b), hn::Set(U(), 0xffff0000u)));
  }

  template <int rows>
  static HWY_INLINE void add_products(const A* a, Sum b0, Sum b1, Sum (&sums)[rows][2]) {
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      const Sum x = hn::Set(D(), a[2 * r]);
      sums[r][0] = hn::MulAdd(x, b0, sums[r][0]);
      sums[r][1] = hn::MulAdd(x, b1, sums[r][1]);
      if constexpr (kFused) keep_in_place(sums[r], x, b0, b1);
    });
  }

  template <int rows>
  static HWY_INLINE void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    add_products<rows>(a, first(b), first(b + 2 * kLanes), sums);
    // No instruction: B is loaded again rather than kept, for which there are no registers.
    if constexpr (kFused) __asm__("" : "+r"(b) : "v"(sums[rows - 1][1].raw));
    add_products<rows>(a + 1, second(b), second(b + 2 * kLanes), sums);
  }
};

// PMADDWD: the sum of two products of int16, exact in int32.
struct PairsOfInt8 : Sums<int32_t> {
  using A = int16_t;
  using B = int8_t;
  static constexpr Packed kA = Packed::kI16, kB = Packed::kI8;
  static constexpr int kDepth = 2;

  using D16 = hn::Repartition<int16_t, D>;
  static HWY_INLINE hn::Vec<D16> pairs(const B* b) {
    return hn::PromoteTo(D16(), hn::LoadU(hn::Rebind<int8_t, D16>(), b));
  }
  static HWY_INLINE Sum product(hn::Vec<D16> x, hn::Vec<D16> y) {
    Sum none = zero();
    return hn::ReorderWidenMulAccumulate(D(), x, y, zero(), none);
  }

  template <int rows>
  static HWY_INLINE void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const auto b0 = pairs(b), b1 = pairs(b + 2 * kLanes);
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      int32_t pair;
      std::memcpy(&pair, a + 2 * r, sizeof pair);
      const auto x = hn::BitCast(D16(), hn::Set(D(), pair));
      const Sum p0 = product(x, b0), p1 = product(x, b1);
      sums[r][0] = hn::Add(sums[r][0], p0);
      sums[r][1] = hn::Add(sums[r][1], p1);
      keep_in_place(sums[r], p0, p0, p0);  // with p1 too, clang runs out of registers
    });
  }
};
#endif

}  // namespace

#if HWY_ARCH_X86
const GemmKernel gemm_f32 = kernel_of<Widened<float, Packed::kF32>, kRows>();
const GemmKernel gemm_bf16 = kernel_of<PairsOfBF16, kRows>();
const GemmKernel gemm_f16 = kernel_of<Widened<F16, Packed::kF16>, kRows>();
const GemmKernel gemm_int8 = kernel_of<PairsOfInt8, kRows>();
#elif !defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
const GemmKernel gemm_bf16 = kernel_of<Widened<BF16, Packed::kBF16>, kRows>();
const GemmKernel gemm_f16 = kernel_of<Widened<F16, Packed::kF16>, kRows>();
#endif

}  // namespace CAPIBARA_ISA
}  // namespace capibara
