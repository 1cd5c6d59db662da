# SPDX-License-Identifier: Apache-2.0
"""Arguments of attention, exact results, and how far an operator's may lie from them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import tolerances
from numpy.typing import NDArray
from operators import BFLOAT16, FLOAT16, FLOAT32, normal, wide
from products import EMULATED
from tolerances import FIRST_ORDER, U

import capibara_axion as ax
from capibara_axion import reference, reference_attention

Array = NDArray[Any]
Options = dict[str, Any]


def some(values: Any) -> list[Any]:
    """All of them, or a sixth where everything takes long."""
    return list(values)[:: 6 if EMULATED else 1]


# Half a unit in the last place, relative: what rounding an exponential costs.
HALF_ULP = {"float32": U, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Of the exponentials themselves: csrc/kernels/attention/attention.h.
EXP = {"float32": 2e-7, "float16": 3e-6, "bfloat16": 8e-5}


def attention_bound(
    q: Array, k: Array, v: Array, visible: Array, exact: Array, options: Options
) -> Array:
    """Of one sequence's float32 result: out = sum of p_j v_j / sum of e_j, p_j = e_j rounded.

    Let e_j have the relative error d_j. With w_j = e_j / sum(e) the quotient's error is

        sum w_j d_j v_j - out sum w_j d_j, at most sum w_j |v_j| (|d_j| + sum w |d|).

    d_j is the absolute error of the logit z_j, the exponential's own error, and that of the sums'
    corrections: an exponential of float32 and a product for each block of keys. z_j has the error
    of the product q k^T times the scale; the scale's rounding, the product with it, its form to
    base 2 and the difference to the maximum are U each, of |z| and |max|; capping does not stretch
    errors (tanh' <= 1) and has its own, some units in the last place of x and of the result;
    ALiBi's slope times position and distance to the query's, up to keys |slope|, round too.

    p_j differs from e_j by half a unit in the last place of the dtype, h, in the numerator alone:
    h sum w_j |v_j| at most. These errors are as often up as down: but for a probability of
    2 exp(-18) they stay below 6 h sqrt(sum (w_j v_j)^2) (Hoeffding's inequality, as in
    tolerances.sum_roundings). Below 2^-14 of the largest, float16 rounds by 2^-25 of that. The sums
    of numerator and denominator have the roundings of matmul_bound and sum_roundings. Last, a
    quotient and its product with the sum: 2 U.
    """
    name, keys, group = q.dtype.name, len(k), q.shape[1] // k.shape[1]
    scale = options.get("scale")
    factor = abs(q.shape[-1] ** -0.5 if scale is None else scale)
    softcap, slopes = options.get("softcap", 0.0), options.get("alibi_slopes")
    heads_k = np.repeat(k, group, axis=1).transpose(1, 2, 0)
    heads_v = np.abs(wide(np.repeat(v, group, axis=1))).transpose(1, 0, 2)
    heads_v = np.where(np.isfinite(heads_v), heads_v, 0.0)
    of_products = np.stack(
        [
            tolerances.matmul_bound(a, b, name)
            for a, b in zip(q.transpose(1, 0, 2), heads_k, strict=True)
        ]
    )
    plain = reference_attention.attention_logits(q, k, 0.0, scale)
    logits = reference_attention.attention_logits(q, k, softcap, scale, slopes)
    of_logits = factor * of_products + 4 * U * np.abs(plain)
    if softcap:
        of_logits += 8 * U * np.abs(plain) + 4 * U * softcap
    if slopes is not None:
        of_logits += 4 * U * np.abs(np.asarray(slopes, np.float64))[:, None, None] * keys
    seen = np.where(visible, logits, -np.inf)
    top = np.max(seen, axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    of_logits += 4 * U * (np.abs(logits) + np.abs(top))
    of_logits = np.where(np.isfinite(of_logits), of_logits, 0.0)  # the result is exact, or NaN
    terms = np.exp(np.minimum(seen - top, 0.0))
    total = np.sum(terms, axis=-1, keepdims=True)
    if options.get("sinks") is not None:
        sinks = np.asarray(options["sinks"], np.float64)[:, None, None]
        total = total + np.exp(np.minimum(sinks - top, 700.0))
    weights = terms / np.where(total == 0, 1.0, total)
    blocks = keys // 128 + 2
    relative = np.where(visible, of_logits, 0.0) + EXP[name] + blocks * (EXP["float32"] + U)
    of_sum = np.sum(weights * relative, axis=-1, keepdims=True)
    of_sum += tolerances.sum_roundings(keys) * U
    roundings = (2 if name == "bfloat16" else 1) * (tolerances.sum_roundings(keys) + 2) * U
    each = weights * (relative + of_sum + roundings + 2 * U)
    if name == "float16":
        each += np.where(visible, 2.0**-25, 0.0)
    of_rounding = HALF_ULP[name] * np.minimum(
        weights @ heads_v, 6 * np.sqrt(weights**2 @ heads_v**2)
    )
    tiny = 2.0**-125 * (1 + np.sum(heads_v, axis=1)[:, None])
    bound = FIRST_ORDER * (each @ heads_v + of_rounding) + tiny
    return bound.transpose(1, 0, 2)


def split(q: Array, k: Array, v: Array, options: Options) -> list[tuple[Array, Array, Array]]:
    """Each sequence's, `[tokens, heads, head_dim]`."""
    starts = options.get("query_start")
    if starts is None:
        return list(zip(q, k, v, strict=True))
    cuts = starts[1:-1]
    key_cuts = options.get("key_start", starts)[1:-1]
    parts = (np.split(q, cuts), np.split(k, key_cuts), np.split(v, key_cuts))
    return list(zip(*parts, strict=True))


def expect(q: Array, k: Array, v: Array, **options: Any) -> tuple[Array, Array]:
    """(exact result, bound)"""
    with np.errstate(all="ignore"):
        return _expect(q, k, v, options)


def _expect(q: Array, k: Array, v: Array, options: Options) -> tuple[Array, Array]:
    exact = reference.flash_attention(wide(q), k, v, **options)
    bound = np.zeros(q.shape)
    rows = bound if q.ndim == 4 else np.split(bound, options["query_start"][1:-1])
    of = {name: options.get(name) for name in ("causal", "window", "ranges")}
    of["causal"] = options.get("causal", True)
    for s, (a, b, c) in enumerate(split(q, k, v, options)):
        if len(a) and len(b):
            visible = reference_attention.visible_keys(len(a), len(b), sequence=s, **of)
            rows[s][...] = attention_bound(a, b, c, visible, exact, options)
    return exact, bound


def check(q: Array, k: Array, v: Array, what: str = "", **options: Any) -> Array:
    """Calls flash_attention, compares, and returns its result."""
    exact, bound = expect(q, k, v, **options)
    result = ax.flash_attention(q, k, v, **options)
    assert result.dtype == q.dtype
    tolerances.assert_within(result, exact, bound, f"{what} {q.shape} {k.shape} {q.dtype}")
    return result


def dense(
    rng: Any, shape: tuple[int, int, int, int, int, int], dtype: Any
) -> tuple[Array, Array, Array]:
    """(q, k, v) of (batch, queries, keys, heads, KV heads, head_dim)."""
    batch, queries, keys, heads, kv_heads, dim = shape
    q = normal(rng, (batch, queries, heads, dim), dtype)
    return q, *(normal(rng, (batch, keys, kv_heads, dim), dtype) for _ in range(2))


def starts_of(lengths: Any) -> Array:
    """Prefix sums."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


TYPES = {
    "float32": FLOAT32,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


class Paged:
    """Sequences of random keys and values in a cache, its blocks in any order.

    Attributes:
        cache: everything that no key or value is stored to holds NaN.
        keys, values: as `gather` gives them, of all sequences, `[S, Hkv, D]`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        lengths: Any,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: str,
        compute: str = "bfloat16",
        scales: str = "tensor",
    ) -> None:
        self.lengths = np.asarray(lengths, np.int32)
        blocks = -(-self.lengths // block_size)
        count = int(blocks.sum()) + 2
        fp8 = dtype.startswith("fp8")
        options: Options = {}
        if fp8:
            options = {"compute_dtype": compute, "scales": scales}
            if scales != "token":
                heads = () if scales == "tensor" else (kv_heads,)
                options["key_scale"] = rng.uniform(0.005, 0.02, heads)
                options["value_scale"] = rng.uniform(0.005, 0.02, heads)
        self.cache = ax.PagedKVCache(count, block_size, kv_heads, head_dim, dtype, **options)
        poison(self.cache)
        order = rng.permutation(count).astype(np.int32)
        self.block_table = np.full((len(lengths), max([*blocks, 1]) + 1), -7, np.int32)
        for row, begin, number in zip(
            self.block_table, np.cumsum(blocks) - blocks, blocks, strict=True
        ):
            row[:number] = order[begin : begin + number]
        self.slots = np.concatenate(
            [
                row[np.arange(n) // block_size].astype(np.int64) * block_size
                + np.arange(n) % block_size
                for row, n in zip(self.block_table, self.lengths, strict=True)
            ]
        )
        self.dtype = TYPES[compute if fp8 else dtype]
        shape = (int(self.lengths.sum()), kv_heads, head_dim)
        self.cache.append(
            normal(rng, shape, self.dtype), normal(rng, shape, self.dtype), self.slots
        )
        self.key_start = starts_of(self.lengths)

    def run(self, q: Array, query_start: Array | None = None, **options: Any) -> Array:
        return ax.paged_attention(
            q, self.cache, self.block_table, self.lengths, query_start=query_start, **options
        )

    def expect(self, q: Array, query_start: Array | None = None, **options: Any) -> Any:
        """(exact result, bound)

        From 8 bits scales are applied to the logits and to the exponentials, in float32: one
        rounding more of either, which the bounds of the logits and of `half` have room for.
        """
        if query_start is None:
            query_start = np.arange(len(self.lengths) + 1, dtype=np.int32)
        keys, values = self.cache.gather(self.slots, "float32")
        # As q's type, for the bounds; float32 holds them exactly.
        return expect(q, keys, values, query_start=query_start, key_start=self.key_start, **options)

    def check(self, q: Array, query_start: Array | None = None, what: str = "", **options: Any):
        exact, bound = self.expect(q, query_start, **options)
        result = self.run(q, query_start, **options)
        tolerances.assert_within(result, exact, bound, f"{what} {self.cache}")
        return result


def poison(cache: ax.PagedKVCache) -> None:
    """NaN everywhere."""
    cache.data.view(np.uint8).fill(0xFF)
    if cache.scales == "token":
        cache.key_scales.fill(np.nan)
        cache.value_scales.fill(np.nan)
