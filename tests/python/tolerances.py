# SPDX-License-Identifier: Apache-2.0
"""How far an operator's result may lie from the exact one, derived from its arithmetic.

An operator computes in float32 and rounds once to its dtype. Each `*_bound` here bounds the first
part: the error of the float32 value, elementwise, from the number of roundings on the way to it.
`assert_within` adds the second part, half a unit in the last place of the dtype.

Notation: U = 2^-24 is the largest relative error of one float32 rounding (N. Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, chapter 2). Bounds are of first order in U; FIRST_ORDER
covers the rest, whose size is at most (1000 U)^2 relative to 1000 U in these tests.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from capibara_axion import reference

Array = NDArray[Any]

U = 2.0**-24
FIRST_ORDER = 1.01
# The smallest step of float32: what rounding costs where results are subnormal.
TINY = 2.0**-149


def exp_error(dtype: np.dtype[Any]) -> float:
    """Relative error of the exponential in an operator of this dtype.

    For float32, 1.3 ULP (csrc/kernels/math/math.h): 2.6 U where the mantissa is 1. For 16-bit
    types, that of exp_for_16_bits (csrc/kernels/math/math-inl.h).
    """
    return 2.6 * U if dtype == np.float32 else 1.1e-5


def assert_within(actual: Array, expected: Array, bound: Array | float, what: str = "") -> None:
    """|actual - expected| <= bound + rounding to actual's dtype; NaN and infinity in their places.

    expected: float64. bound: see above, of a float32 value.
    """
    assert actual.shape == expected.shape, what
    limits = ml_dtypes.finfo(actual.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = reference._rounded(expected, actual.dtype).astype(np.float64)
        given = actual.astype(np.float64)
        half_ulp = float(limits.eps) / 2 * (np.abs(expected) + bound)
        allowed = bound + half_ulp + float(limits.smallest_subnormal) / 2
        special = ~np.isfinite(rounded)
        good = np.where(
            special,
            (given == rounded) | (np.isnan(given) & np.isnan(rounded)),
            np.abs(given - expected) <= allowed,
        )
    if good.all():
        return
    allowed = np.broadcast_to(allowed, actual.shape)
    worst = np.unravel_index(
        np.argmax(np.where(good, -1.0, np.abs(given - expected) / allowed)), actual.shape
    )
    raise AssertionError(
        f"{what}: {np.count_nonzero(~good)} of {actual.size} elements are wrong; at {worst} "
        f"got {given[worst]!r}, expected {expected[worst]!r} within {allowed[worst]:.3g}"
    )


def sum_roundings(terms: int) -> float:
    """Roundings, in units of U, of a sum of `terms` in any order, relative to the sum of |terms|.

    In the worst case one an addition. Beyond 36 terms, whose errors are as often up as down, their
    sum stays below 6 sqrt(terms) U except with probability 2 exp(-18) (N. Higham and T. Mary, "A
    New Approach to Probabilistic Rounding Error Analysis", 2019).
    """
    return min(terms, 6 * terms**0.5)


def rms_norm_bound(x: Array, weight: Array, eps: float) -> Array:
    """y = x * (1 / sqrt(sum(x^2) / n + eps)) * w.

    Before the root: the squares, their sum, the division, eps as float32, and its addition; the
    root halves that. After: root, reciprocal, two products.
    """
    y = np.abs(reference.rms_norm(x.astype(np.float64), weight, eps))
    roundings = (sum_roundings(x.shape[-1]) + 4) / 2 + 4
    return FIRST_ORDER * roundings * U * y + TINY * (1 + np.abs(weight.astype(np.float64)))


def layer_norm_bound(x: Array, weight: Array, eps: float) -> Array:
    """y = (x - m) * (1 / sqrt(sum((x - m)^2) / n + eps)) * w, m = sum(x) / n.

    A wrong m shifts every x - m alike, which changes their squares' sum only in second order
    (n shift^2, since the sum of the exact x - m is zero).
    """
    wide, gain = x.astype(np.float64), np.abs(weight.astype(np.float64))
    terms = sum_roundings(x.shape[-1])
    centred = wide - reference._mean(wide)
    spread = reference._mean(centred**2) + eps
    shift = (terms + 1) * U * reference._mean(np.abs(wide))
    difference = shift + U * np.abs(centred)
    root = (shift**2 / spread + (terms + 6) * U) / 2 + 2 * U
    y = np.abs(centred) / np.sqrt(spread) * gain
    return FIRST_ORDER * (difference / np.sqrt(spread) * gain + (root + 2 * U) * y) + TINY * (
        1 + gain
    )


def softmax_bound(x: Array, scale: float, lengths: Any) -> Array:
    """y = e_i / sum(e), e_i = exp(s x_i - max(s x)).

    The exponent's absolute error is the exponential's relative one: the products s x_i and s max
    round (unless s is 1), and so does their difference.
    """
    wide, exp = x.astype(np.float64), exp_error(x.dtype)
    columns = x.shape[-1]
    y = reference.softmax(wide, scale, lengths)
    limits = np.broadcast_to(columns if lengths is None else lengths, x.shape[:-1])
    counted = (np.arange(columns) < limits[..., np.newaxis]) & np.isfinite(wide)
    scaled = np.where(counted, wide * scale, 0.0)
    top = np.max(scaled, axis=-1, keepdims=True, initial=-np.inf, where=counted)
    top = np.where(np.isfinite(top), top, 0.0)
    exponent = U * np.abs(scaled - top)
    if scale != 1.0:
        exponent += U * (np.abs(scaled) + np.abs(top))
    weights = np.where(np.isfinite(y), y, 0.0)
    of_sum = np.sum(weights * exponent, axis=-1, keepdims=True)
    of_sum += exp + sum_roundings(columns) * U
    relative = exponent + exp + of_sum + 2 * U  # and the reciprocal, and its product with e_i
    # Terms below 2^-126 of the largest may be zero.
    return FIRST_ORDER * relative * weights + 2.0**-126


def silu_bound(gate: Array, up: Array) -> Array:
    """y = g / (1 + exp(-g)) * u: an exponential, a sum, a quotient, a product.

    Where exp(-g) overflows (above 2^127), the result is zero instead of below |g| 2^-127.
    """
    y = np.abs(reference.silu_and_mul(gate.astype(np.float64), up))
    return FIRST_ORDER * (exp_error(gate.dtype) + 3 * U) * y + _gated_underflow(gate, up)


def gelu_bound(gate: Array, up: Array) -> Array:
    """y = g Phi(g) u.

    Below zero Phi is the tail t = erfc(z) / 2, z = |g| / sqrt(2): erfc itself is good to 1e-6
    (csrc/kernels/math/math.h), and z's relative error, 2 U, changes erfc(z) by at most
    2 z^2 + 1 times as much. Above zero Phi is 1 - t, one rounding more. Then two products.
    """
    g = gate.astype(np.float64)
    y = np.abs(reference.gelu_and_mul(g, up))
    tail = 0.5 * reference._erfc(np.abs(g) / np.sqrt(2.0))
    of_tail = 1e-6 + 2 * U * (g**2 + 1)
    relative = np.where(g < 0, of_tail, np.where(tail > 0, tail, 0.0) * of_tail / (1 - tail) + U)
    return FIRST_ORDER * (relative + 2 * U) * y + _gated_underflow(gate, up)


def gelu_tanh_bound(gate: Array, up: Array) -> Array:
    """y = g / (1 + exp(-v)) * u, v = g (a + b g^2).

    v takes up to five operations (three products for the cube, a sum, a product) and two rounded
    constants: 7 U |v| in the exponent, which moves the quotient by the share of exp(-v) in the sum.
    Then as silu.
    """
    g = gate.astype(np.float64)
    y = np.abs(reference.gelu_and_mul(g, up, approximate="tanh"))
    with np.errstate(over="ignore", invalid="ignore"):
        v = 2 * np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)
        share = np.where(np.abs(v) < 700, 1 / (1 + np.exp(v)), v < 0)
        # Beyond |v| = 100 the quotient is g or, but for the underflow below, zero.
        relative = 7 * U * np.minimum(np.abs(v), 100.0) * share + exp_error(gate.dtype) + 3 * U
    return FIRST_ORDER * relative * y + _gated_underflow(gate, up)


def rope_bounds(
    q: Array, k: Array | None, cos_sin_cache: Array, positions: Array, **options: Any
) -> list[Array]:
    """y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin, for q and, if there is one, k.

    Each product and the sum round, at most to U of |x1 cos| + |x2 sin|. That is what turning the
    magnitudes gives: by positive sines for y2, by negative ones for y1; the larger of the two is
    the right one at either place.
    """
    cosines, sines = np.split(np.abs(cos_sin_cache.astype(np.float64)), 2, axis=-1)
    magnitudes = [None if x is None else np.abs(x.astype(np.float64)) for x in (q, k)]
    turned = (
        reference.rope(*magnitudes, np.concatenate([cosines, s], axis=-1), positions, **options)
        for s in (sines, -sines)
    )
    return [
        FIRST_ORDER * 2 * U * np.maximum(np.abs(up), np.abs(down)) + 2 * TINY
        for up, down in zip(*turned, strict=True)
        if up is not None
    ]


def _gated_underflow(gate: Array, up: Array) -> Array:
    """Where exp overflows (2^-127 in the quotient) or the activation is subnormal."""
    with np.errstate(invalid="ignore"):
        g, u = np.abs(gate.astype(np.float64)), np.abs(up.astype(np.float64))
        return np.nan_to_num((g * 2.0**-127 + TINY * (1 + g)) * u, posinf=0.0) + TINY


def matmul_bound(a: Array, b: Array, products: str) -> Array:
    """sum over k of a[i, k] b[k, j]; products: the name of the type that they are taken of.

    float32: a product and a sum each round, unless fused. float16: products are exact.

    bfloat16: products are exact, but an instruction for pairs of them may round twice a pair, the
    pair's sum and the sum so far, to odd: by up to 2 U. That makes 2 U of all pairs, which are the
    products once, and K / 2 of the sums. It also takes subnormal operands and results as zero: less
    than 2^-126 (|a| + |b|) for an operand and 2^-126 for each of two results.
    """
    left, right = np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64))
    terms = a.shape[-1]
    roundings, underflow = sum_roundings(terms) + 1, TINY * terms
    if products == "bfloat16":
        roundings = 2 * sum_roundings((terms + 1) // 2) + 2
        underflow = 2.0**-125 * ((left + 1) @ (right + 1))
    return FIRST_ORDER * roundings * U * (left @ right) + underflow


def packed_bound(x: Array, values: Array, products: str) -> Array:
    """x @ values.T, values being a packed weight's: as matmul_bound, of an x that may have been
    rounded to the type of the products first."""
    dtype = np.dtype(getattr(ml_dtypes, products, None) or products)
    wide = x.astype(np.float64)
    lost = np.abs(wide - reference._rounded(wide, dtype).astype(np.float64))
    weights = np.abs(values.astype(np.float64)).T
    return matmul_bound(x, values.T, products) + FIRST_ORDER * (lost @ weights)


def int8_bound(exact: Array) -> Array:
    """scale times scale times an int32 that becomes float32: two roundings, and one of the
    scales' product. `exact`: without bias."""
    return FIRST_ORDER * 3 * U * np.abs(exact) + 2 * TINY


def quantisation_bound(x: Array, weight: Array) -> Array:
    """|x @ weight.T - the same by int8|, as PackedLinear's docstring derives it.

    An element that lies within a few U of half-way may be rounded to the farther integer: its
    quotient, at most 127, has three roundings behind it, 2^-14 of a step.
    """
    x, weight = np.abs(x.astype(np.float64)), np.abs(weight.astype(np.float64))
    x_step = np.max(x, axis=-1, keepdims=True, initial=0.0) / 127
    step = np.max(weight, axis=-1, initial=0.0) / 127
    half, terms = 0.5 + 2.0**-14, x.shape[-1]
    of_weight = half * step * np.sum(x, axis=-1, keepdims=True)
    of_x = half * x_step * np.sum(weight, axis=-1)
    return of_weight + of_x + half**2 * terms * x_step * step


def linear_bound(
    product: Array,
    bound: Array,
    dtype: np.dtype[Any],
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
) -> Array:
    """activation(product + bias) + residual, `bound` being that of the product.

    The activations' derivatives are at most 1.13. Their own errors are those of the gated ones
    with 1 as the other factor.
    """
    values = product if bias is None else product + bias.astype(np.float64)
    if bias is not None:
        bound = bound + U * np.abs(values)
    if activation is not None:
        of_activation = {"silu": silu_bound, "gelu": gelu_bound, "gelu_tanh": gelu_tanh_bound}
        # exp's error depends on the dtype: float64 here stands for the 16-bit ones.
        gate = values.astype(np.float32) if dtype == np.float32 else values
        bound = 1.13 * bound + of_activation[activation](gate, np.ones_like(gate))
        with np.errstate(over="ignore"):
            values = reference._ACTIVATIONS[activation](values)
    if residual is not None:
        bound = bound + U * np.abs(values + residual.astype(np.float64))
    return FIRST_ORDER * bound
