// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/vec-inl.h"
#include "kernels/gemm/tile-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// Rows: as many as leave registers, of 32 or 16, for two vectors of B, a broadcast element and,
// where there are no fused multiply-adds, a product.
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 12;
#elif HWY_ARCH_ARM_A64
constexpr int kRows = 8;
#elif HWY_TARGET == HWY_AVX2
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
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

#if HWY_ARCH_X86
// No instruction:
template <class V>
HWY_INLINE void keep(V (&sums)[2], V x, V b0, V b1) {
  __asm__("" : "+v"(sums[0].raw), "+v"(sums[1].raw) : "v"(x.raw), "v"(b0.raw), "v"(b1.raw));
}
#endif

// sums[r][v] += a[r * stride] b_v
template <int rows, int stride, class V>
HWY_INLINE void multiply_add(const float* a, V b0, V b1, V (&sums)[rows][2]) {
  unrolled<rows>([&](int r) CAPIBARA_INLINE {
    const V x = hn::Set(FullF32(), a[r * stride]);
    sums[r][0] = hn::MulAdd(x, b0, sums[r][0]);
    sums[r][1] = hn::MulAdd(x, b1, sums[r][1]);
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
    if constexpr (stride > 1) keep(sums[r], x, b0, b1);
#endif
  });
}

// Elements of B that become f32 one vector at a time.
template <class T, Packed packed>
struct Widened : Sums<float> {
  using A = float;
  using B = T;
  static constexpr Packed kA = Packed::kF32, kB = packed;
  static constexpr int kDepth = 1;

  template <int rows>
  static HWY_INLINE void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    multiply_add<rows, 1>(a, load_one(D(), b), load_one(D(), b + kLanes), sums);
  }
};

#if HWY_ARCH_X86
// Two bf16 along K in each 32 bits: one is a shift away from f32, the other a mask.
struct PairsOfBF16 : Sums<float> {
  using A = float;
  using B = BF16;
  static constexpr Packed kA = Packed::kF32, kB = Packed::kBF16;
  static constexpr int kDepth = 2;

  template <int rows>
  static HWY_INLINE void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const hn::RebindToUnsigned<D> du;
    const auto bits = [&](int v) CAPIBARA_INLINE {
      uint32_t const* p = reinterpret_cast<const uint32_t*>(b) + v * kLanes;
      return hn::LoadU(du, p);
    };
    const auto low = [&](int v)
                         CAPIBARA_INLINE { return hn::BitCast(D(), hn::ShiftLeft<16>(bits(v))); };
    multiply_add<rows, 2>(a, low(0), low(1), sums);
    __asm__("" : "+r"(b) : "v"(sums[rows - 1][1].raw));
    const auto mask = hn::Set(du, 0xffff0000u);
    const auto high = [&](int v)
                          CAPIBARA_INLINE { return hn::BitCast(D(), hn::And(bits(v), mask)); };
    multiply_add<rows, 2>(a + 1, high(0), high(1), sums);
  }
};

// PMADDWD: the sum of two products of int16, exact in int32.
struct PairsOfInt8 : Sums<int32_t> {
  using A = int16_t;
  using B = int8_t;
  static constexpr Packed kA = Packed::kI16, kB = Packed::kI8;
  static constexpr int kDepth = 2;

  template <int rows>
  static HWY_INLINE void multiply(const A* a, const B* b, Sum (&sums)[rows][2]) {
    const hn::Repartition<int16_t, D> d16;
    const hn::Rebind<int8_t, decltype(d16)> d8;
    const auto b0 = hn::PromoteTo(d16, hn::LoadU(d8, b));
    const auto b1 = hn::PromoteTo(d16, hn::LoadU(d8, b + 2 * kLanes));
    unrolled<rows>([&](int r) CAPIBARA_INLINE {
      int32_t pair;
      std::memcpy(&pair, a + 2 * r, sizeof pair);
      const auto x = hn::BitCast(d16, hn::Set(D(), pair));
      Sum unused = zero();
      sums[r][0] = hn::ReorderWidenMulAccumulate(D(), x, b0, sums[r][0], unused);
      sums[r][1] = hn::ReorderWidenMulAccumulate(D(), x, b1, sums[r][1], unused);
      __asm__("" : "+v"(sums[r][0].raw), "+v"(sums[r][1].raw));
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
