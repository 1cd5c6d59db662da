# SPDX-License-Identifier: Apache-2.0
"""The operators once more, in readable NumPy: what each computes, without its speed.

Same arguments as in `capibara_axion.ops`, but nothing is changed in place and there is no `out`.
Every function computes in float64 and rounds the result once, to nearest even, to the dtype of its
first argument: float32, float16, `ml_dtypes.bfloat16`, or float64 for a result that is not rounded.

The operators compute in float32: beyond its range (a sum of squares above 3.4e38, say) they
overflow where these functions do not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from capibara_axion._rounding import _rounded, _wide
from capibara_axion.reference_attention import (
    flash_attention,
    fp8_dequantize,
    fp8_quantize,
    paged_attention,
)

__all__ = [
    "flash_attention",
    "fp8_dequantize",
    "fp8_quantize",
    "fused_add_rms_norm",
    "gelu_and_mul",
    "layer_norm",
    "linear",
    "linear_int4",
    "linear_int8",
    "matmul",
    "paged_attention",
    "quantized",
    "quantized_groups",
    "rms_norm",
    "rope",
    "silu_and_mul",
    "softmax",
]

Array = NDArray[Any]

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def rms_norm(x: Array, weight: Array, eps: float = 1e-6) -> Array:
    """RMSNorm: `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

    Args:
        x: `[..., H]`.
        weight: `[H]`.
        eps: added to the mean square.

    Returns:
        `[..., H]` in x's dtype.

    >>> rms_norm(np.array([3.0, -4.0]), np.array([1.0, 10.0]), eps=0.0) * math.sqrt(12.5)
    array([  3., -40.])
    """
    values = _wide(x)
    root = np.sqrt(_mean(values**2) + eps)
    return _rounded(values / root * _wide(weight), x.dtype)


def fused_add_rms_norm(
    x: Array, residual: Array, weight: Array, eps: float = 1e-6
) -> tuple[Array, Array]:
    """The sum `x + residual`, rounded to x's dtype, and its RMSNorm.

    Args:
        x: `[..., H]`.
        residual: `[..., H]` in x's dtype.
        weight: `[H]`.
        eps: added to the mean square.

    Returns:
        (`rms_norm(x + residual)`, `x + residual`), both `[..., H]` in x's dtype.
    """
    total = _rounded(_wide(x) + _wide(residual), x.dtype)
    return rms_norm(total, weight, eps), total


def layer_norm(x: Array, weight: Array, eps: float = 1e-5) -> Array:
    """LayerNorm without bias: `(x - mean) / sqrt(variance + eps) * weight` over the last dimension.

    Ba, Kiros and Hinton, "Layer Normalization" (2016).

    Args:
        x: `[..., H]`.
        weight: `[H]`, or `[heads, H]` for x `[..., heads, H]`.
        eps: added to the variance.

    Returns:
        `[..., H]` in x's dtype.
    """
    values = _wide(x)
    centred = values - _mean(values)
    root = np.sqrt(_mean(centred**2) + eps)
    return _rounded(centred / root * _wide(weight), x.dtype)


def softmax(x: Array, scale: float = 1.0, lengths: ArrayLike | None = None) -> Array:
    """`exp(scale x) / sum(exp(scale x))` over the last dimension, by way of its maximum.

    Args:
        x: `[..., N]`.
        scale: a finite factor.
        lengths: how many leading elements of each row count, integers from 0 to N of shape
            `[...]`, or one for all rows; the rest become zero. None: all N.

    Returns:
        `[..., N]` in x's dtype. A row that holds NaN or +infinity, or only -infinity, is NaN.

    >>> softmax(np.log([[1.0, 3.0, 4.0], [1.0, 3.0, 4.0]]), lengths=[3, 2])
    array([[0.125, 0.375, 0.5  ],
           [0.25 , 0.75 , 0.   ]])
    """
    columns = x.shape[-1]
    limits = np.broadcast_to(columns if lengths is None else lengths, x.shape[:-1])
    counted = np.arange(columns) < limits[..., np.newaxis]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(counted, _wide(x) * scale, -np.inf)
        maximum = np.max(values, axis=-1, keepdims=True, initial=-np.inf)
        terms = np.where(counted, np.exp(values - maximum), 0.0)
        ratios = terms / np.sum(terms, axis=-1, keepdims=True)
    return _rounded(np.where(counted, ratios, 0.0), x.dtype)


def silu_and_mul(gate_up: Array, up: Array | None = None) -> Array:
    """SwiGLU's activation: `gate / (1 + exp(-gate)) * up`.

    Shazeer, "GLU Variants Improve Transformer" (2020).

    Args:
        gate_up: `[..., 2 I]`, gate then up; or gate alone, `[..., I]`, if `up` is given.
        up: `[..., I]`, or None.

    Returns:
        `[..., I]` in the same dtype.
    """
    gate, factor = _gate_and_up(gate_up, up)
    with np.errstate(over="ignore", invalid="ignore"):
        return _rounded(_silu(gate) * factor, gate_up.dtype)


def gelu_and_mul(gate_up: Array, up: Array | None = None, approximate: str = "none") -> Array:
    """GeGLU's activation: `gelu(gate) * up`.

    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016). Both forms are written so that the
    negative tail keeps its digits: `1 + erf(z) = erfc(-z)`, `1 + tanh(z) = 2 / (1 + exp(-2 z))`.

    Args:
        gate_up: `[..., 2 I]`, gate then up; or gate alone, `[..., I]`, if `up` is given.
        up: `[..., I]`, or None.
        approximate: "none" for `x Phi(x)`, "tanh" for
            `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.

    Returns:
        `[..., I]` in the same dtype.

    Raises:
        ValueError: approximate is neither.
    """
    gate, factor = _gate_and_up(gate_up, up)
    with np.errstate(over="ignore", invalid="ignore"):
        if approximate == "none":
            gelu = _gelu(gate)
        elif approximate == "tanh":
            gelu = _gelu_tanh(gate)
        else:
            raise ValueError(f"approximate: expected 'none' or 'tanh', got {approximate!r}")
        return _rounded(gelu * factor, gate_up.dtype)


def rope(
    q: Array,
    k: Array | None,
    cos_sin_cache: Array,
    positions: Array,
    *,
    head_dim: int | None = None,
    neox: bool = True,
) -> tuple[Array, Array | None]:
    """Rotary position embedding of q and k.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021). The first
    rotary_dim elements of each head turn, the others stay.

    Args:
        q: `[tokens, heads, head_dim]`, or `[tokens, heads * head_dim]` with `head_dim` given.
        k: likewise, with its own number of heads; or None.
        cos_sin_cache: `[max_position, rotary_dim]`: for each position the cosines of all
            rotary_dim / 2 angles, then their sines.
        positions: `[tokens]`, integers less than max_position.
        head_dim: needed where q or k are two-dimensional.
        neox: True pairs element i with i + rotary_dim / 2; False pairs 2 i with 2 i + 1.

    Returns:
        (q, k) turned, in their own shapes and dtypes; k is None if it was.

    >>> quarter_turn = np.array([[0.0, 1.0]])  # cos 90 degrees, sin 90 degrees
    >>> rope(np.array([[[3.0, 4.0, 5.0]]]), None, quarter_turn, np.array([0]))[0]
    array([[[-4.,  3.,  5.]]])
    """
    cosines, sines = np.split(_wide(cos_sin_cache)[positions], 2, axis=-1)
    turned = _turned(q, cosines, sines, head_dim, neox)
    return turned, None if k is None else _turned(k, cosines, sines, head_dim, neox)


def matmul(a: Array, b: Array) -> Array:
    """The matrix product `a @ b`.

    Args:
        a: `[..., M, K]`, or `[K]`.
        b: `[..., K, N]`, or `[K]`.

    Returns:
        `[..., M, N]` in a's dtype, without the dimension that a vector lacks.

    >>> matmul(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]))
    array([[13., 16.]])
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _rounded(np.asarray(_wide(a) @ _wide(b)), a.dtype)


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """A linear layer: `activation(x @ weight.T + bias) + residual`.

    Args:
        x: `[..., K]`.
        weight: `[N, K]`.
        bias: `[N]`; or None.
        activation: None, "silu", "gelu" or "gelu_tanh".
        residual: `[..., N]`; or None.

    Returns:
        `[..., N]` in x's dtype.

    Raises:
        ValueError: activation is none of those.

    >>> linear(np.array([2.0, 3.0]), np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([0.5, 0.0]))
    array([ 5.5, -1. ])
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _finished(_wide(x) @ _wide(weight).T, x.dtype, bias, activation, residual)


def linear_int8(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """`linear` of 8-bit integers, as `capibara_axion.PackedLinear` has it with dtype "int8".

    Scales and integers are computed in float32, as the operator does; the sum is exact.

    Args:
        x: `[..., K]`; each row has a scale.
        weight: `[N, K]`; each row has a scale.
        bias: `[N]`; or None.
        activation: None, "silu", "gelu" or "gelu_tanh".
        residual: `[..., N]`; or None.

    Returns:
        `[..., N]` in x's dtype. A row of x with NaN or infinity gives a row of NaN, such a row of
        the weight a column of NaN.

    >>> linear_int8(np.array([127.0, 1.4]), np.array([[127.0, 10.0]]))  # 1.4 becomes 1
    array([16139.])
    """
    x_integers, x_scales = quantized(x)
    integers, scales = quantized(weight)
    with np.errstate(over="ignore", invalid="ignore"):
        product = (x_integers @ integers.T) * (_wide(x_scales) * _wide(scales)[:, 0])
        return _finished(product, x.dtype, bias, activation, residual)


def quantized(x: Array) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Symmetric quantisation of each row to 8 bits, so that x is about integers * scales.

    Args:
        x: `[..., K]`.

    Returns:
        (integers `[..., K]` from -127 to 127, scales `[..., 1]`). A row of zeros has scale 0; one
        that holds NaN or infinity has scale NaN and zeros.

    >>> quantized(np.array([[1.0, -0.5, 0.25]], np.float32))[0]
    array([[127, -64,  32]])
    """
    values = x.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        largest = np.max(np.abs(values), axis=-1, keepdims=True, initial=0.0)
        largest[~np.isfinite(largest)] = np.nan
        factor = np.minimum(np.float32(127) / largest, np.finfo(np.float32).max)
        scaled = np.clip(values * factor, -127, 127)
        integers = np.where(np.isfinite(largest), np.rint(scaled), 0)
    return integers.astype(np.int64), largest / np.float32(127)


def linear_int4(
    x: Array,
    codes: Array,
    scales: Array,
    zeros: Array | None = None,
    bias: Array | None = None,
    *,
    method: str = "w4a8",
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """`linear` of a 4-bit weight, `(codes - zeros) * scales` by groups of columns, as
    `capibara_axion.PackedLinear.from_int4` has it.

    Integers of x and their scales are computed in float32, as the operator does.

    Args:
        x: `[..., K]`; each row has a scale for each group, and at least each 128 columns.
        codes: `[N, K]`, 0 to 15.
        scales: `[N, K / group]`.
        zeros: `[N, K / group]`; None: 8 everywhere.
        bias: `[N]`; or None.
        method: "w4a8" for 8-bit integers of x, "w4a16" for 16-bit ones.
        activation: None, "silu", "gelu" or "gelu_tanh".
        residual: `[..., N]`; or None.

    Returns:
        `[..., N]` in x's dtype.

    >>> linear_int4(np.array([127.0, 1.4]), np.array([[9, 5]]), np.array([[2.0]]))  # 1.4 becomes 1
    array([248.])
    """
    group = codes.shape[1] // max(scales.shape[1], 1)
    integers, steps = quantized_groups(x, group if group in (32, 64) else 128, method)
    offsets = np.full(scales.shape, 8.0) if zeros is None else _wide(zeros)
    weight = (codes - np.repeat(offsets, group, axis=1)) * np.repeat(_wide(scales), group, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        return _finished((integers * steps) @ weight.T, x.dtype, bias, activation, residual)


def quantized_groups(
    x: Array, group: int, method: str = "w4a8"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Symmetric quantisation of groups of columns, so that x is about integers * steps.

    Args:
        x: `[..., K]`.
        group: columns that share a step; the last ones may be fewer.
        method: "w4a8": steps are max |x| / 127. "w4a16": powers of two, between 2^-14 and 2^-15 of
            max |x|, or twice that where it would be 2^15 of them but for 0.6 %.

    Returns:
        (integers, steps), both `[..., K]`. A group that holds NaN or infinity has NaN as its step.
    """
    values = x.astype(np.float32)
    columns = values.shape[-1]
    count = -(-columns // group)
    padded = np.zeros((*values.shape[:-1], count * group), np.float32)
    padded[..., :columns] = values
    groups = padded.reshape(*values.shape[:-1], count, group)
    if method == "w4a8":
        integers, steps = quantized(groups)
    else:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            largest = np.max(np.abs(groups), axis=-1, keepdims=True, initial=0.0)
            exponent = (largest.view(np.uint32) + np.uint32(0x18000)) >> np.uint32(23)
            steps = np.ldexp(1.0, np.maximum(exponent.astype(np.int64), 15) - 14 - 127)
            finite = np.isfinite(largest)
            integers = np.where(finite, np.rint(groups / steps), 0).astype(np.int64)
            steps = np.where(finite, np.where(largest > 0, steps, 0.0), np.nan)
    spread = np.broadcast_to(_wide(steps), groups.shape).reshape(padded.shape)
    return _wide(integers).reshape(padded.shape)[..., :columns], spread[..., :columns]


def _finished(
    product: NDArray[np.float64],
    dtype: np.dtype[Any],
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
) -> Array:
    values = product if bias is None else product + _wide(bias)
    if activation is not None:
        if activation not in _ACTIVATIONS:
            known = ", ".join(map(repr, (None, *_ACTIVATIONS)))
            raise ValueError(f"activation: expected one of {known}, got {activation!r}")
        values = _ACTIVATIONS[activation](values)
    return _rounded(values if residual is None else values + _wide(residual), dtype)


def _silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1.0 + np.exp(-x))


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    gelu: NDArray[np.float64] = 0.5 * x * _erfc(-x / math.sqrt(2.0))
    return gelu


def _gelu_tanh(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1.0 + np.exp(-2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


_ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _turned(x: Array, cosines: Array, sines: Array, head_dim: int | None, neox: bool) -> Array:
    """x with its heads turned; cosines and sines: `[tokens, rotary_dim / 2]`."""
    half = cosines.shape[-1]
    first = slice(0, half) if neox else slice(0, 2 * half, 2)
    second = slice(half, 2 * half) if neox else slice(1, 2 * half, 2)
    heads = _wide(x)
    if x.ndim == 2:
        size = head_dim or 1
        heads = heads.reshape(x.shape[0], x.shape[1] // size, size)
    x1, x2 = heads[..., first], heads[..., second]
    cos, sin = cosines[:, np.newaxis], sines[:, np.newaxis]
    turned = heads.copy()
    turned[..., first] = x1 * cos - x2 * sin
    turned[..., second] = x2 * cos + x1 * sin
    return _rounded(turned.reshape(x.shape), x.dtype)


def _gate_and_up(gate_up: Array, up: Array | None) -> tuple[Array, Array]:
    if up is not None:
        return _wide(gate_up), _wide(up)
    gate, factor = np.split(_wide(gate_up), 2, axis=-1)
    return gate, factor


def _mean(values: Array) -> Array:
    """Over the last dimension, which stays with size 1; zero where it is empty."""
    total: Array = np.sum(values, axis=-1, keepdims=True)
    return total / max(values.shape[-1], 1)
