# SPDX-License-Identifier: Apache-2.0
"""Attention and 8-bit floats in readable NumPy: a part of `capibara_axion.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from capibara_axion._rounding import _rounded, _wide

Array = NDArray[Any]


def flash_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = True,
    window: int | tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    ranges: ArrayLike | None = None,
    query_start: ArrayLike | None = None,
    key_start: ArrayLike | None = None,
) -> Array:
    """Attention by plain softmax; `capibara_axion.flash_attention` describes the arguments.

    Args:
        q: `[B, Tq, H, D]`, or `[T, H, D]` with `query_start`.
        k: `[B, Tk, Hkv, D]`, or `[S, Hkv, D]`.
        v: as k.
        causal, window, softcap, scale, alibi_slopes, sinks, ranges, query_start, key_start: as
            there.

    Returns:
        As q, in q's dtype.

    >>> q, k = np.zeros((1, 1, 1, 2)), np.zeros((1, 2, 1, 2))
    >>> flash_attention(q, k, v=np.array([[[[1.0, 2.0]], [[3.0, 6.0]]]]))
    array([[[[2., 4.]]]])
    """
    if query_start is None:
        pairs = list(zip(q, zip(k, v, strict=True), strict=True))
    else:
        cuts = np.asarray(query_start)[1:-1]
        key_cuts = cuts if key_start is None else np.asarray(key_start)[1:-1]
        keys = zip(np.split(k, key_cuts), np.split(v, key_cuts), strict=True)
        pairs = list(zip(np.split(q, cuts), keys, strict=True)) if np.size(query_start) > 1 else []
    out = np.zeros(q.shape)
    rows = out if query_start is None else np.split(out, cuts)
    for s, (queries, (of_keys, of_values)) in enumerate(pairs):
        visible = visible_keys(len(queries), len(of_keys), causal, window, ranges, s)
        rows[s][...] = _attention(
            queries, of_keys, of_values, visible, softcap, scale, alibi_slopes, sinks
        )
    return _rounded(out, q.dtype)


def paged_attention(
    q: Array,
    keys: Array,
    values: Array,
    block_table: ArrayLike,
    seq_lens: ArrayLike,
    *,
    query_start: ArrayLike | None = None,
    **options: Any,
) -> Array:
    """`flash_attention` of keys and values that lie in blocks.

    Args:
        q: `[T, H, D]`.
        keys: `[num_blocks, block_size, Hkv, D]`.
        values: as keys.
        block_table: `[B, blocks]`.
        seq_lens: `[B]`.
        query_start: `[B + 1]`; one query a sequence if None.
        options: causal, window, softcap, scale, alibi_slopes, sinks, ranges.

    Returns:
        `[T, H, D]` in q's dtype.
    """
    lengths = np.asarray(seq_lens)
    positions = [np.arange(length) for length in lengths]
    size = keys.shape[1]
    blocks = [row[p // size] for row, p in zip(np.asarray(block_table), positions, strict=True)]
    at = np.concatenate([*blocks, []]).astype(int), np.concatenate([*positions, []]).astype(int)
    starts = np.arange(len(lengths) + 1) if query_start is None else query_start
    key_start = np.concatenate([[0], np.cumsum(lengths)])
    k, v = (cache[at[0], at[1] % size] for cache in (keys, values))
    return flash_attention(q, k, v, query_start=starts, key_start=key_start, **options)


def visible_keys(
    queries: int,
    keys: int,
    causal: bool = True,
    window: int | tuple[int, int] | None = None,
    ranges: ArrayLike | None = None,
    sequence: int = 0,
) -> NDArray[np.bool_]:
    """Which keys each query of one sequence sees, `[queries, keys]`.

    >>> visible_keys(2, 3).astype(int)
    array([[1, 1, 0],
           [1, 1, 1]])
    """
    i, j = np.arange(keys - queries, keys)[:, np.newaxis], np.arange(keys)
    visible = (j <= i) if causal else np.ones((queries, keys), bool)
    if window is not None:
        left, right = window if isinstance(window, tuple) else (window - 1, -1)
        visible &= (left == -1) | (j >= i - left)
        visible &= (right == -1) | (j <= i + right)
    for of, begin, end in [] if ranges is None else np.asarray(ranges).tolist():
        if of == sequence:
            visible |= (begin <= i) & (i < end) & (begin <= j) & (j < end)
    return visible


def _attention(
    q: Array,
    k: Array,
    v: Array,
    visible: NDArray[np.bool_],
    softcap: float,
    scale: float | None,
    alibi_slopes: ArrayLike | None,
    sinks: ArrayLike | None,
) -> NDArray[np.float64]:
    """One sequence's, `[queries, heads, head_dim]`."""
    logits = attention_logits(q, k, softcap, scale, alibi_slopes)
    logits = np.where(visible, logits, -np.inf)
    group = q.shape[1] // k.shape[1]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        maximum = np.max(logits, axis=-1, keepdims=True, initial=-np.inf)
        sink = np.zeros((q.shape[1], 1, 1))
        if sinks is not None:
            sink = np.asarray(sinks, np.float64)[:, np.newaxis, np.newaxis]
            maximum = np.maximum(maximum, sink)
        maximum = np.where(maximum == -np.inf, 0.0, maximum)  # of a query that sees nothing
        terms = np.exp(logits - maximum)
        total = np.sum(terms, axis=-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sink - maximum)
        weights = np.where(total == 0.0, 0.0, terms / total)
        # An invisible key's value does not count, whatever it is.
        products = np.zeros(q.shape)
        wide = _wide(v)
        for head in range(q.shape[1]):
            for i, row in enumerate(visible):
                products[i, head] = weights[head, i, row] @ wide[row, head // group]
    return products


def attention_logits(
    q: Array,
    k: Array,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """What attention takes the softmax of, `[heads, queries, keys]`, for one sequence."""
    group = q.shape[1] // k.shape[1]
    heads_of_k = np.repeat(_wide(k), group, axis=1).transpose(1, 2, 0)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    with np.errstate(invalid="ignore", over="ignore"):
        logits: NDArray[np.float64] = (_wide(q).transpose(1, 0, 2) @ heads_of_k) * factor
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
    if alibi_slopes is not None:
        i, j = np.arange(len(k) - len(q), len(k))[:, np.newaxis], np.arange(len(k))
        logits = logits + np.asarray(alibi_slopes, np.float64)[:, np.newaxis, np.newaxis] * (j - i)
    return logits


# (bits of the exponent, bits of the mantissa)
_FP8_FORMATS = {"e4m3": (4, 3), "e5m2": (5, 2)}


def fp8_dequantize(
    codes: Array, format: str = "e4m3", scale: float = 1.0, dtype: str = "float64"
) -> Array:
    """The numbers that 8-bit floats stand for, times `scale`.

    Open Compute Project, "8-bit Floating Point Specification" (2023).

    Args:
        codes: uint8, any shape.
        format: "e4m3" (without infinities) or "e5m2".
        scale: a factor.
        dtype: of the result.

    >>> fp8_dequantize(np.array([0, 1, 0x38, 0xFE, 0x7F], np.uint8)).tolist()
    [0.0, 0.001953125, 1.0, -448.0, nan]
    """
    bits, mantissa_bits = _FP8_FORMATS[format]
    bias, ones = 2 ** (bits - 1) - 1, 2**bits - 1
    magnitude = codes.astype(np.int64) & 0x7F
    exponent, mantissa = magnitude >> mantissa_bits, magnitude % 2**mantissa_bits
    normal = exponent > 0
    significand = (normal + mantissa / 2**mantissa_bits) * 2.0 ** (np.maximum(exponent, 1) - bias)
    if format == "e4m3":
        special = np.where(magnitude == 0x7F, np.nan, significand)
    else:
        special = np.where(mantissa == 0, np.inf, np.nan)
        special = np.where(exponent == ones, special, significand)
    with np.errstate(over="ignore"):
        return _rounded(np.where(codes >> 7, -special, special) * scale, np.dtype(dtype))


def fp8_quantize(x: Array, format: str = "e4m3", scale: float = 1.0) -> NDArray[np.uint8]:
    """The nearest code to x / scale, of two the even one; beyond the largest finite value that.

    Args:
        x: any shape.
        format: "e4m3" (without infinities) or "e5m2".
        scale: its inverse, in float32, is what x is multiplied with, in float32.

    >>> fp8_quantize(np.array([1.0, 1.0625, -1e9, np.inf], np.float32)).tolist()
    [56, 56, 254, 126]
    """
    last = 0x7E if format == "e4m3" else 0x7B  # the code of the largest finite value
    table = fp8_dequantize(np.arange(last + 1, dtype=np.uint8), format)
    with np.errstate(over="ignore", invalid="ignore"):
        values = x.astype(np.float32) * np.float32(np.float32(1) / np.float32(scale))
    magnitude = np.minimum(np.abs(_wide(values)), table[-1])
    above = np.searchsorted(table, np.nan_to_num(magnitude))
    below = np.maximum(above - 1, 0)
    to_above, to_below = table[above] - magnitude, magnitude - table[below]
    nearer = np.where(to_below < to_above, below, above)
    code = np.where(to_below == to_above, np.where(below % 2 == 0, below, above), nearer)
    code = np.where(np.isnan(values), 0x7F, code)
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
