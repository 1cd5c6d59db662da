// SPDX-License-Identifier: Apache-2.0
// exp and what is built on it, on f32 vectors. Errors are stated in math.h and measured over every
// f32 by tests/cpp/math_test.cc. Coefficients: fit_polynomials.py.
#pragma once

#include "kernels/common/vec-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// max(bound, v) and min(bound, v); NaN stays NaN. On x86, the instructions give their second
// operand if one is NaN; on Arm, Highway's Max and Min give the number.
template <class D>
HWY_INLINE hn::Vec<D> at_least(D, hn::Vec<D> bound, hn::Vec<D> v) {
#if HWY_ARCH_ARM_A64
  return hn::Vec<D>(vmaxq_f32(bound.raw, v.raw));
#else
  return hn::Max(bound, v);
#endif
}
template <class D>
HWY_INLINE hn::Vec<D> at_most(D, hn::Vec<D> bound, hn::Vec<D> v) {
#if HWY_ARCH_ARM_A64
  return hn::Vec<D>(vminq_f32(bound.raw, v.raw));
#else
  return hn::Min(bound, v);
#endif
}

// A constant to which products are going to be added.
//
// NEON's FMLA overwrites its accumulator, so the constant is needed anew each time. Copying it
// takes an instruction and a slot of the vector pipes, which these loops wait for; on Arm it is
// loaded, four vectors of it in one instruction, by pipes that idle.
struct Addend {
  explicit constexpr Addend(float constant) : value(constant), copies{} {
    for (float& copy : copies) copy = constant;
  }
  float value;
  alignas(16) mutable float copies[16];  // nothing writes it, but the compiler must not know
};

// `addend` for each vector of `factor`, which is going to be multiplied, and which it waits for:
// loaded all at once, a polynomial's constants would fill the registers.
template <const Addend& addend, class D, size_t n>
HWY_INLINE Vecs<D, n> addends(D d, [[maybe_unused]] const Vecs<D, n>& factor) {
#if HWY_ARCH_ARM_A64
  if constexpr (n == 4) {
    const float32x4x4_t four = vld1q_f32_x4(after(factor, addend.copies));
    return {{hn::Vec<D>(four.val[0]), hn::Vec<D>(four.val[1]), hn::Vec<D>(four.val[2]),
             hn::Vec<D>(four.val[3])}};
  }
#endif
  constexpr float value = addend.value;
  return fill<n>(d, hn::Set(d, value));
}

// p * r + c, for all vectors.
template <const Addend& c, class D, size_t n>
HWY_INLINE Vecs<D, n> horner(D d, Vecs<D, n> p, Vecs<D, n> r) {
  return map(p, r, addends<c>(d, p), [](auto a, auto b, auto constant) CAPIBARA_INLINE {
    return hn::MulAdd(a, b, constant);
  });
}

constexpr Addend kExp5{0.00836314637679f}, kExp4{0.0416668534185f}, kExp3{0.166665772839f},
    kExp2{0.499999995526f}, kExp1{1.0f}, kExp0{1.0f};

// e^r for |r| <= ln(2) / 2: minimax of degree 6, relative error 9.4e-9 before rounding.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> exp_reduced(D d, Vecs<D, n> r) {
  auto p = horner<kExp5>(d, fill<n>(d, hn::Set(d, 0.00139012875911f)), r);
  p = horner<kExp4>(d, p, r);
  p = horner<kExp3>(d, p, r);
  p = horner<kExp2>(d, p, r);
  p = horner<kExp1>(d, p, r);
  return horner<kExp0>(d, p, r);
}

// round(x / ln(2)), a whole number.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> nearest_ln2_multiple(D d, Vecs<D, n> x) {
  const auto log2e = hn::Set(d, 1.44269504f);
  return map(x, [&](auto a) CAPIBARA_INLINE { return hn::Round(hn::Mul(a, log2e)); });
}

// x - k ln(2) with ln(2) in two parts (W. Cody and W. Waite, "Software Manual for the Elementary
// Functions", 1980): the first has 9 significant bits, so that k times it is exact even without
// FMA.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> subtract_ln2_multiple(D d, Vecs<D, n> x, Vecs<D, n> k) {
  const auto high = hn::Set(d, 0.693359375f), low = hn::Set(d, -2.12194440e-4f);
  x = map(x, k,
          [&](auto a, auto multiple) CAPIBARA_INLINE { return hn::NegMulAdd(multiple, high, a); });
  return map(
      x, k, [&](auto a, auto multiple) CAPIBARA_INLINE { return hn::NegMulAdd(multiple, low, a); });
}

// p * 2^k; k is a whole number in [-151, 129], p is in [0.7, 1.5]. Rounds once, also where the
// result is subnormal.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> scale_by_power([[maybe_unused]] D d, Vecs<D, n> p, Vecs<D, n> k) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) {
    return map(p, k, [](auto a, auto e) CAPIBARA_INLINE {
      return hn::Vec<D>{_mm512_scalef_ps(a.raw, e.raw)};
    });
  }
#endif
  // 2^k itself can be out of range: two factors of about its root are not, and the first product
  // is exact.
  return map(p, k, [&](auto a, auto e) CAPIBARA_INLINE {
    const hn::RebindToSigned<D> di;
    const auto whole = hn::ConvertTo(di, e);
    const auto first = hn::ShiftRight<1>(whole);
    const auto second = hn::Sub(whole, first);
    const auto bias = hn::Set(di, 127);
    a = hn::Mul(a, hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(first, bias))));
    return hn::Mul(a, hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(second, bias))));
  });
}

// e^x over the whole range: infinity above 88.72, zero below -103.97, subnormals between; NaN
// stays.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> exp(D d, Vecs<D, n> x) {
  const auto most = hn::Set(d, 89.0f), least = hn::Set(d, -104.5f);
  x = map(x, [&](auto a) CAPIBARA_INLINE { return at_least(d, least, at_most(d, most, a)); });
  const auto k = nearest_ln2_multiple(d, x);
  return scale_by_power(d, exp_reduced(d, subtract_ln2_multiple(d, x, k)), k);
}

// e^x for x <= 0; subnormals are kept.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> exp_nonpositive(D d, Vecs<D, n> x) {
  const auto least = hn::Set(d, -104.5f);
  x = map(x, [&](auto a) CAPIBARA_INLINE { return at_least(d, least, a); });
  const auto k = nearest_ln2_multiple(d, x);
  return scale_by_power(d, exp_reduced(d, subtract_ln2_multiple(d, x, k)), k);
}

// e^x for x <= 0, zero where the result would be subnormal (x < -126 ln(2)): that is all that
// softmax needs, being below 2^-126 of the row's largest term, and saves the second scaling.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> exp_nonpositive_flushed(D d, Vecs<D, n> x) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) return exp_nonpositive(d, x);  // VSCALEFPS: no saving
#endif
  const auto least = hn::Set(d, -87.33654f);
  const auto bounded = map(x, [&](auto a) CAPIBARA_INLINE { return at_least(d, least, a); });
  const auto k = nearest_ln2_multiple(d, bounded);
  const auto p = exp_reduced(d, subtract_ln2_multiple(d, bounded, k));
  return map(p, k, x, [&](auto a, auto e, auto given) CAPIBARA_INLINE {
    const hn::RebindToSigned<D> di;
    const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, e), hn::Set(di, 127)));
    return hn::IfThenZeroElse(hn::Lt(given, least), hn::Mul(a, hn::BitCast(d, power)));
  });
}

constexpr Addend kShortExp3{0.0559180261247f}, kShortExp2{0.240247464259f},
    kShortExp1{0.693121794421f}, kShortExp0{0.999999260588f};

// e^x for a result that will be rounded to 16 bits: relative error 1.1e-5 (2.6e-6 of it the
// polynomial's, the rest from rounding x / ln(2)), a twentieth of half a unit in f16's last place.
// Infinity from 2^127.5 on at the latest, zero from 2^-126.5 down; NaN stays.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> exp_for_16_bits(D d, Vecs<D, n> x) {
  const auto polynomial = [&](auto f) CAPIBARA_INLINE {  // 2^f for |f| <= 1/2
    auto p = horner<kShortExp3>(d, fill<n>(d, hn::Set(d, 0.00957008549349f)), f);
    p = horner<kShortExp2>(d, p, f);
    p = horner<kShortExp1>(d, p, f);
    return horner<kShortExp0>(d, p, f);
  };
  const auto log2e = hn::Set(d, 1.44269504f);
  const auto t = map(x, [&](auto a) CAPIBARA_INLINE { return hn::Mul(a, log2e); });
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) {
    // VREDUCEPS gives t - round(t), 0 for an infinity; VSCALEFPS takes the floor of its exponent,
    // so t - f, which is whole, may be off by what the subtraction rounds: nothing.
    const auto f =
        map(t, [](auto a) CAPIBARA_INLINE { return hn::Vec<D>{_mm512_reduce_ps(a.raw, 8)}; });
    return map(polynomial(f), t, f, [](auto p, auto a, auto b) CAPIBARA_INLINE {
      return hn::Vec<D>{_mm512_scalef_ps(p.raw, hn::Sub(a, b).raw)};
    });
  }
#endif
  // 2^128 as bits is infinity, 2^-127 is zero: both ends come out of the one scaling.
  const auto most = hn::Set(d, 128.0f), least = hn::Set(d, -127.0f);
  const auto bounded =
      map(t, [&](auto a) CAPIBARA_INLINE { return at_least(d, least, at_most(d, most, a)); });
  const auto k = map(bounded, [](auto a) CAPIBARA_INLINE { return hn::Round(a); });
  const auto f =
      map(bounded, k, [](auto a, auto whole) CAPIBARA_INLINE { return hn::Sub(a, whole); });
  return map(polynomial(f), k, [&](auto p, auto whole) CAPIBARA_INLINE {
    const hn::RebindToSigned<D> di;
    const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127)));
    return hn::Mul(p, hn::BitCast(d, power));
  });
}

// x / (1 + e^-y), that is x sigmoid(y), by e^-|y|: nothing overflows, and the lower tail keeps its
// digits.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> times_sigmoid(D d, Vecs<D, n> x, Vecs<D, n> y) {
  const auto one = hn::Set(d, 1.0f);
  const auto e =
      exp_nonpositive(d, map(y, [](auto a) CAPIBARA_INLINE { return hn::Neg(hn::Abs(a)); }));
  const auto numerator = map(x, y, e, [&](auto a, auto b, auto c) CAPIBARA_INLINE {
    return hn::IfThenElse(hn::Lt(b, hn::Zero(d)), hn::Mul(a, c), a);
  });
  return map(numerator, e,
             [&](auto a, auto b) CAPIBARA_INLINE { return hn::Div(a, hn::Add(one, b)); });
}

#if HWY_ARCH_ARM_A64
constexpr Addend kShift{12582912.0f + 127.0f};  // 1.5 2^23, and the bias of an exponent

// sigmoid(y) for a result that will be rounded to 16 bits, relative error 1.3e-6; zero from
// y = -88 down. e^-y = 2^k e^-s with |s| <= ln(2) / 2 and e^-s = (a - s) / (a + s), where a = 2 +
// s^2 / 6 (H. Pade's approximant, its last coefficient chosen anew for the least error), gives
//   sigmoid(y) = (a + s) / ((a + s) + 2^k (a - s)).
// A quotient is there anyway, and FRECPS computes 2 - p q: fourteen instructions, where NEON's FMLA
// needs its constant copied in each step of a polynomial.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> sigmoid_for_16_bits(D d, Vecs<D, n> y) {
  // From 2^128, whose bits are infinity's, to 2^-127, whose are zero's.
  const auto most = hn::Set(d, 88.3f), least = hn::Set(d, -89.0f);
  y = map(y, [&](auto v) CAPIBARA_INLINE { return at_least(d, least, at_most(d, most, v)); });
  // The sum has round(-y / ln(2)) in its low bits, and the exponent's bias on top of it.
  constexpr float kShifted = kShift.value;
  const auto shift = hn::Set(d, kShifted), log2e = hn::Set(d, 1.44269504f);
  const auto k = map(y, addends<kShift>(d, y), [&](auto v, auto shifted) CAPIBARA_INLINE {
    return hn::NegMulAdd(v, log2e, shifted);
  });
  const auto ln2 = hn::Set(d, 0.693147181f);
  const auto s = map(y, k, [&](auto v, auto shifted) CAPIBARA_INLINE {
    return hn::MulAdd(hn::Sub(shifted, shift), ln2, v);
  });
  const auto sixth = hn::Set(d, -0.166377f);
  const auto a = map(s, [&](auto v) CAPIBARA_INLINE {
    return hn::Vec<D>(vrecpsq_f32(v.raw, hn::Mul(v, sixth).raw));
  });
  const auto upper = map(a, s, [](auto p, auto q) CAPIBARA_INLINE { return hn::Add(p, q); });
  const auto lower = map(a, s, [](auto p, auto q) CAPIBARA_INLINE { return hn::Sub(p, q); });
  return map(upper, lower, k, [&](auto p, auto q, auto shifted) CAPIBARA_INLINE {
    const hn::RebindToSigned<D> di;
    const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
    return hn::Div(p, hn::MulAdd(q, power, p));
  });
}
#endif

// The same for a result that will be rounded to 16 bits. The lower tail needs no care: where e^-y
// overflows, the result is below what f16 holds, and within 1e-36 of zero.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> times_sigmoid_for_16_bits(D d, Vecs<D, n> x, Vecs<D, n> y) {
#if HWY_ARCH_ARM_A64
  return map(x, sigmoid_for_16_bits(d, y),
             [](auto a, auto b) CAPIBARA_INLINE { return hn::Mul(a, b); });
#endif
  const auto one = hn::Set(d, 1.0f);
  const auto e = exp_for_16_bits(d, map(y, [](auto a) CAPIBARA_INLINE { return hn::Neg(a); }));
  return map(x, e, [&](auto a, auto b) CAPIBARA_INLINE { return hn::Div(a, hn::Add(one, b)); });
}

template <class D, size_t n>
HWY_INLINE Vecs<D, n> sigmoid(D d, Vecs<D, n> x) {
  return times_sigmoid(d, fill<n>(d, hn::Set(d, 1.0f)), x);
}

constexpr Addend kTanh3{0.0209973589146f}, kTanh2{-0.0538509538899f}, kTanh1{0.133327700871f},
    kTanh0{-0.333333289485f};

template <class D, size_t n>
HWY_INLINE Vecs<D, n> tanh(D d, Vecs<D, n> x) {
  // |x| <= 0.625: x + x^3 P(x^2), relative error 1.3e-7 in P, which is at most 0.13 of the result.
  const auto y = map(x, [](auto a) CAPIBARA_INLINE { return hn::Mul(a, a); });
  auto p = horner<kTanh3>(d, fill<n>(d, hn::Set(d, -0.00609694290882f)), y);
  p = horner<kTanh2>(d, p, y);
  p = horner<kTanh1>(d, p, y);
  p = horner<kTanh0>(d, p, y);
  const auto near_zero = map(x, y, p, [](auto a, auto b, auto c) CAPIBARA_INLINE {
    return hn::MulAdd(hn::Mul(a, b), c, a);
  });
  // Above, 1 - 2 / (e^2|x| + 1) loses less than a bit.
  const auto one = hn::Set(d, 1.0f), two = hn::Set(d, 2.0f);
  const auto e = exp(d, map(x, [&](auto a) CAPIBARA_INLINE { return hn::Mul(two, hn::Abs(a)); }));
  return map(x, near_zero, e, [&](auto a, auto near, auto b) CAPIBARA_INLINE {
    const auto far = hn::Sub(one, hn::Div(two, hn::Add(b, one)));
    return hn::IfThenElse(hn::Gt(hn::Abs(a), hn::Set(d, 0.625f)), hn::CopySign(far, a), near);
  });
}

// square - z^2, where square is z^2 rounded.
template <class D>
HWY_INLINE hn::Vec<D> square_residue([[maybe_unused]] D d, hn::Vec<D> z, hn::Vec<D> square) {
#if HWY_TARGET == HWY_SSE4
  // Without FMA: T. Dekker, "A Floating-Point Technique for Extending the Available Precision",
  // 1971. The upper 12 bits of z, and what they leave, have exact products.
  const hn::Rebind<uint32_t, D> du;
  const auto high = hn::And(z, hn::BitCast(d, hn::Set(du, 0xfffff000u)));
  const auto low = hn::Sub(z, high);
  const auto cross = hn::Mul(hn::Add(high, high), low);
  return hn::Sub(hn::Sub(hn::Sub(square, hn::Mul(high, high)), cross), hn::Mul(low, low));
#else
  return hn::NegMulAdd(z, z, square);
#endif
}

constexpr Addend kErfc8{-0.12228740354f}, kErfc7{0.426710771541f}, kErfc6{-0.667151471172f},
    kErfc5{0.418968047596f}, kErfc4{-0.0971292777665f}, kErfc3{0.225150278207f},
    kErfc2{0.238724162532f}, kErfc1{0.282848093572f}, kErfc0{0.282064925619f};

// erfc(z) for z >= 0: e^(-z^2) t P(t) with t = 1 / (1 + z / 2) (the form of C. Hastings,
// "Approximations for Digital Computers", 1955), P minimax of degree 9, relative error 2e-8.
template <class D, size_t n>
HWY_INLINE Vecs<D, n> erfc_nonnegative(D d, Vecs<D, n> z) {
  const auto one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f);
  const auto most = hn::Set(d, 10.06f);  // erfc(10.06) < 2^-149
  z = map(z, [&](auto a) CAPIBARA_INLINE { return at_most(d, most, a); });
  const auto t =
      map(z, [&](auto a) CAPIBARA_INLINE { return hn::Div(one, hn::MulAdd(a, half, one)); });
  auto p = horner<kErfc8>(d, fill<n>(d, hn::Set(d, 0.0121018534752f)), t);
  p = horner<kErfc7>(d, p, t);
  p = horner<kErfc6>(d, p, t);
  p = horner<kErfc5>(d, p, t);
  p = horner<kErfc4>(d, p, t);
  p = horner<kErfc3>(d, p, t);
  p = horner<kErfc2>(d, p, t);
  p = horner<kErfc1>(d, p, t);
  p = horner<kErfc0>(d, p, t);
  // The rounding of z^2 is up to 100 * 2^-24 in the exponent; its FMA residue restores it.
  const auto square = map(z, [](auto a) CAPIBARA_INLINE { return hn::Mul(a, a); });
  auto e = exp_nonpositive(d, map(square, [](auto a) CAPIBARA_INLINE { return hn::Neg(a); }));
  e = map(e, z, square, [&](auto a, auto b, auto c) CAPIBARA_INLINE {
    return hn::MulAdd(a, square_residue(d, b, c), a);
  });
  return map(e, t, p,
             [](auto a, auto b, auto c) CAPIBARA_INLINE { return hn::Mul(a, hn::Mul(b, c)); });
}

template <class D, size_t n>
HWY_INLINE Vecs<D, n> erfc(D d, Vecs<D, n> x) {
  const auto upper = erfc_nonnegative(d, map(x, [](auto a) CAPIBARA_INLINE { return hn::Abs(a); }));
  const auto two = hn::Set(d, 2.0f);
  return map(x, upper, [&](auto a, auto b) CAPIBARA_INLINE {
    return hn::IfThenElse(hn::Lt(a, hn::Zero(d)), hn::Sub(two, b), b);
  });
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
