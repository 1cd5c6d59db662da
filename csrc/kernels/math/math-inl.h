// SPDX-License-Identifier: Apache-2.0
// exp and what is built on it, on f32 vectors. Errors are stated in math.h and measured over every
// f32 by tests/cpp/math_test.cc. Coefficients: fit_polynomials.py.
#pragma once

#include "kernels/common/vec-inl.h"

namespace capibara {
namespace CAPIBARA_ISA {
namespace {

// e^r for |r| <= ln(2) / 2: minimax of degree 6, relative error 9.4e-9 before rounding.
template <class D>
HWY_INLINE hn::Vec<D> exp_reduced(D d, hn::Vec<D> r) {
  auto p = hn::MulAdd(hn::Set(d, 0.00139012875911f), r, hn::Set(d, 0.00836314637679f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.0416668534185f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.166665772839f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.499999995526f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  return hn::MulAdd(p, r, hn::Set(d, 1.0f));
}

// x - n ln(2) with ln(2) in two parts (W. Cody and W. Waite, "Software Manual for the Elementary
// Functions", 1980): the first has 9 significant bits, so that n times it is exact even without
// FMA.
template <class D>
HWY_INLINE hn::Vec<D> subtract_ln2_multiple(D d, hn::Vec<D> x, hn::Vec<D> n) {
  const auto high = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  return hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), high);
}

// p * 2^n; n is a whole number in [-151, 129], p is in [0.7, 1.5]. Rounds once, also where the
// result is subnormal.
template <class D>
HWY_INLINE hn::Vec<D> scale_by_power(D d, hn::Vec<D> p, hn::Vec<D> n) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) return hn::Vec<D>{_mm512_scalef_ps(p.raw, n.raw)};
#endif
  // 2^n itself can be out of range: two factors of about its root are not, and the first product
  // is exact.
  const hn::RebindToSigned<D> di;
  const auto whole = hn::ConvertTo(di, n);
  const auto first = hn::ShiftRight<1>(whole);
  const auto second = hn::Sub(whole, first);
  const auto bias = hn::Set(di, 127);
  p = hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(first, bias))));
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(second, bias))));
}

// e^x over the whole range: infinity above 88.72, zero below -103.97, subnormals between; NaN
// stays.
template <class D>
HWY_INLINE hn::Vec<D> exp(D d, hn::Vec<D> x) {
  // The bounds come first: on x86, Min and Max give the second operand if one is NaN.
  x = hn::Min(hn::Set(d, 89.0f), x);
  x = hn::Max(hn::Set(d, -104.5f), x);
  const auto n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  return scale_by_power(d, exp_reduced(d, subtract_ln2_multiple(d, x, n)), n);
}

// e^x for x <= 0, as softmax needs it: where the result would be subnormal (x < -87.33), zero.
// That is below 2^-126 of the row's largest term, and saves the second scaling.
template <class D>
HWY_INLINE hn::Vec<D> exp_nonpositive(D d, hn::Vec<D> x) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) return exp(d, x);  // VSCALEFPS: nothing to save
#endif
  const hn::RebindToSigned<D> di;
  const auto smallest = hn::Set(d, -87.33f);
  const auto bounded = hn::Max(smallest, x);
  const auto n = hn::Round(hn::Mul(bounded, hn::Set(d, 1.44269504f)));
  const auto p = exp_reduced(d, subtract_ln2_multiple(d, bounded, n));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenZeroElse(hn::Lt(x, smallest), hn::Mul(p, hn::BitCast(d, power)));
}

// 1 / (1 + e^-x), by e^-|x| so that nothing overflows and the lower tail keeps its digits.
template <class D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> x) {
  const auto one = hn::Set(d, 1.0f);
  const auto e = exp(d, hn::Neg(hn::Abs(x)));
  const auto numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one);
  return hn::Div(numerator, hn::Add(one, e));
}

template <class D>
HWY_INLINE hn::Vec<D> tanh(D d, hn::Vec<D> x) {
  const auto magnitude = hn::Abs(x);
  // |x| <= 0.625: x + x^3 P(x^2), relative error 1.3e-7 in P, which is at most 0.13 of the result.
  const auto y = hn::Mul(x, x);
  auto p = hn::MulAdd(hn::Set(d, -0.00609694290882f), y, hn::Set(d, 0.0209973589146f));
  p = hn::MulAdd(p, y, hn::Set(d, -0.0538509538899f));
  p = hn::MulAdd(p, y, hn::Set(d, 0.133327700871f));
  p = hn::MulAdd(p, y, hn::Set(d, -0.333333289485f));
  const auto near_zero = hn::MulAdd(hn::Mul(x, y), p, x);
  // Above, 1 - 2 / (e^2|x| + 1) loses less than a bit.
  const auto one = hn::Set(d, 1.0f);
  const auto e = exp(d, hn::Add(magnitude, magnitude));
  const auto far = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(e, one)));
  return hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, 0.625f)), hn::CopySign(far, x), near_zero);
}

// erfc(z) for z >= 0: e^(-z^2) t P(t) with t = 1 / (1 + z / 2) (the form of C. Hastings,
// "Approximations for Digital Computers", 1955), P minimax of degree 9, relative error 2e-8.
template <class D>
HWY_INLINE hn::Vec<D> erfc_nonnegative(D d, hn::Vec<D> z) {
  const auto one = hn::Set(d, 1.0f);
  z = hn::Min(hn::Set(d, 10.06f), z);  // erfc(10.06) < 2^-149
  const auto t = hn::Div(one, hn::MulAdd(z, hn::Set(d, 0.5f), one));
  auto p = hn::MulAdd(hn::Set(d, 0.0121018534752f), t, hn::Set(d, -0.12228740354f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.426710771541f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.667151471172f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.418968047596f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.0971292777665f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.225150278207f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.238724162532f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.282848093572f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.282064925619f));
  // The rounding of z^2 is up to 100 * 2^-24 in the exponent; its FMA residue restores it.
  const auto square = hn::Mul(z, z);
  const auto residue = hn::NegMulAdd(z, z, square);
  const auto e = exp(d, hn::Neg(square));
  return hn::Mul(hn::MulAdd(e, residue, e), hn::Mul(t, p));
}

template <class D>
HWY_INLINE hn::Vec<D> erfc(D d, hn::Vec<D> x) {
  const auto upper = erfc_nonnegative(d, hn::Abs(x));
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Sub(hn::Set(d, 2.0f), upper), upper);
}

}  // namespace
}  // namespace CAPIBARA_ISA
}  // namespace capibara
